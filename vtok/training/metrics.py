"""What a person should know before the run is over: losses that are no numbers, codes that die."""

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
from vtok.training.report import Alarm

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


RECENT_STEPS = 50  # steps


class Pace:
    """Rates over the last steps.

    Args:
        clips: of one step, over all processes.
    """

    def __init__(self, clips: int) -> None:
        self.clips = clips
        self._marks: deque[tuple[float, float]] = deque([(monotonic(), 0.0)], maxlen=RECENT_STEPS)

    def mark(self, waited: float) -> None:
        """A step is over.

        Args:
            waited: seconds spent waiting for data so far.
        """
        self._marks.append((monotonic(), waited))

    @property
    def seconds_per_step(self) -> float:
        """Mean over the last steps."""
        return max(1e-9, self._marks[-1][0] - self._marks[0][0]) / max(1, len(self._marks) - 1)

    @property
    def clips_per_second(self) -> float:
        """Mean over the last steps."""
        return self.clips / self.seconds_per_step

    @property
    def waiting(self) -> float:
        """Share of the time lately spent waiting, 0..1."""
        waited = self._marks[-1][1] - self._marks[0][1]
        elapsed = max(1e-9, self._marks[-1][0] - self._marks[0][0])
        return min(1.0, max(0.0, waited / elapsed))

    def seconds_left(self, steps: int) -> float | None:
        """Until this many more steps are done; None while nothing can be said."""
        return None if len(self._marks) < 3 else steps * self.seconds_per_step


PATIENCE = 100
"""Steps that something has to last: the first batches, and single bad ones, mean nothing."""
LEAST_BIT_ENTROPY = 0.3
"""Bits: of 9 bits a position, 2.7 would be left. A healthy run has 0.9 and more."""
LEAST_USAGE = 0.2
"""Share of the best usage so far. In absolute terms it says little: a large codebook cannot be
filled by few positions."""
MOST_WAITING = 0.5
FINE, TOLD = -1, -2
"""In place of the first step of a trouble: there is none, or it was told of."""


@dataclass
class Watch:
    """Looks at every step, and speaks once about each trouble until it is over.

    Its state is three numbers, which belong in the state of the run: a resumed run then speaks as
    one that was never stopped.

    Args:
        best_usage: highest code usage so far, 0..1.
        collapsing: first step of the present collapse, or `FINE`, or `TOLD`.
        waiting: first step of the present wait for data, or `FINE`, or `TOLD`.
    """

    best_usage: float = 0.0
    collapsing: int = FINE
    waiting: int = FINE

    def check(
        self, step: int, loss: float, code_usage: float, bit_entropy: float, gradient_norm: float
    ) -> Alarm | None:
        """Look at one step of the model.

        Args:
            step: number of steps done.
            loss: of this step.
            code_usage: share of the first codebook seen lately, 0..1.
            bit_entropy: mean entropy of a bit lately, in bits 0..1.
            gradient_norm: before clipping.

        Returns:
            An alarm the moment there is reason for it. After one of kind `not_finite` the step
            must not be kept; the watch itself has taken no notice of it.
        """
        for name, value in (("loss", loss), ("gradient", gradient_norm)):
            if not math.isfinite(value):
                return Alarm(step, "not_finite", _not_finite(name, value))
        self.best_usage = max(self.best_usage, code_usage)
        low = bit_entropy < LEAST_BIT_ENTROPY or code_usage < LEAST_USAGE * self.best_usage
        tell, self.collapsing = _lasts(low, self.collapsing, step)
        return Alarm(step, "collapse", _collapse(code_usage, bit_entropy)) if tell else None

    def check_data(self, step: int, waiting: float) -> Alarm | None:
        """Look at how long a step waited for its clips.

        Args:
            step: number of steps done.
            waiting: share of the time lately spent waiting, 0..1.

        Returns:
            An alarm the moment there is reason for it.
        """
        tell, self.waiting = _lasts(waiting > MOST_WAITING, self.waiting, step)
        return Alarm(step, "stalled_data", _stalled(waiting)) if tell else None

    def to_dict(self) -> dict[str, float]:
        """The state as plain numbers, for the state of the run."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, float]) -> Watch:
        """The watch that `to_dict` described; what is missing there starts anew."""
        return cls(
            float(state.get("best_usage", 0.0)),
            int(state.get("collapsing", FINE)),
            int(state.get("waiting", FINE)),
        )


def _lasts(bad: bool, since: int, step: int) -> tuple[bool, int]:
    """Whether it is time to speak of a trouble, and since when it is there."""
    if not bad or since == TOLD:
        return False, since if bad else FINE
    since = step if since == FINE else since
    tell = step - since >= PATIENCE
    return tell, TOLD if tell else since


def _not_finite(name: str, value: float) -> str:
    return (
        f"the {name} is not a finite number ({value}): the step is undone, and the run goes back "
        "to the last good state with lower rates unless that has failed already; if this comes "
        "again, lower learning_rate, or set precision to float32"
    )


def _collapse(code_usage: float, bit_entropy: float) -> str:
    return (
        f"the codes collapse ({code_usage:.1%} of the codebook in use, {bit_entropy:.2f} of 1 bit "
        f"in each bit) for {PATIENCE} steps now: training goes on, but the decoder learns from "
        "less and less; raise entropy or entropy_start, or lower learning_rate"
    )


def _stalled(waiting: float) -> str:
    return (
        f"{waiting:.0%} of the time goes into waiting for clips: training goes on, slowly; give "
        "more workers, a cache on a faster disk, or smaller videos"
    )
