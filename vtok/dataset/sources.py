"""Find the items behind folders, globs, lists, tables, tar shards and URLs, one at a time."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from vtok._files import is_junk
from vtok.dataset.item import (
    Fault,
    Item,
    Member,
    beside,
    find_urls,
    is_url,
    make_item,
    open_file,
    open_parquet,
    valid_text,
)
from vtok.errors import InputError, OptionError, UsageError
from vtok.video.suffixes import VIDEO_SUFFIXES

SHARD_SUFFIX = ".tar"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
TABLE_SUFFIXES = frozenset((*SEPARATORS, ".jsonl", ".ndjson", ".parquet"))
INPUT_NAMES = ("input", "path", "video", "file", "filename", "filepath", "url")
TEXT_SUFFIXES = (".txt", ".cls", ".text", ".caption")
MAX_COMPANION = 1 << 16  # bytes of a JSON or text file that becomes columns
ROWS_AT_ONCE = 1024
MAX_LINE = 1 << 24  # bytes of a line of JSON; a file without line ends must not fill memory

Found = Iterator[Item | Fault]


class Cell(NamedTuple):
    """A video inside a parquet table: its row, its column and its path, if it has one."""

    row: int
    column: str
    path: str | None


@dataclass(frozen=True)
class Inputs:
    """Sources of a data set.

    Attributes:
        names: folders, files, globs, tables (CSV, TSV, JSONL, parquet), tar shards, URLs.
        lists: files with one path per line; an open stream for standard input.
        zero: paths in lists end with NUL, as `find -print0` writes them.
        input_column: column of paths or URLs; by default the first of `INPUT_NAMES` that exists.
        id_column: column of ids; by default `id` if it exists, else ids are made from paths and
            times.
        start_column, end_column: columns of seconds; by default `start` and `end` if they exist.
            Columns `start_frame` and `frames`, used if there is no `end`, count frames instead.
        skip: folder to leave out: the output.
        left_out: files of folders that are no videos by their suffix, by suffix; hidden files are
            not counted. Filled by `find_items`.
    """

    names: Sequence[str] = ()
    lists: Sequence[str | BinaryIO] = ()
    zero: bool = False
    input_column: str | None = None
    id_column: str | None = None
    start_column: str | None = None
    end_column: str | None = None
    skip: Path | None = None
    left_out: Counter[str] = field(default_factory=Counter)


def find_items(inputs: Inputs) -> Found:
    """Yield every item and every faulty row behind the inputs, in no particular order.

    Raises:
        InputError: an input is missing, unreadable, or a folder or glob contains no video.
        UsageError: a table lacks a column, or a package is not installed.
    """
    for name in inputs.names:
        found = _expand(name, inputs)
        first = next(found, None)
        if first is None:
            raise InputError(f"{name}: no video in it (files count by suffix, such as .mp4)")
        yield from chain([first], found)
    for source in inputs.lists:
        yield from _read_list(source, inputs.zero)


def _expand(name: str, inputs: Inputs) -> Found:
    if is_url(name):
        base, urls = find_urls(name, VIDEO_SUFFIXES | TABLE_SUFFIXES | {SHARD_SUFFIX})
        for url in urls:
            yield from _from_file(url, inputs, base)
    elif Path(name).is_dir():
        skip = None if inputs.skip is None else os.path.realpath(inputs.skip)
        base = os.path.join(Path(name), "")  # noqa: PTH118 - with a trailing slash
        for path in _scan(os.fspath(Path(name)), skip, (), inputs.left_out):
            yield make_item(None, path, name=_stem(path[len(base) :]))
    elif Path(name).exists():
        yield from _from_file(name, inputs)
    elif glob.has_magic(name):
        # the function: Path.glob takes no absolute pattern
        for match in glob.iglob(name, recursive=True):  # noqa: PTH207
            if not os.path.isdir(match):  # noqa: PTH112
                yield from _from_file(match, inputs)
    else:
        raise InputError(f"{name}: no such file or folder")


def _from_file(name: str, inputs: Inputs, base: str = "") -> Found:
    """The items of one file or URL: a video, a table or a shard; ids are relative to `base`."""
    suffix = _suffix(name).lower()
    if suffix in TABLE_SUFFIXES:
        yield from _read_table(name, inputs)
    elif suffix == SHARD_SUFFIX:
        yield from _read_shard(name)
    else:
        inside = name[len(base) :].lstrip("/") if base and name.startswith(base) else name
        yield make_item(None, name, name=_stem(inside))


# Folders


def _scan(
    folder: str, skip: str | None, parents: tuple[tuple[int, int], ...], left_out: Counter[str]
) -> Iterator[str]:
    """Videos in a folder and its subfolders; hidden files are skipped, links followed once."""
    try:
        status = Path(folder).stat()
        key = (status.st_dev, status.st_ino)
        if key in parents or os.path.realpath(folder) == skip:
            return
        with os.scandir(folder) as files:
            found = sorted((file.name, file.path, _is_folder(file)) for file in files)
    except OSError as exc:
        raise InputError(f"{folder}: cannot be searched ({exc.strerror})") from exc
    for name, path, is_folder in found:
        if is_junk(name):
            continue
        if is_folder:
            yield from _scan(path, skip, (*parents, key), left_out)
        elif (suffix := _suffix(name).lower()) in VIDEO_SUFFIXES:
            yield path
        else:
            left_out[suffix or "no suffix"] += 1


def _is_folder(file: os.DirEntry[str]) -> bool:
    try:
        return file.is_dir()
    except OSError:  # a link to itself: opening it reports the error
        return False


def _stem(path: str) -> str:
    """A path as an id: without scheme, leading `./` or `/`, and suffix."""
    plain = re.sub(r"^[a-z0-9+.-]+://", "", path)
    plain = re.sub(r"^(\.?/+)+", "", plain)
    return plain.removesuffix(_suffix(plain))


def _suffix(path: str) -> str:
    """The suffix as pathlib defines it; pathlib is slow for a million paths."""
    name = path.rpartition("/")[2]
    at = name.rfind(".")
    return name[at:] if 0 < at < len(name) - 1 else ""


# Lists


def _read_list(source: str | BinaryIO, zero: bool) -> Found:
    """The paths of a list; empty lines are skipped."""
    try:
        with open_file(source) if isinstance(source, str) else nullcontext(source) as file:
            for line in _split(file, b"\0" if zero else b"\n"):
                path = os.fsdecode(line if zero else line.rstrip(b"\r"))
                if "\0" in path:
                    message = f"{path}: contains NUL bytes: do NULs end the names of this list?"
                    yield Fault(path, path, message)
                elif path:
                    yield make_item(None, path, name=_stem(path))
    except OSError as exc:
        raise InputError(f"{source}: cannot be read ({exc.strerror or exc})") from exc


def _split(file: BinaryIO, end: bytes) -> Iterator[bytes]:
    rest = b""
    while data := file.read(65536):
        *whole, rest = (rest + data).split(end)
        yield from whole
    yield rest


# Tar shards


def _read_shard(name: str) -> Found:
    """Videos in a tar shard, with the JSON and text of the same key as columns.

    Ids are shard name and key. A truncated shard gives the items before the cut, and a fault.
    """
    stem = PurePosixPath(name).stem
    count = 0
    try:
        with open_file(name) as file, tarfile.open(fileobj=file, mode="r:") as shard:
            for _, group in groupby(_files(shard), lambda info: _key(info.name)):
                files = list(group)
                count += 1
                yield from _from_group(shard, files, name, stem)
    except (tarfile.TarError, OSError, EOFError, ValueError) as exc:
        reason = " ".join(str(exc).split())[:100]
        if not count:
            raise InputError(f"{name}: not a readable tar file ({reason})") from exc
        yield Fault(stem, name, f"{name}: damaged after {count} samples ({reason})", name)


def _files(shard: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (info := shard.next()) is not None:
        shard.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
        path = PurePosixPath(info.name)
        if info.isfile() and not is_junk(path.name) and "__MACOSX" not in path.parts:
            yield info


def _key(name: str) -> str:
    """The name up to the first dot, which files of one sample share."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _from_group(
    shard: tarfile.TarFile, group: list[tarfile.TarInfo], name: str, stem: str
) -> Found:
    videos = [info for info in group if PurePosixPath(info.name).suffix.lower() in VIDEO_SUFFIXES]
    columns: dict[str, Any] = {}
    for info in group if videos else ():
        columns |= _columns_of(shard, info)
    suffixes = [PurePosixPath(info.name).suffix for info in videos]
    if len(set(suffixes)) < len(suffixes):  # such as a.left.mp4 and a.right.mp4
        suffixes = [info.name[len(_key(info.name)) :] for info in videos]
    for info, suffix in zip(videos, suffixes if len(videos) > 1 else [""], strict=False):
        id_ = valid_text(f"{stem}/{_key(info.name)}{suffix}")
        if info.issparse():  # a few bytes that could expand to fill the disk
            where = f"{name}!{info.name}"
            yield Fault(id_, where, f"{where}: is a sparse file, which is not supported", name)
            continue
        yield Item(id_, name, Member(info.name, info.offset_data, info.size), columns=columns)


def _columns_of(shard: tarfile.TarFile, info: tarfile.TarInfo) -> dict[str, Any]:
    """Columns from a small JSON or text file with the key of a video."""
    suffix = PurePosixPath(info.name).suffix.lower()
    if suffix not in (".json", *TEXT_SUFFIXES) or info.size > MAX_COMPANION or info.issparse():
        return {}
    content = shard.extractfile(info)
    text = valid_text(content.read().decode(errors="surrogateescape")) if content else ""
    if suffix != ".json":
        return {suffix[1:]: text}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {"json": found}


# Tables


Rows = Iterator[tuple[int, Mapping[str, Any] | None]]
"""Line numbers and rows; None for a malformed row."""


def _read_table(name: str, inputs: Inputs) -> Found:
    """The items of a table; paths in it are relative to its folder."""
    suffix = PurePosixPath(name).suffix.lower()
    try:
        with open_file(name) as file:
            if suffix == ".parquet":
                rows = _parquet_rows(file, name)
            elif suffix in SEPARATORS:
                rows = _csv_rows(file, SEPARATORS[suffix])
            else:
                rows = _json_rows(file)
            yield from _from_rows(rows, name, inputs, suffix not in (".jsonl", ".ndjson"))
    except (OSError, csv.Error, UnicodeDecodeError) as exc:
        raise InputError(f"{name}: cannot be read as a table ({exc})") from exc


def _csv_rows(file: BinaryIO, separator: str) -> Rows:
    with io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.DictReader(text, delimiter=separator, restkey="")
        if reader.fieldnames is not None:
            yield 1, dict.fromkeys(reader.fieldnames)
        for row in reader:
            yield reader.line_num, None if "" in row else row


def _json_rows(file: BinaryIO) -> Rows:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if row != {}:
            yield number, row if isinstance(row, dict) else None


def _parquet_rows(file: BinaryIO, name: str) -> Rows:
    try:
        table = open_parquet(file, name)
        schema = table.schema_arrow
        yield 1, dict.fromkeys(schema.names)
        held = {column.name for column in schema if _holds_videos(column.type)}
        columns = [f"{key}.path" if key in held else key for key in schema.names]
        batches = table.iter_batches(ROWS_AT_ONCE, columns=columns)
        for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
            cells = {key: Cell(number, key, (row[key] or {}).get("path")) for key in held}
            yield number + 2, {**row, **cells}
    except (UsageError, OSError):
        raise
    except Exception as exc:  # of pyarrow
        reason = " ".join(str(exc).split())[:150]
        raise InputError(f"{name}: not a readable parquet file ({reason})") from exc


def _holds_videos(kind: Any) -> bool:
    """Return True for structs of bytes and path, as the library datasets stores videos."""
    names = {kind.field(at).name for at in range(kind.num_fields)} if kind.num_fields == 2 else ()
    return names == {"bytes", "path"}


def _from_rows(rows: Rows, name: str, inputs: Inputs, has_header: bool) -> Found:
    """Convert rows to items. The first row of a table with a header has names and no values."""
    header = next(rows, (1, None))[1] if has_header else None
    chosen = None if header is None else _choose(inputs, header, name)
    for number, row in rows:
        where = f"{name}:{number}"
        if row is not None and not has_header:
            chosen = _choose(inputs, row, name)
        if row is None or chosen is None:
            yield Fault(where, where, f"{where}: not a row of the table", name)
        else:
            yield _from_row(row, chosen, name, where)


def _choose(inputs: Inputs, row: Mapping[str, Any], name: str) -> dict[str, str | None]:
    """The columns for input, id and times in this table; all others are copied.

    Raises:
        OptionError: a column that was asked for is missing.
        UsageError: no column for the input.
    """
    names = list(row)
    shown = (", ".join(names[:8]) or "no column") + (" ..." if len(names) > 8 else "")
    chosen = {}
    for key in ("input", "id", "start", "end", "start_frame", "frames"):
        wanted = getattr(inputs, f"{key}_column", None)
        if wanted is not None and wanted not in row:
            raise OptionError(f"{key}_column", wanted, f"a column of {name}, which has {shown}")
        known = INPUT_NAMES if key == "input" else (key,)
        chosen[key] = wanted or next((column for column in known if column in row), None)
    if chosen["end"] is not None:
        chosen["frames"] = None  # a column of information, as in a manifest
    if chosen["input"] is None:
        first = ", ".join(INPUT_NAMES[:3])
        raise UsageError(f"{name}: has no column {first} ..., but {shown}: give `input_column`")
    return chosen


def _from_row(
    row: Mapping[str, Any], chosen: dict[str, str | None], name: str, where: str
) -> Item | Fault:
    values: dict[Any, Any] = dict(row)
    source, given, *times = (values.pop(key, None) for key in chosen.values())
    label = where if given in (None, "") else str(given)
    member = None
    if isinstance(source, Cell):
        inside = source.path or f"row {source.row}"
        member = Member(inside, source.row, 0, source.column)
        source = f"{_stem(PurePosixPath(name).name)}/{inside}"
    if not isinstance(source, str) or not source or "\0" in source:
        return Fault(label, where, f"{where}: has no input", name)
    if chosen["id"] is not None and given in (None, ""):
        return Fault(label, where, f"{where}: has no id", name)
    path = name if member else beside(name, source)
    try:
        item = make_item(
            None if given is None else str(given),
            path,
            name=os.path.splitext(source.lstrip("/"))[0],  # noqa: PTH122
            **dict(zip(("start", "end", "start_frame", "frames"), times, strict=True)),
            columns={str(key): _json_value(value) for key, value in values.items()},
        )
        return replace(item, member=member)
    except ValueError as exc:
        return Fault(label, path, f"{where}: {exc}", name)


def _json_value(value: Any) -> Any:
    if isinstance(value, Cell):
        return value.path
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return str(value)
