"""manifest.jsonl and errors.jsonl: one row per item, in order of ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vtok._files import atomic_output
from vtok.dataset.folder import DatasetFolder
from vtok.dataset.partition import Partition
from vtok.dataset.plan import Plan

MANIFEST = (
    "id", "input", "start", "end", "output", "status", "frames", "width", "height", "fps",
    "code_shape", "bits_per_code", "bytes", "bpp", "psnr", "seconds", "phase", "error", "message",
    "attempts", "digest", "sha256", "columns",
)  # fmt: skip
"""Keys of a row, in order."""


def write_reports(folder: DatasetFolder, plan: Plan, partition: Partition) -> None:
    """Write the reports of a partition from a plan that has loaded all journals."""
    with (
        atomic_output(folder.report("manifest", partition), True) as manifest,
        atomic_output(folder.report("errors", partition), True) as errors,
        manifest.open("w") as every,
        errors.open("w") as failed,
    ):
        for record in plan.records():
            if partition.has(record["id"]):
                line = json.dumps({key: record.get(key) for key in MANIFEST}) + "\n"
                every.write(line)
                if record["status"] != "ok":
                    failed.write(line)


def update_reports(folder: DatasetFolder, plan: Plan, partition: Partition) -> None:
    """Write the reports unless they and the journals are unchanged since the last time."""
    stamp = folder.state / str(partition) / "reports.json"
    if _read(stamp) == _stamps(folder, partition):
        return
    write_reports(folder, plan, partition)
    with atomic_output(stamp, True) as temporary:
        temporary.write_text(json.dumps(_stamps(folder, partition)))


def _stamps(folder: DatasetFolder, partition: Partition) -> dict[str, list[int]]:
    """Size and modification time of all journals and of the reports."""
    reports = [folder.report(name, partition) for name in ("manifest", "errors")]
    stamps = {}
    for path in [*folder.journals(), *reports]:
        try:
            status = path.stat()
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:
            stamp = []
        stamps[str(path.relative_to(folder.root))] = stamp
    return stamps


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
