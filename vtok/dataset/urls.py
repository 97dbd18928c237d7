"""Files that are not on this machine's disks, through fsspec: `s3://`, `gs://`, `memory://` ..."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from vtok.errors import InputError, UsageError

SIGNS = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
"""What file systems call that which changes with the bytes of a file."""


def is_url(name: str) -> bool:
    """Whether a name has a scheme."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", name) is not None


def find_urls(name: str, suffixes: frozenset[str]) -> tuple[str, Iterator[str]]:
    """The files behind a URL.

    Args:
        name: of a file, a folder, or a glob.
        suffixes: what counts in a folder.

    Returns:
        The folder that they lie in, and their URLs.

    Raises:
        UsageError: fsspec, or what it needs for the scheme, is not installed.
        InputError: there is nothing, or it cannot be reached.
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


def open_url(name: str) -> BinaryIO:
    """Open a URL for reading; it can seek.

    Raises:
        UsageError: as `find_urls`.
        InputError: it cannot be opened.
    """
    files, path = _filesystem(name)
    try:
        return cast(BinaryIO, files.open(path, "rb"))
    except Exception as exc:  # each scheme has its own errors
        raise InputError(f"{name}: cannot be opened ({_reason(exc)})") from exc


def url_signature(name: str) -> str:
    """What tells, without reading it, that a file is the same as before.

    Raises:
        UsageError, InputError: as `open_url`.
    """
    files, path = _filesystem(name)
    try:
        info = files.info(path)
    except Exception as exc:
        raise InputError(f"{name}: cannot be opened ({_reason(exc)})") from exc
    return ":".join(str(info[key]) for key in SIGNS if info.get(key) is not None)


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
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
