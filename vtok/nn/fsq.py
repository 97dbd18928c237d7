"""Finite scalar quantization (FSQ, arXiv 2309.15505): each latent dimension rounded to a level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vtok.errors import ShapeError

EPSILON = 1e-3  # of the official code, which keeps the outermost levels reachable


class FSQ(nn.Module):
    """Quantizer of latents with one dimension per entry of `levels`, without parameters.

    Args:
        levels: Levels of each dimension, each 2 or more.

    Attributes:
        entries: Product of the levels. A code is the sum of digit * basis, where the basis of a
            dimension is the product of the levels before it.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels, self.entries = levels, math.prod(levels)
        basis = [math.prod(levels[:number]) for number in range(len(levels))]
        for name, values in (("levels", levels), ("basis", basis)):
            column = torch.tensor(values).view(-1, 1, 1, 1)
            self.register_buffer(f"_{name}", column, persistent=False)
        self._levels: Tensor
        self._basis: Tensor

    def forward(self, latents: Tensor) -> Tensor:
        """Quantize [B, D, t, h, w] to float32 values in -1..1, with a straight-through gradient."""
        bounded = self._bound(latents.float())
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self._levels // 2)

    def to_codes(self, latents: Tensor) -> Tensor:
        """Quantize [B, D, t, h, w] to codes, int64 [B, 1, t, h, w]."""
        digits = self._bound(latents.float()).round().long() + self._levels // 2
        return (digits * self._basis).sum(1, keepdim=True)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Convert codes [B, 1, t, h, w] to quantized values in -1..1, float32 [B, D, t, h, w].

        Raises:
            ShapeError: The shape or type is wrong, or a code is out of range.
        """
        if codes.ndim != 5 or codes.shape[1] != 1 or codes.is_floating_point():
            expected = "expected integers [B, 1, t, h, w]"
            raise ShapeError(f"codes of shape {list(codes.shape)}, {codes.dtype}: {expected}")
        codes = codes.long()
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.entries):
            raise ShapeError(
                f"codes from {int(codes.min())} to {int(codes.max())}: "
                f"expected 0 to {self.entries - 1}"
            )
        half = self._levels // 2
        return (codes // self._basis % self._levels - half).float() / half

    def _bound(self, latents: Tensor) -> Tensor:
        """Map any numbers to the range that rounds to the levels of each dimension."""
        half = (self._levels - 1) * (1 + EPSILON) / 2
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        return (latents + (offset / half).atanh()).tanh() * half - offset
