"""examples/world_model.py: causality, training, sampling, baselines, output files."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import tiny_checkpoint

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))

import bouncing  # noqa: E402
import world_model  # noqa: E402
from world_net import WorldNet, bits_per_code, sample  # noqa: E402

from vtok.video.reader import VideoReader  # noqa: E402

BITS, STAGES, GRID = 3, 2, (2, 3)


def make_codes(batch: int, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**BITS, (batch, STAGES, steps, *GRID), generator=generator)


def make_net(grid: tuple[int, int] = GRID) -> WorldNet:
    torch.manual_seed(1)
    return WorldNet(BITS, STAGES, grid, width=16, depth=2, heads=2).eval()


@torch.no_grad()
@pytest.mark.parametrize("grid", [GRID, (3, 1), (1, 1)])
def test_causality(grid: tuple[int, int]) -> None:
    net, (rows, columns) = make_net(grid), grid
    codes = make_codes(1, 4)[..., :1, :1].expand(-1, -1, -1, rows, columns).clone()
    before = net(codes)
    # in the order of the codes: step, row, column, stage
    ordered = before[0].permute(1, 2, 3, 0, 4).flatten(0, 3)
    for step, row, column, stage in [(0, 0, 0, 0), (1, rows - 1, 0, 1), (2, 0, columns - 1, 0)]:
        changed = codes.clone()
        changed[0, stage, step, row, column] ^= 5
        after = net(changed)[0].permute(1, 2, 3, 0, 4).flatten(0, 3)
        place = ((step * rows + row) * columns + column) * STAGES + stage
        assert torch.equal(after[: place + 1], ordered[: place + 1])
        assert not torch.allclose(after[place + 1 :], ordered[place + 1 :])


@torch.no_grad()
def test_sampling_with_limited_context_is_exact() -> None:
    net, codes = make_net(), make_codes(2, 9)
    reach = len(net.blocks) + 3
    whole, part = net(codes)[:, :, -1], net(codes[:, :, -reach:])[:, :, -1]
    torch.testing.assert_close(whole, part)
    assert not torch.allclose(whole, net(codes[:, :, -reach + 1 :])[:, :, -1])


def moving(count: int, steps: int, seed: int) -> torch.Tensor:
    """Make random codes that move one column to the right per step, cyclically."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(2**BITS, (count, STAGES, 1, 3, 4), generator=generator)
    return torch.cat([first.roll(step, dims=4) for step in range(steps)], dim=2)


@pytest.fixture(scope="module")
def trained() -> WorldNet:
    torch.manual_seed(0)
    net = WorldNet(BITS, STAGES, (3, 4), width=32, depth=1, heads=2)
    world_model.train_net(net, moving(200, 4, seed=0), steps=150, batch=16, seed=0)
    return net


def test_model_beats_baselines(trained: WorldNet) -> None:
    train, held = moving(200, 4, seed=0), moving(20, 4, seed=1)
    marks = world_model.measure_baselines(train, held, 2**BITS, 1)
    assert marks.frequency == pytest.approx(BITS, abs=0.1)
    assert marks.copying == pytest.approx(BITS, abs=0.2)
    assert world_model.held_out_bits(trained, held, 1) < 0.2 * BITS


def test_samples_follow_the_learned_motion(trained: WorldNet) -> None:
    held = moving(5, 6, seed=2)
    dreamed = sample(trained, held[:, :, :2], 4, temperature=0.3, seed=0)
    assert dreamed.shape == held.shape
    assert torch.equal(dreamed[:, :, :2], held[:, :, :2])
    assert (dreamed == held).float().mean() > 0.9
    assert torch.equal(dreamed, sample(trained, held[:, :, :2], 4, temperature=0.3, seed=0))


def test_baselines() -> None:
    train = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]).view(1, 1, 8, 1, 1).repeat(500, 1, 1, 1, 1)
    marks = world_model.measure_baselines(train, train[:1], 4, 1)
    assert marks.frequency == pytest.approx(1, abs=0.01)
    assert marks.copying == pytest.approx(0, abs=0.01)


@torch.no_grad()
def test_bits_per_code() -> None:
    net, codes = make_net(), make_codes(2, 3)
    bits = bits_per_code(net, codes)
    assert bits.shape == codes.shape
    chances = net(codes)[1, 0, 2, 1, 2].softmax(-1)
    assert float(bits[1, 0, 2, 1, 2]) == pytest.approx(
        -math.log2(float(chances[codes[1, 0, 2, 1, 2]])), rel=1e-4
    )


def test_shapes_stay_within_the_walls() -> None:
    frames = bouncing.draw_clips(6, 20, 48, seed=3)
    assert frames.shape == (6, 20, 48, 48, 3)
    assert np.array_equal(frames, bouncing.draw_clips(6, 20, 48, seed=3))
    assert not np.array_equal(frames[0], frames[1])
    disc, square = np.moveaxis(bouncing.centres(frames), 2, 0)
    for path in (disc, square):
        assert path.min() > 4
        assert path.max() < 44
        moved = np.linalg.norm(np.diff(path, axis=1), axis=-1)
        assert moved.max() < 6  # pixels per frame; hidden shapes seem to move more
    alone = np.linalg.norm(disc - square, axis=-1).min(axis=1) > 20
    speeds = np.linalg.norm(np.diff(square, axis=1), axis=-1)
    assert alone.sum() or speeds.max() < 48 * bouncing.SPEEDS[1] + 0.5


def test_errors() -> None:
    frames = bouncing.draw_clips(2, 9, 64, seed=0)
    off, still = world_model.errors(frames, frames, 5)
    assert off == 0
    assert still > 1
    shifted = np.roll(frames, 3, axis=3)
    assert world_model.errors(frames, shifted, 5)[0] == pytest.approx(3, abs=1.5)


def test_short_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_checkpoint(tmp_path)
    arguments = ["--model", str(model), "--out", str(tmp_path / "w"), "--clips", "24", "--json"]
    small = ["--size", "16", "--steps", "80", "--width", "32", "--prompt", "7"]
    monkeypatch.setattr(sys, "argv", ["world_model.py", *arguments, *small])
    world_model.main()
    found = json.loads(capsys.readouterr().out)
    assert found["codes"] == [2, 9, 4, 4]
    assert found["model_bits"] < found["frequency_bits"]
    with VideoReader(tmp_path / "w" / "dream.mp4") as reader:
        assert sum(len(batch) for batch in reader) == 33
    assert (tmp_path / "w" / "strip.png").stat().st_size > 0


def test_prompt_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_checkpoint(tmp_path))
    arguments = ["--model", model, "--clips", "4", "--size", "16", "--prompt", "9"]
    monkeypatch.setattr(sys, "argv", ["world_model.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        world_model.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --prompt 9: expected 1 to 8 latent steps\n"
