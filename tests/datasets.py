"""Runs over data sets without a model: an engine that derives codes from ids.

As a program, a run that a test can kill: datasets.py FOLDER FORMAT ITEMS LOG
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vtok._files import atomic_output
from vtok.dataset.api import opened_run
from vtok.dataset.folder import WHOLE, DatasetFolder
from vtok.dataset.item import Fault, Item
from vtok.dataset.options import DatasetOptions
from vtok.dataset.plan import Record, read_journal
from vtok.dataset.scheduler import RunObserver, Totals
from vtok.dataset.worker import Task, blank_record
from vtok.dataset.writers import write_npy
from vtok.pipeline.options import EncodeOptions

RECIPE = {"to": "npy", "stages": 2}


class FakeEngine:
    """Writes codes that depend on the id alone.

    Attributes:
        encoded: ids in the order of encoding.
        workspace: folder of unfinished files, see `atomic_output`.
    """

    def __init__(
        self,
        fails: Callable[[str], bool] = lambda id_: False,
        ahead: int = 4,
        on_item: Callable[[str], None] = lambda id_: None,
    ) -> None:
        self.encoded: list[str] = []
        self.workspace: Path | None = None
        self._fails, self._ahead, self._on_item = fails, ahead, on_item

    def run(self, tasks: Iterator[Task]) -> Generator[Record, None, None]:
        held: list[Record] = []
        for task in tasks:
            held.append(self._encode(task))
            if len(held) == self._ahead:
                yield from reversed(held)  # not in the order of the tasks
                held = []
        yield from held

    def _encode(self, task: Task) -> Record:
        item = task.item
        self.encoded.append(item.id)
        self._on_item(item.id)
        record = blank_record(task) | {"seconds": 0.0}
        if self._fails(item.id):
            return record | {"phase": "decode", "error": "VideoError", "message": "is bad"}
        data = codes_of(item.id)
        task.target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(task.target, True, self.workspace) as temporary:
            temporary.write_bytes(data)
        return record | {
            "status": "ok", "frames": 9, "width": 16, "height": 16, "fps": "25/1",
            "code_shape": [2, 3, 2, 2], "bits_per_code": 8, "bytes": len(data), "bpp": 0.1,
            "psnr": None, "missing_frames": 0, "signature": "s", "digest": "d",
            "sha256": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip


def codes_of(id_: str) -> bytes:
    """Codes of an id, uint16 [2, 3, 2, 2] as .npy."""
    seed = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:4], "big")
    return write_npy(np.random.default_rng(seed).integers(0, 256, (2, 3, 2, 2), np.uint16))


def items(ids: Iterable[str]) -> list[Item | Fault]:
    """Items with these ids, whose sources do not exist."""
    return [Item(id_, f"/nowhere/{id_}.mp4", columns={"label": len(id_)}) for id_ in ids]


def fake_run(
    root: Path,
    found: Iterable[Item | Fault],
    engine: FakeEngine | None = None,
    *,
    to: str = "npy",
    shard_size: int = 4,
    recipe: dict[str, Any] | None = None,
    origins: tuple[str, ...] = (),
    **options: Any,
) -> Totals:
    """A run of `FakeEngine`."""
    folder = DatasetFolder(root)
    recipe = {**RECIPE, "to": to} if recipe is None else recipe
    encode = EncodeOptions(size="16x16")
    how = DatasetOptions(to=to, encode=encode, shard_size=shard_size, **options)
    with opened_run(folder, found, recipe, how, RunObserver(), origins) as run:
        engine = engine or FakeEngine()
        engine.workspace = folder.tmp(how.partition)
        return run.run(engine.run)


def manifest(root: Path, name: str = "manifest") -> list[dict[str, Any]]:
    """Rows of a manifest."""
    return [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]


def outputs(root: Path) -> dict[str, bytes]:
    """All files of a data set except reports and state."""
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
    """Run slowly, and log each item before it is encoded."""
    root, to, count, log = sys.argv[1:5]
    with Path(log).open("a", buffering=1) as file:

        def on_item(id_: str) -> None:
            file.write(id_ + "\n")
            time.sleep(0.001)

        sys.stdout.write("ready\n")
        sys.stdout.flush()
        ids = (f"c{number:04d}" for number in range(int(count)))
        fake_run(Path(root), items(ids), FakeEngine(on_item=on_item), to=to)


if __name__ == "__main__":
    main()
