"""How far a run has come, and when it has gone too badly to go on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from vtok.dataset.work import Record
from vtok.errors import UsageError


@dataclass
class Totals:
    """How far a run has come.

    Attributes:
        clips: in the inputs, those that are none left out.
        there: of these, done in earlier runs.
        left_failed: of these, failed in earlier runs and not tried again.
        todo: of these, to be done in this run.
        done, failed: of these, in this run.
        faults: what is no clip, such as one of two clips of one id.
        repeated: clips that the inputs name again.
        frames, bytes: of those done.
        spent: seconds of all workers by stage.
        seconds: of wall time.
    """

    clips: int = 0
    there: int = 0
    left_failed: int = 0
    todo: int = 0
    done: int = 0
    failed: int = 0
    faults: int = 0
    repeated: int = 0
    frames: int = 0
    bytes: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ended(self) -> int:
        """Clips of this run that have ended."""
        return self.done + self.failed

    @property
    def bad(self) -> int:
        """What the inputs name and is not there."""
        return self.failed + self.left_failed + self.faults

    def add(self, record: Record) -> None:
        """Count a clip that has ended."""
        if record["status"] == "ok":
            self.done += 1
            self.frames += record["frames"]
            self.bytes += record["bytes"]
        else:
            self.failed += 1
        for name, seconds in record.get("spent", {}).items():
            self.spent[name] = self.spent.get(name, 0.0) + seconds


@dataclass(frozen=True)
class Limit:
    """How many failures are too many: more than `number`, or than `percent` of all clips.

    Attributes:
        number: from 0.
        percent: from 0; None where the number counts.
    """

    number: int = 0
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> Limit:
        """From "10" or "5%".

        Raises:
            UsageError: for anything else.
        """
        match = re.fullmatch(r"(\d{1,12})|(\d{1,3}(?:\.\d{1,6})?)%", text.strip(), re.ASCII)
        if match is None:
            raise UsageError(f"--max-failures {text}: expected a number such as 10, or 5%")
        return cls(int(match[1] or 0), None if match[2] is None else float(match[2]))

    def is_passed(self, totals: Totals) -> bool:
        """Whether too many have failed in this run."""
        failed = totals.failed + totals.faults
        if self.percent is None:
            return failed > self.number
        return failed > self.percent / 100 * (totals.clips + totals.faults)


class Watcher(Protocol):
    """Whoever wants to know how a run goes."""

    def planned(self, totals: Totals) -> None:
        """All inputs are known."""

    def ended(self, record: Record, totals: Totals) -> None:
        """A clip has ended, well or not."""
