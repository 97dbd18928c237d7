"""The folder of a data set: its layout, recipe, locks, partitions and reports.

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
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from vtok._files import atomic_output
from vtok.codefile.sections import FrameDurations
from vtok.dataset.item import Record
from vtok.errors import InputError, OptionError, OutputError, UsageError

FORMAT, VERSION = "vtok.dataset", 2
START_SECONDS = 60.0
"""Longest wait for other runs that are starting in the same folder."""
MANIFEST = (
    "id", "input", "start", "end", "output", "status", "frames", "width", "height", "fps",
    "code_shape", "bits_per_code", "vocab_size", "bytes", "bpp", "psnr", "seconds", "phase",
    "error", "message", "attempts", "digest", "sha256", "start_frame", "num_frames",
    "missing_frames", "note", "audio_bytes", "frame_times", "columns",
)  # fmt: skip
"""Keys of a row of the reports, in order."""


@dataclass(frozen=True)
class Partition:
    """Partition `index`, from 0, of `count`, by the hash of ids; by default the whole data set."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return "all" if self.count == 1 else f"{self.index:04d}-of-{self.count:04d}"

    def has(self, id_: str) -> bool:
        """Return True if the item with this id belongs to the partition."""
        if self.count == 1:
            return True
        number = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8], "big")
        return number % self.count == self.index


WHOLE = Partition()


class DatasetFolder:
    """Paths of a data set in the folder `root`, which need not exist yet."""

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

    def write_reports(self, partition: Partition, records: Iterable[Record]) -> None:
        """Write the reports of a partition; `records` has all items, in order of ids."""
        with (
            atomic_output(self.report("manifest", partition), True) as manifest,
            atomic_output(self.report("errors", partition), True) as errors,
            manifest.open("w") as every,
            errors.open("w") as failed,
        ):
            for record in records:
                if partition.has(record["id"]):
                    line = json.dumps({key: record.get(key) for key in MANIFEST}) + "\n"
                    every.write(line)
                    if record["status"] != "ok":
                        failed.write(line)

    def update_reports(self, partition: Partition, records: Iterable[Record]) -> None:
        """Write the reports unless they and the journals are unchanged since the last time."""
        stamp = self.state / str(partition) / "reports.json"
        with suppress(OSError, ValueError):
            if json.loads(stamp.read_bytes()) == self._stamps(partition):
                return
        self.write_reports(partition, records)
        with atomic_output(stamp, True) as temporary:
            temporary.write_text(json.dumps(self._stamps(partition)))

    def _stamps(self, partition: Partition) -> dict[str, list[int]]:
        """Size and modification time of all journals and of the reports."""
        reports = [self.report(name, partition) for name in ("manifest", "errors")]
        found = {path: path.stat() for path in [*self.journals(), *reports] if path.exists()}
        return {
            str(path.relative_to(self.root)): [status.st_size, status.st_mtime_ns]
            for path, status in found.items()
        }

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

        The operating system releases the lock if the process is killed. With `overwrite`, another
        recipe replaces the existing one.

        Raises:
            OutputError: it cannot be created, or another run works on it.
            UsageError: its codes are made with another recipe.
        """
        try:
            for folder in (self.tmp(partition), self.staged(partition)):
                folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                with FileLock(self.state / "lock", timeout=START_SECONDS):
                    self._check_others(partition)
                    own = self.state / str(partition) / "lock"
                    stack.enter_context(FileLock(own, timeout=0))
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
                with FileLock(path, timeout=0):
                    pass

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


def frame_times(row: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
    """Return the times of the frames of an item.

    Args:
        row: of a manifest, a parquet shard, or the JSON of an item in a tar shard or memory map.

    Returns:
        Seconds from the first frame to each, float64 [T]; None at an even rate.

    Raises:
        ValueError: The row states times that no frames can have.
    """
    stated = row.get("frame_times")
    return None if stated is None else FrameDurations.from_json(stated).starts


def recipe_digest(recipe: dict[str, Any]) -> str:
    """Short digest that identifies a recipe in the journal."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def parse_partition(text: str | None, environment: Mapping[str, str]) -> Partition:
    """Parse "0/8", "auto" or "auto/8".

    `auto` reads index and count of a Slurm array task. Kubernetes sets only the index of a job's
    pod, so the count has to be given: "auto/8".

    Args:
        text: partition; the whole data set if None.
        environment: environment variables.

    Raises:
        OptionError: invalid text, or `auto` outside Slurm and Kubernetes.
    """
    if text is None:
        return WHOLE
    match = re.fullmatch(r"(auto|\d{1,6})(?:/(\d{1,6}))?", text.strip(), re.ASCII)
    if match is None or (match[1] != "auto" and match[2] is None):
        raise OptionError("partition", text, "0/8 to 7/8, auto, or auto/8")
    index, count = _from_job_system(environment) if match[1] == "auto" else (int(match[1]), None)
    count = count if match[2] is None else int(match[2])
    if count is None:
        raise OptionError("partition", text, "auto/COUNT: this job system does not set the count")
    if not 0 <= index < count:
        raise OptionError("partition", text, f"an index from 0 to {count - 1}, but it is {index}")
    return Partition(index, count)


def _from_job_system(environment: Mapping[str, str]) -> tuple[int, int | None]:
    """Index and count that Slurm or Kubernetes set; None for an unknown count."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        index, first, step, count = (
            _number(environment, f"SLURM_ARRAY_TASK_{name}", default)
            for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1), ("COUNT", 0))
        )
        return (index - first) // max(1, step), count or None
    if "JOB_COMPLETION_INDEX" in environment:
        return _number(environment, "JOB_COMPLETION_INDEX", 0), None
    raise OptionError(
        "partition", "auto", "0/8: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise OptionError("partition", "auto", f"a number in {name}, but it is {text[:40]!r}")
    return int(text)
