"""What a person should know before the run is over: losses that are no numbers, codes that die."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from vtok.training.report import Alarm

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
