"""Access to sources: local files, tar members and URLs (through fsspec) as files on disk.

Two values identify the content of a source: a cheap signature (size and modification time) and the
SHA-256 of its bytes. The bytes are hashed again only if the signature changed, so a data set that
was copied to another disk is still recognized.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from vtok.dataset.item import Item
from vtok.errors import InputError, OutputError, UsageError

BLOCK = 1 << 20
CHANGING = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
"""Keys of an fsspec entry whose values change with the content of the file."""


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
        matches: Iterator[str]
        if re.search(r"[*?\[]", path):
            base = re.split(r"[^/]*[*?\[]", path)[0]
            matches = (match for match in files.glob(path) if not files.isdir(match))
        elif files.isdir(path):
            base = path
            found = files.find(path)
            matches = (f for f in found if PurePosixPath(f).suffix.lower() in suffixes)
        elif files.exists(path):
            base, matches = "", iter([path])
        else:
            raise InputError(f"{name}: no such file or folder")
    except OSError as exc:
        raise InputError(f"{name}: cannot be reached ({exc})") from exc
    return files.unstrip_protocol(base) if base else "", map(files.unstrip_protocol, matches)


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
        return _url_signature(item.source) + place
    try:
        status = os.stat(item.source)  # noqa: PTH116 - called a million times, and Path is slow
    except FileNotFoundError as exc:
        raise InputError(f"{item.name}: no such file") from exc
    except (OSError, ValueError) as exc:
        raise InputError(f"{item.name}: cannot be opened ({_why(exc)})") from exc
    if not stat.S_ISREG(status.st_mode):  # opening a pipe could block forever
        raise InputError(f"{item.name}: is not a regular file")
    return f"{status.st_size}:{status.st_mtime_ns}{place}"


def _url_signature(name: str) -> str:
    files, path = _filesystem(name)
    try:
        info = files.info(path)
    except Exception as exc:
        raise InputError(f"{name}: cannot be opened ({_reason(exc)})") from exc
    return ":".join(str(info[key]) for key in CHANGING if info.get(key) is not None)


@contextmanager
def fetched(item: Item, scratch: Path) -> Iterator[Path]:
    """Give the path of the source on this machine; a copy is removed when the block ends.

    Args:
        item: the item.
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
        _copy(item, path)
        yield path


def _copy(item: Item, path: Path) -> None:
    """Copy a source to a file; reading and writing fail with different errors."""
    try:
        source = open_file(item.source)
    except OSError as exc:
        raise InputError(f"{item.name}: cannot be opened ({_why(exc)})") from exc
    with source:
        try:
            with path.open("wb") as out:
                for data in _blocks(item, source):
                    out.write(data)
        except OSError as exc:
            folder = tempfile.gettempdir()
            raise OutputError(f"{item.name}: cannot be stored in {folder} ({_why(exc)})") from exc


def _blocks(item: Item, file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a source, or of its member."""
    left = None if item.member is None else item.member.size
    try:
        if item.member is not None:
            file.seek(item.member.offset)
        while left != 0:
            data = file.read(BLOCK if left is None else min(left, BLOCK))
            if not data:
                break
            left = None if left is None else left - len(data)
            yield data
    except Exception as exc:  # each scheme raises its own types
        raise InputError(f"{item.name}: cannot be fetched ({_reason(exc)})") from exc
    if left:
        raise InputError(f"{item.name}: the shard is truncated")


def digest(item: Item, path: Path) -> str:
    """SHA-256 of the source, which is at `path`; computed once for all clips of one video.

    Raises:
        InputError: it cannot be read.
    """
    try:
        status = path.stat()
        return _digest_of(str(path), status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as exc:
        raise InputError(f"{item.name}: cannot be read ({_why(exc)})") from exc


@lru_cache(maxsize=64)
def _digest_of(path: str, size: int, changed: int, node: int) -> str:
    return file_sha256(Path(path))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
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
