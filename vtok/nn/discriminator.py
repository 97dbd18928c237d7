"""Patch discriminator for adversarial training."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """3-D convolutions that score overlapping patches of a clip (PatchGAN, arXiv 1611.07004).

    Args:
        channels: Channels of the clip.
        dim: Width of the first layer, a multiple of 8; each further layer has twice as many.
    """

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
