"""The folder of a data set: what lies where in it, how it is made, and that one run works on it.

    dataset.json            how the codes are made; all runs must agree
    manifest.jsonl          a row for each clip, in order of ids
    errors.jsonl            a row for each clip that failed
    .vtok/PART/journal.jsonl    what became of each clip, as it happened
    .vtok/PART/reports.json     of which journals the manifest and the errors were made
    .vtok/PART/staged/      codes that wait for their shard
    .vtok/PART/tmp/         half files

A part is what one `--shard i/n` does, `all` where there is no such option.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vtok._files import atomic_output
from vtok.errors import InputError, OutputError, UsageError

FORMAT, VERSION = "vtok.dataset", 1
STATE = ".vtok"


@dataclass(frozen=True)
class Part:
    """The share of one of several runs: number `index` from 0 of `count`."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return "all" if self.count == 1 else f"{self.index:04d}-of-{self.count:04d}"

    def has(self, id_: str) -> bool:
        """Whether a clip is in this share, whatever other clips there are."""
        if self.count == 1:
            return True
        number = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8], "big")
        return number % self.count == self.index


WHOLE = Part()


class DatasetFolder:
    """The folder of a data set.

    Args:
        root: need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.about = root / "dataset.json"
        self.state = root / STATE

    def journal(self, part: Part) -> Path:
        """The journal of a part."""
        return self.state / str(part) / "journal.jsonl"

    def journals(self) -> list[Path]:
        """Those of all parts that were begun."""
        return sorted(self.state.glob("*/journal.jsonl"))

    def staged(self, part: Part) -> Path:
        """Where codes of a part wait for their shard."""
        return self.state / str(part) / "staged"

    def tmp(self, part: Part) -> Path:
        """Where half files of a part lie."""
        return self.state / str(part) / "tmp"

    def report(self, name: str, part: Part) -> Path:
        """`manifest.jsonl` or `errors.jsonl` of a part."""
        return self.root / (f"{name}.jsonl" if part.count == 1 else f"{name}-{part}.jsonl")

    def read_about(self) -> dict[str, Any]:
        """What dataset.json says.

        Raises:
            InputError: there is none.
            UsageError: it is not one of ours.
        """
        try:
            about = json.loads(self.about.read_bytes())
        except FileNotFoundError as exc:
            raise InputError(f"{self.root}: no data set (it has no dataset.json)") from exc
        except (OSError, ValueError) as exc:
            raise InputError(f"{self.about}: cannot be read ({exc})") from exc
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise UsageError(f"{self.about}: was not written by vtok")
        if about.get("version") != VERSION:
            raise UsageError(f"{self.about}: of a later vtok: update this one")
        return about

    @contextmanager
    def opened(self, part: Part, recipe: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Make the folder, and keep other runs out of this part while the block runs.

        The lock dies with its process, however that ends.

        Args:
            part: which part of the data set the run makes.
            recipe: how its codes are made.
            overwrite: whether another recipe may take the place of the one that is there.

        Raises:
            OutputError: it cannot be made, or another run works on it.
            UsageError: its codes are made in another way.
        """
        try:
            for folder in (self.tmp(part), self.staged(part)):
                folder.mkdir(parents=True, exist_ok=True)
            whole = (self.state / "lock").open("a+")
            own = (self.state / str(part) / "lock").open("a+")
        except OSError as exc:
            raise OutputError(f"{exc.filename}: cannot be made ({exc.strerror})") from exc
        with whole, own:
            self._lock(whole, own, part)
            shutil.rmtree(self.tmp(part), ignore_errors=True)
            self.tmp(part).mkdir()
            self._agree(recipe, overwrite=overwrite)
            yield

    def _lock(self, whole: IO[str], own: IO[str], part: Part) -> None:
        """Take a part; parts of one count may be worked on side by side."""
        try:
            fcntl.flock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            try:
                fcntl.flock(whole, fcntl.LOCK_SH | fcntl.LOCK_NB)
                whole.seek(0)
                alike = part.count > 1 and whole.read() == str(part.count)
                if alike:
                    fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                alike = False
            if not alike:
                raise OutputError(
                    f"{self.root}: another run works on it: wait, or give another folder"
                ) from None
            return
        whole.seek(0)
        whole.truncate()
        whole.write(str(part.count))
        whole.flush()
        if part.count > 1:
            fcntl.flock(whole, fcntl.LOCK_SH)
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _agree(self, recipe: dict[str, Any], *, overwrite: bool) -> None:
        """Write down how the codes are made, or compare with what is written."""
        if self.about.exists():
            there = self.read_about()["recipe"]
            if there == recipe:
                return
            keys = sorted(key for key in recipe | there if recipe.get(key) != there.get(key))
            shown = ", ".join(f"{key} {there.get(key)} -> {recipe.get(key)}" for key in keys)
            if not overwrite:
                raise UsageError(
                    f"{self.root}: its codes are made in another way ({shown[:200]}): give another "
                    "folder, or --overwrite to make all of them anew"
                )
        about = {"format": FORMAT, "version": VERSION, "recipe": recipe}
        with atomic_output(self.about, overwrite=True) as temporary:
            temporary.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def recipe_digest(recipe: dict[str, Any]) -> str:
    """A short name of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
