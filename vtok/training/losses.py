"""What training minimises: errors of the reconstruction and the quantizer's losses, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vtok.nn.quantize import QuantizerLosses
from vtok.training.config import WINDOW, TrainingConfig
from vtok.training.schedule import adversarial_weight, entropy_weight

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


ROOT_FLOOR = 1e-5  # keeps the slope of the root finite where a clip is reconstructed exactly


def weights_at(step: int, config: TrainingConfig) -> dict[str, float]:
    """The weight of each part of the loss at a step; parts of weight zero are left out."""
    weights = {name: getattr(config, name) for name in ("l1", "mse", "rmse", "ms_ssim")}
    weights |= {"entropy": entropy_weight(step, config), "commitment": config.commitment}
    weights["adversarial"] = adversarial_weight(step, config)
    return {name: weight for name, weight in weights.items() if weight > 0}


def squared_errors(recon: Tensor, clip: Tensor) -> Tensor:
    """Mean squared error of each clip [B, C, T, H, W], float32 [B]."""
    return (recon.float() - clip).square().mean((1, 2, 3, 4))


def loss_parts(
    recon: Tensor,
    clip: Tensor,
    quantizer: QuantizerLosses,
    diversity: float,
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The parts that have a weight, but the adversarial one, each a scalar before its weight.

    Args:
        recon, clip: [B, C, T, H, W], pixels in -1..1.
        quantizer: of the batch.
        diversity: weight of the batch entropy within the entropy loss.
        weights: as `weights_at` gives them.

    Returns:
        `l1` and `mse`: mean absolute and squared error. `rmse`: mean root of each clip's squared
        error, in which a hard clip does not outweigh the others. `ms_ssim`: 1 - MS-SSIM.
        `entropy`: of a bit given its latent, less its entropy over the batch. `commitment`.
    """
    error = squared_errors(recon, clip)
    parts = {
        "l1": (recon.float() - clip).abs().mean(),
        "mse": error.mean(),
        "rmse": (error + ROOT_FLOOR).sqrt().mean(),
        "entropy": quantizer.per_sample_entropy - diversity * quantizer.batch_entropy,
        "commitment": quantizer.commitment,
    }
    if "ms_ssim" in weights:  # the one that takes time
        parts["ms_ssim"] = 1 - ms_ssim(recon, clip)
    return {name: part for name, part in parts.items() if name in weights}


def weighted_sum(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss: each part times its weight; parts without one do not count."""
    return torch.stack([weights[name] * part for name, part in parts.items()]).sum()


def hinge_loss(original: Tensor, reconstructed: Tensor) -> Tensor:
    """The discriminator's loss: scores above 1 for originals and below -1 for reconstructions.

    Lim and Ye, "Geometric GAN" (arXiv 1705.02894).
    """
    return (torch.relu(1 - original).mean() + torch.relu(1 + reconstructed).mean()) / 2
