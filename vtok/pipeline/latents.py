"""Files of latents, for tokenizers without codes: safetensors, npy or pt, and back to frames.

One array `latents`, [D, t, h, w] in float16 or float32. A safetensors file has its header as JSON
in the metadata under the key `vtok`; a pt file is a dictionary of `latents` and `vtok`; a npy file
has no header, see `arrays`. Windows follow each other in time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from vtok.codefile.header import CodeFormat, LatentFormat, LatentHeader, dump_json, load_json
from vtok.errors import CodeFileError
from vtok.pipeline.files import open_input, safetensors_head
from vtok.pipeline.result import CodeChunk, Codes

FORMAT, VERSION = "vtok.latents", 1
READ_STEPS = 8
"""Latent steps that are read at a time, unless the tokenizer takes windows."""
COPY_STEPS = 256
SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32"}

Latents = npt.NDArray[np.floating[Any]]


def write_latents(
    stream: BinaryIO, header: LatentHeader, chunks: Iterator[CodeChunk], to: str
) -> LatentHeader:
    """Write the latents of a video; memory does not grow with its length, except for pt.

    Args:
        stream: output.
        header: the number of frames is filled in.
        chunks: latents [1, D, t, h, w] of the type in the header.
        to: safetensors, npy or pt.

    Returns:
        The header as written.

    Raises:
        CodeFileError: if there are no frames.
    """
    layout, steps, frames = header.format, 0, 0
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    with tempfile.TemporaryFile(prefix="vtok-") as spilled:  # their number is known at the end only
        for chunk in chunks:
            by_step = np.moveaxis(chunk.codes[0], 1, 0)
            spilled.write(np.ascontiguousarray(by_step, dtype).tobytes())
            steps, frames = steps + len(by_step), frames + chunk.num_frames
        if not steps:
            raise CodeFileError("the video has no frames")
        header = replace(header, num_frames=frames)
        shape = (layout.latent_dim, steps, *layout.grid)
        spilled.flush()
        stored = np.memmap(spilled, dtype, "r", shape=(steps, layout.latent_dim, *layout.grid))
        latents: Latents = np.moveaxis(stored, 1, 0)
        if to == "pt":
            import torch

            numbers = torch.from_numpy(np.array(latents, order="C"))
            torch.save({"latents": numbers, "vtok": _to_json(header)}, stream)
            return header
        if to == "npy":
            about = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, about)
        else:
            metadata = {"vtok": _to_json(header)}
            kind = SAFETENSORS_TYPES[layout.dtype]
            stream.write(safetensors_head({"latents": (kind, shape, stored.nbytes)}, metadata))
        for channel in latents:
            for first in range(0, steps, COPY_STEPS):
                stream.write(np.ascontiguousarray(channel[first : first + COPY_STEPS]).tobytes())
    return header


class LatentFile:
    """File of latents, opened for reading; of safetensors, only the steps requested are read.

    Attributes:
        header: model, source and layout.
        num_steps: latent steps.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Open a file and check everything but the numbers.

        Args:
            path: a safetensors or pt file.
            name: name of the file in errors.

        Raises:
            InputError: if it is missing or cannot be read.
            CodeFileError: if it is damaged, cut, or no file of latents.
        """
        self.name = name
        with open_input(path):  # raises the error if it cannot be opened
            pass
        text, dtype, shape, self._read = _open_pt(path, name) if _is_pt(path) else _open(path, name)
        self.header = parse_header(text, name)
        layout, self.num_steps = self.header.format, shape[1] if len(shape) == 4 else 0
        if dtype != layout.dtype or shape != [layout.latent_dim, self.num_steps, *layout.grid]:
            raise CodeFileError(f"{name}: its latents do not match its header")
        window, temporal, frames = layout.window, layout.temporal_compression, 0
        if window is None:
            frames = 1 + (self.num_steps - 1) * temporal
        elif self.num_steps % window == 0:
            frames = self.num_steps // window * (1 + (window - 1) * temporal)
        if not 0 < self.header.num_frames <= frames:
            raise CodeFileError(f"{name}: {self.num_steps} steps: not its number of frames")

    def read(self, first: int, last: int) -> Latents:
        """Read steps, [1, D, last - first, h, w].

        Raises:
            CodeFileError: for numbers that are not finite.
        """
        latents: Latents = self._read(first, last)
        if not np.isfinite(latents).all():
            raise CodeFileError(
                f"{self.name}: holds NaN or infinities in steps {first} to {last - 1}: damaged"
            )
        return latents[None]

    def chunks(
        self, frames: tuple[int, int], lookback: int | None, grain: int = 1
    ) -> Iterator[CodeChunk]:
        """Read what a decoder needs for some frames; see `read_steps`."""
        return read_steps(self.read, self.num_steps, self.header.format, frames, lookback, grain)


def read_steps(
    read: Callable[[int, int], Codes],
    num_steps: int,
    layout: CodeFormat | LatentFormat,
    frames: tuple[int, int],
    lookback: int | None,
    grain: int = 1,
) -> Iterator[CodeChunk]:
    """Read what a decoder needs for some frames of an array of latent steps.

    Args:
        read: returns the steps from one number to before another, [stages, codebooks, t, h, w].
        num_steps: latent steps of the array.
        layout: of the array.
        frames: number of the first frame, and of the one after the last.
        lookback: steps that the decoder must have seen; None for all.
        grain: steps that are decoded together, a divisor of `READ_STEPS`: the first step read is
            a multiple of it.
    """
    temporal, window = layout.temporal_compression, layout.window
    if window is not None:
        length = 1 + (window - 1) * temporal
        for number in range(frames[0] // length, -(-frames[1] // length)):
            low = max(0, frames[0] - number * length)
            high = min(length, frames[1] - number * length)
            yield CodeChunk(read(number * window, (number + 1) * window), high - low, True, low)
        return
    step = -(-frames[0] // temporal)  # shows the first frame
    begin = 0 if lookback is None else max(0, step - max(1, lookback)) // grain * grain
    end = -(-(frames[1] - 1) // temporal) + 1 + layout.decoder_lookahead
    skip, left = frames[0] - begin * temporal, frames[1] - frames[0]
    for first in range(begin, min(end, num_steps), READ_STEPS):
        last = min(first + READ_STEPS, end, num_steps)
        covered = (last - first) * temporal - (temporal - 1 if first == begin else 0)
        dropped = min(skip, covered)
        shown = min(left, covered - dropped)
        yield CodeChunk(read(first, last), shown, first == begin, dropped)
        skip, left = skip - dropped, left - shown


def is_latent_file(source: Path | BinaryIO) -> bool:
    """Return whether an input is a safetensors or pt file of latents.

    Nothing is consumed of a stream: it must have `peek`, as standard input has.
    """
    if not isinstance(source, Path):
        peek = getattr(source, "peek", None)
        return peek is not None and FORMAT.encode() in peek(1 << 12)
    if not source.is_file():
        return False  # reading from a pipe would consume the data
    if _is_pt(source):
        return True
    try:
        with safe_open(source, framework="np") as file:
            about = json.loads((file.metadata() or {})["vtok"])
            return bool(about["format"] == FORMAT)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_pt(path: Path) -> bool:
    return path.suffix.lower() == ".pt"


def _open(path: Path, name: str) -> tuple[str, str, list[int], Any]:
    """Open a safetensors file: header, type, shape, and the function that reads steps."""
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("vtok", "")
            found = file.get_slice("latents")
            kind, shape = found.get_dtype(), found.get_shape()
    except (SafetensorError, OSError, ValueError) as exc:
        raise CodeFileError(f"{name}: damaged or cut, or holds no latents ({exc})") from exc
    kinds = {stored: dtype for dtype, stored in SAFETENSORS_TYPES.items()}
    return text, kinds.get(kind, kind), shape, lambda first, last: found[:, first:last]


def _open_pt(path: Path, name: str) -> tuple[str, str, list[int], Any]:
    """Open a pt file; see `_open`."""
    from vtok.models.torch_file import read_foreign  # imports torch

    found = read_foreign(path)
    latents, text = found.tensors.get("latents"), found.values.get("vtok")
    if latents is None or not isinstance(text, str):
        raise CodeFileError(f"{name}: holds no latents of vtok")
    dtype = str(latents.dtype).removeprefix("torch.")
    return text, dtype, list(latents.shape), lambda first, last: latents[:, first:last].numpy()


def _to_json(header: LatentHeader) -> str:
    about = {"format": FORMAT, "version": VERSION, "header": load_json(header.to_json())}
    return dump_json(about).decode()


def parse_header(text: str, name: str) -> LatentHeader:
    """Read the header that a file of latents stores.

    Raises:
        CodeFileError: if it is damaged, or of another kind of file.
    """
    try:
        about = load_json(text.encode())
        if about["format"] != FORMAT:
            raise CodeFileError(f"{name}: holds no latents of vtok")
        if about["version"] != VERSION:
            raise CodeFileError(f"{name}: of a later version of vtok: update vtok")
        return LatentHeader.from_json(dump_json(about["header"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise CodeFileError(f"{name}: holds no latents of vtok") from exc
    except CodeFileError as exc:
        raise CodeFileError(f"{name}: {str(exc).removeprefix(f'{name}: ')}") from exc
