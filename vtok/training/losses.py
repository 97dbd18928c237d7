"""What training minimises: errors of the reconstruction and the quantizer's losses, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vtok.nn.quantize import QuantizerLosses
from vtok.training.config import TrainingConfig
from vtok.training.ms_ssim import ms_ssim
from vtok.training.schedule import adversarial_weight, entropy_weight

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
