"""PSNR, defined once: on uint8 frames, cast before subtracting, averaged over frames."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from vtok.errors import ShapeError
from vtok.pipeline.rate import IDENTICAL_DB as IDENTICAL_DB
from vtok.pipeline.rate import check_pair as check_pair
from vtok.pipeline.rate import psnr_per_frame as psnr_per_frame
from vtok.video.frames import Frames as Frames


def psnr(frames: Frames, reference: Frames) -> float:
    """Mean over frames of `psnr_per_frame`, in dB."""
    return float(psnr_per_frame(frames, reference).mean())


WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SIDE = WINDOW << (len(SCALE_WEIGHTS) - 1)
"""Least height and width for MS-SSIM, 176: at its last scale, the window still fits once."""
BLOCK = 32  # rows or columns that one matrix product filters

Plane = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]


def ssim_per_frame(frames: Frames, reference: Frames) -> Values:
    """SSIM of each frame, up to 1 for equal frames.

    Args:
        frames: uint8 [T, H, W, 3], at least 11 x 11.
        reference: of the same shape.

    Returns:
        float64 [T].

    Raises:
        ShapeError: for other types, two shapes, or smaller frames.
    """
    return similarities_per_frame(frames, reference, multi_scale=False)[0]


def ms_ssim_per_frame(frames: Frames, reference: Frames) -> Values:
    """MS-SSIM of each frame; see `ssim_per_frame`, but at least 176 x 176."""
    check_side(frames.shape[1:3], MS_SIDE, "MS-SSIM")
    return similarities_per_frame(frames, reference, multi_scale=True)[1]


def similarities_per_frame(
    frames: Frames, reference: Frames, *, multi_scale: bool
) -> tuple[Values, Values]:
    """SSIM and MS-SSIM of each frame at the price of one; MS-SSIM is NaN where it was not asked."""
    check_pair(frames, reference)
    check_side(frames.shape[1:3], WINDOW, "SSIM")
    single, multiple = np.empty(len(frames)), np.full(len(frames), np.nan)
    for number, pair in enumerate(zip(frames, reference, strict=True)):
        x, y = (_planes(frame) for frame in pair)
        ssim, structure = _compare(x, y)
        single[number] = ssim.mean()
        if multi_scale:
            multiple[number] = _over_scales(x, y, structure)
    return single, multiple


def check_side(size: tuple[int, ...], least: int, what: str) -> None:
    """Refuse frames of (height, width) that are too small.

    Raises:
        ShapeError: if so.
    """
    if min(size) < least:
        raise ShapeError(f"frames of {size[1]}x{size[0]}: {what} needs {least} pixels on each side")


def _over_scales(x: Plane, y: Plane, structure: Values) -> float:
    """MS-SSIM of two frames [3, H, W], given the structure term of the first scale."""
    *coarse, last = SCALE_WEIGHTS
    result = np.ones(3)
    for weight in coarse:
        result *= structure.clip(min=0) ** weight  # a negative similarity has no root
        x, y = _halve(x), _halve(y)
        ssim, structure = _compare(x, y)
    return float((result * ssim.clip(min=0) ** last).mean())


def _planes(frame: Frames) -> Plane:
    """uint8 [H, W, 3] -> float32 [3, H, W]."""
    return np.ascontiguousarray(frame.transpose(2, 0, 1), dtype=np.float32)


def _compare(x: Plane, y: Plane) -> tuple[Values, Values]:
    """SSIM and its contrast and structure term, each the mean over positions, float64 [3]."""
    mean_x, mean_y, squares, products = _blur(np.stack((x, y, x * x + y * y, x * y)))
    both = mean_x * mean_y
    means = mean_x * mean_x + mean_y * mean_y
    structure = (2 * (products - both) + np.float32(C2)) / (squares - means + np.float32(C2))
    luminance = (2 * both + np.float32(C1)) / (means + np.float32(C1))
    spatial = (-2, -1)
    ssim: Values = (luminance * structure).mean(spatial, dtype=np.float64)
    return ssim, structure.mean(spatial, dtype=np.float64)


def _halve(x: Plane) -> Plane:
    """[..., H, W] -> [..., H // 2, W // 2]: the mean of each 2 x 2 pixels."""
    height, width = (side // 2 * 2 for side in x.shape[-2:])
    rows = x[..., 0:height:2, :width] + x[..., 1:height:2, :width]
    halved: Plane = (rows[..., 0::2] + rows[..., 1::2]) * np.float32(0.25)
    return halved


def _blur(x: Plane) -> Plane:
    """[..., H, W] -> [..., H - 10, W - 10]: the window's weighted mean at each position.

    Rows, then columns, in blocks as products with a band matrix: though most of its entries are
    zero, that is several times as fast as eleven passes over the picture.
    """
    height, width = (side - WINDOW + 1 for side in x.shape[-2:])
    rows = np.empty((*x.shape[:-2], height, x.shape[-1]), np.float32)
    for start in range(0, height, BLOCK):
        count = min(BLOCK, height - start)
        source = x[..., start : start + count + WINDOW - 1, :]
        rows[..., start : start + count, :] = _band(count) @ source
    result = np.empty((*x.shape[:-2], height, width), np.float32)
    for start in range(0, width, BLOCK):
        count = min(BLOCK, width - start)
        source = rows[..., start : start + count + WINDOW - 1]
        result[..., start : start + count] = source @ _band(count).T
    return result


@cache
def _band(count: int) -> Plane:
    """[count, count + 10]: in each row the window's weights, one place further on."""
    offsets = np.arange(WINDOW) - (WINDOW - 1) / 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    band = np.zeros((count, count + WINDOW - 1), np.float32)
    for row in range(count):
        band[row, row : row + WINDOW] = window / window.sum()
    return band
