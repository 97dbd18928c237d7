"""Training parts: Muon makes steps orthogonal, clips are what they should be and come again."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vtok.checkpoint import load_checkpoint
from vtok.training.clips import ClipSampler, camera_path
from vtok.training.muon import Muon, orthogonalize

ROOT = Path(__file__).parent.parent


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind, shape in (("video", (24, 80, 96, 3)), ("photo", (90, 120, 3))):
        (tmp_path / kind).mkdir()
        for name in ("a__one.0", "a__one.1", "b__two.0"):
            np.save(tmp_path / kind / f"{name}.npy", rng.integers(0, 256, shape, dtype=np.uint8))
    return tmp_path


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalize(matrix)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(
        result.flatten(), (left @ right).flatten(), dim=0
    ) > 0.95  # fmt: skip


def test_muon_learns_a_convolution() -> None:
    torch.manual_seed(0)
    target, learner = nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(4, 6, 3, bias=False)
    optimizer = Muon(learner.parameters(), lr=0.02)
    losses = []
    for step in range(150):
        x = torch.randn(16, 4, 6, 6)
        loss = (learner(x) - target(x)).square().mean()
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 150)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


@pytest.mark.parametrize("photo_share", [0.0, 1.0])
def test_clips_are_in_range_and_come_again(corpus: Path, photo_share: float) -> None:
    sampler = ClipSampler(corpus, frames=5, crop=32, photo_share=photo_share)
    one, two, other = (sampler.batch(3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 3, 5, 32, 32)
    assert one.dtype == torch.float32
    assert -1 <= one.min() < -0.5
    assert 0.5 < one.max() <= 1
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_clips_are_windows_of_the_video(corpus: Path) -> None:
    for path in (corpus / "video").iterdir():
        frames = (
            np.zeros((24, 40, 40, 3), np.uint8) + np.arange(24, dtype=np.uint8)[:, None, None, None]
        )
        np.save(path, frames)
    sampler = ClipSampler(corpus, frames=4, crop=40, photo_share=0.0)
    for seed in range(20):
        clip = sampler.clip(np.random.default_rng(seed))
        numbers = ((clip[0, :, 0, 0] + 1) * 127.5).round().int().tolist()
        stride = numbers[1] - numbers[0]
        assert stride in (1, 2)
        assert numbers == list(range(numbers[0], numbers[0] + 4 * stride, stride))


def test_alike_clips_of_one_source_count_less(corpus: Path) -> None:
    sampler = ClipSampler(corpus, frames=4, crop=32)
    assert sampler.names == ["a__one", "b__two"]  # two parts of one video are one clip
    assert sampler.weights == pytest.approx([0.5, 0.5])


def test_camera_moves_smoothly() -> None:
    for seed in range(20):
        grid = camera_path(9, 16, torch.Size((200, 300)), np.random.default_rng(seed))
        assert grid.shape == (9, 16, 16, 2)
        steps = grid[1:, 8, 8] - grid[:-1, 8, 8]
        assert (steps[1:] - steps[:-1]).abs().max() < 0.2  # no jumps


@pytest.mark.slow
def test_script_trains_resumes_and_exports(corpus: Path, tmp_path: Path) -> None:
    def train(out: str, *options: str) -> str:
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "train_base.py", "--data", corpus, "--out",
             tmp_path / out, "--batch", "1", "--frames", "5", "--crop", "32", "--threads", "1",
             "--decay-from", "0", *options],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    train("whole", "--steps", "4")
    state = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)
    assert state["step"] == 4
    exported = tmp_path / "tiny.safetensors"
    assert "step 4" in train("whole", "--export", str(exported))
    tokenizer, info = load_checkpoint(exported)
    assert info.name == "tiny"
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(value, state["model"][key].half().float())
    train("whole", "--steps", "6")
    assert torch.load(tmp_path / "whole" / "state.pt", weights_only=True)["step"] == 6
