"""A clip's source as a file that a decoder can open, and how to tell that it is the same as before.

Two signs are kept of each source: a signature that costs next to nothing (size and time of change),
and the SHA-256 of its bytes. Where the signature has changed, the bytes decide: a data set that was
copied to another disk is still the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vtok.dataset.item import Entry
from vtok.dataset.sources import copy_member
from vtok.dataset.urls import is_url, open_url, url_signature
from vtok.errors import InputError, OutputError

BLOCK = 1 << 20


def signature(entry: Entry) -> str:
    """What tells, without reading it, that a source is the same as before.

    Raises:
        InputError: it is missing.
    """
    place = "" if entry.member is None else f"@{entry.member.offset}+{entry.member.size}"
    if is_url(entry.source):
        return url_signature(entry.source) + place
    try:
        status = os.stat(entry.source)  # noqa: PTH116 - a million times, where Path is slow
    except FileNotFoundError as exc:
        raise InputError(f"{entry.name}: no such file") from exc
    except (OSError, ValueError) as exc:
        raise InputError(f"{entry.name}: cannot be opened ({_why(exc)})") from exc
    if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
        raise InputError(f"{entry.name}: is no regular file")
    return f"{status.st_size}:{status.st_mtime_ns}{place}"


@contextmanager
def fetched(entry: Entry, scratch: Path) -> Iterator[Path]:
    """The source as a file of this machine, for as long as the block runs.

    Args:
        entry: whose source.
        scratch: folder for what is fetched or unpacked.

    Raises:
        InputError: it is missing or cannot be read.
        OutputError: there is no room for it.
    """
    if entry.member is None and not is_url(entry.source):
        yield Path(entry.source)
        return
    name = entry.source if entry.member is None else entry.member.name
    suffix = PurePosixPath(name).suffix.lower()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / f"clip{suffix if suffix[1:].isalnum() else ''}"
        with _room_for(entry), path.open("wb") as out, _opened(entry) as file:
            _copy(entry, file, out)
        yield path


def digest(entry: Entry, path: Path) -> str:
    """SHA-256 of the source's bytes, at `path`; of clips in one long video it is computed once.

    Raises:
        InputError: it cannot be read.
    """
    try:
        status = path.stat()
        return _digest_of(str(path), status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as exc:
        raise InputError(f"{entry.name}: cannot be read ({_why(exc)})") from exc


@lru_cache(maxsize=64)
def _digest_of(path: str, size: int, changed: int, node: int) -> str:
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        while data := file.read(BLOCK):
            found.update(data)
    return found.hexdigest()


@contextmanager
def _opened(entry: Entry) -> Iterator[BinaryIO]:
    if is_url(entry.source):
        with open_url(entry.source) as file:
            yield file
        return
    try:
        opened = Path(entry.source).open("rb")  # noqa: SIM115 - only the opening is to be tried
    except OSError as exc:
        raise InputError(f"{entry.name}: cannot be opened ({_why(exc)})") from exc
    with opened:
        yield opened


def _copy(entry: Entry, file: BinaryIO, out: BinaryIO) -> None:
    if entry.member is not None:
        copy_member(file, entry.member, out)
        return
    while data := _read(entry, file):
        out.write(data)


def _read(entry: Entry, file: BinaryIO) -> bytes:
    try:
        return file.read(BLOCK)
    except Exception as exc:  # each scheme has its own errors
        reason = " ".join(f"{type(exc).__name__}: {exc}".split())[:150]
        raise InputError(f"{entry.name}: cannot be fetched ({reason})") from exc


@contextmanager
def _room_for(entry: Entry) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise OutputError(
            f"{entry.name}: cannot be kept in {tempfile.gettempdir()} ({_why(exc)})"
        ) from exc


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
