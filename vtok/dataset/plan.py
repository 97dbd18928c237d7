"""Database of all items of a data set and their state; the only file with SQL.

It lives on disk, so a million items take little memory, and is rebuilt by each run from the inputs
and the journals. Records stay in the journals; the database has their offsets.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vtok._files import ScratchFolder
from vtok.dataset.item import Fault, Item, valid_text
from vtok.dataset.journal import Record, read_journal, read_record
from vtok.errors import OutputError

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
UNWRITTEN = """
SELECT id, member.shard FROM known JOIN member USING (id) LEFT JOIN written USING (id)
WHERE status = 'ok' AND known.sha256 IS NOT written.sha256
"""
ROWS_AT_ONCE = 1000
SCRATCH = "vtok-dataset-"
"""Prefix of the temporary folders of runs."""


@contextmanager
def opened_plan(journals: Iterable[Path] = ()) -> Iterator[Plan]:
    """Give a plan in a temporary folder, which is removed when the block ends.

    Args:
        journals: to load.

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
                plan.load(journal)
            yield plan
        except sqlite3.OperationalError as exc:
            raise OutputError(
                f"{folder.parent}: no room for the list of items, about 2 kB each ({exc}): free "
                "some, or set TMPDIR to another folder"
            ) from exc
        finally:
            plan.close()


class Plan:
    """Items and faults of the inputs, what the journals know of them, and what remains to do.

    Attributes:
        scratch: temporary folder, also for files that are fetched.
        duplicates: how often an item was listed again.
    """

    def __init__(self, database: sqlite3.Connection, scratch: Path) -> None:
        self._database, self.scratch = database, scratch
        self._journals: dict[Path, int] = {}
        self._files: list[BinaryIO] = []
        self.duplicates = 0

    def close(self) -> None:
        """Close the database and the journals."""
        self._database.close()
        for file in self._files:
            file.close()

    # From the inputs

    def add(self, found: Item | Fault) -> None:
        """Add an item or a fault; two different items with one id become one fault."""
        if isinstance(found, Fault):
            self._add_fault(found)
            return
        if self._run("INSERT OR IGNORE INTO item VALUES (?, ?)", found.id, found.to_json()):
            return
        ((text,),) = self._all("SELECT json FROM item WHERE id = ?", found.id)
        other = Item.from_json(text)
        if other.place == found.place:
            self.duplicates += 1
            return
        names = " and ".join(sorted((_described(other), _described(found))))
        message = f"{found.id}: two items have this id: {names}"
        self._run("INSERT OR IGNORE INTO fault VALUES (?, ?, ?, '\"\"')",
                  found.id, json.dumps(found.name), json.dumps(message))  # fmt: skip

    def _add_fault(self, fault: Fault) -> None:
        id_, number = valid_text(fault.id), 1
        while self._one("SELECT 1 FROM fault WHERE id = ?", id_):
            number += 1
            id_ = f"{valid_text(fault.id)} ({number})"
        self._run("INSERT INTO fault VALUES (?, ?, ?, ?)", id_,
                  *(json.dumps(text) for text in fault[1:]))  # fmt: skip

    def items(self) -> Iterator[tuple[Item, Record | None]]:
        """Yield all items without a fault, each with its latest record, in order of ids."""
        query = """SELECT id, json, journal, place FROM item LEFT JOIN known USING (id)
            WHERE id NOT IN (SELECT id FROM fault)"""
        for _, text, journal, place in self._ordered(query):
            known = None if journal is None else read_record(self._files[journal], place)
            yield Item.from_json(text), known

    def faults(self) -> Iterator[Fault]:
        """Yield all faults, in order of ids."""
        for id_, *texts in self._ordered("SELECT * FROM fault WHERE 1"):
            yield Fault(id_, *map(json.loads, texts))

    def num_faults(self) -> int:
        """Count the faults."""
        return self._count("SELECT count(*) FROM fault")

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

    def load(self, journal: Path) -> None:
        """Read a journal; the latest record of an item counts."""
        for place, record in read_journal(journal):
            self.note(journal, place, record)

    def note(self, journal: Path, place: int, record: Record) -> None:
        """Read one record of a journal."""
        kind, at = record.get("kind"), record.get("at", 0.0)
        if kind == "item":
            self._run(UPSERT, record["id"], self._number(journal), place, at, record["status"],
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
        if self._one("SELECT 1 FROM written WHERE shard = ? AND at > ?", shard, at):
            return
        self._run("DELETE FROM written WHERE shard = ?", shard)
        for id_, sha256 in items.items():
            self._run("INSERT OR REPLACE INTO written VALUES (?, ?, ?, ?)", id_, shard, at, sha256)
        for name, sha256 in files.items():
            self._run("INSERT OR REPLACE INTO file VALUES (?, ?, ?)", name, shard, sha256)

    def record(self, id_: str) -> Record | None:
        """Return the latest record of an item; None if the journals do not have it."""
        row = self._one("SELECT journal, place FROM known WHERE id = ?", id_)
        return None if row is None else read_record(self._files[row[0]], row[1])

    def records(self) -> Iterator[Record]:
        """Yield the latest record of each item, in order of ids."""
        for _, journal, place in self._ordered("SELECT id, journal, place FROM known WHERE 1"):
            yield read_record(self._files[journal], place)

    def failed_ids(self) -> list[str]:
        """Return the ids of items that failed."""
        return [id_ for (id_,) in self._all("SELECT id FROM known WHERE status = 'failed'")]

    # Shards

    def shard_of(self, id_: str) -> int | None:
        """Return the shard that an item is assigned to."""
        row = self._one("SELECT shard FROM member WHERE id = ?", id_)
        return None if row is None else int(row[0])

    def next_shard(self) -> int:
        """Return the number after the highest shard."""
        return self._count("SELECT ifnull(max(shard) + 1, 0) FROM member")

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
        yield from self._ordered(UNWRITTEN)

    def num_unwritten(self) -> int:
        """Count the items that `unwritten` yields."""
        return self._count(f"SELECT count(*) FROM ({UNWRITTEN})")

    def written_in(self, id_: str) -> tuple[int, str] | None:
        """Return the shard that contains an item, and the SHA-256 of its codes there."""
        row = self._one("SELECT shard, sha256 FROM written WHERE id = ?", id_)
        return None if row is None else (row[0], row[1])

    def written_shards(self) -> list[int]:
        """Return the numbers of the written shards, in order."""
        return [shard for (shard,) in self._all("SELECT DISTINCT shard FROM written ORDER BY 1")]

    def shard_items(self, shard: int) -> dict[str, str]:
        """Return the SHA-256 of the codes of each item in a written shard."""
        return dict(self._all("SELECT id, sha256 FROM written WHERE shard = ?", shard))

    def shard_files(self, shard: int) -> dict[str, str]:
        """Return the SHA-256 of each file of a written shard."""
        return dict(self._all("SELECT name, sha256 FROM file WHERE shard = ?", shard))

    # SQL

    def _run(self, query: str, *values: Any) -> int:
        """Change rows; returns how many."""
        return self._database.execute(query, values).rowcount

    def _one(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
        return row

    def _all(self, query: str, *values: Any) -> list[Any]:
        return self._database.execute(query, values).fetchall()

    def _count(self, query: str) -> int:
        return int(self._all(query)[0][0])

    def _ordered(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Rows of a query by id, fetched in batches, so that tables may change meanwhile."""
        last = ""
        while True:
            rows = self._all(f"{query} AND id > ? ORDER BY id LIMIT {ROWS_AT_ONCE}", last)
            yield from rows
            if len(rows) < ROWS_AT_ONCE:
                return
            last = rows[-1][0]

    def _number(self, journal: Path) -> int:
        """Index of a journal in the list of open files."""
        if journal not in self._journals:
            self._journals[journal] = len(self._files)
            self._files.append(journal.open("rb"))
        return self._journals[journal]


def _described(item: Item) -> str:
    part = "" if item.start is item.end is None else f" from {item.start or 0} to {item.end}"
    return item.name + part
