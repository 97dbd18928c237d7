"""Records of a code file, byte for byte: preamble, chunk heads, footer.

    preamble | chunk | chunk | ... | footer

docs/format.md specifies every field; integers are little-endian. Each record has `to_bytes` and
`read`. `read` trusts no length: it takes at most what a checked bound allows.
"""

from __future__ import annotations

import copy
import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.header import MAX_HEADER_BYTES, CodeFormat, Header
from vtok.errors import CodeFileError

PLAIN = (1, 0)  # one segment, every chunk with all stages: readable by every reader
SEGMENTED = (1, 1)  # segments, and chunks of fewer stages
VERSION = (1, 2)  # the newest known version: further keys of the header
# A byte beyond ASCII, CR LF and LF: each is changed by some transfer in text mode.
MAGIC = b"\x89VTOK\r\n\n"
TRAILER = b"\x89VEND\r\n\n"
CODE = b"CODE"
SEGMENT = b"SEGM"
FOOT = b"FOOT"
# Coders of parts: plain packing, and entropy coding. vtok 0.1 had another entropy coder, number 1.
PACKED, MODELLED = 0, 2
PIECE_BYTES = 1 << 20  # read at a time: memory grows with what is read, not with a stated length

_PREAMBLE = struct.Struct("<8sHHI")  # magic, major, minor, length of the header
_HEAD = struct.Struct("<4sBQII")  # type, parts, first frame, frames, latent steps
_PART = struct.Struct("<BII")  # coder, length, CRC-32
_FOOT = struct.Struct("<4sIQ")  # type, chunks, frames of all
_CRC = struct.Struct("<I")
_TAIL = struct.Struct("<Q8s")  # length of the footer, trailer
# a row of the index: offset, first frame, frames, latent steps
ROW = np.dtype([("offset", "<u8"), ("first_frame", "<u8"), ("frames", "<u4"), ("steps", "<u4")])
Rows = npt.NDArray[Any]  # [n] of `ROW`
ROW_STRUCT = struct.Struct("<QQII")
_DIGEST_BYTES = 32
FOOTER_BYTES = _FOOT.size + _DIGEST_BYTES + _CRC.size + _TAIL.size  # of a file without chunks


class Damage(CodeFileError):
    """Missing or changed bytes, as opposed to an unknown format; intact parts can be salvaged."""


def read_bytes(stream: BinaryIO, length: int) -> bytes:
    """Read `length` bytes, or fewer at the end of the stream; short reads are fine."""
    pieces = []
    while length and (piece := stream.read(min(length, PIECE_BYTES))):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


class ByteSource:
    """Position in a stream, with a digest of all bytes before it.

    Copies of a seekable source are independent: reading from one does not move the other.

    Attributes:
        offset: bytes from the start of the file.
        skipped: bytes passed over with `skip`.
        size: bytes of the file, or None for a pipe.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.offset = 0
        self.skipped = 0
        self.size: int | None = None
        self._stream = stream
        self._start = 0  # a file may begin inside a stream
        self._hash: hashlib._Hash | None = hashlib.sha256()
        if stream.seekable():
            self._start = stream.tell()
            self.size = stream.seek(0, io.SEEK_END) - self._start

    @property
    def seekable(self) -> bool:
        """True for a file, false for a pipe."""
        return self.size is not None

    def at(self, offset: int) -> ByteSource:
        """Copy this seekable source to another position, without a digest."""
        other = copy.copy(self)
        other.jump(offset)
        return other

    def jump(self, offset: int) -> None:
        """Move within a file; the digest is lost."""
        self.offset, self._hash = offset, None

    def copy(self) -> ByteSource:
        """Copy at the same position; the copy of a pipe replaces the original."""
        other = copy.copy(self)
        other._hash = self._hash.copy() if self._hash else None
        return other

    def digest(self) -> bytes | None:
        """Return the SHA-256 of all bytes so far, or None if some were not read."""
        return self._hash.digest() if self._hash else None

    def read_up_to(self, length: int) -> bytes:
        """Read `length` bytes, or fewer at the end of the stream."""
        if self.size is not None:
            self._stream.seek(self._start + self.offset)
        data = read_bytes(self._stream, length)
        self.offset += len(data)
        if self._hash:
            self._hash.update(data)
        return data

    def read(self, length: int) -> bytes:
        """Read `length` bytes; raise `Damage` if the stream ends before."""
        data = self.read_up_to(length)
        if len(data) < length:
            raise Damage(f"the file ends at byte {self.offset}, in the middle of a record")
        return data

    def check(self, length: int, crc: int) -> None:
        """Read `length` bytes; raise `Damage` if their CRC-32 differs or the stream ends before."""
        start, running = self.offset, 0
        for done in range(0, length, PIECE_BYTES):
            running = zlib.crc32(self.read(min(PIECE_BYTES, length - done)), running)
        if running != crc:
            raise Damage(f"the {length} bytes at {start} do not match their CRC")

    def skip(self, length: int) -> None:
        """Skip `length` bytes, in a file without reading them; the digest is then lost.

        Raises `Damage` if the stream ends before.
        """
        if self.size is None:
            for done in range(0, length, PIECE_BYTES):
                self.read(min(PIECE_BYTES, length - done))
        elif self.offset + length > self.size:
            raise Damage(f"the file ends at byte {self.size}, in the middle of a record")
        elif length:
            self.jump(self.offset + length)
        self.skipped += length


class Part(NamedTuple):
    """Row of a chunk head: coder, length and CRC-32 of the codes of one stage."""

    coder: int
    length: int
    crc: int


class IndexEntry(NamedTuple):
    """Row of the index: offset, frames and latent steps of a chunk of codes.

    Also used for `SEGM` records: `num_frames` are then the frames dropped at the start of the
    segment, and `num_steps` is 0.

    Attributes:
        offset: bytes from the start of the file to the chunk.
        first_frame: number of its first frame, from 0.
        num_frames: frames shown.
        num_steps: latent steps t.
    """

    offset: int
    first_frame: int
    num_frames: int
    num_steps: int


def preamble_to_bytes(header: Header, version: tuple[int, int] = PLAIN) -> bytes:
    """Write magic, version and header."""
    text = header.to_json()
    return _sealed(_PREAMBLE.pack(MAGIC, *version, len(text)) + text)


def read_preamble(source: ByteSource) -> tuple[tuple[int, int], Header]:
    """Read a preamble of this major version and any minor version.

    Raises:
        CodeFileError: for anything else.
    """
    start = source.read_up_to(_PREAMBLE.size)
    if start[: len(MAGIC)] != MAGIC:
        hint = " (or changed by a transfer in text mode: copy it again)" if b"VTOK" in start else ""
        if start[8:9] == b"{":
            hint = ", but safetensors, which only info and decode read"
        raise CodeFileError(f"not a vtok code file{hint if start else ' (empty)'}")
    if len(start) < _PREAMBLE.size:
        raise CodeFileError("cut inside its header, nothing can be recovered")
    _, major, minor, length = _PREAMBLE.unpack(start)
    if major != VERSION[0]:
        raise CodeFileError(
            f"of format version {major}.{minor}, this vtok reads {VERSION[0]}.x: update it"
        )
    if length > MAX_HEADER_BYTES:
        raise CodeFileError(f"a header of {length} bytes, the limit is {MAX_HEADER_BYTES}")
    text = source.read_up_to(length)
    if len(text) < length:
        raise CodeFileError("cut inside its header, nothing can be recovered")
    _check_seal(start + text, source, "header")
    header = Header.from_json(text, newer=minor > VERSION[1])
    check_version(header, (major, minor))
    return (major, minor), header


def check_version(header: Header, version: tuple[int, int]) -> None:
    """Raise `CodeFileError` if a header has keys that the version of its file lacks."""
    if header.format.added and version < VERSION:
        raise CodeFileError(
            f"header: format has keys of version 1.2: {', '.join(header.format.added)}"
        )


@dataclass(frozen=True)
class ChunkHead:
    """Head of a chunk, which its parts follow.

    Attributes:
        kind: type, four ASCII letters; the first one is lower-case if readers may skip the chunk.
        first_frame, num_frames, num_steps: see `IndexEntry`.
        parts: at most 255.
    """

    kind: bytes
    first_frame: int
    num_frames: int
    num_steps: int
    parts: tuple[Part, ...]

    @staticmethod
    def length(parts: int) -> int:
        """Compute the bytes of a head from its number of parts."""
        return _HEAD.size + parts * _PART.size + _CRC.size

    @property
    def part_bytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.length for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of the chunk."""
        return self.length(len(self.parts)) + self.part_bytes

    def at(self, offset: int) -> IndexEntry:
        """Return the row of the index for this chunk."""
        return IndexEntry(offset, self.first_frame, self.num_frames, self.num_steps)

    def to_bytes(self) -> bytes:
        """Write the head."""
        span = (self.first_frame, self.num_frames, self.num_steps)
        head = _HEAD.pack(self.kind, len(self.parts), *span)
        return _sealed(head + b"".join(_PART.pack(*part) for part in self.parts))

    @classmethod
    def read(cls, kind: bytes, source: ByteSource) -> ChunkHead:
        """Read a head after its type; raise `Damage` if it is wrong."""
        start = kind + source.read(_HEAD.size - len(kind))
        _, count, first_frame, num_frames, num_steps = _HEAD.unpack(start)
        table = source.read(count * _PART.size)
        _check_seal(start + table, source, "head of a chunk")
        parts = tuple(Part(*fields) for fields in _PART.iter_unpack(table))
        return cls(kind, first_frame, num_frames, num_steps, parts)


def head_at(source: ByteSource, offset: int) -> ChunkHead | None:
    """Read the head at an offset; None if there is none or its CRC does not match."""
    there = source.at(offset)
    try:
        kind = there.read(len(CODE))
        return ChunkHead.read(kind, there) if kind in (CODE, SEGMENT) else None
    except Damage:
        return None


@dataclass(frozen=True, eq=False)
class Footer:
    """Footer of a complete file.

    Attributes:
        rows: index of all `CODE` and `SEGM` chunks, `[n]` of `ROW`.
        digest: SHA-256 of all bytes before the footer.
    """

    rows: Rows
    digest: bytes

    def to_bytes(self) -> bytes:
        """Write the footer."""
        start = _FOOT.pack(FOOT, len(self.rows), count_frames(self.rows))
        footer = _sealed(start + self.rows.tobytes() + self.digest)
        return footer + _TAIL.pack(len(footer) + _TAIL.size, TRAILER)

    @classmethod
    def read(cls, source: ByteSource, most_rows: int) -> Footer:
        """Read a footer of at most `most_rows` after its type; raise `Damage` if it is wrong."""
        start = FOOT + source.read(_FOOT.size - len(FOOT))
        _, count, num_frames = _FOOT.unpack(start)
        if count > most_rows:
            raise Damage(f"the index lists {count} chunks, the file has at most {most_rows}")
        table = source.read(count * ROW.itemsize)
        digest = source.read(_DIGEST_BYTES)
        _check_seal(start + table + digest, source, "index")
        footer = cls(np.frombuffer(table, ROW), digest)
        if num_frames != count_frames(footer.rows):
            raise Damage("the index does not add up to its number of frames")
        if source.read(_TAIL.size) != _TAIL.pack(FOOTER_BYTES + len(table), TRAILER):
            raise Damage("the last 16 bytes are wrong")
        return footer

    def check(self, rows: Rows, digest: bytes | None) -> None:
        """Raise `Damage` if the rows or the digest, if known, of the bytes read differ."""
        if self.rows.tobytes() != rows.tobytes():
            raise Damage("the index does not match the chunks")
        if digest is not None and self.digest != digest:
            raise Damage("the bytes do not match their SHA-256")

    @classmethod
    def find(cls, source: ByteSource, size: int) -> Footer:
        """Read the footer of a seekable file of `size` bytes; raise `Damage` if it is wrong."""
        length, trailer = 0, b""
        if size >= FOOTER_BYTES:
            length, trailer = _TAIL.unpack(source.at(size - _TAIL.size).read(_TAIL.size))
        if trailer != TRAILER or not FOOTER_BYTES <= length <= size:
            raise Damage("no index at its end: it was cut or is not finished")
        start = source.at(size - length)
        if start.read(len(FOOT)) != FOOT:
            raise Damage("the index does not begin where the last bytes say")
        footer = cls.read(start, (length - FOOTER_BYTES) // ROW.itemsize)
        if start.offset != size:
            raise Damage("the index does not end where the file does")
        return footer


def count_frames(rows: Rows) -> int:
    """Count the frames that these rows show."""
    if not len(rows):
        return 0
    last = IndexEntry(*rows[-1].tolist())
    return last.first_frame + (last.num_frames if last.num_steps else 0)


class Place(NamedTuple):
    """Position of a chunk in its segment, as a decoder needs it.

    Attributes:
        opens: for the first chunk of a segment, where a decoder starts with a fresh state, the
            frames to drop at the start of the segment; None for other chunks.
        skip: frames to drop of those that the chunk decodes to.
    """

    opens: int | None
    skip: int


class Order:
    """Rules for the sequence of records, given those before."""

    def __init__(self, layout: CodeFormat, version: tuple[int, int]) -> None:
        self.num_frames = 0  # shown so far
        self.num_chunks = 0  # of codes
        self._log = bytearray()  # rows as in the index
        self._layout = layout
        self._plain = version == PLAIN
        self._offset = -1  # of the last record
        self._full = True  # the last chunk shows all frames that it covers
        self._drop = 0  # frames that the segment drops at its start
        self.covered = 0  # frames that the latent steps of the segment cover so far
        self._opened = False  # a segment was opened and has no chunk yet

    @property
    def rows(self) -> Rows:
        """Rows of the records so far, `[n]` of `ROW`."""
        return np.frombuffer(bytes(self._log), ROW)

    def why_not_open(self, row: IndexEntry) -> str | None:
        """Return why a segment cannot be opened here; None if it can."""
        return "opens a segment again" if self._opened else self._why_not_here(row)

    def why_not_next(self, row: IndexEntry) -> str | None:
        """Return why a chunk cannot follow; None if it can."""
        if why := self._why_not_here(row):
            return why
        if self._layout.window is not None:
            if self.covered:
                return "does not start a segment, as each window does"
            if row.num_steps != self._layout.window:
                return f"has t = {row.num_steps}, a window has {self._layout.window}"
        if not self._full:
            return "follows a chunk that is not full, which only the last one may be"
        if not 1 <= row.num_steps <= self._layout.chunk_steps:
            return f"has t = {row.num_steps}, not 1..{self._layout.chunk_steps}"
        most = self._most_frames(row)
        least = min(1, most)
        if self._plain:
            least = max(1, most - self._layout.temporal_compression + 1)
        if not least <= row.num_frames <= most:
            covers = f"t = {row.num_steps} covers {least}..{most} here"
            return f"has num_frames {row.num_frames}, but {covers}"
        return None

    def open(self, row: IndexEntry) -> None:
        """Record an opened segment, checked with `why_not_open`."""
        self._log += ROW_STRUCT.pack(*row)
        self._offset, self._full, self._opened = row.offset, True, True
        self._drop, self.covered = row.num_frames, 0

    def resume(self, row: IndexEntry) -> bool:
        """Continue with a chunk or a segment after lost ones.

        Returns:
            True if a decoder has seen chunks of its segment, as far as known.
        """
        seen = self.covered > 0
        self.num_frames, self._full, self._opened = row.first_frame, True, False
        # Frames covered by lost chunks are unknown; past the dropped ones the number is irrelevant.
        self.covered = max(1, self.covered, self._drop)
        if self._layout.window is not None and row.num_steps:
            self.covered = self._drop = 0  # each window starts a segment
        return seen

    def place(self, row: IndexEntry) -> Place:
        """Return the place of a chunk, checked with `why_not_next`."""
        skip = min(max(0, self._drop - self.covered), self._end(row) - self.covered)
        return Place(None if self.covered else self._drop, skip)

    def add(self, row: IndexEntry) -> None:
        """Record a chunk, checked with `why_not_next`."""
        self._full = row.num_frames == self._most_frames(row)
        self.covered = self._end(row)
        self._offset, self._opened = row.offset, False
        self.num_frames += row.num_frames
        self.num_chunks += 1
        self._log += ROW_STRUCT.pack(*row)

    def _why_not_here(self, row: IndexEntry) -> str | None:
        if row.first_frame != self.num_frames:
            return f"begins at frame {row.first_frame}, not {self.num_frames}"
        if row.offset <= self._offset:
            return "lies before the chunk that it follows"
        return None

    def _end(self, row: IndexEntry) -> int:
        """Frames that the segment covers with this chunk; its first frame is a separate step."""
        temporal = self._layout.temporal_compression
        return row.num_steps * temporal + (self.covered or 1 - temporal)

    def _most_frames(self, row: IndexEntry) -> int:
        """Frames of this chunk that are not dropped."""
        return max(0, self._end(row) - max(self.covered, self._drop))


def _sealed(record: bytes) -> bytes:
    return record + _CRC.pack(zlib.crc32(record))


def _check_seal(record: bytes, source: ByteSource, what: str) -> None:
    if source.read(_CRC.size) != _CRC.pack(zlib.crc32(record)):
        raise Damage(f"the {what} does not match its CRC")
