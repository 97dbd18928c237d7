"""PSNR against hand-computed values and ffmpeg."""

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from vtok.errors import ShapeError
from vtok.evaluation.metrics import psnr
from vtok.pipeline.rate import IDENTICAL_DB, psnr_per_frame


def test_psnr_of_known_errors() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    other = black.copy()
    other[0] = 255  # MSE 255^2: 0 dB
    other[1, :2] = 10  # MSE 50: 10 log10(65025 / 50)
    assert psnr_per_frame(other, black) == pytest.approx([0.0, 31.1411], abs=1e-4)
    assert psnr(other, black) == pytest.approx(31.1411 / 2, abs=1e-4)


def test_psnr_does_not_wrap_around() -> None:
    dark, bright = np.full((1, 2, 2, 3), 1, np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert psnr(dark, bright) == psnr(bright, dark) == pytest.approx(0.0341, abs=1e-4)


def test_identical_frames_have_100_db() -> None:
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    assert psnr(frames, frames) == IDENTICAL_DB


def test_psnr_matches_ffmpeg(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    frames = np.clip(reference + rng.normal(0, 12, reference.shape), 0, 255).astype(np.uint8)
    for name, data in (("a", frames), ("b", reference)):
        (tmp_path / name).write_bytes(data.tobytes())
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x32"]
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), *raw, "-i", tmp_path / "a", *raw, "-i", tmp_path / "b",
         "-lavfi", f"psnr=stats_file={tmp_path / 'log'}", "-f", "null", "-"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.returncode == 0
    theirs = [float(x) for x in re.findall(r"psnr_avg:([\d.]+)", (tmp_path / "log").read_text())]
    assert psnr_per_frame(frames, reference) == pytest.approx(theirs, abs=0.01)


@pytest.mark.parametrize("other", [np.zeros((1, 2, 2, 3)), np.zeros((2, 2, 2, 3), np.uint8)])
def test_wrong_type_or_shape_raises(other: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected"):
        psnr(np.zeros((1, 2, 2, 3), np.uint8), other)
