"""What a training run tells whoever watches it: plain data, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class StepReport:
    """How one step went.

    Args:
        step: number of steps done, from 1.
        steps: how many there will be.
        loss: weighted sum of the parts, which is what is minimised.
        parts: each part before its weight, by name: l1, mse, rmse, ms_ssim, entropy, ...
        psnr: running mean over training clips in dB, by number of used stages.
        code_usage: share of the entries of the first stage's codebook seen lately, 0..1.
        bit_entropy: mean over all bits of the entropy of how often each was set lately, in bits
            0..1.
        gradient_norm: before clipping.
        learning_rate: of Muon.
        clips_per_second: over all processes.
        waiting: share of the time spent waiting for data, 0..1.
        seconds_left: None while that cannot be told.
        skipped: number of sources that could not be read.
    """

    step: int
    steps: int
    loss: float
    parts: Mapping[str, float]
    psnr: Mapping[int, float]
    code_usage: float
    bit_entropy: float
    gradient_norm: float
    learning_rate: float
    clips_per_second: float
    waiting: float
    seconds_left: float | None
    skipped: int


@dataclass(frozen=True)
class ValidationReport:
    """How good the model is on clips that it is not trained on.

    Args:
        step: number of steps done.
        psnr: mean over the validation clips in dB, by number of used stages.
        code_usage: share of the entries of the first stage's codebook that they use, 0..1.
        picture: originals over reconstructions, if one was written.
    """

    step: int
    psnr: Mapping[int, float]
    code_usage: float
    picture: Path | None


@dataclass(frozen=True)
class Alarm:
    """Something that a person should know of.

    Args:
        step: number of steps done.
        kind: what went wrong.
        text: one line: what happened, what was done about it, what to try.
    """

    step: int
    kind: Literal["not_finite", "collapse", "stalled_data"]
    text: str


class Observer(Protocol):
    """Whoever is told how a run goes: a display, a log."""

    def step(self, report: StepReport) -> None:
        """A step was done."""

    def validated(self, report: ValidationReport) -> None:
        """The validation clips were measured."""

    def alarm(self, alarm: Alarm) -> None:
        """Something went wrong."""

    def say(self, text: str) -> None:
        """One line worth knowing: resumed, saved, nothing left to do."""
