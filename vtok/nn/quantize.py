"""Lookup-free quantization (LFQ): latents to codes and back, with residual stages and losses.

LFQ (MAGVIT-v2, arXiv 2310.05737) takes the sign of each latent dimension as one bit, so a codebook
of 2^n entries has n dimensions and no table. Each further bit of a dimension is the sign of the
residual of its bits before, at half their scale, so the bits of a dimension are its bit planes. By
default each stage refines all dimensions by one plane; a plan can distribute the bits otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.errors import ShapeError

FIRST_SCALE = 0.8  # mean absolute value of a unit Gaussian: the best two-level approximation of it
LATENT_BOUND = 2 * FIRST_SCALE


@dataclass(frozen=True)
class QuantizerLosses:
    """Parts of the quantizer's loss, each a scalar.

    Attributes:
        per_sample_entropy: Mean entropy of a bit given its latent, in nats; small means decided.
        batch_entropy: Entropy of a bit averaged over the batch, in nats; large means well used.
        commitment: Mean squared distance of the latents to their quantized values.
    """

    per_sample_entropy: Tensor
    batch_entropy: Tensor
    commitment: Tensor


class LFQ(nn.Module):
    """Residual lookup-free quantizer without parameters.

    Args:
        codebook_size: Entries of a codebook, a power of two.
        num_codebooks: Parallel codebooks, each on separate dimensions.
        num_stages: Residual stages.
        stage_plan: Group of dimensions that each stage refines, numbered by first appearance; one
            group by default. More stages per group refine fewer numbers; more groups give the
            decoder more numbers.
        bit_plan: In place of groups, the dimension that each bit refines, stage by stage, the
            highest bit of a code first.

    Attributes:
        bits_per_stage: num_codebooks * log2(codebook_size), also the dimensions of a group.
        plan: Dimension that each bit of all stages refines.
        dim: Latent dimensions.
        codes_per_position: num_stages * num_codebooks.
    """

    def __init__(
        self,
        codebook_size: int,
        num_codebooks: int = 1,
        num_stages: int = 1,
        stage_plan: tuple[int, ...] | None = None,
        bit_plan: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.bits_per_code = int(math.log2(codebook_size))
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.num_stages = num_stages
        self.bits_per_stage = num_codebooks * self.bits_per_code
        groups = stage_plan or (0,) * num_stages
        every = range(self.bits_per_stage)
        self.plan = bit_plan or tuple(
            self.bits_per_stage * g + bit for g in groups for bit in every
        )
        self.dim = max(self.plan) + 1
        self.codes_per_position = num_stages * num_codebooks
        planes = [0] * self.dim
        self._places, self._scales = [], []  # of each bit among all dimensions of all planes
        for dim in self.plan:
            self._places.append(planes[dim] * self.dim + dim)
            self._scales.append(FIRST_SCALE / 2 ** planes[dim])
            planes[dim] += 1
        self.num_planes = max(planes)
        place = torch.tensor([2**bit for bit in reversed(range(self.bits_per_code))])
        self.register_buffer("place", rearrange(place, "d -> d 1 1 1"), persistent=False)
        self.place: Tensor

    def normalize(self, x: Tensor) -> Tensor:
        """Bound raw encoder output [B, D, t, h, w] to the range of the stages; same shape.

        No learned gain: with one before the sign, codebook usage collapses.
        """
        return LATENT_BOUND * torch.tanh(x)

    def signs(self, latents: Tensor) -> Tensor:
        """Compute the bits, [B, D, t, h, w] -> bool [B, stages, bits per stage, t, h, w].

        Each bit is the sign of the residual of the earlier bits of its dimension.
        """
        signs = torch.stack([residual > 0 for residual in self._residuals(latents)], dim=1)
        return rearrange(self._pick(signs), "b (s d) t h w -> b s d t h w", s=self.num_stages)

    def forward(self, latents: Tensor, num_stages: Tensor | None = None) -> Tensor:
        """Quantize with a straight-through gradient to the dimensions in use.

        Args:
            latents: [B, D, t, h, w].
            num_stages: Stages that each sample uses, int64 [B]; all of them if None.

        Returns:
            Quantized latents [B, D, t, h, w]; zero in unused dimensions.
        """
        if num_stages is None:
            return latents + (self.quantize(latents) - latents).detach()
        stages = torch.arange(self.num_stages, device=latents.device)
        used = rearrange(stages < num_stages[:, None], "b s -> b s 1 1 1 1")
        quantized = self._sum_bits(self._bit_values(self.signs(latents), latents.dtype) * used)
        starts = [self.plan.index(dim) // self.bits_per_stage for dim in range(self.dim)]
        passed = latents * used[:, starts, 0]
        return passed + (quantized - passed).detach()

    def quantize(self, latents: Tensor) -> Tensor:
        """Quantize latents [B, D, t, h, w] with all stages; no gradient passes."""
        return self._sum_bits(self._bit_values(self.signs(latents), latents.dtype))

    def latents_to_codes(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Convert latents [B, D, t, h, w] to codes, int64 [B, t, h, w] or [B, K, t, h, w].

        K is stages times codebooks; without K dimension if the quantizer has a single code.

        Raises:
            ShapeError: The quantizer does not have that number of stages.
        """
        if num_stages is not None and not 0 < num_stages <= self.num_stages:
            raise ShapeError(f"{num_stages} stages: expected 1 to {self.num_stages}")
        signs = self.signs(latents)[:, :num_stages]
        bits = rearrange(signs, "b s (k d) t h w -> b (s k) d t h w", k=self.num_codebooks)
        codes = (bits * self.place).sum(2)
        return codes.squeeze(1) if self.codes_per_position == 1 else codes

    def codes_to_quantized(self, codes: Tensor) -> Tensor:
        """Convert codes of all stages, or the first few, to quantized float32 [B, D, t, h, w].

        Raises:
            ShapeError: The type, number of dimensions or number of stages is wrong, or a code is
                out of range.
        """
        if self.codes_per_position == 1 and codes.ndim == 4:
            codes = codes.unsqueeze(1)
        codes = self._check(codes)
        bits = (codes.unsqueeze(2) & self.place) != 0
        signs = rearrange(bits, "b (s k) d t h w -> b s (k d) t h w", k=self.num_codebooks)
        return self._sum_bits(self._bit_values(signs, torch.float32))

    def half_cells(self, num_stages: int) -> Tensor:
        """Return half the distance of neighbouring values of each dimension, float32 [D].

        It is zero for dimensions that the first `num_stages` stages do not refine.
        """
        cells = torch.zeros(self.dim)
        for bit in range(num_stages * self.bits_per_stage):
            cells[self.plan[bit]] = self._scales[bit]
        return cells

    def _residuals(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the residual of all dimensions before each plane."""
        for plane in range(self.num_planes):
            yield latents
            scale = FIRST_SCALE / 2**plane
            latents = latents - torch.where(latents > 0, scale, -scale)

    def _pick(self, planes: Tensor) -> Tensor:
        """Select the bits of the plan, [B, planes, D, t, h, w] -> [B, bits, t, h, w]."""
        places = torch.tensor(self._places, device=planes.device)
        return planes.flatten(1, 2).index_select(1, places)

    def _bit_values(self, signs: Tensor, dtype: torch.dtype) -> Tensor:
        count = signs.shape[1] * self.bits_per_stage
        scales = torch.tensor(self._scales[:count], dtype=dtype, device=signs.device)
        scales = rearrange(scales, "(s d) -> s d 1 1 1", s=signs.shape[1])
        return torch.where(signs, scales, -scales)

    def _sum_bits(self, values: Tensor) -> Tensor:
        """Add up [B, stages, bits per stage, t, h, w] to [B, D, t, h, w], planes in order."""
        values = F.pad(values.flatten(1, 2), (0,) * 6 + (0, 1))  # zeros stand for missing bits
        last = values.shape[1] - 1
        bits = [last] * self.num_planes * self.dim
        for bit, place in enumerate(self._places[:last]):
            bits[place] = bit
        index = torch.tensor(bits, device=values.device).view(self.num_planes, self.dim)
        total = values.index_select(1, index[0])
        for row in index[1:]:
            total = total + values.index_select(1, row)
        return total

    def _check(self, codes: Tensor) -> Tensor:
        if codes.is_floating_point() or codes.is_complex():
            raise ShapeError(f"codes of type {codes.dtype}: expected integers")
        codes = codes.long()  # torch supports few operations on unsigned types
        if (
            codes.ndim != 5
            or codes.shape[1] % self.num_codebooks
            or not (0 < codes.shape[1] <= self.codes_per_position)
        ):
            raise ShapeError(
                f"codes of shape {list(codes.shape)}: expected [B, K, t, h, w] with K a multiple "
                f"of {self.num_codebooks} up to {self.codes_per_position}"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < self.codebook_size):
            raise ShapeError(
                f"codes from {int(codes.min())} to {int(codes.max())}: "
                f"expected 0 to {self.codebook_size - 1}"
            )
        return codes

    def losses(self, latents: Tensor) -> QuantizerLosses:
        """Compute losses: entropy factorized per bit (BSQ, arXiv 2406.07548), mean over bits."""
        residuals = self._pick(torch.stack(list(self._residuals(latents)), dim=1))
        scales = torch.tensor(self._scales, dtype=latents.dtype, device=latents.device)
        p = torch.sigmoid(4 * residuals / rearrange(scales, "n -> n 1 1 1"))
        return QuantizerLosses(
            per_sample_entropy=_binary_entropy(p).mean(),
            batch_entropy=_binary_entropy(p.mean((0, 2, 3, 4))).mean(),
            commitment=(latents - self.quantize(latents)).square().mean(),
        )


def _binary_entropy(p: Tensor) -> Tensor:
    # clamped in float32: in float16 the bound rounds to zero, whose logarithm gives NaN
    p = p.float().clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())
