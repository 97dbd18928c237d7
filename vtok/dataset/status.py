"""What became of a data set so far, from its journals alone; also while a run works on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vtok.dataset.entry import Entry, Fault, Member
from vtok.dataset.folder import DatasetFolder
from vtok.dataset.plan import SCRATCH, Plan, scratch_plan
from vtok.dataset.work import Record
from vtok.scratch import ScratchFolder


@dataclass
class Status:
    """Counts of a data set.

    Attributes:
        done, failed: clips.
        waiting: of those done, how many are not in their shard yet.
        shards: that are written.
        frames, bytes: of the clips done.
        worker_seconds: that all clips took together.
        causes: how many clips failed, by stage and error.
        parts: what runs there were, such as `all` or `0001-of-0008`.
        recipe: how the codes are made.
    """

    done: int = 0
    failed: int = 0
    waiting: int = 0
    shards: int = 0
    frames: int = 0
    bytes: int = 0
    worker_seconds: float = 0.0
    causes: Counter[str] = field(default_factory=Counter)
    parts: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "causes": dict(self.causes)}


@contextmanager
def known_plan(folder: DatasetFolder) -> Iterator[Plan]:
    """What all journals of a data set know, for as long as the block runs."""
    with ScratchFolder(SCRATCH) as scratch, scratch_plan(scratch) as plan:
        for journal in folder.journals():
            plan.load(journal)
        yield plan


def dataset_status(root: str | Path) -> Status:
    """Count what became of the clips of a data set.

    Raises:
        InputError: there is no data set.
    """
    folder = DatasetFolder(Path(root))
    status = Status(recipe=folder.read_about()["recipe"])
    status.parts = [path.parent.name for path in folder.journals()]
    with known_plan(folder) as plan:
        for record in plan.records():
            _count(status, record)
        (status.shards,) = plan.one("SELECT count(DISTINCT shard) FROM written") or (0,)
        (status.waiting,) = plan.one(
            "SELECT count(*) FROM known JOIN member USING (id) LEFT JOIN written USING (id) "
            "WHERE status = 'ok' AND known.sha256 IS NOT written.sha256"
        ) or (0,)
    status.worker_seconds = round(status.worker_seconds, 3)
    return status


def failed_entries(folder: DatasetFolder) -> Iterator[Entry | Fault]:
    """Clips that failed, as the journals know them; what no decoder could mend stays a fault."""
    with known_plan(folder) as plan:
        for record in plan.records():
            if record["status"] == "ok":
                continue
            if record.get("stage") == "plan":
                yield Fault(record["id"], record["input"], record["message"], record["origin"])
                continue
            member = record["member"] and Member(*record["member"])
            yield Entry(record["id"], record["source"], member, record["start"], record["end"],
                        record["columns"])  # fmt: skip


def _count(status: Status, record: Record) -> None:
    status.worker_seconds += record.get("seconds", 0.0)
    if record["status"] == "ok":
        status.done += 1
        status.frames += record["frames"]
        status.bytes += record["bytes"]
    else:
        status.failed += 1
        status.causes[f"{record.get('stage')}: {record.get('error')}"] += 1
