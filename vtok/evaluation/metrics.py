"""PSNR, SSIM and MS-SSIM: the definitions that evaluation and training share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vtok.errors import ShapeError
from vtok.pipeline.rate import IDENTICAL_DB as IDENTICAL_DB
from vtok.pipeline.rate import check_pair as check_pair
from vtok.pipeline.rate import psnr_per_frame as psnr_per_frame
from vtok.video.frames import Frames as Frames

Values = npt.NDArray[np.float64]

WINDOW, SIGMA = 11, 1.5  # of the Gaussian window of SSIM, in pixels
K1, K2 = 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SIDE = WINDOW << (len(SCALE_WEIGHTS) - 1)
"""Smallest height and width for MS-SSIM, 176: the window fits once at the last scale."""
_BLOCK = 32  # rows or columns filtered by one matrix product


def psnr(frames: Frames, reference: Frames) -> float:
    """Mean over frames of `psnr_per_frame`, in dB."""
    return float(psnr_per_frame(frames, reference).mean())


def ssim_per_frame(frames: Frames, reference: Frames) -> Values:
    """SSIM of each frame (Wang et al., IEEE TIP 13, 2004), the mean over R, G and B.

    Args:
        frames: uint8 [T, H, W, 3], at least 11 x 11.
        reference: the original frames, of the same shape.

    Returns:
        float64 [T], 1 for equal frames.

    Raises:
        ShapeError: if the types are not uint8, the shapes differ or the frames are smaller.
    """
    return similarities_per_frame(frames, reference, multi_scale=False)[0]


def ms_ssim_per_frame(frames: Frames, reference: Frames) -> Values:
    """MS-SSIM of each frame (Wang et al., Asilomar 2003); frames of at least 176 x 176.

    Otherwise as `ssim_per_frame`.
    """
    check_side(frames.shape[1:3], MS_SIDE, "MS-SSIM")
    return similarities_per_frame(frames, reference, multi_scale=True)[1]


def similarities_per_frame(
    frames: Frames, reference: Frames, *, multi_scale: bool
) -> tuple[Values, Values]:
    """SSIM and MS-SSIM of each frame in one computation; MS-SSIM is NaN unless `multi_scale`."""
    check_pair(frames, reference)
    check_side(frames.shape[1:3], WINDOW, "SSIM")
    single, multiple = np.empty(len(frames)), np.full(len(frames), np.nan)
    weights = SCALE_WEIGHTS if multi_scale else SCALE_WEIGHTS[:1]
    with torch.inference_mode():
        for number, pair in enumerate(zip(frames, reference, strict=True)):
            # a copy: frames decoded from a pipe are read-only, which torch warns about
            x, y = (torch.from_numpy(frame.copy()).permute(2, 0, 1).float() for frame in pair)
            values = similarities(x.contiguous(), y.contiguous(), 255.0, weights)
            single[number] = values[0].double().mean()
            if multi_scale:
                multiple[number] = values[1].double().mean()
    return single, multiple


def similarities(
    x: Tensor,
    y: Tensor,
    value_range: float,
    weights: Sequence[float] = SCALE_WEIGHTS,
    floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """SSIM and MS-SSIM of planes; differentiable.

    Args:
        x, y: float [..., C, H, W]; the window has to fit at the last scale.
        value_range: difference of the largest and the smallest pixel value.
        weights: exponent of each scale of MS-SSIM, finest scale first.
        floor: lower limit of a similarity before its root is taken: negative values have no root,
            and at 0 the root has no finite gradient.

    Returns:
        Two tensors [..., C].
    """
    for scale, weight in enumerate(weights):
        ssim, structure = _compare(x, y, value_range)
        if not scale:
            single, product = ssim, torch.ones_like(ssim)
        term = ssim if scale == len(weights) - 1 else structure
        product = product * term.clamp(min=floor) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return single, product


def check_side(size: tuple[int, ...], smallest: int, metric: str) -> None:
    """Check that frames of `size` (height, width) are large enough for a metric.

    Raises:
        ShapeError: if a side is shorter than `smallest` pixels.
    """
    if min(size) < smallest:
        raise ShapeError(
            f"frames of {size[1]}x{size[0]}: {metric} needs {smallest} pixels on each side"
        )


def _compare(x: Tensor, y: Tensor, value_range: float) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure term, each the mean over positions, [..., C]."""
    c1, c2 = (K1 * value_range) ** 2, (K2 * value_range) ** 2
    mean_x, mean_y, squares, products = _blur(torch.stack((x, y, x * x + y * y, x * y)))
    means_product = mean_x * mean_y
    means_squares = mean_x * mean_x + mean_y * mean_y
    structure = (2 * (products - means_product) + c2) / (squares - means_squares + c2)
    luminance = (2 * means_product + c1) / (means_squares + c1)
    return (luminance * structure).mean((-2, -1)), structure.mean((-2, -1))


def _blur(x: Tensor) -> Tensor:
    """[..., H, W] -> [..., H - 10, W - 10]: Gaussian means where the window fits.

    Rows, then columns, in blocks that are multiplied by a band matrix, which on a CPU is as fast
    as a depthwise convolution at its best and never much slower.
    """
    height, width = (side - WINDOW + 1 for side in x.shape[-2:])
    rows = []
    for start in range(0, height, _BLOCK):
        count = min(_BLOCK, height - start)
        rows.append(_band(count, x) @ x[..., start : start + count + WINDOW - 1, :])
    x, columns = torch.cat(rows, dim=-2), []
    for start in range(0, width, _BLOCK):
        count = min(_BLOCK, width - start)
        columns.append(x[..., start : start + count + WINDOW - 1] @ _band(count, x).T)
    return torch.cat(columns, dim=-1)


def _band(count: int, like: Tensor) -> Tensor:
    """[count, count + 10] with the window's weights in each row, shifted by one from row to row."""
    return torch.from_numpy(_band_array(count)).to(like)


@cache  # arrays: a tensor made in inference mode could not be used in training later
def _band_array(count: int) -> npt.NDArray[np.float32]:
    offsets = np.arange(WINDOW) - (WINDOW - 1) / 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    band = np.zeros((count, count + WINDOW - 1), np.float32)
    for row in range(count):
        band[row, row : row + WINDOW] = window / window.sum()
    return band
