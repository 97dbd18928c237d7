"""Training losses by name, and the schedules of their weights and of the learning rates."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtok.evaluation.metrics import SCALE_WEIGHTS, similarities
from vtok.nn.quantize import QuantizerLosses
from vtok.training.config import RECONSTRUCTION, WINDOW, TrainingConfig

RANGE = 2.0  # of pixels in -1..1
SIMILARITY_FLOOR = 1e-4  # keeps the gradients of the roots in MS-SSIM finite
ROOT_FLOOR = 1e-5  # keeps the gradient of the root finite for a clip reconstructed exactly
ADVERSARIAL_RAMP = 200
STAGES_STREAM = 1  # separates these random numbers from those that choose clips


def loss_parts(
    recon: Tensor,
    clip: Tensor,
    quantizer: QuantizerLosses,
    diversity: float,
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """Compute the losses of clips [B, C, T, H, W] in -1..1 that have a weight, but the adversarial.

    `diversity` is the weight of the batch entropy within the entropy loss.

    Returns:
        Scalars without their weights. `l1` and `mse`: mean absolute and squared error. `rmse`: mean
        over clips of the root mean squared error, in which a hard clip does not outweigh others.
        `ms_ssim`: 1 - MS-SSIM. `entropy`: entropy of a bit given its latent, minus its entropy over
        the batch. `commitment`.
    """
    error = squared_errors(recon, clip)
    parts = {
        "l1": (recon.float() - clip).abs().mean(),
        "mse": error.mean(),
        "rmse": (error + ROOT_FLOOR).sqrt().mean(),
        "entropy": quantizer.per_sample_entropy - diversity * quantizer.batch_entropy,
        "commitment": quantizer.commitment,
    }
    if "ms_ssim" in weights:  # the expensive one
        parts["ms_ssim"] = 1 - ms_ssim(recon, clip)
    return {name: part for name, part in parts.items() if name in weights}


def squared_errors(recon: Tensor, clip: Tensor) -> Tensor:
    """Compute the mean squared error of each clip, float32 [B]."""
    return (recon.float() - clip).square().mean((1, 2, 3, 4))


def weighted_sum(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum the parts, each times its weight."""
    return torch.stack([weights[name] * part for name, part in parts.items()]).sum()


def hinge_loss(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Compute the discriminator's loss: scores above 1 for originals, below -1 for others.

    Lim and Ye, "Geometric GAN" (arXiv 1705.02894).
    """
    return (torch.relu(1 - original).mean() + torch.relu(1 + reconstructed).mean()) / 2


def ms_ssim(recon: Tensor, clip: Tensor) -> Tensor:
    """Compute the mean MS-SSIM over the frames of two batches of clips.

    Five scales need frames of 176 pixels; smaller ones, from 11, use as many as fit, with the
    weights scaled to the same sum. Wang, Simoncelli and Bovik, "Multiscale structural similarity"
    (2003).
    """
    x, y = (part.float().transpose(1, 2).flatten(0, 1) for part in (recon, clip))
    weights = SCALE_WEIGHTS[: num_scales(min(x.shape[-2:]))]
    weights = tuple(weight / sum(weights) for weight in weights)
    return similarities(x, y, RANGE, weights, SIMILARITY_FLOOR)[1].mean()


def num_scales(size: int) -> int:
    """Return the number of scales of frames with this short side in pixels."""
    fitting = [n for n in range(len(SCALE_WEIGHTS)) if size >> n >= WINDOW]
    return max(1, len(fitting))


def weights_at(step: int, config: TrainingConfig) -> dict[str, float]:
    """Return the weight of each loss at a step; losses of weight zero are left out."""
    weights = {name: getattr(config, name) for name in RECONSTRUCTION}
    weights |= {"entropy": entropy_weight(step, config), "commitment": config.commitment}
    weights["adversarial"] = adversarial_weight(step, config)
    return {name: weight for name, weight in weights.items() if weight > 0}


def entropy_weight(step: int, config: TrainingConfig) -> float:
    """Return the weight of the entropy loss: from `entropy_start` linearly to `entropy`."""
    if step >= config.entropy_steps:
        return config.entropy
    done = step / config.entropy_steps
    return config.entropy_start + done * (config.entropy - config.entropy_start)


def adversarial_weight(step: int, config: TrainingConfig) -> float:
    """Return the weight of the adversarial loss: 0 before `adversarial_from`, then a linear ramp.

    During the ramp the new discriminator learns to be of use.
    """
    rising = (step - config.adversarial_from) / ADVERSARIAL_RAMP
    return config.adversarial * min(1.0, max(0.0, rising))


def rate_share(step: int, config: TrainingConfig) -> float:
    """Return the learning rates of a step, from 0, as a share of the full rates.

    They rise linearly over `warm_up` steps, and decay from `decay_from` to `final_rate` along a
    cosine or a straight line.
    """
    rising = (step + 1) / max(1, config.warm_up)
    length = max(1, config.steps - config.decay_from)
    done = min(1.0, max(0.0, (step - config.decay_from) / length))
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return min(1.0, rising, config.final_rate + (1 - config.final_rate) * left)


def draw_stages(clips: range, stages: int, step: int, seed: int, config: TrainingConfig) -> Tensor:
    """Draw the number of stages of each clip, int64 [len(clips)] in 1..stages.

    `clips` are indices in the global batch, so that a draw does not depend on the processes.
    """
    return torch.tensor([_draw(clip, stages, step, seed, config) for clip in clips])


def _draw(clip: int, stages: int, step: int, seed: int, config: TrainingConfig) -> int:
    rng = np.random.default_rng((seed, STAGES_STREAM, step, clip))
    chance = rng.random()
    if chance < config.base_share:
        return min(config.base_stages, stages)
    if chance < config.base_share + config.all_share:
        return stages
    return int(rng.integers(1, stages + 1))


class PatchDiscriminator(nn.Module):
    """3-D convolutions that score overlapping patches of a clip (PatchGAN, arXiv 1611.07004)."""

    def __init__(self, channels: int = 3, dim: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, dim, (1, 4, 4), (1, 2, 2), (0, 1, 1))
        self.inner = nn.Sequential(
            nn.Conv3d(dim, 2 * dim, (3, 4, 4), (1, 2, 2), 1),
            nn.GroupNorm(8, 2 * dim),
            nn.LeakyReLU(0.2),
            nn.Conv3d(2 * dim, 4 * dim, (3, 4, 4), (2, 2, 2), 1),
            nn.GroupNorm(8, 4 * dim),
            nn.LeakyReLU(0.2),
        )
        self.last = nn.Conv3d(4 * dim, 1, 3, padding=1)

    def forward(self, clip: Tensor) -> Tensor:
        """Score [B, C, T, H, W] as [B, 1, T', H / 8, W / 8]; high where it looks original."""
        hidden = self.inner(F.leaky_relu(self.first(clip), 0.2))
        scores: Tensor = self.last(hidden)
        return scores
