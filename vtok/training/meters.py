"""Running figures of training: PSNR by stages, how much of the codebook is used, bits' entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtok.nn.quantize import LFQ

MEMORY = 0.97  # of a running mean, a step; for PSNR a clip
LATELY = 100  # steps for which an entry counts as in use
MOST_ENTRIES = 1 << 16  # of a larger codebook, entries that share their last bits count as one


@dataclass(frozen=True)
class StepTotals:
    """What came out of a step, over all passes and processes.

    Attributes:
        loss: weighted sum of the parts.
        parts: each part before its weight.
        psnr: by number of used stages, the mean in dB and of how many clips.
        seen: entries of the first stage that were used, see `entries_seen`.
        bits: how often each bit of each stage was set, [stages, bits] in 0..1.
        gradient_norm: before clipping.
    """

    loss: float
    parts: dict[str, float]
    psnr: dict[int, tuple[float, int]]
    seen: Tensor
    bits: Tensor
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """Whether the step could be made; otherwise the weights are as they were before it."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Meters:
    """What a run looks like lately.

    Args:
        quantizer: of the model.
    """

    def __init__(self, quantizer: LFQ) -> None:
        self.psnr: dict[int, float] = {}
        self.last_seen = torch.full(seen_shape(quantizer), -LATELY - 1, dtype=torch.int64)
        self.bits = torch.full((quantizer.num_stages, quantizer.bits_per_stage), 0.5)

    def update(self, step: int, totals: StepTotals) -> None:
        """Take note of a step, from 0, that was made."""
        for stages, (mean, count) in totals.psnr.items():
            keep = MEMORY**count
            self.psnr[stages] = keep * self.psnr.get(stages, mean) + (1 - keep) * mean
        self.last_seen[totals.seen] = step
        self.bits.lerp_(totals.bits, 1 - MEMORY)

    def code_usage(self, step: int) -> float:
        """Share of the entries of the first stage seen lately."""
        return float((self.last_seen > step - LATELY).float().mean())

    def bit_entropy(self) -> float:
        """Mean over all bits of the entropy of how often each is set, in bits."""
        return float(binary_entropy(self.bits).mean())

    def tensors(self) -> dict[str, Tensor]:
        """Part of the run's state."""
        return {"meters.last_seen": self.last_seen, "meters.bits": self.bits}

    def facts(self) -> dict[str, float]:
        """The other part, as JSON has it."""
        return {str(stages): value for stages, value in self.psnr.items()}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take back both parts."""
        self.last_seen.copy_(tensors["meters.last_seen"])
        self.bits.copy_(tensors["meters.bits"])
        self.psnr = {int(stages): float(value) for stages, value in facts.items()}


def seen_shape(quantizer: LFQ) -> tuple[int, int]:
    """(codebooks, entries told apart) of a stage."""
    return quantizer.num_codebooks, min(quantizer.codebook_size, MOST_ENTRIES)


def entries_seen(quantizer: LFQ, latents: Tensor) -> Tensor:
    """Which entries the first stage of a batch uses, booleans of `seen_shape`."""
    codes = quantizer.latents_to_codes(latents, 1)
    codebooks, entries = seen_shape(quantizer)
    rows = codes.reshape(codes.shape[0], codebooks, -1).transpose(0, 1).flatten(1) % entries
    seen = torch.zeros(codebooks, entries, dtype=torch.bool, device=latents.device)
    return seen.scatter_(1, rows, torch.ones_like(rows, dtype=torch.bool))


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy of a bit set with chance p, in bits."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / torch.log(torch.tensor(2.0))
