"""Dumps for other programs: a code file as JSON Lines, text, or plain integers, and back.

A dump has a line of JSON with the header, one for each chunk, and one at its end, so that
`DumpReader` restores the same code file. It takes any spelling of the JSON, and any valid codes.
docs/format.md has examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from vtok.codefile.header import MAX_HEADER_BYTES, CodeFormat, Header, dump_json, load_json
from vtok.codefile.packing import encode_parts
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import (
    MODELLED,
    PLAIN,
    SEGMENTED,
    VERSION,
    check_version,
    read_bytes,
)
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import CodeFileError, ShapeError

FORMATS = ("jsonl", "text", "bin")
_COMMENT = b"# "  # before each line of JSON in text
_LINE_BYTES = MAX_HEADER_BYTES + 4096  # maximum of a line without codes
_CODE_BYTES = 14  # maximum of a code: ten digits, separators and brackets


def dump(reader: CodeFileReader, stream: BinaryIO, kind: str) -> Iterator[tuple[int, int, int]]:
    """Write a dump of the stages of a code file that the reader is limited to.

    Args:
        reader: of a file or a pipe.
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
    _line(stream, kind, {**about, "header": load_json(header.to_json())})
    for chunk in reader:
        codes = chunk.codes
        row: dict[str, Any] = {"coders": list(chunk.coders), "opens": chunk.opens}
        row |= {"frames": chunk.num_frames, "steps": codes.shape[2]}
        if kind == "jsonl":
            row["codes"] = codes.reshape(*codes.shape[:2], -1).tolist()
        _line(stream, kind, row)
        if kind == "text":
            for step in codes.reshape(-1, layout.grid[0] * layout.grid[1]).tolist():
                stream.write(" ".join(map(str, step)).encode() + b"\n")
        elif kind == "bin":
            stream.write(codes.astype(integer_type(layout)).tobytes())
        chunks, frames = chunks + 1, frames + chunk.num_frames
        yield chunk.num_frames, codes.shape[2], len(codes)
    _line(stream, kind, {"chunks": chunks, "frames": frames})


def integer_type(layout: CodeFormat) -> np.dtype[Any]:
    """Return the smaller unsigned type of 16 or 32 bits that holds a code, little-endian."""
    return np.dtype("<u2" if layout.codebook_size <= 2**16 else "<u4")


def _line(stream: BinaryIO, kind: str, value: dict[str, Any]) -> None:
    stream.write((_COMMENT if kind == "text" else b"") + dump_json(value) + b"\n")


class DumpReader:
    """Reads a dump of any kind and writes it as a code file.

    Attributes:
        header: of the code file.
    """

    def __init__(self, stream: BinaryIO, *, name: str = "dump") -> None:
        """Read the first line.

        Args:
            stream: binary, readable, buffered.
            name: of the dump, for errors.

        Raises:
            CodeFileError: if it is not a dump, or its header is wrong.
        """
        self._stream, self._name = stream, name
        self._number = 0  # of the last line read
        self._comment = b""
        first = self._read_line(_LINE_BYTES)
        if first.startswith(_COMMENT):
            self._comment, first = _COMMENT, first[len(_COMMENT) :]
        about = self._parse(first, {"dump", "header", "version"})
        self._kind = about["dump"]
        if self._kind not in FORMATS or (self._kind == "text") != bool(self._comment):
            self._refuse(f"is not a dump of vtok ({', '.join(FORMATS)})")
        known = {str(list(version)): version for version in (PLAIN, SEGMENTED, VERSION)}
        if str(about["version"]) not in known:
            self._refuse(f"version {str(about['version'])[:20]} is not known: update vtok")
        self._version = known[str(about["version"])]
        try:
            self.header = Header.from_json(dump_json(about["header"]))
            check_version(self.header, self._version)
        except CodeFileError as exc:
            self._refuse(str(exc))

    def write(self, stream: BinaryIO) -> Iterator[tuple[int, int, int]]:
        """Write the code file.

        Args:
            stream: binary, writable.

        Yields:
            Frames, latent steps and stages of each chunk.

        Raises:
            CodeFileError: naming the wrong line.
        """
        count = frames = 0
        with CodeFileWriter(stream, self.header, version=self._version) as writer:
            while "chunks" not in (row := self._next_row()):
                codes = self._codes(row)
                try:
                    parts = encode_parts(codes, self.header.format, row["coders"])
                    writer.write_parts(parts, row["steps"], row["frames"], row["opens"])
                except (ShapeError, CodeFileError) as exc:
                    self._refuse(str(exc))
                count, frames = count + 1, frames + row["frames"]
                yield row["frames"], row["steps"], len(codes)
            if row != {"chunks": count, "frames": frames}:
                self._refuse(f"counts other than the {count} chunks and {frames} frames before it")
            if self._stream.read(1):
                self._refuse("is the last one, but more bytes follow")

    def _next_row(self) -> dict[str, Any]:
        """Read the line of the next chunk, or the last line."""
        layout, keys = self.header.format, {"coders", "frames", "opens", "steps"}
        limit = _LINE_BYTES
        if self._kind == "jsonl":
            most = layout.num_stages * layout.codes_per_step * layout.chunk_steps
            limit, keys = limit + most * _CODE_BYTES, keys | {"codes"}
        line = self._read_line(limit)
        if not line.startswith(self._comment):
            self._refuse("is not a line of JSON")
        row = self._parse(line[len(self._comment) :], keys)
        if "chunks" in row:
            return row
        for key in ("frames", "steps", "opens"):
            if type(row[key]) is not int and (key, row[key]) != ("opens", None):
                self._refuse(f"{key} is {str(row[key])[:20]}, not a number")
        if not 1 <= row["steps"] <= layout.chunk_steps:
            self._refuse(f"steps is {row['steps']}, not 1..{layout.chunk_steps}")
        codes = row.get("codes")
        count = len(codes) if isinstance(codes, list) else layout.num_stages
        coders = row.setdefault("coders", [MODELLED] * count)
        good = isinstance(coders, list) and all(type(coder) is int for coder in coders)
        if not good or not 1 <= len(coders) <= layout.num_stages:
            self._refuse(f"coders is {str(coders)[:20]}, not 1..{layout.num_stages} numbers")
        return row

    def _codes(self, row: dict[str, Any]) -> npt.NDArray[np.int64]:
        """Read the codes of a chunk, int64 `[stages, num_codebooks, t, h, w]`."""
        layout = self.header.format
        shape = (len(row["coders"]), layout.num_codebooks, row["steps"], *layout.grid)
        count = shape[0] * row["steps"] * layout.codes_per_step
        if self._kind == "jsonl":
            flat = (*shape[:2], count // (shape[0] * shape[1]))
            try:
                codes = np.array(row["codes"])
            except ValueError:  # lists of different lengths
                codes = np.array(None)
            if codes.shape not in (flat, shape) or codes.dtype.kind != "i":
                self._refuse(f"codes are not integers [{', '.join(map(str, flat))}]")
        elif self._kind == "text":
            each = layout.grid[0] * layout.grid[1]
            codes = np.concatenate([self._numbers(each) for _ in range(count // each)])
        else:
            kind = integer_type(layout)
            data = read_bytes(self._stream, count * kind.itemsize)
            if len(data) < count * kind.itemsize:
                self._refuse("has fewer codes after it than it says")
            codes = np.frombuffer(data, kind)
        return codes.astype(np.int64).reshape(shape)

    def _numbers(self, count: int) -> npt.NDArray[np.int64]:
        """Read the codes of one line of text."""
        words = self._read_line(count * _CODE_BYTES + 1).split()
        if len(words) != count or not all(word.isdigit() and len(word) < 11 for word in words):
            self._refuse(f"is not a line of {count} codes")
        return np.array([int(word) for word in words], np.int64)

    def _read_line(self, limit: int) -> bytes:
        self._number += 1
        line = self._stream.readline(limit + 1)
        if len(line) > limit:
            self._refuse("is too long")
        if not line.endswith(b"\n"):
            self._refuse("is missing: the dump was cut" if self._number > 1 else "is not a dump")
        return line

    def _parse(self, line: bytes, keys: set[str]) -> dict[str, Any]:
        try:
            value = load_json(line, canonical=False)
        except ValueError as exc:
            self._refuse(f"is not JSON of integers and text ({exc})")
        known = (keys, keys - {"coders"}, {"chunks", "frames"})
        if not isinstance(value, dict) or set(value) not in known:
            self._refuse(f"has other keys than {', '.join(sorted(keys))}")
        return value

    def _refuse(self, why: str) -> NoReturn:
        raise CodeFileError(f"{self._name}: line {self._number} {why}")
