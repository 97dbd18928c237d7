"""Codes for other programs: a dump of a code file as JSON Lines, as text, or as plain integers.

Each begins with a line of JSON that holds the header, has one for every chunk, and one at its
end, so that `load` makes the same code file of it again. docs/format.md has them by example.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vtok.codefile import canonical
from vtok.codefile.header import CodeFormat
from vtok.codefile.reader import CodeFileReader

FORMATS = ("jsonl", "text", "bin")
COMMENT = b"# "  # before each line of JSON in a text


def dump(reader: CodeFileReader, stream: BinaryIO, kind: str) -> Iterator[tuple[int, int, int]]:
    """Write a dump of a code file, of the stages that the reader is limited to.

    Args:
        reader: may read from a pipe.
        stream: binary, writable.
        kind: one of `FORMATS`.

    Yields:
        Frames, latent steps and stages of each chunk.

    Raises:
        CodeFileError: if the file is damaged.
    """
    header = reader.limited_header
    layout, chunks, frames = header.format, 0, 0
    about: dict[str, Any] = {"dump": kind, "version": list(reader.version)}
    _line(stream, kind, {**about, "header": canonical.loads(header.to_json())})
    for chunk in reader:
        codes = chunk.codes
        row: dict[str, Any] = {
            "coders": list(chunk.coders),
            "frames": chunk.num_frames,
            "opens": chunk.opens,
            "steps": codes.shape[2],
        }
        if kind == "jsonl":
            row["codes"] = codes.reshape(*codes.shape[:2], -1).tolist()
        _line(stream, kind, row)
        if kind == "text":
            for step in codes.reshape(-1, layout.grid[0] * layout.grid[1]).tolist():
                stream.write(" ".join(map(str, step)).encode() + b"\n")
        elif kind == "bin":
            stream.write(_as_integers(codes, layout))
        chunks, frames = chunks + 1, frames + chunk.num_frames
        yield chunk.num_frames, codes.shape[2], len(codes)
    _line(stream, kind, {"chunks": chunks, "frames": frames})


def integer_type(layout: CodeFormat) -> np.dtype[Any]:
    """The smallest little-endian unsigned type of 16 or 32 bits that holds a code."""
    return np.dtype("<u2" if layout.codebook_size <= 2**16 else "<u4")


def _as_integers(codes: npt.NDArray[np.int64], layout: CodeFormat) -> bytes:
    data: bytes = codes.astype(integer_type(layout)).tobytes()
    return data


def _line(stream: BinaryIO, kind: str, value: dict[str, Any]) -> None:
    stream.write((COMMENT if kind == "text" else b"") + canonical.dumps(value) + b"\n")
