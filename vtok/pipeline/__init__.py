"""One video: frames to codes to files, and back.

Read `codec.py` first, where frames become codes; then `encode.py` and `decode.py`, which connect
it to files. This module is the registry of extensions: code files whose codes are not a
tokenizer's, and further kinds of files.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vtok.codefile.header import Header, VideoHeader
    from vtok.pipeline.decode import Unpacker


class Extension(Protocol):
    """Functions for the files of an extension."""

    def unpacker(self) -> Unpacker:
        """Return the default decoder of its code files."""

    def describe(self, header: Header, name: str) -> dict[str, Any]:
        """Return additional facts about one of its code files."""

    def inspect(self, path: Path) -> dict[str, Any] | None:
        """Return facts about another file of the extension; None for all other files."""

    def contents(self, path: Path) -> tuple[VideoHeader, int] | None:
        """Return header and number of frames of another file of the extension that decodes."""


_entries: dict[str, str] = {}


def register(metadata_key: str, entry: str) -> None:
    """Register an extension.

    Args:
        metadata_key: key in a header's metadata that marks the extension's code files.
        entry: `module:name` of an object with the methods of `Extension`, imported when needed.
    """
    _entries[metadata_key] = entry


def extensions() -> list[Extension]:
    """Import and return all extensions."""
    return [_load(entry) for entry in _entries.values()]


def extension_of(metadata: Iterable[str]) -> Extension | None:
    """Return the extension that made a code file with these metadata keys; None for a tokenizer."""
    return next((_load(_entries[key]) for key in metadata if key in _entries), None)


def _load(entry: str) -> Extension:
    module, _, name = entry.partition(":")
    found: Extension = getattr(importlib.import_module(module), name)
    return found
