"""What became of each clip, one line of JSON each, appended: it survives any end of the process.

There is one writer to a file. A line that was cut by a crash is dropped when the file is opened to
write; one that cannot be read counts as not written, and its clip is encoded again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from vtok.errors import OutputError

SYNC_SECONDS = 1.0
"""How much of the journal a power cut may take; a killed process loses nothing."""


class Journal:
    """The journal of a run, opened for appending; a context manager.

    Args:
        path: the file; made if it is not there.

    Raises:
        OutputError: if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._end = _drop_half_line(self._file)
        except OSError as exc:
            raise OutputError(f"{path}: cannot be opened ({exc.strerror})") from exc
        self._synced = time.monotonic()

    def append(self, record: dict[str, Any]) -> int:
        """Write one record; returns where in the file it lies.

        Raises:
            OutputError: if it cannot be written; the file then ends where it did before.
        """
        line = json.dumps(record).encode() + b"\n"
        try:
            taken = os.write(self._file, line)
            if taken < len(line):  # a full disk takes a part
                os.ftruncate(self._file, self._end)
                raise OutputError(f"{self.path}: cannot be written (no space left)")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as exc:
            raise OutputError(f"{self.path}: cannot be written ({exc.strerror})") from exc
        place, self._end = self._end, self._end + len(line)
        return place

    def sync(self) -> None:
        """Have the disk hold all that was written."""
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_journal(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every record of a journal with its place, front to back; of a missing one, nothing.

    A journal that is being written may be read at any time.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        place = 0
        for line in file:
            record = _parse(line)
            if record is not None:
                yield place, record
            place += len(line)


def read_record(journal: BinaryIO, place: int) -> dict[str, Any]:
    """The record at a place that `append` or `read_journal` gave."""
    journal.seek(place)
    return _parse(journal.readline()) or {}


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("ascii")) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _drop_half_line(file: int) -> int:
    """Cut off what does not end in a newline; returns the length of the rest."""
    size = end = os.fstat(file).st_size
    while end:
        begin = max(0, end - 65536)
        at = os.pread(file, end - begin, begin).rfind(b"\n")
        if at >= 0:
            end = begin + at + 1
            break
        end = begin
    if end != size:  # else its time of change stays
        os.ftruncate(file, end)
    return end
