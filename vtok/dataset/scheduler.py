"""Scheduler of a run: encode each item exactly once, however often runs are stopped and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from vtok.dataset.folder import DatasetFolder
from vtok.dataset.item import Item, Record, digest, fetched, signature
from vtok.dataset.options import DatasetOptions
from vtok.dataset.plan import Journal, Plan
from vtok.dataset.worker import Task, worker_error
from vtok.dataset.writers import Writer
from vtok.errors import PartialFailure, VtokError


@dataclass
class Totals:
    """Progress of a run.

    Attributes:
        items: in the inputs, without faults.
        up_to_date: encoded in earlier runs.
        failed_before: failed in earlier runs and not retried.
        todo: to be encoded in this run.
        done, failed: of these, finished so far.
        faults: unusable rows and duplicate ids.
        duplicates: items that were listed again.
        frames, bytes: of the items done.
        missing_frames: frames that the sources of the items done lack: lost, or not decodable.
        phase_seconds: worker time by phase.
        seconds: wall time.
    """

    items: int = 0
    up_to_date: int = 0
    failed_before: int = 0
    todo: int = 0
    done: int = 0
    failed: int = 0
    faults: int = 0
    duplicates: int = 0
    frames: int = 0
    missing_frames: int = 0
    bytes: int = 0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def finished(self) -> int:
        """Items finished in this run, successfully or not."""
        return self.done + self.failed

    @property
    def bad(self) -> int:
        """Rows of the inputs without codes."""
        return self.failed + self.failed_before + self.faults


class RunObserver:
    """Receives the progress of a run; the methods do nothing here."""

    def planned(self, totals: Totals) -> None:
        """Handle the plan: all inputs are known."""

    def finished(self, record: Record, totals: Totals) -> None:
        """Handle the record of a finished item."""


Engine = Callable[[Iterator[Task]], Generator[Record, None, None]]
"""Generator function that encodes tasks and yields one record for each, in any order.

It takes a task from the iterator when a worker is free. Closing the generator stops the running
tasks. It raises DiskFailure if the output disk is full or broken.
"""


def plan_items(
    plan: Plan, writer: Writer, recipe: str, retry_failed: bool
) -> Iterator[tuple[Item, str, Record | None]]:
    """Decide for each item what to do.

    Yields:
        An item; "todo", "up_to_date" or "failed_before"; and a new record if the source is the
        same but its signature changed.
    """
    for item, record in plan.items():
        decision, changed = "todo", None
        if record is not None and record["status"] == "ok":
            sign = _current_signature(item, record, recipe, plan.scratch)
            if sign is not None and writer.has(record):
                decision = "up_to_date"
                changed = None if sign == record.get("signature") else {**record, "signature": sign}
        elif record is not None and not retry_failed and record.get("phase") != "plan":
            decision = "failed_before"
        yield item, decision, changed


def _current_signature(item: Item, record: Record, recipe: str, scratch: Path) -> str | None:
    """The signature of a source whose codes are up to date; else None.

    The bytes are hashed only if size or modification time changed. A missing source is up to date:
    its codes cannot be made again.
    """
    known = str(record.get("signature"))
    times = ("start", "end", "start_frame", "num_frames")
    is_same = all(record.get(key) == getattr(item, key) for key in times)
    if record.get("recipe") != recipe or not is_same:
        return None
    try:
        found = signature(item)
        if found == known:
            return found
        with fetched(item, scratch) as path:
            return found if digest(item, path) == record.get("digest") else None
    except VtokError:
        return known


@dataclass
class Scheduler:
    """One run over a data set; everything but the encoding happens in one thread.

    Attributes:
        folder: of the data set, locked.
        plan: with all items and journals.
        journal: of the partition.
        writer: of the codes.
        recipe: digest of the recipe.
        options: of the run.
        observer: receives the progress.
        origins: lists that were read: their earlier faults that are gone are dropped.
        totals: progress.
    """

    folder: DatasetFolder
    plan: Plan
    journal: Journal
    writer: Writer
    recipe: str
    options: DatasetOptions
    observer: RunObserver
    origins: Sequence[str] = ()
    totals: Totals = field(default_factory=Totals)

    def run(self, engine: Engine) -> Totals:
        """Encode what is not up to date.

        Raises:
            PartialFailure: more items failed than `max_failures` allows.
            DiskFailure: the output disk is full or broken.
        """
        begin = time.monotonic()
        self._decide()
        self.observer.planned(self.totals)
        self._report_faults()
        self.writer.start()
        too_many = None
        try:
            if self.totals.todo:
                self._encode(engine)
            for task in self._tasks():
                self._finish(worker_error(task, "no result was received from the worker"))
            self.writer.close()
        except PartialFailure as error:
            too_many = error
        finally:
            self.totals.seconds = time.monotonic() - begin
            self.journal.sync()
        self.folder.update_reports(self.options.partition, self.plan.records())
        if too_many is not None:
            raise too_many
        return self.totals

    def _decide(self) -> None:
        """Mark the items to do."""
        plan, totals, retry = self.plan, self.totals, self.options.retry_failed
        totals.duplicates, totals.faults = plan.duplicates, plan.num_faults
        for item, decision, record in plan_items(plan, self.writer, self.recipe, retry):
            totals.items += 1
            setattr(totals, decision, getattr(totals, decision) + 1)
            if decision == "todo":
                plan.mark(item.id)
            elif record is not None:
                self.journal.note(record)  # so that the next run need not hash the source again

    def _report_faults(self) -> None:
        """Record faults as failed, and drop those that a list no longer has."""
        faults = set()
        for fault in self.plan.faults():
            known = self.plan.record(fault.id)
            faults.add(fault.id)
            record = {
                "kind": "item", "id": fault.id, "status": "failed", "input": fault.source,
                "phase": "plan", "error": "InputError", "message": fault.message, "columns": {},
                "origin": fault.origin,
            }  # fmt: skip
            if known is None or known.get("message") != fault.message:
                self.journal.note(record)
            self.observer.finished(record, self.totals)
        for id_ in self.plan.failed_ids():
            known = self.plan.record(id_)
            if id_ not in faults and known and known.get("origin") in self.origins:
                self.journal.note({"kind": "dropped", "id": id_})

    def _tasks(self) -> Iterator[Task]:
        for item, target in self.writer.assign(self.plan.todo()):
            known = self.plan.record(item.id)
            attempts = (known or {}).get("attempts", 0)
            is_ours = known is not None and known["status"] == "ok"
            yield Task(item, target, is_ours or self.options.overwrite, attempts)

    def _encode(self, engine: Engine) -> None:
        totals = self.totals
        limit = self.options.failure_limit(totals.items + totals.faults)
        with closing(engine(self._tasks())) as records:
            for record in records:
                self._finish(record)
                if totals.failed + totals.faults > limit:
                    raise PartialFailure(
                        f"{totals.failed} items failed, more than `max_failures` allows: stopped; "
                        "the same command continues"
                    )

    def _finish(self, record: Record) -> None:
        """Record a finished item; ignore duplicate results."""
        if not self.plan.unmark(record["id"]):
            return
        record = self.writer.located({**record, "recipe": self.recipe})
        self.journal.note(record)
        totals = self.totals
        if record["status"] == "ok":
            totals.done += 1
            totals.frames += record["frames"]
            totals.missing_frames += record["missing_frames"] or 0
            totals.bytes += record["bytes"]
        else:
            totals.failed += 1
        for name, seconds in record.get("phase_seconds", {}).items():
            totals.phase_seconds[name] = totals.phase_seconds.get(name, 0.0) + seconds
        self.writer.finished(record)
        self.observer.finished(record, self.totals)
