"""SSIM and MS-SSIM against hand-computed values and two other implementations."""

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
from vtok.evaluation.metrics import K1, MS_SIDE, SIGMA, Values, similarities_per_frame

Frames = npt.NDArray[np.uint8]
C1 = (K1 * 255) ** 2


def smooth(height: int, width: int, count: int = 2, seed: int = 0) -> Frames:
    """Random frames with detail at every scale."""
    rng = np.random.default_rng(seed)
    total = np.zeros((count, height, width, 3))
    for step in (1, 4, 16):
        coarse = rng.normal(0, 20, (count, height // step + 1, width // step + 1, 3))
        total += coarse.repeat(step, axis=1).repeat(step, axis=2)[:, :height, :width]
    return (total + 128).clip(0, 255).astype(np.uint8)


def noisy(frames: Frames, amount: float = 12, seed: int = 1) -> Frames:
    noise = np.random.default_rng(seed).normal(0, amount, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def ssim_per_frame(frames: Frames, reference: Frames) -> Values:
    return similarities_per_frame(frames, reference, multi_scale=False)[0]


def ms_ssim_per_frame(frames: Frames, reference: Frames) -> Values:
    return similarities_per_frame(frames, reference, multi_scale=True)[1]


def test_ssim_of_uniform_frames_is_the_luminance_term() -> None:
    frames, reference = (
        np.full((1, 20, 20, 3), 100, np.uint8),
        np.full((1, 20, 20, 3), 50, np.uint8),
    )
    expected = (2 * 100 * 50 + C1) / (100**2 + 50**2 + C1)  # both variances are zero
    assert ssim_per_frame(frames, reference) == pytest.approx([expected], abs=1e-4)


def test_ssim_averages_the_channels() -> None:
    reference = np.full((1, 16, 16, 3), 80, np.uint8)
    frames = reference.copy()
    frames[..., 1] = 160
    one = (2 * 80 * 160 + C1) / (80**2 + 160**2 + C1)
    assert ssim_per_frame(frames, reference) == pytest.approx([(2 + one) / 3], abs=1e-4)


def test_ssim_of_one_window_matches_a_weighted_sum() -> None:
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


def test_equal_frames_have_similarity_one() -> None:
    frames = smooth(MS_SIDE, MS_SIDE, 1)
    assert ssim_per_frame(frames, frames) == pytest.approx([1.0], abs=1e-6)
    assert ms_ssim_per_frame(frames, frames) == pytest.approx([1.0], abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(11, 12), (43, 75), (176, 208), (192, 177)])
def test_matches_pytorch_msssim(height: int, width: int) -> None:
    reference = smooth(height, width)
    frames = noisy(reference)
    x, y = (torch.from_numpy(part).permute(0, 3, 1, 2).float() for part in (frames, reference))
    theirs = ssim(x, y, 255, size_average=False).numpy()
    assert ssim_per_frame(frames, reference) == pytest.approx(theirs, abs=1e-5)
    if min(height, width) < MS_SIDE:
        return
    theirs = ms_ssim(x, y, 255, size_average=False).numpy()
    # pytorch_msssim pads odd sides with zeros before it halves them
    tolerance = 1e-5 if height % 16 == width % 16 == 0 else 5e-3
    assert ms_ssim_per_frame(frames, reference) == pytest.approx(theirs, abs=tolerance)


def test_ssim_is_the_same_with_ms_ssim() -> None:
    reference = smooth(MS_SIDE, MS_SIDE + 5, 1)
    frames = noisy(reference)
    single, multiple = similarities_per_frame(frames, reference, multi_scale=True)
    assert single == ssim_per_frame(frames, reference)
    assert np.isfinite(multiple).all()
    assert np.isnan(similarities_per_frame(frames, reference, multi_scale=False)[1]).all()


def test_ms_ssim_of_inverted_frames_is_zero() -> None:
    frames = smooth(MS_SIDE, MS_SIDE, 1)
    assert ssim_per_frame(255 - frames, frames) < 0
    assert ms_ssim_per_frame(255 - frames, frames) == [0.0]  # negative terms are clipped


def test_ssim_is_close_to_ffmpeg(tmp_path: Path) -> None:
    reference = smooth(64, 96, 1)
    ours, theirs = [], []
    for amount in (4, 12, 30):
        frames = noisy(reference, amount)
        ours.append(float(ssim_per_frame(frames, reference)[0]))
        theirs.append(ffmpeg_ssim(frames, reference, tmp_path))
    # ffmpeg uses 8x8 box windows, so values are close but not equal
    assert ours == pytest.approx(theirs, abs=0.06)
    assert sorted(ours, reverse=True) == ours


def ffmpeg_ssim(frames: Frames, reference: Frames, folder: Path) -> float:
    """SSIM of R, G and B by ffmpeg."""
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
def test_frames_below_the_minimum_size_raise(function, size: tuple[int, int], words: str) -> None:
    frames = np.zeros((1, *size, 3), np.uint8)
    with pytest.raises(ShapeError, match=words):
        function(frames, frames)


def test_different_shapes_raise() -> None:
    with pytest.raises(ShapeError, match="expected two of one shape"):
        ssim_per_frame(np.zeros((1, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3), np.uint8))
