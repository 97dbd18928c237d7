"""Append-only record of finished items, one line of JSON each, that survives crashes.

Each file has one writer. A line that a crash cut short is removed when the file is opened for
writing; an unreadable line counts as missing, and its item is encoded again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vtok.errors import OutputError

Record = dict[str, Any]
"""One line of a journal, as JSON types. Its `kind` is `item`, `dropped`, `shard` or `written`."""

SYNC_SECONDS = 1.0
"""Time between syncs to disk: what a power cut may lose. A killed process loses nothing."""


class Journal:
    """Journal of a run, opened for appending; a context manager.

    Args:
        path: the file; created if missing.

    Raises:
        OutputError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab+", buffering=0)
            self._end = _drop_half_line(self._file)
        except OSError as exc:
            raise OutputError(f"{path}: cannot be opened ({exc.strerror})") from exc
        self._synced = time.monotonic()

    def append(self, record: Record) -> int:
        """Write one record; returns its offset in the file.

        Raises:
            OutputError: it cannot be written; the file is left as it was.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):  # a full disk
                self._file.truncate(self._end)
                raise OutputError(f"{self.path}: cannot be written (no space left)")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as exc:
            raise OutputError(f"{self.path}: cannot be written ({exc.strerror})") from exc
        place, self._end = self._end, self._end + len(line)
        return place

    def sync(self) -> None:
        """Flush everything to disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read_journal(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield every record with its offset, also while a run appends to the file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        place = 0
        for line in file:
            record = _parse(line)
            if record is not None:
                yield place, record
            place += len(line)


def read_record(journal: BinaryIO, place: int) -> Record:
    """Read the record at an offset that `append` or `read_journal` returned."""
    journal.seek(place)
    return _parse(journal.readline()) or {}


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line.decode("ascii")) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _drop_half_line(file: BinaryIO) -> int:
    """Remove an incomplete last line; returns the length of the file."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - 65536)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            end = begin + at + 1
            break
        end = begin
    if end != size:  # an unneeded truncation would change the modification time
        file.truncate(end)
    return end
