"""Where codes go: here a file for each clip, in a tree like that of the ids."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from vtok.dataset.entry import Entry, file_name
from vtok.dataset.work import Record

TREE = {"vtok": ".vtok", "npy": ".npy", "safetensors": ".safetensors"}
"""Suffixes of files of one clip, by format."""


class Sink(Protocol):
    """What a run asks of the place where codes go. Only one thread calls it."""

    codec_format: str
    """What `EncodeOptions.to` is for each clip."""

    def is_there(self, record: Record) -> bool:
        """Whether the codes of a clip that was encoded are still where they were put."""

    def begin(self) -> None:
        """Get ready, now that the plan says what is to be done."""

    def order(self, entries: Iterator[Entry]) -> Iterator[tuple[Entry, Path]]:
        """Say for each clip to be done, in order of ids, which file to write its codes to."""

    def placed(self, record: Record) -> Record:
        """Complete the record of a clip that is done, before it goes into the journal."""

    def ended(self, record: Record) -> None:
        """Do what is to be done once the record of a clip is in the journal."""

    def finish(self) -> None:
        """Bring everything to its end; nothing more will come."""


class Tree:
    """A file for each clip.

    Args:
        root: folder of the data set.
        to: format, a key of `TREE`.
    """

    def __init__(self, root: Path, to: str) -> None:
        self._root, self.codec_format = root, to

    def is_there(self, record: Record) -> bool:
        """See `Sink`."""
        try:
            status = os.stat(f"{self._root}/{record['output']}")  # noqa: PTH116 - Path is slow
            return bool(status.st_size == record["bytes"])
        except OSError:
            return False

    def begin(self) -> None:
        """See `Sink`."""

    def order(self, entries: Iterator[Entry]) -> Iterator[tuple[Entry, Path]]:
        """See `Sink`."""
        for entry in entries:
            yield entry, self._root / self._name(entry.id)

    def placed(self, record: Record) -> Record:
        """See `Sink`."""
        output = self._name(record["id"]) if record["status"] == "ok" else None
        return {**record, "output": output}

    def ended(self, record: Record) -> None:
        """See `Sink`."""

    def finish(self) -> None:
        """See `Sink`."""

    def _name(self, id_: str) -> str:
        return file_name(id_) + TREE[self.codec_format]
