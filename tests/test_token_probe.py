"""scripts/token_probe.py: no leaks between training and test windows, correct token_probe."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from token_models import make_pipeline, tiny_tokens
from videos import make_video

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))

import probe_sets  # noqa: E402
import token_probe  # noqa: E402

from vtok.video.images import write_png  # noqa: E402


def clusters(count: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes in 30 dimensions, each around its own centre."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(4, 30))
    labels = np.arange(count) % 4
    return centres[labels] + noise * rng.normal(size=(count, 30)), labels


@pytest.mark.parametrize("name", token_probe.PROBES)
def test_probes_separate_classes_but_not_shuffled_labels(name: str) -> None:
    (train, labels), (test, asked) = clusters(60, 0.5, 0), clusters(200, 0.5, 1)
    train, test = token_probe.standardized(train, test)
    assert (token_probe.PROBES[name](train, labels, test) == asked).mean() > 0.95
    shuffled = np.random.default_rng(0).permutation(labels)
    assert 0.05 < (token_probe.PROBES[name](train, shuffled, test) == asked).mean() < 0.5


def test_linear_probe_ignores_irrelevant_dimensions() -> None:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(2):
        labels = rng.integers(0, 2, 400)
        x = rng.normal(size=(400, 60))
        x[:, 7] += 5.0 * labels
        made.append((x, labels))
    (train, labels), (test, asked) = made
    right = token_probe.accuracies(train, labels, test, asked)
    assert right["linear"] > 0.9
    assert right["nearest"] < right["linear"] - 0.1


def test_standardization_uses_the_training_set_only() -> None:
    (train, _), (test, _) = clusters(40, 1.0, 0), clusters(30, 1.0, 1)
    other = test.copy()
    other[1:] *= 1000
    for one, changed in zip(
        token_probe.standardized(train, test), token_probe.standardized(train, other), strict=True
    ):
        assert np.array_equal(one[0], changed[0])
    mean = token_probe.standardized(train, test)[0].mean(axis=0)
    assert np.abs(mean).max() < 1e-9
    constant = np.ones((5, 2))
    assert np.array_equal(token_probe.standardized(constant, constant)[1], np.zeros((5, 2)))


def test_ridge_matches_explicit_leave_one_out() -> None:
    train, labels = clusters(24, 2.0, 0)
    test, _ = clusters(50, 2.0, 1)
    kernel, targets = train @ train.T / train.shape[1], np.eye(4)[labels]
    centred = targets - targets.mean(axis=0)

    def error(ridge: float) -> float:
        total = 0.0
        for out in range(24):
            kept = np.arange(24) != out
            solved = np.linalg.solve(kernel[np.ix_(kept, kept)] + ridge * np.eye(23), centred[kept])
            total += float(((kernel[out, kept] @ solved - centred[out]) ** 2).sum())
        return total

    ridge = min(token_probe.RIDGES, key=error)
    scores = test @ train.T / train.shape[1] @ np.linalg.solve(
        kernel + ridge * np.eye(24), centred
    ) + targets.mean(axis=0)
    assert np.array_equal(token_probe.linear_probe(train, labels, test), scores.argmax(axis=1))


def test_test_windows_lie_after_the_gap() -> None:
    frames = np.zeros((100, 150, 160, 3), np.uint8)
    frames += np.arange(100, dtype=np.uint8)[:, None, None, None]
    for seed in range(20):
        made = probe_sets.clip_windows(frames, 3, 5, seed)
        assert made.train.shape == made.test.shape == (5, 9, 128, 128, 3)
        assert made.train.max() < 40
        assert made.test.min() >= 60
        assert set(made.train_labels) == set(made.test_labels) == {3}
        steps = made.train[:, :, 0, 0, 0].astype(int)
        assert (np.diff(steps, axis=1) == 1).all()
    again = probe_sets.clip_windows(frames, 3, 5, 19)
    assert np.array_equal(again.train, made.train)
    shortest = frames[:23]
    assert probe_sets.has_windows(shortest)
    assert not probe_sets.has_windows(frames[:22])
    assert probe_sets.clip_windows(shortest, 0, 9, 0).test.min() >= 14


def test_patch_slides_in_the_direction_of_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    def texture(side: int, pictures: object, rng: object) -> np.ndarray:
        return np.full((side, side, 3), 255 if side == probe_sets.PATCH else 0, np.uint8)

    monkeypatch.setattr(probe_sets, "_texture", texture)
    made = probe_sets.sliding_windows([], 64, 32, 1)
    assert sorted(np.bincount(made.train_labels)) == [8] * 8
    grid = np.arange(probe_sets.MOTION_SIDE)
    for window, label in zip(made.train, made.train_labels, strict=True):
        lit = window[..., 0] > 127
        assert (lit.sum((1, 2)) == probe_sets.PATCH**2).all()  # always inside the frame
        x = (lit * grid).sum((1, 2)) / lit.sum((1, 2))
        y = (lit * grid[:, None]).sum((1, 2)) / lit.sum((1, 2))
        for path, sign in zip((x, y), probe_sets.DIRECTIONS[label], strict=True):
            moved = np.diff(path) * sign if sign else -np.abs(np.diff(path))
            assert (moved >= 2).all() if sign else (moved == 0).all()
            assert (moved <= 3).all()


def test_test_textures_are_not_used_in_training(tmp_path: Path) -> None:
    photos = []
    for number in range(9):
        photos.append(tmp_path / f"{number}.png")
        write_png(photos[-1], np.full((40, 50, 3), 20 * number, np.uint8))
    made = probe_sets.sliding_windows(photos, 60, 60, 0)
    train, test = set(np.unique(made.train)), set(np.unique(made.test))
    assert len(train) == 12  # as backgrounds and as patches
    assert len(test) == 6
    assert not train & test
    noise = probe_sets.sliding_windows([], 8, 8, 0)
    assert noise.train.std() > 20


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [((16, 16), 9, (3, 3)), ((16, 16), 75, (8, 9)), ((2, 3), 99, (2, 3)), ((9, 9), 1, (1, 1))],
)
def test_widest_grid(size: tuple[int, int], most: int, grid: tuple[int, int]) -> None:
    assert token_probe.widest_grid(size, most) == grid


def test_features() -> None:
    latents = torch.randn(3, 6, 2, 8, 8)
    means = token_probe.pooled("", lambda size, dim: (2, 4)).make(latents, 0)
    cell = latents[1, :, 1, 4:, 2:4].mean((1, 2))  # the second row, the second column
    torch.testing.assert_close(means[1, 1].view(6, 2, 4)[:, 1, 1], cell)
    scattered = token_probe.scattered(30).make
    assert scattered(latents, 0).shape == (3, 2, 30)
    assert torch.equal(scattered(latents, 0)[:1], scattered(latents[:1], 0))
    assert not torch.equal(scattered(latents, 0), scattered(latents, 1))
    pipeline = make_pipeline()
    with torch.no_grad():
        real = token_probe.learned("", pipeline, 4).make(latents, 0)
        fresh = [token_probe.untrained("", pipeline, 4).make(latents, seed) for seed in (0, 0, 1)]
    assert real.shape == fresh[0].shape == (3, 2, 4 * 16)
    assert torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[0], fresh[2])
    assert not torch.equal(fresh[0], real)


def test_script_prints_json_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, learner = tiny_tokens(tmp_path)
    videos = [make_video(tmp_path / f"{n}.mp4", 30 + n) for n in range(2)]
    videos.append(make_video(tmp_path / "short.mp4", 9))
    arguments = ["--model", str(model), "--learners", str(learner), "--tokens", "4"]
    small = ["--seeds", "2", "--windows", "2", "--slides", "16", "--json"]
    monkeypatch.setattr(sys, "argv", ["probe", *map(str, videos), *arguments, *small])
    token_probe.main()
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert "short.mp4: too short" in shown.err
    assert (found["clips"], found["seeds"]) == (2, 2)
    assert found["chance"] == {"clip": 0.5, "direction": 0.125}
    names = [row["features"] for row in found["rows"]]
    assert names[:2] == ["4 tokens, v11", "4 tokens, v11, fresh weights"]
    assert len(names) == 5
    for row in found["rows"]:
        assert row["clip numbers"] <= 64
        assert len(row["direction nearest"]) == 2
        assert all(0 <= share <= 1 for share in row["clip linear"])
    assert "| chance | | 50.0 | 50.0 | 12.5 | 12.5 |" in token_probe.markdown(found)


def test_a_single_video_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, learner = tiny_tokens(tmp_path)
    video = make_video(tmp_path / "a.mp4", 30)
    arguments = [str(video), "--model", str(model), "--learners", str(learner)]
    monkeypatch.setattr(sys, "argv", ["probe", *arguments])
    with pytest.raises(SystemExit) as ended:
        token_probe.main()
    assert ended.value.code == 5
    assert "two or more videos" in capsys.readouterr().err
