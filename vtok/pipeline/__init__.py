"""One video: frames to codes to files, and back.

Read `codec.py` first, where frames become codes; then `encode.py` and `decode.py`, which connect
it to files. This module is the registry of extensions: code files whose codes are not a
tokenizer's, and further kinds of files.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtok._times import Part
    from vtok.codefile.header import Header, VideoHeader
    from vtok.pipeline.decode import DecodeRequest, Unpacker
    from vtok.pipeline.result import Result


class Extension:
    """Functions for the files of an extension; these know no file."""

    def unpacker(self) -> Unpacker:
        """Return the default decoder of its code files."""
        raise NotImplementedError

    def describe(self, header: Header, name: str) -> dict[str, Any]:
        """Return additional facts about one of its code files."""
        return {}

    def inspect(self, path: Path) -> dict[str, Any] | None:
        """Return facts about another file of the extension; None for all other files."""

    def contents(self, path: Path, part: Part) -> tuple[VideoHeader, int] | None:
        """Return the header, and the frames in a part, of another file of the extension."""

    def decode(self, request: DecodeRequest) -> Result | None:
        """Decode another file of the extension, as `decode_file` does; None for all other files."""


_entries: list[tuple[str | None, str]] = []


def register(entry: str, metadata_key: str | None = None) -> None:
    """Register an extension.

    Args:
        entry: `module:name` of an `Extension`, imported when needed.
        metadata_key: key in a header's metadata that marks the extension's code files.
    """
    _entries.append((metadata_key, entry))


def extensions() -> list[Extension]:
    """Import and return all extensions."""
    return [_load(entry) for _, entry in _entries]


def extension_of(metadata: Iterable[str]) -> Extension | None:
    """Return the extension that made a code file with these metadata keys; None for a tokenizer."""
    keys = set(metadata)
    return next((_load(entry) for key, entry in _entries if key in keys), None)


def _load(entry: str) -> Extension:
    module, _, name = entry.partition(":")
    found: Extension = getattr(importlib.import_module(module), name)
    return found


register("vtok.pipeline.arrays:EXTENSION")
