"""Which clips there are: behind folders, globs, lists, tables, tar shards and URLs, one by one."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from vtok.dataset.item import Entry, Fault, Member, make_entry, valid_text
from vtok.dataset.tables import TABLE_SUFFIXES, USUAL, Columns, read_table
from vtok.dataset.urls import find_urls, is_url, open_url
from vtok.errors import InputError
from vtok.video.frames import VIDEO_SUFFIXES

SHARD_SUFFIX = ".tar"
TEXT_SUFFIXES = (".txt", ".cls", ".text", ".caption")
MAX_COMPANION = 1 << 16  # bytes of a file whose content is carried along


def read_shard(name: str) -> Iterator[Entry | Fault]:
    """The videos in a shard, with the JSON and the text of the same key as columns.

    An id is the name of the shard and the key. Of a shard that is cut, those before the cut.

    Args:
        name: path or URL of the shard.

    Raises:
        InputError: it is no tar file.
    """
    stem = PurePosixPath(name).stem
    count = 0
    try:
        with (
            open_url(name) if is_url(name) else Path(name).open("rb") as file,
            tarfile.open(fileobj=file, mode="r:") as shard,
        ):
            for group in _groups(shard):
                count += 1
                yield from _to_entries(shard, group, name, stem)
    except (tarfile.TarError, OSError, EOFError, ValueError) as exc:
        reason = " ".join(str(exc).split())[:100]
        if not count:
            raise InputError(f"{name}: not a tar file that can be read ({reason})") from exc
        yield Fault(stem, name, f"{name}: damaged after {count} samples ({reason})", name)


def copy_member(file: BinaryIO, member: Member, out: BinaryIO) -> None:
    """Copy the bytes of a member.

    Args:
        file: the shard.
        member: where in it.
        out: where to.

    Raises:
        InputError: the shard ends before.
    """
    file.seek(member.offset)
    left = member.size
    while left:
        data = file.read(min(left, 1 << 20))
        if not data:
            raise InputError(f"{member.name}: its shard is cut")
        out.write(data)
        left -= len(data)


def _groups(shard: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """Files that lie side by side and have the same name up to the first dot."""
    group: list[tarfile.TarInfo] = []
    while (info := shard.next()) is not None:
        shard.members = []  # type: ignore[attr-defined]  # which tarfile would keep for ever
        if not info.isfile() or PurePosixPath(info.name).name.startswith("."):
            continue
        if group and _key(info.name) != _key(group[0].name):
            yield group
            group = []
        group.append(info)
    if group:
        yield group


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _to_entries(
    shard: tarfile.TarFile, group: list[tarfile.TarInfo], name: str, stem: str
) -> Iterator[Entry | Fault]:
    videos = [info for info in group if PurePosixPath(info.name).suffix.lower() in VIDEO_SUFFIXES]
    columns: dict[str, Any] = {}
    for info in group if videos else ():
        columns |= _companion(shard, info)
    for info in videos:
        suffix = PurePosixPath(info.name).suffix if len(videos) > 1 else ""
        id_ = valid_text(f"{stem}/{_key(info.name)}{suffix}")
        if info.issparse():  # a few bytes that would fill the disk
            yield Fault(
                id_, f"{name}!{info.name}", f"{name}!{info.name}: not stored as it is", name
            )
            continue
        yield Entry(id_, name, Member(info.name, info.offset_data, info.size), columns=columns)


def _companion(shard: tarfile.TarFile, info: tarfile.TarInfo) -> dict[str, Any]:
    """What a small file beside a video says of it."""
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


Found = Iterator[Entry | Fault]


@dataclass(frozen=True)
class Inputs:
    """What a data set is made of.

    Attributes:
        names: folders, files, quoted globs, tables (CSV, TSV, JSONL, parquet), tar shards, URLs.
        lists: files of paths, one a line; an open stream for standard input.
        zero: whether NULs end the paths in lists, as `find -print0` writes them.
        columns: what the columns of tables are called.
        skip: a folder that is not looked into: that of the output.
    """

    names: Sequence[str] = ()
    lists: Sequence[str | BinaryIO] = ()
    zero: bool = False
    columns: Columns = USUAL
    skip: Path | None = None


def find_entries(inputs: Inputs) -> Found:
    """Every clip behind the inputs, and everything in lists that is none; in no order.

    Raises:
        InputError: an input is missing, or a folder or glob holds nothing.
        UsageError: a table has not the columns that it should have.
    """
    for name in inputs.names:
        empty = True
        for found in _expand(name, inputs):
            empty = False
            yield found
        if empty:
            raise InputError(f"{name}: no video in it (files count by suffix, such as .mp4)")
    for source in inputs.lists:
        yield from _read_list(source, inputs)


def _expand(name: str, inputs: Inputs) -> Found:
    if is_url(name):
        return _from_urls(name, inputs)
    path = Path(name)
    if path.is_dir():
        return _from_folder(path, inputs.skip)
    if path.exists():
        return _from_file(name, inputs)
    if not glob.has_magic(name):
        raise InputError(f"{name}: no such file or folder")
    return _from_glob(name, inputs)


def _from_file(name: str, inputs: Inputs, *, base: str | None = None) -> Found:
    """The clips of one file or URL, which may hold many."""
    suffix = _suffix(name).lower()
    if suffix in TABLE_SUFFIXES:
        yield from read_table(name, inputs.columns)
    elif suffix == SHARD_SUFFIX:
        yield from read_shard(name)
    else:
        yield make_entry(None, name, name=_stem(name if base is None else _below(name, base)))


def _from_folder(folder: Path, skip: Path | None) -> Found:
    """The videos in a folder and those below it, by suffix; names with a leading dot do not count.

    Links to folders are followed, but not in circles.
    """
    skipped = None if skip is None else os.path.realpath(skip)
    base = os.path.join(folder, "")  # noqa: PTH118 - with a slash at its end
    for path in _walk(os.fspath(folder), skipped, ()):
        yield make_entry(None, path, name=_stem(path[len(base) :]))


def _walk(folder: str, skip: str | None, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = Path(folder).stat()
        key = (status.st_dev, status.st_ino)
        if key in above or os.path.realpath(folder) == skip:
            return
        with os.scandir(folder) as items:
            found = sorted((item.name, _is_folder(item)) for item in items)
    except OSError as exc:
        raise InputError(f"{folder}: cannot be searched ({exc.strerror})") from exc
    for name, is_folder in found:
        path = os.path.join(folder, name)  # noqa: PTH118 - a million times, where Path is slow
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(path, skip, (*above, key))
        elif _suffix(name).lower() in VIDEO_SUFFIXES:
            yield path


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself: whoever opens it will say so
        return False


def _from_glob(pattern: str, inputs: Inputs) -> Found:
    # the function, not Path.glob: that one takes no absolute pattern
    for match in glob.iglob(pattern, recursive=True):  # noqa: PTH207
        if not os.path.isdir(match):  # noqa: PTH112
            yield from _from_file(match, inputs)


def _from_urls(name: str, inputs: Inputs) -> Found:
    base, urls = find_urls(name, VIDEO_SUFFIXES | TABLE_SUFFIXES | {SHARD_SUFFIX})
    for url in urls:
        yield from _from_file(url, inputs, base=base)


def _read_list(source: str | BinaryIO, inputs: Inputs) -> Found:
    """The paths of a list, as they stand there; empty lines do not count."""
    if not isinstance(source, str):
        yield from _from_lines(source, inputs.zero)
        return
    try:
        with open_url(source) if is_url(source) else Path(source).open("rb") as file:
            yield from _from_lines(file, inputs.zero)
    except OSError as exc:
        raise InputError(f"{source}: cannot be read ({exc.strerror or exc})") from exc


def _from_lines(file: BinaryIO, zero: bool) -> Found:
    for line in _split(file, b"\0" if zero else b"\n"):
        path = os.fsdecode(line if zero else line.rstrip(b"\r"))
        if "\0" in path:
            yield Fault(path, path, f"{path}: holds NUL bytes: is it a list for -0?")
        elif path:
            yield make_entry(None, path, name=_stem(path))


def _split(file: BinaryIO, end: bytes) -> Iterator[bytes]:
    """The pieces of a stream between `end`s, whatever its reads give."""
    rest = b""
    while data := file.read(65536):
        *whole, rest = (rest + data).split(end)
        yield from whole
    yield rest


def _below(url: str, base: str) -> str:
    return url[len(base) :].lstrip("/") if url.startswith(base) else url


def _stem(path: str) -> str:
    """A path as an id: without suffix, scheme, and what only says where it begins."""
    plain = re.sub(r"^[a-z0-9+.-]+://", "", path)
    plain = re.sub(r"^(\.?/+)+", "", plain)
    return plain.removesuffix(_suffix(plain))


def _suffix(path: str) -> str:
    """As pathlib has it, which is slow where there are a million paths."""
    name = path.rpartition("/")[2]
    at = name.rfind(".")
    return name[at:] if 0 < at < len(name) - 1 else ""
