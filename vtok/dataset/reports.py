"""manifest.jsonl and errors.jsonl: a row for each clip, in order of ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vtok._files import atomic_output
from vtok.dataset.folder import DatasetFolder, Part
from vtok.dataset.plan import Plan

MANIFEST = (
    "id", "input", "start", "end", "output", "status", "frames", "width", "height", "fps",
    "code_shape", "bits_per_code", "bytes", "bpp", "psnr", "seconds", "stage", "error", "message",
    "attempts", "digest", "sha256", "columns",
)  # fmt: skip
"""What a row says, in this order."""


def write_reports(folder: DatasetFolder, plan: Plan, part: Part) -> None:
    """Write both for a part; `plan` is what all journals know."""
    with (
        atomic_output(folder.report("manifest", part), True) as manifest,
        atomic_output(folder.report("errors", part), True) as errors,
        manifest.open("w") as every,
        errors.open("w") as failed,
    ):
        for record in plan.records():
            if part.has(record["id"]):
                line = json.dumps({key: record.get(key) for key in MANIFEST}) + "\n"
                every.write(line)
                if record["status"] != "ok":
                    failed.write(line)


def update_reports(folder: DatasetFolder, plan: Plan, part: Part) -> None:
    """Write both unless neither they nor the journals have changed since they were written."""
    stamp = folder.state / str(part) / "reports.json"
    if _read(stamp) == _signs(folder, part):
        return
    write_reports(folder, plan, part)
    with atomic_output(stamp, True) as temporary:
        temporary.write_text(json.dumps(_signs(folder, part)))


def _signs(folder: DatasetFolder, part: Part) -> dict[str, list[int]]:
    """Size and time of change of all that the reports are made of, and of the reports."""
    paths = [*folder.journals(), folder.report("manifest", part), folder.report("errors", part)]
    return {str(path.relative_to(folder.root)): _sign(path) for path in paths}


def _sign(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
