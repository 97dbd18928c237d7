"""Status, verification and merging of a data set whose items may be split into partitions."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtok._files import atomic_output
from vtok.dataset.folder import WHOLE, DatasetFolder
from vtok.dataset.item import file_sha256
from vtok.dataset.options import SHARD_FORMATS
from vtok.dataset.plan import opened_plan
from vtok.dataset.writers import ShardFormat, shard_format
from vtok.errors import OutputError, UsageError


@dataclass
class Status:
    """Counts of a data set.

    Attributes:
        done, failed: items.
        waiting: items done that are not in their shard yet.
        shards: written shards.
        frames, bytes: of the items done.
        worker_seconds: time spent on all items.
        causes: failed items by phase and error, the most frequent first.
        partitions: partitions that were started, such as `all` or `0001-of-0008`.
        recipe: how the codes are made.
    """

    done: int = 0
    failed: int = 0
    waiting: int = 0
    shards: int = 0
    frames: int = 0
    bytes: int = 0
    worker_seconds: float = 0.0
    causes: dict[str, int] = field(default_factory=dict)
    partitions: list[str] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)


def dataset_status(root: str | Path) -> Status:
    """Count the items of a data set by result, also while runs work on it.

    Raises:
        InputError: no data set.
    """
    folder = DatasetFolder(Path(root))
    status, causes = Status(recipe=folder.recipe()), Counter[str]()
    status.partitions = [path.parent.name for path in folder.journals()]
    with opened_plan(folder.journals()) as plan:
        for record in plan.records():
            status.worker_seconds += record.get("seconds", 0.0)
            if record["status"] == "ok":
                status.done += 1
                status.frames += record["frames"]
                status.bytes += record["bytes"]
            else:
                status.failed += 1
                causes[f"{record.get('phase')}: {record.get('error')}"] += 1
        status.shards, status.waiting = len(plan.written_shards()), sum(1 for _ in plan.unwritten())
    status.worker_seconds = round(status.worker_seconds, 3)
    status.causes = dict(causes.most_common())
    return status


Finding = tuple[str, str | None]
"""Id of an item or name of a file, and the error; None if it is intact."""


def verify_dataset(root: str | Path) -> Iterator[Finding]:
    """Compare the SHA-256 of all codes with the journals.

    Yields:
        A finding for each encoded item, each unexpected item in a shard, and each damaged file.

    Raises:
        InputError: no data set.
        UsageError: a package that reads its shards is not installed.
    """
    folder = DatasetFolder(Path(root))
    to = folder.recipe()["to"]
    with opened_plan(folder.journals()) as plan:
        if to not in SHARD_FORMATS:
            for record in plan.records():
                if record["status"] == "ok":
                    path = folder.root / record["output"]
                    yield record["id"], _file_error(path, record["sha256"])
            return
        form = shard_format(to)
        for shard in plan.written_shards():
            items, files = plan.shard_contents(shard)
            for name, sha256 in files.items():
                if error := _file_error(folder.root / name, sha256):
                    yield name, error
            yield from _verify_shard(
                [folder.root / name for name in form.names(shard)], items, form
            )
        for id_, shard in plan.unwritten():
            yield id_, f"{form.names(shard)[0]}: the item is not in it yet: run again"


def _file_error(path: Path, sha256: str) -> str | None:
    try:
        found = file_sha256(path)
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as exc:
        return f"{path}: cannot be read ({exc.strerror})"
    return None if found == sha256 else f"{path}: differs from what was written"


def _verify_shard(
    paths: list[Path], expected: dict[str, str], form: ShardFormat
) -> Iterator[Finding]:
    error = f"{paths[0]}: the item is missing"
    try:
        for id_, data in form.read(paths):
            sha256 = expected.pop(id_, None)
            if sha256 is None:
                yield id_, f"{paths[0]}: contains the item twice, or should not contain it"
            elif hashlib.sha256(data).hexdigest() != sha256:
                yield id_, f"{paths[0]}: the codes differ from what was written"
            else:
                yield id_, None
    except (OSError, ValueError, KeyError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        error = f"{paths[0]}: cannot be read ({reason[:100]})"
    for id_ in expected:
        yield id_, error


def merge_dataset(root: str | Path, others: Sequence[str | Path] = ()) -> Status:
    """Write one manifest for all partitions, after copying those that are in other folders.

    Files are linked if they are on one disk, and copied otherwise; existing ones are kept. The
    other folders are not changed.

    Args:
        root: folder of the data set.
        others: folders of other partitions, made with the same recipe.

    Returns:
        Counts of the whole data set.

    Raises:
        InputError: no data set.
        UsageError: different recipes, or a partition is missing.
        OutputError: two folders have different files of one name.
    """
    folder = DatasetFolder(Path(root))
    recipe = folder.recipe()
    for other in others:
        _copy_in(DatasetFolder(Path(other)), folder, recipe)
    names = {path.parent.name for path in folder.journals()} - {"all"}
    for count in {int(name.rpartition("-")[2]) for name in names}:
        expected = {f"{index:04d}-of-{count:04d}" for index in range(count)}
        if missing := sorted(expected - names):
            shown = ", ".join(missing[:5])
            raise UsageError(f"{folder.root}: partitions are missing: {shown}: run them first")
    with opened_plan(folder.journals()) as plan:
        folder.write_reports(WHOLE, plan.records())
    return dataset_status(root)


def _copy_in(other: DatasetFolder, folder: DatasetFolder, recipe: object) -> None:
    if other.recipe() != recipe:
        raise UsageError(
            f"{other.root}: made with other options than {folder.root}: compare their dataset.json"
        )
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
            f"{target}: differs from {source}: each run needs its own `partition` of the items"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if target.name == "journal.jsonl":  # a later run may append to it
            raise OSError
        os.link(source, target)
    except OSError:  # another disk, or one without links
        with atomic_output(target) as temporary:
            shutil.copyfile(source, temporary)
