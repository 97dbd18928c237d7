"""Clips listed in tables: CSV, TSV, JSON lines and parquet, read row by row."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from vtok.dataset.item import Entry, Fault, make_entry
from vtok.dataset.urls import is_url, open_url
from vtok.errors import InputError, UsageError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = frozenset((*SEPARATORS, ".jsonl", ".ndjson", ".parquet"))
INPUT_NAMES = ("input", "path", "video", "file", "filename", "filepath", "url")
ROWS_AT_ONCE = 1024
MAX_LINE = 1 << 24  # bytes of a line of JSON; a file without line ends must not fill memory


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called; all others are carried along.

    Attributes:
        input: of paths or URLs; the first of `INPUT_NAMES` that is there if None.
        id: of ids; if None, `id` where it is there, else ids are made from paths and times.
        start, end: of seconds in the input; if None, `start` and `end` where they are there.
    """

    input: str | None = None
    id: str | None = None
    start: str | None = None
    end: str | None = None


USUAL = Columns()


def read_table(name: str, columns: Columns) -> Iterator[Entry | Fault]:
    """The clips of a table; paths in it are relative to its folder.

    Args:
        name: path or URL; its suffix says what it is.
        columns: what its columns are called.

    Raises:
        InputError: it cannot be read, or is no such table.
        UsageError: a column is missing, or pyarrow for a parquet file.
    """
    suffix = PurePosixPath(name).suffix.lower()
    try:
        with open_url(name) if is_url(name) else Path(name).open("rb") as file:
            if suffix == ".parquet":
                rows = _parquet_rows(file, name)
            elif suffix in SEPARATORS:
                rows = _csv_rows(file, SEPARATORS[suffix])
            else:
                rows = _json_rows(file)
            yield from _to_entries(rows, name, columns)
    except (OSError, csv.Error, UnicodeDecodeError) as exc:
        raise InputError(f"{name}: cannot be read as a table ({exc})") from exc


Rows = Iterator[tuple[int, Mapping[str, Any] | None]]
"""Line numbers and rows; None for a row that is none."""


def _csv_rows(file: BinaryIO, separator: str) -> Rows:
    with io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.DictReader(text, delimiter=separator, restkey="")
        if reader.fieldnames is not None:
            yield 1, dict.fromkeys(reader.fieldnames)  # the header, so that it is checked
        for row in reader:
            yield reader.line_num, None if "" in row else row


def _json_rows(file: BinaryIO) -> Rows:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if row != {}:
            yield number, row if isinstance(row, dict) else None


def _parquet_rows(file: BinaryIO, name: str) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as exc:
        raise UsageError(f"{name}: needs pyarrow: pip install 'vtok[parquet]'") from exc
    try:
        table = parquet.ParquetFile(file)
        yield 1, dict.fromkeys(table.schema_arrow.names)
        number = 1
        for batch in table.iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except ArrowException as exc:
        raise InputError(f"{name}: not a readable parquet file ({_short(exc)})") from exc


def _to_entries(rows: Rows, name: str, columns: Columns) -> Iterator[Entry | Fault]:
    """Rows as entries. The first row of a table with a header is its names, without values."""
    has_header = PurePosixPath(name).suffix.lower() not in (".jsonl", ".ndjson")
    chosen: Columns | None = None
    for number, row in rows:
        if row is not None and (chosen is None or not has_header):
            chosen = _choose(columns, row, name)
            if has_header:
                continue
        where = f"{name}:{number}"
        if row is None or chosen is None:
            yield Fault(where, where, f"{where}: not a row of the table", name)
            continue
        yield _to_entry(row, chosen, name, where)


def _choose(columns: Columns, row: Mapping[str, Any], name: str) -> Columns:
    """The names that the columns of this table really have.

    Raises:
        UsageError: one is missing.
    """
    found = list(row)
    for option, wanted in vars(columns).items():
        if wanted is not None and wanted not in row:
            raise UsageError(
                f"{name}: has no column {wanted!r} for --{option}-column, but {_some(found)}"
            )
    source = columns.input or next((key for key in INPUT_NAMES if key in row), None)
    if source is None:
        raise UsageError(
            f"{name}: has no column {', '.join(INPUT_NAMES[:3])} ..., but {_some(found)}: "
            "name the one with the videos by --input-column"
        )
    others = {
        key: getattr(columns, key) or (key if key in row else None)
        for key in ("id", "start", "end")
    }
    return Columns(source, others["id"], others["start"], others["end"])


def _to_entry(row: Mapping[str, Any], columns: Columns, name: str, where: str) -> Entry | Fault:
    named = dict(row)
    source = named.pop(str(columns.input), None)
    given = named.pop(columns.id, None) if columns.id else None
    start = named.pop(columns.start, None) if columns.start else None
    end = named.pop(columns.end, None) if columns.end else None
    label = where if given in (None, "") else str(given)
    if not isinstance(source, str) or not source or "\0" in source:
        return Fault(label, where, f"{where}: names no input", name)
    if columns.id is not None and given in (None, ""):
        return Fault(label, where, f"{where}: has no id", name)
    path = source
    if not is_url(source) and not os.path.isabs(source):  # noqa: PTH117
        path = _beside(name, source)
    try:
        return make_entry(
            None if given is None else str(given),
            path,
            name=os.path.splitext(source.lstrip("/"))[0],  # noqa: PTH122
            start=start,
            end=end,
            columns={str(key): _plain(value) for key, value in named.items()},
        )
    except ValueError as exc:
        return Fault(label, path, f"{where}: {exc}", name)


def _beside(table: str, source: str) -> str:
    folder = table.rpartition("/")[0]
    return f"{folder}/{source}" if folder else source


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return str(value)


def _some(names: list[str]) -> str:
    return (", ".join(names[:8]) or "no column") + (" ..." if len(names) > 8 else "")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:150]
