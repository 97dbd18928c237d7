"""Running metrics of a run: quality, code usage, throughput, and alarms derived from them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from vtok.nn.quantize import LFQ
from vtok.training.runlog import Alarm

MEMORY = 0.97
"""Decay of running means, per step; of PSNR, per clip."""
RECENT_STEPS = 100
"""Steps for which a codebook entry counts as in use."""
MAX_ENTRIES = 1 << 16
"""In a larger codebook, entries with the same last 16 bits count as one."""
THROUGHPUT_STEPS = 50

PATIENCE = 100
"""Steps that a problem must last before an alarm; single bad batches mean nothing."""
MIN_BIT_ENTROPY = 0.3
"""In bits; a healthy run has 0.9 or more."""
MIN_USAGE = 0.2
"""Relative to the best usage so far: a few positions cannot fill a large codebook."""
MAX_WAITING = 0.5
FINE, REPORTED = -1, -2
"""Values in place of the first step of a problem: there is none, or it has been reported."""


@dataclass(frozen=True)
class StepTotals:
    """Result of a step, summed over all micro-batches and processes.

    Attributes:
        loss: weighted sum of the parts.
        parts: each loss before its weight.
        psnr: mean in dB and number of clips, by number of stages.
        seen: entries of the first stage that were used, see `entries_seen`.
        bits: frequency of each bit of each stage, [stages, bits] in 0..1.
        gradient_norm: norm before clipping.
    """

    loss: float
    parts: dict[str, float]
    psnr: dict[int, tuple[float, int]]
    seen: Tensor
    bits: Tensor
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """Tell whether the step was applied; otherwise the weights did not change."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class RunningMetrics:
    """Running means of PSNR and of code usage.

    Args:
        quantizer: quantizer of the model.
    """

    def __init__(self, quantizer: LFQ) -> None:
        self.psnr: dict[int, float] = {}
        shape = _seen_shape(quantizer)
        self.last_seen = torch.full(shape, -RECENT_STEPS - 1, dtype=torch.int64)
        self.bits = torch.full((quantizer.num_stages, quantizer.bits_per_stage), 0.5)

    def update(self, step: int, totals: StepTotals) -> None:
        """Add an applied step, numbered from 0."""
        for stages, (mean, count) in totals.psnr.items():
            keep = MEMORY**count
            self.psnr[stages] = keep * self.psnr.get(stages, mean) + (1 - keep) * mean
        self.last_seen[totals.seen] = step
        self.bits.lerp_(totals.bits, 1 - MEMORY)

    def code_usage(self, step: int) -> float:
        """Return the share of the entries of the first stage seen in recent steps."""
        return float((self.last_seen > step - RECENT_STEPS).float().mean())

    def bit_entropy(self) -> float:
        """Return the mean entropy of all bits, in bits."""
        return float(binary_entropy(self.bits).mean())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state."""
        return {"meters.last_seen": self.last_seen, "meters.bits": self.bits}

    def facts(self) -> dict[str, float]:
        """Return the rest of the state as JSON types."""
        return {str(stages): value for stages, value in self.psnr.items()}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Restore the results of `tensors` and `facts`."""
        self.last_seen.copy_(tensors["meters.last_seen"])
        self.bits.copy_(tensors["meters.bits"])
        self.psnr = {int(stages): float(value) for stages, value in facts.items()}


def _seen_shape(quantizer: LFQ) -> tuple[int, int]:
    return quantizer.num_codebooks, min(quantizer.codebook_size, MAX_ENTRIES)


def entries_seen(quantizer: LFQ, latents: Tensor) -> Tensor:
    """Find the codebook entries that the first stage uses for a batch of latents.

    Returns:
        bool [codebooks, entries], at most `MAX_ENTRIES` entries.
    """
    codes = quantizer.latents_to_codes(latents, 1)
    codebooks, entries = _seen_shape(quantizer)
    rows = codes.reshape(codes.shape[0], codebooks, -1).transpose(0, 1).flatten(1) % entries
    seen = torch.zeros(codebooks, entries, dtype=torch.bool, device=latents.device)
    return seen.scatter_(1, rows, torch.ones_like(rows, dtype=torch.bool))


def binary_entropy(p: Tensor) -> Tensor:
    """Compute the entropy of a bit that is set with probability p, in bits."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / torch.log(torch.tensor(2.0))


class Throughput:
    """Rates over the last steps.

    Args:
        clips: clips of one step, over all processes.
    """

    def __init__(self, clips: int) -> None:
        self.clips = clips
        start = (monotonic(), 0.0)
        self._marks: deque[tuple[float, float]] = deque([start], maxlen=THROUGHPUT_STEPS)

    def mark(self, waited: float) -> None:
        """Record the end of a step, and the total seconds spent waiting for data so far."""
        self._marks.append((monotonic(), waited))

    @property
    def seconds_per_step(self) -> float:
        """Mean over the last steps."""
        return self._elapsed / max(1, len(self._marks) - 1)

    @property
    def clips_per_second(self) -> float:
        """Mean over the last steps."""
        return self.clips / self.seconds_per_step

    @property
    def waiting(self) -> float:
        """Share of the time spent waiting for data, 0..1."""
        waited = self._marks[-1][1] - self._marks[0][1]
        return min(1.0, max(0.0, waited / self._elapsed))

    def seconds_left(self, steps: int) -> float | None:
        """Estimate the time for this many more steps; None while unknown."""
        return None if len(self._marks) < 3 else steps * self.seconds_per_step

    @property
    def _elapsed(self) -> float:
        return max(1e-9, self._marks[-1][0] - self._marks[0][0])


@dataclass
class Watch:
    """Checks every step, and reports each problem once until it is over.

    Its three numbers are part of the state of the run, so that a resumed run reports the same.

    Args:
        best_usage: highest code usage so far, 0..1.
        collapsing: first step of the present collapse, or `FINE`, or `REPORTED`.
        waiting: first step of the present wait for data, or `FINE`, or `REPORTED`.
    """

    best_usage: float = 0.0
    collapsing: int = FINE
    waiting: int = FINE

    def check(
        self, step: int, loss: float, code_usage: float, bit_entropy: float, gradient_norm: float
    ) -> Alarm | None:
        """Check the model after a step, given the fields of its `StepReport`.

        Returns:
            An alarm if there is a new problem. A step with an alarm of kind `not_finite` must not
            be kept; it does not change the watch.
        """
        for name, value in (("loss", loss), ("gradient", gradient_norm)):
            if not math.isfinite(value):
                return Alarm(step, "not_finite", _not_finite(name, value))
        self.best_usage = max(self.best_usage, code_usage)
        low = bit_entropy < MIN_BIT_ENTROPY or code_usage < MIN_USAGE * self.best_usage
        report, self.collapsing = _lasts(low, self.collapsing, step)
        return Alarm(step, "collapse", _collapse(code_usage, bit_entropy)) if report else None

    def check_data(self, step: int, waiting: float) -> Alarm | None:
        """Check the share of the time spent waiting for data; returns an alarm if it is new."""
        report, self.waiting = _lasts(waiting > MAX_WAITING, self.waiting, step)
        return Alarm(step, "stalled_data", _stalled(waiting)) if report else None

    def to_dict(self) -> dict[str, float]:
        """Return the state as plain numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, float]) -> Watch:
        """Restore the result of `to_dict`; missing numbers have their defaults."""
        return cls(
            float(state.get("best_usage", 0.0)),
            int(state.get("collapsing", FINE)),
            int(state.get("waiting", FINE)),
        )


def _lasts(bad: bool, since: int, step: int) -> tuple[bool, int]:
    """Decide whether to report a problem, and update its first step."""
    if not bad or since == REPORTED:
        return False, since if bad else FINE
    since = step if since == FINE else since
    report = step - since >= PATIENCE
    return report, REPORTED if report else since


def _not_finite(name: str, value: float) -> str:
    return (
        f"the {name} is not a finite number ({value}): the step is undone, and the run returns to "
        "the last good state with lower learning rates unless that has failed already; if this "
        "happens again, lower learning_rate, or set precision to float32"
    )


def _collapse(code_usage: float, bit_entropy: float) -> str:
    return (
        f"the codes have been collapsing for {PATIENCE} steps ({code_usage:.1%} of the codebook in "
        f"use, {bit_entropy:.2f} bits of entropy in each bit): training continues, but the decoder "
        "learns from less and less; raise entropy or entropy_start, or lower learning_rate"
    )


def _stalled(waiting: float) -> str:
    return (
        f"{waiting:.0%} of the time is spent waiting for clips: training continues slowly; use "
        "more workers, a cache on a faster disk, or smaller videos"
    )
