"""Whether all codes that the journals know are there, whole, and once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from vtok.dataset.folder import DatasetFolder
from vtok.dataset.forms import SHARDED, shard_format
from vtok.dataset.plan import Plan
from vtok.dataset.shards import ShardFormat, file_sha256
from vtok.dataset.status import known_plan

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
