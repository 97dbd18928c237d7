"""Learned tokens as bits: lookup-free quantization of whole tokens, eight bits to a code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtok.errors import ShapeError

BITS_PER_CODE = 8
CODEBOOK_SIZE = 1 << BITS_PER_CODE


class TokenBits(nn.Module):
    """Tokens to the signs of a few numbers, and back.

    A sign is one bit, and gradients pass it straight through, as in the tokenizer's own quantizer
    (LFQ, arXiv 2310.05737). Here a linear map chooses what is kept of a token and another one
    makes a token of it again.

    Args:
        dim: numbers in a token.
        bits: of a quantized token, a multiple of 8.
    """

    def __init__(self, dim: int, bits: int) -> None:
        super().__init__()
        self.num_codes = bits // BITS_PER_CODE
        self.down, self.up = nn.Linear(dim, bits), nn.Linear(bits, dim)
        place = torch.tensor([1 << bit for bit in reversed(range(BITS_PER_CODE))])
        self.register_buffer("place", place, persistent=False)
        self.place: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [..., dim] as their bits give them back, the same shape."""
        soft = torch.tanh(self.down(tokens))
        out: Tensor = self.up(soft + (_signs(soft) - soft).detach())
        return out

    def to_codes(self, tokens: Tensor) -> Tensor:
        """Tokens [..., dim] to codes, int64 [..., bits / 8] in 0..255, the first bit highest."""
        bits = (self.down(tokens) > 0).unflatten(-1, (self.num_codes, BITS_PER_CODE))
        return (bits * self.place).sum(-1)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Codes, integers [..., bits / 8], to tokens [..., dim].

        Raises:
            ShapeError: for another number of codes, or codes that are none.
        """
        if codes.is_floating_point() or codes.shape[-1] != self.num_codes:
            raise ShapeError(
                f"codes {list(codes.shape)} of {codes.dtype}: expected integers "
                f"[..., {self.num_codes}]"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < CODEBOOK_SIZE):
            raise ShapeError(f"codes beyond 0 to {CODEBOOK_SIZE - 1}")
        bits = ((codes.long().unsqueeze(-1) & self.place) != 0).flatten(-2)
        out: Tensor = self.up(_signs(bits.to(self.up.weight.dtype) - 0.5))
        return out


def _signs(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype)
