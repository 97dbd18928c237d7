"""One run over a data set: each clip exactly once, however often runs are stopped and resumed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vtok.dataset.engine import Engine
from vtok.dataset.folder import WHOLE, DatasetFolder, Part, recipe_digest
from vtok.dataset.item import Entry, Fault
from vtok.dataset.journal import Journal
from vtok.dataset.plan import Plan
from vtok.dataset.reports import update_reports
from vtok.dataset.worker import Record, Task, blank_record, current_signature
from vtok.dataset.writers import Sink
from vtok.errors import PartialFailure, UsageError


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


@dataclass(frozen=True)
class Manner:
    """How a run treats what it finds.

    Attributes:
        part: which share of the clips it does.
        retry_failed: whether to try again what failed before.
        overwrite: whether files that are there and not from this data set may be replaced.
        max_failures: stop when more clips than that have failed.
    """

    part: Part = WHOLE
    retry_failed: bool = False
    overwrite: bool = False
    max_failures: Limit | None = None


def fill_plan(
    plan: Plan, found: Iterable[Entry | Fault], folder: DatasetFolder, part: Part
) -> None:
    """Take in the inputs' clips of a part, and what all journals know."""
    for item in found:
        if part.has(item.id):
            plan.add(item)
    for journal in folder.journals():
        plan.load(journal)


class Run:
    """One run over a data set; everything but the encoding happens in one thread.

    Args:
        folder: of the data set, opened.
        plan: filled.
        journal: of the part.
        recipe: how they are made.
        scratch: folder for what is fetched or unpacked.
        manner: how to treat what is found.
        watcher: is told how it goes.
        origins: lists that were read: what was wrong with them before and is no more, is forgotten.
    """

    def __init__(
        self,
        folder: DatasetFolder,
        plan: Plan,
        journal: Journal,
        recipe: dict[str, Any],
        scratch: Path,
        manner: Manner,
        watcher: Watcher,
        origins: Sequence[str] = (),
    ) -> None:
        self._folder, self._plan, self._journal = folder, plan, journal
        self._scratch, self._origins = scratch, origins
        self._recipe, self._manner, self._watcher = recipe_digest(recipe), manner, watcher
        self.totals = Totals(repeated=plan.repeated)

    def go(self, engine: Engine, sink: Sink) -> Totals:
        """Do what is to be done.

        Args:
            engine: encodes.
            sink: says where codes go.

        Raises:
            PartialFailure: more clips failed than may.
            DiskFailure: the output's disk takes no more.
        """
        begin = time.monotonic()
        self._decide(sink)
        self.totals.faults = self._plan.num("fault")
        self._watcher.planned(self.totals)
        self._report_faults()
        sink.begin()
        too_many = None
        try:
            with closing(engine.run(self._tasks(sink))) as records:
                for record in records:
                    self._end(record, sink)
                    self._check_failures()
            self._reconcile(sink)
            sink.finish()
        except PartialFailure as error:
            too_many = error
        finally:
            self.totals.seconds = time.monotonic() - begin
            self._journal.sync()
        update_reports(self._folder, self._plan, self._manner.part)
        if too_many is not None:
            raise too_many
        return self.totals

    def _decide(self, sink: Sink) -> None:
        """Mark what is to be done."""
        for entry, record in self._plan.known_entries():
            self.totals.clips += 1
            if record is not None and self._is_settled(entry, record, sink):
                continue
            self._plan.mark(entry.id)
            self.totals.todo += 1

    def _is_settled(self, entry: Entry, record: Record, sink: Sink) -> bool:
        """Whether nothing is to be done for a clip that the journal knows."""
        if record["status"] == "ok":
            sign = current_signature(entry, record, self._recipe, self._scratch)
            if sign is None or not sink.is_there(record):
                return False
            if sign != record.get("signature"):  # so that the bytes are not read again next time
                self.note({**record, "signature": sign})
            self.totals.there += 1
            return True
        left = not self._manner.retry_failed and record.get("stage") != "plan"
        self.totals.left_failed += left
        return left

    def _report_faults(self) -> None:
        """Put down what is no clip as failed, and forget what was so before and is no more."""
        faults = set()
        for fault in self._plan.faults():
            known = self._plan.record(fault.id)
            faults.add(fault.id)
            record = {
                "kind": "clip", "id": fault.id, "status": "failed", "input": fault.source,
                "stage": "plan", "error": "InputError", "message": fault.message, "columns": {},
                "origin": fault.origin,
            }  # fmt: skip
            if known is None or known.get("message") != fault.message:
                self.note(record)
            self._watcher.ended(record, self.totals)
        for (id_,) in self._plan.all("SELECT id FROM known WHERE status = 'failed'"):
            known = self._plan.record(id_)
            if id_ not in faults and known and known.get("origin") in self._origins:
                self.note({"kind": "dropped", "id": id_})

    def _tasks(self, sink: Sink) -> Iterator[Task]:
        """What is to be done, as the engine asks for it."""
        for entry, target in sink.order(self._plan.entries(todo=True)):
            known = self._plan.record(entry.id)
            attempts = (known or {}).get("attempts", 0)
            ours = known is not None and known["status"] == "ok"
            yield Task(entry, target, ours or self._manner.overwrite, attempts)

    def _end(self, record: Record, sink: Sink) -> None:
        """Put down what became of a clip; what nobody waits for any more says nothing new."""
        if not self._plan.unmark(record["id"]):
            return
        record = sink.placed({**record, "recipe": self._recipe})
        self.note(record)
        self.totals.add(record)
        sink.ended(record)
        self._watcher.ended(record, self.totals)

    def _reconcile(self, sink: Sink) -> None:
        """Put down as failed what no engine has said anything of: no clip may vanish."""
        for task in self._tasks(sink):
            self._end({
                **blank_record(task), "stage": "model", "error": "WorkerError", "seconds": 0.0,
                "message": f"{task.entry.name}: the run ended without a word of it",
            }, sink)  # fmt: skip

    def note(self, record: Record) -> None:
        """Put a record into the journal and the plan."""
        record = {**record, "at": round(time.time(), 3)}
        place = self._journal.append(record)
        self._plan.note(self._journal.path, place, record)

    def _check_failures(self) -> None:
        limit = self._manner.max_failures
        if limit is not None and limit.is_passed(self.totals):
            raise PartialFailure(
                f"{self.totals.failed} clips failed, more than --max-failures allows: stopped; "
                "the same command goes on"
            )
