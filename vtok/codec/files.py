"""The ends of a conversion: files by name that appear whole or not at all, or open streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vtok.atomic import atomic_output
from vtok.codec.spool import on_disk
from vtok.errors import InputError, OutputError

STANDARD_INPUT = "standard input"


def name_of(end: str | Path | BinaryIO) -> str | None:
    """The path of an input or an output; None for a stream."""
    return str(end) if isinstance(end, (str, Path)) else None


@contextmanager
def open_input(source: str | Path | BinaryIO, *, seekable: bool = False) -> Iterator[BinaryIO]:
    """Open an input for reading.

    Args:
        source: a file, or a stream, which stays open.
        seekable: whether to seek in it: a pipe is saved to a temporary file then.

    Raises:
        InputError: if it is missing or cannot be read.
    """
    if not isinstance(source, (str, Path)):
        if not seekable or source.seekable():
            yield source
            return
        with on_disk(source) as path, path.open("rb") as file:
            yield file
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - only the opening is to be tried
    except FileNotFoundError as exc:
        raise InputError(f"{source}: no such file") from exc
    except IsADirectoryError as exc:
        raise InputError(f"{source}: is a folder, not a code file") from exc
    except OSError as exc:
        raise InputError(f"{source}: cannot be read ({exc.strerror})") from exc
    with file:
        if not seekable or file.seekable():
            yield file
            return
        with on_disk(file) as path, path.open("rb") as saved:
            yield saved


@contextmanager
def open_output(output: str | Path | BinaryIO, overwrite: bool) -> Iterator[CountingStream]:
    """Open an output for writing; a file appears when the block ends well.

    Args:
        output: a file, or a stream, which stays open.
        overwrite: whether an existing file may be replaced.

    Raises:
        OutputError: if it exists already or cannot be written.
    """
    if not isinstance(output, (str, Path)):
        stream = CountingStream(output, "standard output")
        yield stream
        stream.flush()
        return
    with atomic_output(Path(output), overwrite) as temporary:
        try:
            file = temporary.open("wb")
        except OSError as exc:
            raise OutputError(f"{output}: cannot be written ({exc.strerror})") from exc
        with file:
            stream = CountingStream(file, str(output))
            yield stream
            stream.flush()


class CountingStream:
    """A writable binary stream that counts what goes through, and names itself where it fails."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.name = stream, name
        self.count = 0

    def write(self, data: Any) -> int:
        """Write, and count what was taken.

        Raises:
            BrokenPipeError: if nobody reads the stream any more.
            OutputError: for any other reason.
        """
        with self._naming():
            taken = self.stream.write(data)
        self.count += taken
        return taken

    def flush(self) -> None:
        """Flush the stream; raises as `write` does."""
        with self._naming():
            self.stream.flush()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OutputError(f"{self.name}: cannot be written ({exc.strerror})") from exc
