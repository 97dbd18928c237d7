"""Multi-scale structural similarity, as a loss: what a person sees rather than what differs.

Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment" (2003).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtok.training.config import WINDOW

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SIGMA = 1.5
RANGE = 2.0  # of pixels in -1..1
C1, C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2


def ms_ssim(recon: Tensor, clip: Tensor) -> Tensor:
    """Mean MS-SSIM over the frames of two clips.

    Five scales need frames of 176 pixels; smaller ones use as many as fit, the weights scaled to
    the same sum.

    Args:
        recon, clip: float [B, C, T, H, W], pixels in -1..1; at least 11 x 11.

    Returns:
        A scalar, 1 for equal clips.
    """
    x, y = (part.float().transpose(1, 2).flatten(0, 1) for part in (recon, clip))
    count = num_scales(min(x.shape[-2:]))
    share = sum(SCALE_WEIGHTS[:count])
    result = torch.ones(x.shape[:2], device=x.device)
    for scale, weight in enumerate(SCALE_WEIGHTS[:count]):
        luminance, structure = _similarities(x, y)
        term = luminance * structure if scale == count - 1 else structure
        # a negative similarity has no root
        result = result * term.mean((2, 3)).clamp(min=1e-4) ** (weight / share)
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result.mean()


def num_scales(size: int) -> int:
    """How many scales frames with this short side have: each is halved until no window fits."""
    fitting = [n for n in range(len(SCALE_WEIGHTS)) if size >> n >= WINDOW]
    return max(1, len(fitting))


def _similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of luminance, and of contrast and structure, at each position of [N, C, H, W]."""
    mean_x, mean_y, xx, yy, xy = _blur(torch.cat((x, y, x * x, y * y, x * y))).chunk(5)
    variances = xx - mean_x.square() + yy - mean_y.square()
    structure = (2 * (xy - mean_x * mean_y) + C2) / (variances + C2)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    return luminance, structure


def _blur(x: Tensor) -> Tensor:
    """A Gaussian window around each position where it fits."""
    offsets = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - (WINDOW - 1) / 2
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(x, window, groups=x.shape[1])
    return F.conv2d(x, window.transpose(2, 3), groups=x.shape[1])
