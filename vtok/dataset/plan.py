"""State of a data set: its journals, and the plan, a database of all items.

A journal is an append-only file with one line of JSON per record, and has one writer. A line that a
crash cut short is ended when the file is opened for writing; an unreadable line counts as missing,
and its item is encoded again.

Each run rebuilds the plan from the inputs and the journals. It lives on disk, so a million items
take little memory; records stay in the journals, and the database has their offsets. This is the
only file with SQL.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vtok._files import ScratchFolder
from vtok.dataset.item import Fault, Item, Record, valid_text
from vtok.errors import OutputError

SYNC_SECONDS = 1.0
"""Time between syncs to disk: what a power cut may lose. A killed process loses nothing."""
TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE item (id TEXT PRIMARY KEY, json TEXT) WITHOUT ROWID;
CREATE TABLE fault (id TEXT PRIMARY KEY, source TEXT, message TEXT, origin TEXT) WITHOUT ROWID;
CREATE TABLE known (id TEXT PRIMARY KEY, journal INTEGER, place INTEGER, at REAL, status TEXT,
    sha256 TEXT) WITHOUT ROWID;
CREATE TABLE todo (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE member (id TEXT PRIMARY KEY, shard INTEGER) WITHOUT ROWID;
CREATE INDEX of_shard ON member (shard);
CREATE TABLE written (id TEXT PRIMARY KEY, shard INTEGER, at REAL, sha256 TEXT) WITHOUT ROWID;
CREATE INDEX of_written ON written (shard);
CREATE TABLE file (name TEXT PRIMARY KEY, shard INTEGER, sha256 TEXT) WITHOUT ROWID;
"""
UPSERT = """
INSERT INTO known VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
    journal = excluded.journal, place = excluded.place, at = excluded.at,
    status = excluded.status, sha256 = excluded.sha256
WHERE excluded.at >= known.at
"""  # journals of several partitions are read one after the other: the latest record counts
ROWS_AT_ONCE = 1000
SCRATCH = "vtok-dataset-"
"""Prefix of the temporary folders of runs."""


class Journal:
    """Journal of a run, opened for appending; the plan receives the new records.

    Raises:
        OutputError: it cannot be opened.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self._plan = path, plan
        try:
            self._file = path.open("ab+", buffering=0)
            self._end = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(0, self._end - 1))
            if self._file.read(1) not in (b"", b"\n"):
                self._end += self._file.write(b"\n")
        except OSError as exc:
            raise OutputError(f"{path}: cannot be opened ({exc.strerror})") from exc
        self._synced = time.monotonic()

    def note(self, record: Record) -> None:
        """Add the time to a record, append it, and add it to the plan.

        Raises:
            OutputError: it cannot be written; the file is left as it was.
        """
        record = {**record, "at": round(time.time(), 3)}
        line = json.dumps(record).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):  # a full disk
                self._file.truncate(self._end)
                raise OutputError(f"{self.path}: cannot be written (no space left)")
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as exc:
            raise OutputError(f"{self.path}: cannot be written ({exc.strerror})") from exc
        self._plan.note(self.path, self._end, record)
        self._end += len(line)

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


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line.decode("ascii")) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


@contextmanager
def opened_plan(journals: Iterable[Path] = ()) -> Iterator[Plan]:
    """Give a plan with the records of journals; it is removed when the block ends.

    Raises:
        OutputError: no room for it.
    """
    with ScratchFolder(SCRATCH) as folder:
        database = sqlite3.connect(folder / "plan.sqlite", isolation_level=None)
        plan = Plan(database, folder)
        try:
            database.executescript(TABLES)
            database.execute("BEGIN")  # a transaction that never ends: the file is temporary
            for journal in journals:
                for place, record in read_journal(journal):
                    plan.note(journal, place, record)
            yield plan
        except sqlite3.OperationalError as exc:
            raise OutputError(
                f"{folder.parent}: no room for the list of items, about 2 kB each ({exc}): free "
                "some, or set TMPDIR to another folder"
            ) from exc
        finally:
            plan.close()


class Plan:
    """Items and faults of the inputs, their records in the journals, and what remains to do.

    Attributes:
        scratch: temporary folder, also for files that are fetched.
        duplicates: number of items that were listed again.
        num_faults: number of faults.
    """

    def __init__(self, database: sqlite3.Connection, scratch: Path) -> None:
        self._database, self.scratch = database, scratch
        self._journals: dict[Path, int] = {}  # index in `_files`
        self._files: list[BinaryIO] = []
        self.duplicates = self.num_faults = 0

    def close(self) -> None:
        """Close the database and the journals."""
        self._database.close()
        for file in self._files:
            file.close()

    # From the inputs

    def add(self, found: Item | Fault) -> None:
        """Add an item or a fault; two different items with one id become one fault."""
        if isinstance(found, Fault):
            id_, number = valid_text(found.id), 1
            while not self._add_fault(found._replace(id=id_)):
                number += 1
                id_ = f"{valid_text(found.id)} ({number})"
            return
        if self._run("INSERT OR IGNORE INTO item VALUES (?, ?)", found.id, found.to_json()):
            return
        ((text,),) = self._all("SELECT json FROM item WHERE id = ?", found.id)
        names = sorted((_described(Item.from_json(text)), _described(found)))
        if names[0] == names[1]:
            self.duplicates += 1
            return
        message = f"{found.id}: two items have this id: {' and '.join(names)}"
        self._add_fault(Fault(found.id, found.name, message))

    def _add_fault(self, fault: Fault) -> bool:
        """Add a fault; returns False if another one has its id."""
        query = "INSERT OR IGNORE INTO fault VALUES (?, ?, ?, ?)"
        is_new = bool(self._run(query, fault.id, *map(json.dumps, fault[1:])))
        self.num_faults += is_new
        return is_new

    def items(self) -> Iterator[tuple[Item, Record | None]]:
        """Yield all items without a fault, each with its latest record, in order of ids."""
        query = """SELECT id, json, journal, place FROM item LEFT JOIN known USING (id)
            WHERE id NOT IN (SELECT id FROM fault)"""
        for _, text, journal, place in self._ordered(query):
            yield Item.from_json(text), None if journal is None else self._read(journal, place)

    def faults(self) -> Iterator[Fault]:
        """Yield all faults, in order of ids."""
        for id_, *texts in self._ordered("SELECT * FROM fault WHERE 1"):
            yield Fault(id_, *map(json.loads, texts))

    # Items to do

    def mark(self, id_: str) -> None:
        """Mark an item to be encoded."""
        self._run("INSERT OR IGNORE INTO todo VALUES (?)", id_)

    def unmark(self, id_: str) -> bool:
        """Remove the mark of an item; returns False if it had none."""
        return bool(self._run("DELETE FROM todo WHERE id = ?", id_))

    def todo(self) -> Iterator[Item]:
        """Yield the marked items, in order of ids."""
        query = "SELECT id, json FROM item WHERE id IN todo"
        return (Item.from_json(text) for _, text in self._ordered(query))

    # From the journals

    def note(self, journal: Path, place: int, record: Record) -> None:
        """Take over a record that is at an offset of a journal."""
        kind, at = record.get("kind"), record.get("at", 0.0)
        if kind == "item":
            if journal not in self._journals:
                self._journals[journal] = len(self._files)
                self._files.append(journal.open("rb"))
            self._run(UPSERT, record["id"], self._journals[journal], place, at, record["status"],
                      record.get("sha256"))  # fmt: skip
        elif kind == "dropped":
            self._run("DELETE FROM known WHERE id = ?", record["id"])
        elif kind == "shard":
            for id_ in record["ids"]:
                self._run("INSERT OR REPLACE INTO member VALUES (?, ?)", id_, record["shard"])
        elif kind == "written":
            self._note_written(record["shard"], at, record["items"], record["files"])

    def _note_written(
        self, shard: int, at: float, items: dict[str, str], files: dict[str, str]
    ) -> None:
        if self._all("SELECT 1 FROM written WHERE shard = ? AND at > ? LIMIT 1", shard, at):
            return
        self._run("DELETE FROM written WHERE shard = ?", shard)
        for id_, sha256 in items.items():
            self._run("INSERT OR REPLACE INTO written VALUES (?, ?, ?, ?)", id_, shard, at, sha256)
        for name, sha256 in files.items():
            self._run("INSERT OR REPLACE INTO file VALUES (?, ?, ?)", name, shard, sha256)

    def record(self, id_: str) -> Record | None:
        """Return the latest record of an item; None if the journals do not have it."""
        rows = self._all("SELECT journal, place FROM known WHERE id = ?", id_)
        return self._read(*rows[0]) if rows else None

    def records(self) -> Iterator[Record]:
        """Yield the latest record of each item, in order of ids."""
        for _, journal, place in self._ordered("SELECT id, journal, place FROM known WHERE 1"):
            yield self._read(journal, place)

    def failed_ids(self) -> list[str]:
        """Return the ids of items that failed."""
        return [id_ for (id_,) in self._all("SELECT id FROM known WHERE status = 'failed'")]

    # Shards

    def shard_of(self, id_: str) -> int | None:
        """Return the shard that an item is assigned to."""
        rows = self._all("SELECT shard FROM member WHERE id = ?", id_)
        return int(rows[0][0]) if rows else None

    def next_shard(self) -> int:
        """Return the number after the highest shard."""
        return int(self._all("SELECT ifnull(max(shard) + 1, 0) FROM member")[0][0])

    def open_shards(self) -> dict[int, int]:
        """Return the number of marked items in each shard that has any."""
        query = "SELECT shard, count(*) FROM member JOIN todo USING (id) GROUP BY shard"
        return dict(self._all(query))

    def encoded_ids(self, shard: int) -> list[str]:
        """Return the ids of a shard whose items are encoded, in order."""
        query = """SELECT id FROM member JOIN known USING (id)
            WHERE shard = ? AND status = 'ok' ORDER BY id"""
        return [id_ for (id_,) in self._all(query, shard)]

    def unwritten(self) -> Iterator[tuple[str, int]]:
        """Yield id and shard of items whose latest codes are not in their shard yet."""
        query = """SELECT id, member.shard FROM known JOIN member USING (id)
            LEFT JOIN written USING (id) WHERE status = 'ok' AND known.sha256 IS NOT written.sha256
            """
        yield from self._ordered(query)

    def written_in(self, id_: str) -> tuple[int, str] | None:
        """Return the shard that contains an item, and the SHA-256 of its codes there."""
        rows = self._all("SELECT shard, sha256 FROM written WHERE id = ?", id_)
        return rows[0] if rows else None

    def written_shards(self) -> list[int]:
        """Return the numbers of the written shards, in order."""
        return [shard for (shard,) in self._all("SELECT DISTINCT shard FROM written ORDER BY 1")]

    def shard_contents(self, shard: int) -> tuple[dict[str, str], dict[str, str]]:
        """Return the SHA-256 of the codes of each item, and of each file, of a written shard."""
        items = self._all("SELECT id, sha256 FROM written WHERE shard = ?", shard)
        return dict(items), dict(self._all("SELECT name, sha256 FROM file WHERE shard = ?", shard))

    # Queries

    def _run(self, query: str, *values: Any) -> int:
        """Change rows; returns how many."""
        return self._database.execute(query, values).rowcount

    def _all(self, query: str, *values: Any) -> list[Any]:
        return self._database.execute(query, values).fetchall()

    def _ordered(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Rows of a query by id, fetched in batches, so that tables may change meanwhile."""
        last = ""
        while True:
            rows = self._all(f"{query} AND id > ? ORDER BY id LIMIT {ROWS_AT_ONCE}", last)
            yield from rows
            if len(rows) < ROWS_AT_ONCE:
                return
            last = rows[-1][0]

    def _read(self, journal: int, place: int) -> Record:
        self._files[journal].seek(place)
        return _parse(self._files[journal].readline()) or {}


def _described(item: Item) -> str:
    part = "" if item.start is item.end is None else f" from {item.start or 0} to {item.end}"
    if item.start_frame is not None or item.num_frames is not None:
        part += f" from frame {item.start_frame or 0}, {item.num_frames} frames"
    return item.name + part
