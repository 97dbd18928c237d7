"""SSIM and MS-SSIM against values worked out by hand, a plain sum, and two other programs."""

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pytest
import torch
from pytorch_msssim import ms_ssim, ssim

from vtok.errors import ShapeError
from vtok.evaluation.metrics import (
    C1,
    MS_SIDE,
    SIGMA,
    ms_ssim_per_frame,
    similarities_per_frame,
    ssim_per_frame,
)

Frames = npt.NDArray[np.uint8]


def smooth(height: int, width: int, count: int = 2, seed: int = 0) -> Frames:
    """Frames with something in them at every scale."""
    rng = np.random.default_rng(seed)
    total = np.zeros((count, height, width, 3))
    for step in (1, 4, 16):
        coarse = rng.normal(0, 20, (count, height // step + 1, width // step + 1, 3))
        total += coarse.repeat(step, axis=1).repeat(step, axis=2)[:, :height, :width]
    return (total + 128).clip(0, 255).astype(np.uint8)


def noisy(frames: Frames, amount: float = 12, seed: int = 1) -> Frames:
    noise = np.random.default_rng(seed).normal(0, amount, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def test_two_flat_frames_differ_in_luminance_alone() -> None:
    frames, reference = (
        np.full((1, 20, 20, 3), 100, np.uint8),
        np.full((1, 20, 20, 3), 50, np.uint8),
    )
    expected = (2 * 100 * 50 + C1) / (100**2 + 50**2 + C1)  # both variances are zero
    assert ssim_per_frame(frames, reference) == pytest.approx([expected], abs=1e-4)


def test_channels_count_alike() -> None:
    reference = np.full((1, 16, 16, 3), 80, np.uint8)
    frames = reference.copy()
    frames[..., 1] = 160
    one = (2 * 80 * 160 + C1) / (80**2 + 160**2 + C1)
    assert ssim_per_frame(frames, reference) == pytest.approx([(2 + one) / 3], abs=1e-4)


def test_one_window_is_a_plain_weighted_sum() -> None:
    reference = smooth(11, 11, 1)
    frames = noisy(reference)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * SIGMA**2))
    window /= window.sum()
    values = []
    for channel in range(3):
        x, y = (part[0, ..., channel].astype(float) for part in (frames, reference))
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
        covariance = (window * (x - mean_x) * (y - mean_y)).sum()
        c2 = (0.03 * 255) ** 2
        luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
        values.append(luminance * (2 * covariance + c2) / (var_x + var_y + c2))
    assert ssim_per_frame(frames, reference) == pytest.approx([np.mean(values)], abs=1e-5)


def test_equal_frames_are_alike() -> None:
    frames = smooth(MS_SIDE, MS_SIDE, 1)
    assert ssim_per_frame(frames, frames) == pytest.approx([1.0], abs=1e-6)
    assert ms_ssim_per_frame(frames, frames) == pytest.approx([1.0], abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(11, 12), (43, 75), (176, 208), (192, 177)])
def test_agrees_with_a_second_implementation(height: int, width: int) -> None:
    reference = smooth(height, width)
    frames = noisy(reference)
    x, y = (torch.from_numpy(part).permute(0, 3, 1, 2).float() for part in (frames, reference))
    theirs = ssim(x, y, 255, size_average=False).numpy()
    assert ssim_per_frame(frames, reference) == pytest.approx(theirs, abs=1e-5)
    if min(height, width) < MS_SIDE:
        return
    theirs = ms_ssim(x, y, 255, size_average=False).numpy()
    # an odd side is halved in another way there, with zeros around the frame
    tolerance = 1e-5 if height % 16 == width % 16 == 0 else 5e-3
    assert ms_ssim_per_frame(frames, reference) == pytest.approx(theirs, abs=tolerance)


def test_both_at_once_are_the_same_as_each() -> None:
    reference = smooth(MS_SIDE, MS_SIDE + 5, 1)
    frames = noisy(reference)
    single, multiple = similarities_per_frame(frames, reference, multi_scale=True)
    assert single == ssim_per_frame(frames, reference)
    assert multiple == ms_ssim_per_frame(frames, reference)


def test_opposite_frames_are_no_error() -> None:
    frames = smooth(MS_SIDE, MS_SIDE, 1)
    assert ssim_per_frame(255 - frames, frames) < 0
    assert ms_ssim_per_frame(255 - frames, frames) == [0.0]  # a negative value has no root


def test_ffmpeg_ranks_alike(tmp_path: Path) -> None:
    reference = smooth(64, 96, 1)
    ours, theirs = [], []
    for amount in (4, 12, 30):
        frames = noisy(reference, amount)
        ours.append(float(ssim_per_frame(frames, reference)[0]))
        theirs.append(ffmpeg_ssim(frames, reference, tmp_path))
    # its windows are 8x8 boxes and it looks at other colours: alike, not the same
    assert ours == pytest.approx(theirs, abs=0.06)
    assert sorted(ours, reverse=True) == ours


def ffmpeg_ssim(frames: Frames, reference: Frames, folder: Path) -> float:
    """SSIM over R, G and B as ffmpeg measures it."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{frames.shape[2]}x{frames.shape[1]}"]
    inputs = []
    for name, data in (("a", frames), ("b", reference)):
        (folder / name).write_bytes(data.tobytes())
        inputs += [*raw, "-i", folder / name]
    graph = "[0]format=gbrp[x];[1]format=gbrp[y];[x][y]ssim"
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *inputs, "-lavfi", graph, "-f", "null", "-"],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    return float(re.findall(r"All:([\d.]+)", done.stderr)[-1])


@pytest.mark.parametrize(
    ("function", "size", "words"),
    [
        (ssim_per_frame, (10, 64), "64x10: SSIM needs 11 pixels"),
        (ms_ssim_per_frame, (176, 175), "175x176: MS-SSIM needs 176 pixels"),
    ],
)
def test_small_frames_are_refused(function, size: tuple[int, int], words: str) -> None:
    frames = np.zeros((1, *size, 3), np.uint8)
    with pytest.raises(ShapeError, match=words):
        function(frames, frames)


def test_frames_of_two_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected two of one shape"):
        ssim_per_frame(np.zeros((1, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8))
