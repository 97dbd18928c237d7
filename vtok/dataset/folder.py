"""The folder of a data set: its layout, its recipe, and its locks.

    dataset.json                     recipe: how the codes are made; all runs must agree
    manifest.jsonl                   one row per item, in order of ids
    errors.jsonl                     one row per failed item
    .vtok/lock                       held while a run starts
    .vtok/PARTITION/lock             held while a run works on the partition
    .vtok/PARTITION/journal.jsonl    results in the order in which they arrived
    .vtok/PARTITION/reports.json     state of the journals that the reports were made from
    .vtok/PARTITION/staged/          codes that wait for their shard
    .vtok/PARTITION/tmp/             unfinished files

PARTITION is `all`, or such as `0003-of-0008` if the items are split between several runs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vtok._files import atomic_output
from vtok.dataset.partition import Partition
from vtok.errors import InputError, OutputError, UsageError

FORMAT, VERSION = "vtok.dataset", 2
START_SECONDS = 60.0
"""Longest wait for other runs that are starting in the same folder."""


class DatasetFolder:
    """Paths of a data set.

    Args:
        root: the folder, which need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.about = root / "dataset.json"
        self.state = root / ".vtok"

    def journal(self, partition: Partition) -> Path:
        """Journal of a partition."""
        return self.state / str(partition) / "journal.jsonl"

    def journals(self) -> list[Path]:
        """Journals of all partitions that were started."""
        return sorted(self.state.glob("*/journal.jsonl"))

    def staged(self, partition: Partition) -> Path:
        """Folder for codes that wait for their shard."""
        return self.state / str(partition) / "staged"

    def tmp(self, partition: Partition) -> Path:
        """Folder for unfinished files."""
        return self.state / str(partition) / "tmp"

    def report(self, name: str, partition: Partition) -> Path:
        """Path of the `manifest` or `errors` of a partition."""
        suffix = "" if partition.count == 1 else f"-{partition}"
        return self.root / f"{name}{suffix}.jsonl"

    def recipe(self) -> dict[str, Any]:
        """Read how the codes are made.

        Raises:
            InputError: no data set.
            UsageError: not made by this version of vtok.
        """
        try:
            about = json.loads(self.about.read_bytes())
        except FileNotFoundError as exc:
            raise InputError(f"{self.root}: no data set (it has no dataset.json)") from exc
        except (OSError, ValueError) as exc:
            raise InputError(f"{self.about}: cannot be read ({exc})") from exc
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise UsageError(f"{self.about}: not written by vtok")
        if about.get("version") != VERSION:
            raise UsageError(
                f"{self.about}: data set format {about.get('version')}, but this vtok reads and "
                f"writes format {VERSION}: use another folder, or the vtok that made it"
            )
        recipe: dict[str, Any] = about["recipe"]
        return recipe

    @contextmanager
    def opened(
        self, partition: Partition, recipe: dict[str, Any], *, overwrite: bool
    ) -> Iterator[None]:
        """Create the folder and lock the partition until the block ends.

        The operating system releases the lock if the process is killed.

        Args:
            partition: partition of the run.
            recipe: how its codes are made.
            overwrite: allow another recipe to replace the existing one.

        Raises:
            OutputError: it cannot be created, or another run works on it.
            UsageError: its codes are made with another recipe.
        """
        try:
            for folder in (self.tmp(partition), self.staged(partition)):
                folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                with self._lock(self.state, START_SECONDS):
                    self._check_others(partition)
                    stack.enter_context(self._lock(self.state / str(partition)))
                held = stack.pop_all()
        except Timeout as exc:
            raise OutputError(
                f"{self.root}: another run works on it: wait, or give another folder"
            ) from exc
        except OSError as exc:
            where = exc.filename or self.state
            raise OutputError(f"{where}: cannot be created ({exc.strerror})") from exc
        with held:
            shutil.rmtree(self.tmp(partition), ignore_errors=True)
            self.tmp(partition).mkdir()
            self._agree(recipe, overwrite=overwrite)
            yield

    def _check_others(self, partition: Partition) -> None:
        """Raise Timeout if a run works on a partition of another count.

        Runs of one count share no items, so only those may run at the same time.
        """
        for path in self.state.glob("*/lock"):
            count = path.parent.name.rpartition("-of-")[2]
            if count != str(partition).rpartition("-of-")[2]:
                with self._lock(path.parent):
                    pass

    @staticmethod
    def _lock(folder: Path, seconds: float = 0) -> FileLock:
        return FileLock(folder / "lock", timeout=seconds)

    def _agree(self, recipe: dict[str, Any], *, overwrite: bool) -> None:
        """Write the recipe, or compare with the one that is there."""
        if self.about.exists():
            there = self.recipe()
            if there == recipe:
                return
            keys = sorted(key for key in recipe | there if recipe.get(key) != there.get(key))
            shown = ", ".join(f"{key} {there.get(key)} -> {recipe.get(key)}" for key in keys)
            if not overwrite:
                raise UsageError(
                    f"{self.root}: its codes are made with other options ({shown[:200]}): give "
                    "another folder, or set `overwrite` to encode everything again"
                )
        about = {"format": FORMAT, "version": VERSION, "recipe": recipe}
        with atomic_output(self.about, overwrite=True) as temporary:
            temporary.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def recipe_digest(recipe: dict[str, Any]) -> str:
    """Short digest that identifies a recipe in the journal."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
