"""Runs over data sets without a model: an engine whose codes are made from ids, in no time.

As a program it is a run that a test can kill: datasets.py FOLDER FORMAT CLIPS LOG
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vtok._files import atomic_output
from vtok.dataset.api import Silent
from vtok.dataset.folder import WHOLE, DatasetFolder
from vtok.dataset.item import Entry, Fault
from vtok.dataset.journal import Journal, read_journal
from vtok.dataset.plan import scratch_plan
from vtok.dataset.scheduler import Manner, Run, Totals, fill_plan
from vtok.dataset.shards import Shards
from vtok.dataset.worker import Record, Task, blank_record
from vtok.dataset.writers import SHARDED, Tree, shard_format, write_npy

RECIPE = {"to": "npy", "stages": 2}


class FakeEngine:
    """Writes codes that depend on the id alone.

    Attributes:
        encoded: ids in the order in which they were encoded.
        workspace: where half files are, as `vtok.atomic.atomic_output` takes it.
    """

    def __init__(
        self,
        fails: Callable[[str], bool] = lambda id_: False,
        ahead: int = 4,
        on_clip: Callable[[str], None] = lambda id_: None,
    ) -> None:
        self.encoded: list[str] = []
        self.workspace: Path | None = None
        self._fails, self._ahead, self._on_clip = fails, ahead, on_clip

    def run(self, tasks: Iterator[Task]) -> Generator[Record, None, None]:
        held: list[Record] = []
        for task in tasks:
            held.append(self._encode(task))
            if len(held) == self._ahead:
                yield from reversed(held)  # in another order than they came
                held = []
        yield from held

    def _encode(self, task: Task) -> Record:
        entry = task.entry
        self.encoded.append(entry.id)
        self._on_clip(entry.id)
        record = blank_record(task) | {"seconds": 0.0}
        if self._fails(entry.id):
            return record | {"stage": "decode", "error": "VideoError", "message": "is bad"}
        data = codes_of(entry.id)
        task.target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(task.target, True, self.workspace) as temporary:
            temporary.write_bytes(data)
        return record | {
            "status": "ok", "frames": 9, "width": 16, "height": 16, "fps": "25/1",
            "code_shape": [2, 3, 2, 2], "bits_per_code": 8, "bytes": len(data), "bpp": 0.1,
            "psnr": None, "signature": "s", "digest": "d",
            "sha256": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip


def codes_of(id_: str) -> bytes:
    """The codes of an id, uint16 [2, 3, 2, 2] as .npy."""
    seed = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:4], "big")
    return write_npy(np.random.default_rng(seed).integers(0, 256, (2, 3, 2, 2), np.uint16))


def entries(ids: Iterable[str]) -> list[Entry | Fault]:
    """Clips of these ids, whose sources are not there."""
    return [Entry(id_, f"/nowhere/{id_}.mp4", columns={"label": len(id_)}) for id_ in ids]


def fake_run(
    root: Path,
    found: Iterable[Entry | Fault],
    engine: FakeEngine | None = None,
    *,
    to: str = "npy",
    shard_size: int = 4,
    recipe: dict[str, Any] | None = None,
    origins: tuple[str, ...] = (),
    **manner: Any,
) -> Totals:
    """A run of `FakeEngine`."""
    how, folder = Manner(**manner), DatasetFolder(root)
    recipe = {**RECIPE, "to": to} if recipe is None else recipe
    with ExitStack() as stack:
        stack.enter_context(folder.opened(how.part, recipe, overwrite=how.overwrite))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan = stack.enter_context(scratch_plan(scratch))
        fill_plan(plan, found, folder, how.part)
        journal = stack.enter_context(Journal(folder.journal(how.part)))
        run = Run(folder, plan, journal, recipe, scratch, how, Silent(), origins)
        sink: Any = Tree(root, to)
        if to in SHARDED:
            sink = Shards(folder, how.part, plan, shard_format(to), shard_size, run.note)
        engine = engine or FakeEngine()
        engine.workspace = folder.tmp(how.part)
        return run.go(engine, sink)


def manifest(root: Path, name: str = "manifest") -> list[dict[str, Any]]:
    """The rows of a manifest."""
    return [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]


def outputs(root: Path) -> dict[str, bytes]:
    """All files of a data set but its reports and its state."""
    reports = ("manifest", "errors", "dataset.json")
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".vtok" not in path.parts and not path.name.startswith(reports)
    }


def journal_lines(root: Path) -> list[dict[str, Any]]:
    """All records of the only journal."""
    return [record for _, record in read_journal(DatasetFolder(root).journal(WHOLE))]


def main() -> None:
    """A run that takes its time and writes down each clip that it encodes."""
    root, to, count, log = sys.argv[1:5]
    with Path(log).open("a", buffering=1) as file:

        def on_clip(id_: str) -> None:
            file.write(id_ + "\n")
            time.sleep(0.001)

        sys.stdout.write("ready\n")
        sys.stdout.flush()
        ids = (f"c{number:04d}" for number in range(int(count)))
        fake_run(Path(root), entries(ids), FakeEngine(on_clip=on_clip), to=to)


if __name__ == "__main__":
    main()
