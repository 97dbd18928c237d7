"""The parts of a data set as one: of one folder, or brought together from several machines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vtok.atomic import atomic_output
from vtok.dataset.folder import WHOLE, DatasetFolder
from vtok.dataset.reports import write_reports
from vtok.dataset.status import Status, dataset_status, known_plan
from vtok.errors import OutputError, UsageError


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
