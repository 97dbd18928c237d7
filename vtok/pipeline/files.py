"""Inputs and outputs of a conversion: videos, files that appear complete or not at all, streams."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from vtok._files import atomic_output
from vtok.codefile.header import Header, LatentHeader
from vtok.codefile.sections import FrameDurations
from vtok.errors import InputError, OutputError, VtokError

STANDARD_INPUT = "standard input"
HeaderT = TypeVar("HeaderT", Header, LatentHeader)
HEADER_OFFSET = 8  # bytes of the length before the header of a safetensors file


def name_of(end: str | Path | BinaryIO) -> str | None:
    """Return the path of an input or an output; None for a stream."""
    return str(end) if isinstance(end, (str, Path)) else None


@contextmanager
def open_input(source: str | Path | BinaryIO, *, seekable: bool = False) -> Iterator[BinaryIO]:
    """Open an input for reading.

    Args:
        source: a file, or a stream, which stays open.
        seekable: make it seekable: a pipe is copied to a temporary file.

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
        file = Path(source).open("rb")  # noqa: SIM115 - closed below
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
    """Open an output for writing; a file appears when the block ends without an error.

    Args:
        output: a file, or a stream, which stays open.
        overwrite: replace an existing file.

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
    """Writable binary stream that counts bytes, and whose errors contain its name."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.name = stream, name
        self.count = 0

    def write(self, data: Any) -> int:
        """Write data; return the number of bytes written.

        Raises:
            BrokenPipeError: if the reader of a pipe has exited.
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
    """Return the path of a source; a stream is copied to a temporary file, hidden from errors.

    Raises:
        InputError: if a stream is empty.
        OutputError: if the disk has no room for it.
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


def write_array(
    stream: BinaryIO,
    parts: Iterable[npt.NDArray[np.int64]],
    header: Header,
    to: str,
    durations: Callable[[], FrameDurations | None],
) -> None:
    """Write codes as one array in the smallest type: [K, t, h, w], or [t, h, w] if K is 1.

    Args:
        stream: output.
        parts: int64 [stages, codebooks, t, h, w], joined over time.
        header: header of a code file; JSON in the metadata `vtok` of a safetensors file.
        to: npy, which cannot hold the header; safetensors or pt, with the tensor `codes`.
        durations: called after the last part: durations of the frames at an uneven rate, for the
            tensor `durations`, int64 [T], whose time base is in the header's metadata.
    """
    dtype = np.uint16 if header.format.codebook_size <= 2**16 else np.uint32
    codes = np.concatenate([part.astype(dtype) for part in parts], axis=2)
    codes = codes.reshape(-1, *codes.shape[2:])  # stages outermost
    codes = codes[0] if len(codes) == 1 else codes
    tensors = {"codes": codes}
    if (times := durations()) is not None:
        header = with_time_base(header, times)
        tensors["durations"] = times.ticks
    if to == "npy":
        np.lib.format.write_array(stream, codes, allow_pickle=False)
    elif to == "pt":
        import torch

        # torch computes with few unsigned types
        tensors["codes"] = codes.astype(np.int32 if codes.itemsize == 2 else np.int64)
        numbers = {name: torch.from_numpy(one) for name, one in tensors.items()}
        torch.save({**numbers, "vtok": header.to_json().decode()}, stream)
    else:  # one metadata key: safetensors writes several in an order that changes from run to run
        stream.write(save(tensors, metadata={"vtok": header.to_json().decode()}))


def with_time_base(header: HeaderT, times: FrameDurations) -> HeaderT:
    """State the time base of the tensor `durations` in the metadata of a header."""
    base = times.to_json()["time_base"]
    return replace(header, metadata={**header.metadata, "time_base": base})


def safetensors_head(
    tensors: Mapping[str, tuple[str, Sequence[int], int]], metadata: dict[str, str]
) -> bytes:
    """Write the start of a safetensors file, which the numbers of the tensors follow in order.

    Args:
        tensors: type, shape and number of bytes by name.
        metadata: text by name.
    """
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (kind, shape, length) in tensors.items():
        offsets = [end, end + length]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": offsets}
        end += length
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_OFFSET)  # aligns the numbers
    return len(text).to_bytes(HEADER_OFFSET, "little") + text
