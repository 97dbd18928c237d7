"""Binary streams kept on disk, for those who must seek in them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vtok.errors import InputError, OutputError, VtokError


@contextmanager
def on_disk(source: str | Path | BinaryIO) -> Iterator[Path]:
    """The path of a source; a stream is copied to a temporary file, and errors do not name that.

    Raises:
        InputError: if a stream is empty.
        OutputError: if there is no room for it.
    """
    if isinstance(source, (str, Path)):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="vtok-") as folder:
        path = Path(folder) / "standard input"
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except OSError as exc:
            raise OutputError(f"standard input: cannot be kept on disk ({exc.strerror})") from exc
        if path.stat().st_size == 0:
            raise InputError("standard input: is empty")
        try:
            yield path
        except VtokError as error:
            raise type(error)(str(error).replace(str(path), path.name)) from error
