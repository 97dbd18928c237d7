"""All clips of a data set and what is known of each, on disk: a million take little memory.

It is a scratch file, made anew by each run from the inputs and the journals.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vtok.dataset.item import Entry, Fault, valid_text
from vtok.dataset.journal import read_journal, read_record
from vtok.errors import OutputError

TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE entry (id TEXT PRIMARY KEY, json TEXT) WITHOUT ROWID;
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
"""  # journals of several parts are read one after the other: what was written last counts
ROWS_AT_ONCE = 1000
SCRATCH = "vtok-dataset-"  # prefix of the folders that hold one


@contextmanager
def scratch_plan(folder: Path) -> Iterator[Plan]:
    """An empty plan in a folder, for as long as the block runs.

    Raises:
        OutputError: the folder's disk has no room for it.
    """
    database = sqlite3.connect(folder / "plan.sqlite", isolation_level=None)
    plan = Plan(database)
    try:
        database.executescript(TABLES)
        database.execute("BEGIN")  # one transaction for ever: nothing is kept
        yield plan
    except sqlite3.OperationalError as exc:
        raise OutputError(
            f"{folder.parent}: cannot hold the list of clips, some 2 kB each ({exc}): make room, "
            "or set TMPDIR to another folder"
        ) from exc
    finally:
        database.close()
        plan.close()


class Plan:
    """Entries, faults, what the journals know, and what is to be done; by id."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._journals: dict[Path, int] = {}
        self._files: list[BinaryIO] = []
        self.repeated = 0

    def close(self) -> None:
        """Close the journals that it reads from."""
        for file in self._files:
            file.close()

    def add(self, found: Entry | Fault) -> None:
        """Take in what was found; two different clips of one id make one fault, and no clip."""
        if isinstance(found, Fault):
            self._fault(found)
            return
        if self._run("INSERT OR IGNORE INTO entry VALUES (?, ?)", found.id, found.to_json()):
            return
        ((text,),) = self.all("SELECT json FROM entry WHERE id = ?", found.id)
        other = Entry.from_json(text)
        if other.place == found.place:
            self.repeated += 1
            return
        names = " and ".join(sorted((_described(other), _described(found))))
        message = f"{found.id}: two clips have this id: {names}"
        self._run("INSERT OR IGNORE INTO fault VALUES (?, ?, ?, '\"\"')",
                  found.id, json.dumps(found.name), json.dumps(message))  # fmt: skip

    def load(self, journal: Path) -> None:
        """Take in a journal; what it says of a clip last is what counts."""
        for place, record in read_journal(journal):
            self.note(journal, place, record)

    def note(self, journal: Path, place: int, record: dict[str, Any]) -> None:
        """Take in one record of a journal."""
        kind, at = record.get("kind"), record.get("at", 0.0)
        if kind == "clip":
            self._run(UPSERT, record["id"], self._number(journal), place, at, record["status"],
                      record.get("sha256"))  # fmt: skip
        elif kind == "dropped":
            self._run("DELETE FROM known WHERE id = ?", record["id"])
        elif kind == "shard":
            for id_ in record["ids"]:
                self._run("INSERT OR REPLACE INTO member VALUES (?, ?)", id_, record["shard"])
        elif kind == "written":
            self._note_written(record["shard"], at, record["clips"], record["files"])

    def _note_written(
        self, shard: int, at: float, clips: dict[str, str], files: dict[str, str]
    ) -> None:
        if self.one("SELECT 1 FROM written WHERE shard = ? AND at > ?", shard, at):
            return
        self._run("DELETE FROM written WHERE shard = ?", shard)
        for id_, sha256 in clips.items():
            self._run("INSERT OR REPLACE INTO written VALUES (?, ?, ?, ?)", id_, shard, at, sha256)
        for name, sha256 in files.items():
            self._run("INSERT OR REPLACE INTO file VALUES (?, ?, ?)", name, shard, sha256)

    def entries(self, *, todo: bool = False) -> Iterator[Entry]:
        """All clips, or those to be done, in order of ids; those with a fault left out."""
        where = "AND id IN todo" if todo else ""
        query = f"SELECT id, json FROM entry WHERE id NOT IN (SELECT id FROM fault) {where}"
        return (Entry.from_json(text) for _, text in self._ordered(query))

    def known_entries(self) -> Iterator[tuple[Entry, dict[str, Any] | None]]:
        """All clips as `entries` gives them, each with its `record`."""
        query = """SELECT id, json, journal, place FROM entry LEFT JOIN known USING (id)
            WHERE id NOT IN (SELECT id FROM fault)"""
        for _, text, journal, place in self._ordered(query):
            known = None if journal is None else read_record(self._files[journal], place)
            yield Entry.from_json(text), known

    def faults(self) -> Iterator[Fault]:
        """Everything that was found and is no clip, in order of ids."""
        for id_, *texts in self._ordered("SELECT * FROM fault WHERE 1"):
            yield Fault(id_, *map(json.loads, texts))

    def record(self, id_: str) -> dict[str, Any] | None:
        """What the journals say of a clip last; None where it is not in them."""
        row = self.one("SELECT journal, place FROM known WHERE id = ?", id_)
        return None if row is None else read_record(self._files[row[0]], row[1])

    def records(self) -> Iterator[dict[str, Any]]:
        """What the journals say of each clip, in order of ids."""
        for _, journal, place in self._ordered("SELECT id, journal, place FROM known WHERE 1"):
            yield read_record(self._files[journal], place)

    def mark(self, id_: str) -> None:
        """Put a clip down as one to be done."""
        self._run("INSERT OR IGNORE INTO todo VALUES (?)", id_)

    def unmark(self, id_: str) -> bool:
        """Put down that a clip is done; whether it was marked."""
        return bool(self._run("DELETE FROM todo WHERE id = ?", id_))

    def num(self, table: str) -> int:
        """Rows of a table."""
        (count,) = self.one(f"SELECT count(*) FROM {table}") or (0,)
        return int(count)

    def one(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        """The first row of a query."""
        row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
        return row

    def all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query that has few."""
        return self._database.execute(query, values).fetchall()

    def _fault(self, fault: Fault) -> None:
        id_, number = valid_text(fault.id), 1
        while self.one("SELECT 1 FROM fault WHERE id = ?", id_):
            number += 1
            id_ = f"{valid_text(fault.id)} ({number})"
        self._run("INSERT INTO fault VALUES (?, ?, ?, ?)", id_,
                  *(json.dumps(text) for text in fault[1:]))  # fmt: skip

    def _ordered(self, query: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query by id, fetched piece by piece, so that others may run meanwhile."""
        last = ""
        while True:
            rows = self.all(f"{query} AND id > ? ORDER BY id LIMIT {ROWS_AT_ONCE}", last)
            yield from rows
            if len(rows) < ROWS_AT_ONCE:
                return
            last = rows[-1][0]

    def _run(self, query: str, *values: Any) -> int:
        """Change rows; returns how many."""
        return self._database.execute(query, values).rowcount

    def _number(self, journal: Path) -> int:
        if journal not in self._journals:
            self._journals[journal] = len(self._files)
            self._files.append(journal.open("rb"))
        return self._journals[journal]


def _described(entry: Entry) -> str:
    part = "" if entry.start is entry.end is None else f" from {entry.start or 0} to {entry.end}"
    return entry.name + part
