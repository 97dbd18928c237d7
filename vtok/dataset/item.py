"""One item of a data set: its id, source and columns, and access to the bytes of the source.

Sources are local files, members of tar shards, and URLs, through fsspec. Two values identify their
content: a cheap signature (size and modification time) and the SHA-256 of the bytes. The bytes are
hashed again only if the signature changed, so a data set that was copied to another disk is still
recognized.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from vtok._times import MAX_FRAMES, MAX_SECONDS, Part
from vtok.errors import InputError, OutputError, UsageError

MAX_NAME_BYTES = 200  # of a file name; file systems take 255, and suffixes are appended
BLOCK = 1 << 20
CHANGING = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
"""Keys of an fsspec entry whose values change with the content of the file."""

Record = dict[str, Any]
"""One line of a journal, as JSON types. Its `kind` is `item`, `dropped`, `shard` or `written`."""


class Member(NamedTuple):
    """A file inside a tar shard: `size` bytes from `offset` on; or a cell of a parquet table.

    Of a table, `offset` is the row and `column` holds structs of `bytes` and `path`.
    """

    name: str
    offset: int
    size: int
    column: str = ""


@dataclass(frozen=True)
class Item:
    """One video, or part of a video, to encode.

    Attributes:
        id: unique in the data set; valid text even where the file name is not.
        source: path or URL.
        member: position inside a tar shard or a table; None for a plain file.
        start: start in seconds, as an exact decimal or fraction; None for the beginning.
        end: end in seconds; None for the end of the source.
        columns: other columns of the table that lists the item, as JSON types.
        start_frame: number of the first frame, in place of `start`.
        num_frames: number of frames, in place of `end`.
    """

    id: str
    source: str
    member: Member | None = None
    start: str | None = None
    end: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    start_frame: int | None = None
    num_frames: int | None = None

    @property
    def name(self) -> str:
        """The source as shown to a person."""
        return self.source if self.member is None else f"{self.source}!{self.member.name}"

    @property
    def part(self) -> Part:
        """The part of the source."""
        start = Fraction(self.start or 0)
        duration = None if self.end is None else Fraction(self.end) - start
        return Part(start, duration, self.start_frame, self.num_frames)

    def to_json(self) -> str:
        """Return ASCII JSON, which can hold any file name."""
        return json.dumps(list(vars(self).values()))

    @classmethod
    def from_json(cls, text: str) -> Item:
        """Parse the output of `to_json`."""
        id_, source, member, *others = json.loads(text)
        return cls(id_, source, member and Member(*member), *others)


class Fault(NamedTuple):
    """An unusable row or duplicate id: its id, location, error message and the list it is in."""

    id: str
    source: str
    message: str
    origin: str = ""


def valid_text(text: str) -> str:
    """Replace bytes that are not UTF-8, and NULs, by %XX."""
    return re.sub("[\ud800-\udfff\0]", lambda match: f"%{ord(match[0]) & 0xFF:02X}", text)


def parse_seconds(value: Any) -> str | None:
    """Parse a time in seconds or H:M:S to an exact number; None if the value is empty.

    Raises:
        ValueError: not a time, or longer than any video.
    """
    text = "" if value is None else str(value).strip()
    if text in ("", "nan"):  # an empty cell in a column of numbers
        return None
    if not re.fullmatch(r"(\d{1,9}:){0,2}\d{1,10}(\.\d*)?(e[-+]?\d\d?)?", text, re.ASCII):
        raise ValueError(f"time {text[:40]!r}: expected seconds such as 2.5, or 1:02:03.5")
    seconds = Fraction(0)
    for part in text.split(":"):
        seconds = 60 * seconds + Fraction(part)
    if seconds > MAX_SECONDS:
        raise ValueError(f"time {text[:40]!r}: longer than any video")
    return str(seconds)


def parse_frames(value: Any, least: int) -> int | None:
    """Parse a number of frames; None if the value is empty.

    Raises:
        ValueError: not a whole number of at least `least`.
    """
    text = "" if value is None else str(value).strip()
    if text in ("", "nan"):
        return None
    if not re.fullmatch(r"\d{1,15}(\.0*)?", text, re.ASCII) or int(float(text)) < least:
        raise ValueError(f"{text[:40]!r} frames: expected a whole number from {least} on")
    return min(int(text.partition(".")[0]), MAX_FRAMES)


def make_item(
    id_: str | None,
    source: str,
    *,
    name: str,
    start: Any = None,
    end: Any = None,
    start_frame: Any = None,
    frames: Any = None,
    columns: dict[str, Any] | None = None,
) -> Item:
    """Make an item from the values in a list or table.

    Args:
        id_: its id; if None, made from `name` and the times.
        source: path or URL.
        name: basis of the id if there is none, such as a path without its suffix.
        start, end: see `parse_seconds`.
        start_frame, frames: first frame and number of frames, instead of start and end.
        columns: other columns.

    Raises:
        ValueError: invalid times.
    """
    begin, stop = parse_seconds(start), parse_seconds(end)
    first, count = parse_frames(start_frame, 0), parse_frames(frames, 1)
    if first is not None and (begin, stop) != (None, None):
        raise ValueError("has times in seconds and a start_frame: give one of them")
    if stop is not None and Fraction(stop) <= Fraction(begin or 0):
        raise ValueError(f"from {start} s to {end} s: the clip ends before it begins")
    if first is not None or count is not None:
        name += f"@frame{first or 0}" if begin is None else f"@{_decimal(begin)}"
        name += "" if count is None else f"+{count}"
    elif begin is not None or stop is not None:
        name = f"{name}@{_decimal(begin or '0')}-{'' if stop is None else _decimal(stop)}"
    id_ = valid_text(name if id_ is None else id_)
    return Item(id_, source, None, begin, stop, columns or {}, first, count)


def _decimal(seconds: str) -> str:
    return f"{float(Fraction(seconds)):.6f}".rstrip("0").rstrip(".")


def file_name(id_: str, *, dots: bool = True) -> str:
    """Map an id to a relative path, unique per id and always inside the folder it is joined to.

    `/` separates folders. Control characters, `%`, `\\` and leading dots become %XX; a component
    that is too long is cut and a digest appended.

    Args:
        id_: any text.
        dots: allow dots inside names; webdataset starts the suffix at the first dot.
    """
    return "/".join(_component(part, dots) for part in id_.split("/"))


def _component(part: str, dots: bool) -> str:
    unsafe = r"[\x00-\x1f\x7f%\\]|^\." if dots else r"[\x00-\x1f\x7f%\\.]"
    safe = re.sub(unsafe, lambda match: f"%{ord(match[0]):02X}", part) or "%"
    data = safe.encode()
    if len(data) <= MAX_NAME_BYTES:
        return safe
    digest = hashlib.sha256(part.encode()).hexdigest()[:16]
    return data[: MAX_NAME_BYTES - 17].decode(errors="ignore") + "~" + digest


# Sources


def is_url(name: str) -> bool:
    """Return True if a name has a scheme such as `s3://`."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name) is not None


def find_urls(name: str, suffixes: frozenset[str]) -> tuple[str, Iterator[str]]:
    """Expand a URL.

    Args:
        name: URL of a file, a folder, or a glob.
        suffixes: of the files to list in a folder.

    Returns:
        The URL of the folder that contains the files, and the URLs of the files.

    Raises:
        UsageError: fsspec, or the package it needs for the scheme, is not installed.
        InputError: nothing found, or not reachable.
    """
    files, path = _filesystem(name)
    try:
        if re.search(r"[*?\[]", path):
            base = re.split(r"[^/]*[*?\[]", path)[0]
            found = [match for match in files.glob(path) if not files.isdir(match)]
        elif files.isdir(path):
            base = path
            found = [f for f in files.find(path) if PurePosixPath(f).suffix.lower() in suffixes]
        elif files.exists(path):
            base, found = "", [path]
        else:
            raise InputError(f"{name}: no such file or folder")
    except OSError as exc:
        raise InputError(f"{name}: cannot be reached ({exc})") from exc
    return files.unstrip_protocol(base) if base else "", map(files.unstrip_protocol, found)


def open_file(name: str) -> BinaryIO:
    """Open a path or URL for reading, seekable.

    Raises:
        OSError: a path that cannot be opened.
        UsageError: as `find_urls`.
        InputError: a URL that cannot be opened.
    """
    if not is_url(name):
        return Path(name).open("rb")
    files, path = _filesystem(name)
    try:
        return cast(BinaryIO, files.open(path, "rb"))
    except Exception as exc:  # each scheme raises its own types
        raise InputError(f"{name}: cannot be opened ({_reason(exc)})") from exc


def signature(item: Item) -> str:
    """Size and modification time of a source, or what its URL's server reports instead.

    Raises:
        InputError: it is missing or not a regular file.
    """
    place = "" if item.member is None else f"@{item.member.offset}+{item.member.size}"
    if is_url(item.source):
        files, path = _filesystem(item.source)
        try:
            info = files.info(path)
        except Exception as exc:
            raise InputError(f"{item.source}: cannot be opened ({_reason(exc)})") from exc
        return ":".join(str(info[key]) for key in CHANGING if info.get(key) is not None) + place
    try:
        status = os.stat(item.source)  # noqa: PTH116 - called a million times, and Path is slow
    except FileNotFoundError as exc:
        raise InputError(f"{item.name}: no such file") from exc
    except (OSError, ValueError) as exc:
        raise InputError(f"{item.name}: cannot be opened ({_why(exc)})") from exc
    if not stat.S_ISREG(status.st_mode):  # opening a pipe could block forever
        raise InputError(f"{item.name}: is not a regular file")
    return f"{status.st_size}:{status.st_mtime_ns}{place}"


@contextmanager
def fetched(item: Item, scratch: Path) -> Iterator[Path]:
    """Give the path of the source on this machine; a copy is removed when the block ends.

    Args:
        item: to fetch.
        scratch: folder for downloaded or unpacked files.

    Raises:
        InputError: it is missing or cannot be read.
        OutputError: no room for it.
    """
    if item.member is None and not is_url(item.source):
        yield Path(item.source)
        return
    name = item.source if item.member is None else item.member.name
    suffix = PurePosixPath(name).suffix.lower()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / f"clip{suffix if suffix[1:].isalnum() else ''}"
        try:
            with path.open("wb") as out:
                for data in _blocks(item):
                    out.write(data)
        except OSError as exc:
            where = tempfile.gettempdir()
            raise OutputError(f"{item.name}: cannot be stored in {where} ({_why(exc)})") from exc
        yield path


def _blocks(item: Item) -> Iterator[bytes]:
    """The bytes of a source, or of its member."""
    if item.member is not None and item.member.column:
        yield _read_cell(item, item.member)
        return
    left = None if item.member is None else item.member.size
    try:
        with open_file(item.source) as file:
            if item.member is not None:
                file.seek(item.member.offset)
            while data := file.read(BLOCK if left is None else min(left, BLOCK)):
                left = None if left is None else left - len(data)
                yield data
    except (InputError, UsageError):
        raise
    except Exception as exc:  # each scheme raises its own types
        raise InputError(f"{item.name}: cannot be fetched ({_reason(exc)})") from exc
    if left:
        raise InputError(f"{item.name}: the shard is truncated")


def open_parquet(file: BinaryIO, name: str) -> Any:
    """Open a parquet file; raises a UsageError if pyarrow is not installed."""
    try:
        from pyarrow import parquet
    except ImportError as exc:
        raise UsageError(f"{name}: needs pyarrow: pip install 'vtok[parquet]'") from exc
    return parquet.ParquetFile(file)


def _read_cell(item: Item, cell: Member) -> bytes:
    """Read the bytes of a struct of bytes and path, or else the file at the path."""
    try:
        with open_file(item.source) as file:
            table, row = open_parquet(file, item.source), cell.offset
            counts = [table.metadata.row_group(at).num_rows for at in range(table.num_row_groups)]
            group = 0
            while row >= counts[group]:
                row -= counts[group]
                group += 1
            batches = table.iter_batches(
                1, [group], [f"{cell.column}.bytes", f"{cell.column}.path"]
            )
            value = next(islice(batches, row, None)).to_pylist()[0][cell.column] or {}
        if value.get("bytes"):
            return bytes(value["bytes"])
        if not value.get("path"):
            raise InputError(f"{item.name}: has neither bytes nor a path")
        with open_file(beside(item.source, value["path"])) as file:
            return file.read()
    except (InputError, UsageError):
        raise
    except Exception as exc:  # pyarrow and each scheme raise their own types
        raise InputError(f"{item.name}: cannot be fetched ({_reason(exc)})") from exc


def beside(table: str, path: str) -> str:
    """Return a path or URL of a table's row, which is relative to the table's folder."""
    if is_url(path) or os.path.isabs(path) or "/" not in table:  # noqa: PTH117
        return path
    return f"{table.rpartition('/')[0]}/{path}"


def digest(item: Item, path: Path) -> str:
    """SHA-256 of the source, which is at `path`; computed once for all clips of one video."""
    try:
        status = path.stat()
        return _cached_sha256(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as exc:
        raise InputError(f"{item.name}: cannot be read ({_why(exc)})") from exc


@lru_cache(maxsize=64)
def _cached_sha256(path: Path, size: int, changed: int, node: int) -> str:
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(BLOCK):
            found.update(data)
    return found.hexdigest()


def _filesystem(name: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as exc:
        raise UsageError(f"{name}: URLs need fsspec: pip install 'vtok[fsspec]'") from exc
    try:
        files, path = fsspec.core.url_to_fs(name)
    except ImportError as exc:
        raise UsageError(f"{name}: {_reason(exc)}") from exc
    except Exception as exc:
        raise InputError(f"{name}: cannot be reached ({_reason(exc)})") from exc
    return files, path


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
