"""The parts of a data set as one: of one folder, or brought together from several machines."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vtok._files import ScratchFolder, atomic_output
from vtok.dataset.folder import WHOLE, DatasetFolder
from vtok.dataset.item import Entry, Fault, Member
from vtok.dataset.plan import SCRATCH, Plan, scratch_plan
from vtok.dataset.reports import write_reports
from vtok.dataset.shards import ShardFormat, file_sha256
from vtok.dataset.worker import Record
from vtok.dataset.writers import SHARDED, shard_format
from vtok.errors import OutputError, UsageError


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


Finding = tuple[str, str | None]
"""An id, and what is wrong with its codes; None where nothing is."""


def verify_dataset(root: str | Path) -> Iterator[Finding]:
    """Compare the SHA-256 of every clip's codes with what the journal says.

    Yields:
        A finding for each clip that was encoded, for each that is in a shard without reason, and
        for each file that is damaged.

    Raises:
        InputError: there is no data set.
        UsageError: a library that reads its shards is not installed.
    """
    folder = DatasetFolder(Path(root))
    to = folder.read_about()["recipe"]["to"]
    with known_plan(folder) as plan:
        if to in SHARDED:
            yield from _verify_shards(folder, plan, shard_format(to))
        else:
            yield from _verify_files(folder, plan)


def _verify_files(folder: DatasetFolder, plan: Plan) -> Iterator[Finding]:
    for record in plan.records():
        if record["status"] == "ok":
            yield record["id"], _file_fault(folder.root / record["output"], record["sha256"])


def _file_fault(path: Path, sha256: str) -> str | None:
    try:
        found = file_sha256(path)
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as exc:
        return f"{path}: cannot be read ({exc.strerror})"
    return None if found == sha256 else f"{path}: is not what was written"


def _verify_shards(folder: DatasetFolder, plan: Plan, form: ShardFormat) -> Iterator[Finding]:
    for (shard,) in plan.all("SELECT DISTINCT shard FROM written ORDER BY 1"):
        for name, sha256 in plan.all("SELECT name, sha256 FROM file WHERE shard = ?", shard):
            if fault := _file_fault(folder.root / name, sha256):
                yield name, fault
        wanted = dict(plan.all("SELECT id, sha256 FROM written WHERE shard = ?", shard))
        yield from _verify_shard([folder.root / name for name in form.names(shard)], wanted, form)
    for id_, shard in plan.all(
        "SELECT id, member.shard FROM known JOIN member USING (id) LEFT JOIN written USING (id) "
        "WHERE status = 'ok' AND written.id IS NULL"
    ):
        yield id_, f"{form.names(shard)[0]}: not written yet: run again"


def _verify_shard(
    paths: list[Path], wanted: dict[str, str], form: ShardFormat
) -> Iterator[Finding]:
    """Compare the clips of a shard with those that should be in it."""
    fault = f"{paths[0]}: the clip is missing"
    try:
        for id_, data in form.read(paths):
            sha256 = wanted.pop(id_, None)
            if sha256 is None:
                yield id_, f"{paths[0]}: holds a clip twice, or one that nobody put there"
            elif hashlib.sha256(data).hexdigest() != sha256:
                yield id_, f"{paths[0]}: its codes are not what was written"
            else:
                yield id_, None
    except (OSError, ValueError, KeyError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        fault = f"{paths[0]}: cannot be read ({reason[:100]})"
    for id_ in wanted:
        yield id_, fault


def merge_dataset(root: str | Path, others: Sequence[str | Path] = ()) -> Status:
    """Write one manifest of all parts, after bringing in the parts that lie in other folders.

    Files are linked where they are on one disk, and copied elsewhere; what is there already is
    left as it is. The other folders are not changed.

    Args:
        root: of the data set.
        others: data sets made in the same way, by runs with other shares of the clips.

    Returns:
        What is in the whole.

    Raises:
        InputError: there is no data set.
        UsageError: they were made in different ways, or parts are missing.
        OutputError: two of them have different files of one name.
    """
    folder = DatasetFolder(Path(root))
    recipe = folder.read_about()["recipe"]
    for other in others:
        _bring_in(DatasetFolder(Path(other)), folder, recipe)
    _check_parts(folder)
    with known_plan(folder) as plan:
        write_reports(folder, plan, WHOLE)
    return dataset_status(root)


def _bring_in(other: DatasetFolder, folder: DatasetFolder, recipe: object) -> None:
    if other.read_about()["recipe"] != recipe:
        raise UsageError(f"{other.root}: made in another way than {folder.root}: see dataset.json")
    reports = {other.about.name, "manifest.jsonl", "errors.jsonl"}
    for path in sorted(other.root.rglob("*")):
        inner = path.relative_to(other.root)
        is_state = inner.parts[0] == ".vtok" and "staged" not in inner.parts
        wanted = inner.name == "journal.jsonl" if is_state else str(inner) not in reports
        if path.is_file() and wanted:
            _link(path, folder.root / inner)


def _link(source: Path, target: Path) -> None:
    if target.exists():
        if target.samefile(source) or target.read_bytes() == source.read_bytes():
            return
        raise OutputError(
            f"{target}: is not the same as {source}: runs on several machines each need their "
            "own --shard i/n"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if target.name == "journal.jsonl":  # a run may go on in it
            raise OSError
        os.link(source, target)
    except OSError:  # another disk, or one without links
        with atomic_output(target) as temporary:
            shutil.copyfile(source, temporary)


def _check_parts(folder: DatasetFolder) -> None:
    """Refuse a data set of which a part was never begun.

    Raises:
        UsageError: naming the missing parts.
    """
    names = {path.parent.name for path in folder.journals()} - {"all"}
    for count in {int(name.rpartition("-")[2]) for name in names}:
        wanted = {f"{index:04d}-of-{count:04d}" for index in range(count)}
        if missing := sorted(wanted - names):
            shown = ", ".join(missing[:5])
            raise UsageError(f"{folder.root}: parts are missing: {shown}: run them first")
