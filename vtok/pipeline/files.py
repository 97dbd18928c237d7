"""The ends of a conversion: files by name that appear whole or not at all, or open streams."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from vtok._files import atomic_output
from vtok.codefile import Header
from vtok.errors import InputError, OutputError, VtokError
from vtok.pipeline.model_calls import CodeChunk

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


def join_codes(chunks: list[CodeChunk], codebook_size: int) -> npt.NDArray[np.unsignedinteger]:
    """All codes in the smallest type that holds them: [t, h, w], or [K, t, h, w] where K > 1."""
    dtype = np.uint16 if codebook_size <= 2**16 else np.uint32
    codes = np.concatenate([chunk.codes.astype(dtype) for chunk in chunks], axis=2)
    codes = codes.reshape(-1, *codes.shape[2:])  # stages outermost
    return codes[0] if len(codes) == 1 else codes


def write_npy(stream: BinaryIO, codes: npt.NDArray[np.unsignedinteger], header: Header) -> None:
    """Write codes as a .npy file; it has no room for the header."""
    np.lib.format.write_array(stream, codes, allow_pickle=False)


def write_safetensors(
    stream: BinaryIO, codes: npt.NDArray[np.unsignedinteger], header: Header
) -> None:
    """Write codes as the tensor `codes`, with the header of a code file as JSON in `vtok`."""
    # one metadata key: safetensors writes several in an order that changes from run to run
    stream.write(save({"codes": codes}, metadata={"vtok": header.to_json().decode()}))


TENSOR_WRITERS = {"npy": write_npy, "safetensors": write_safetensors}
