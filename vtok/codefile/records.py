"""The records of a code file, byte for byte: preamble, chunk heads, footer.

    preamble | chunk | chunk | ... | footer

docs/format.md has every field. All integers are little-endian. Each record has a `to_bytes` and
a `read`; `read` trusts no length: it takes at most what a checked bound allows.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.byte_source import ByteSource, Damage
from vtok.codefile.header import MAX_HEADER_BYTES, Header
from vtok.errors import CodeFileError

PLAIN = (1, 0)  # one segment, every chunk with all stages: what every reader reads
VERSION = (1, 1)  # the newest that is known: segments, and chunks of fewer stages
# A byte that is no ASCII, CR LF and LF: each is changed by some transfer in text mode.
MAGIC = b"\x89VTOK\r\n\n"
TRAILER = b"\x89VEND\r\n\n"
CODE = b"CODE"
SEGMENT = b"SEGM"
FOOT = b"FOOT"
PACKED, MODELLED = 0, 1  # coders: plain packing; an adaptive model of the bits, see `entropy`

_PREAMBLE = struct.Struct("<8sHHI")  # magic, major, minor, length of the header
_HEAD = struct.Struct("<4sBQII")  # type, parts, first frame, frames, latent steps
_PART = struct.Struct("<BII")  # coder, length, CRC-32
_FOOT = struct.Struct("<4sIQ")  # type, chunks, frames of all
_CRC = struct.Struct("<I")
_TAIL = struct.Struct("<Q8s")  # length of the footer, trailer
# a row of the index: offset, first frame, frames, latent steps
ROW = np.dtype([("offset", "<u8"), ("first_frame", "<u8"), ("frames", "<u4"), ("steps", "<u4")])
Rows = npt.NDArray[Any]  # [n] of `ROW`
_ROW = struct.Struct("<QQII")
_DIGEST_BYTES = 32
FOOTER_BYTES = _FOOT.size + _DIGEST_BYTES + _CRC.size + _TAIL.size  # of a file without chunks


class Part(NamedTuple):
    """A run of bytes in a chunk: the codes of one stage."""

    coder: int
    length: int
    crc: int


class IndexEntry(NamedTuple):
    """A row of the index: where a chunk of codes is, and what it holds.

    Of a segment it says where the segment is opened: `num_frames` are the frames that a decoder
    drops at its start, and `num_steps` is 0.

    Attributes:
        offset: bytes from the start of the file to the chunk.
        first_frame: number of its first frame, from 0.
        num_frames: frames that it shows.
        num_steps: latent steps t that it holds.
    """

    offset: int
    first_frame: int
    num_frames: int
    num_steps: int


def preamble_to_bytes(header: Header, version: tuple[int, int] = PLAIN) -> bytes:
    """Magic, version and header."""
    text = header.to_json()
    return _sealed(_PREAMBLE.pack(MAGIC, *version, len(text)) + text)


def read_preamble(source: ByteSource) -> tuple[tuple[int, int], Header]:
    """Read what `preamble_to_bytes` made, of this major version and any minor one.

    Raises:
        CodeFileError: for anything else.
    """
    start = source.read_up_to(_PREAMBLE.size)
    if start[: len(MAGIC)] != MAGIC:
        hint = " (or one that went through a text mode: copy it again)" if b"VTOK" in start else ""
        raise CodeFileError(f"not a vtok code file{hint if start else ' (empty)'}")
    if len(start) < _PREAMBLE.size:
        raise CodeFileError("cut inside its header, nothing can be recovered")
    _, major, minor, length = _PREAMBLE.unpack(start)
    if major != VERSION[0]:
        raise CodeFileError(
            f"of format version {major}.{minor}, this vtok reads {VERSION[0]}.x: update it"
        )
    if length > MAX_HEADER_BYTES:
        raise CodeFileError(f"a header of {length} bytes, at most {MAX_HEADER_BYTES} may be")
    text = source.read_up_to(length)
    if len(text) < length:
        raise CodeFileError("cut inside its header, nothing can be recovered")
    _check_seal(start + text, source, "header")
    return (major, minor), Header.from_json(text, newer=minor > VERSION[1])


@dataclass(frozen=True)
class ChunkHead:
    """What stands before the parts of a chunk.

    Attributes:
        kind: type, four ASCII letters; a lower-case first letter marks a chunk that a reader may
            pass over if it does not know it.
        first_frame, num_frames, num_steps: see `IndexEntry`.
        parts: what follows, at most 255.
    """

    kind: bytes
    first_frame: int
    num_frames: int
    num_steps: int
    parts: tuple[Part, ...]

    @property
    def optional(self) -> bool:
        """Whether a reader that does not know the type may pass over the chunk."""
        return self.kind[:1].islower()

    @staticmethod
    def length(parts: int) -> int:
        """Bytes of a head with so many parts."""
        return _HEAD.size + parts * _PART.size + _CRC.size

    def at(self, offset: int) -> IndexEntry:
        """The row of the index for this chunk."""
        return IndexEntry(offset, self.first_frame, self.num_frames, self.num_steps)

    def to_bytes(self) -> bytes:
        """The head as it stands in the file."""
        span = (self.first_frame, self.num_frames, self.num_steps)
        head = _HEAD.pack(self.kind, len(self.parts), *span)
        return _sealed(head + b"".join(_PART.pack(*part) for part in self.parts))

    @classmethod
    def read(cls, kind: bytes, source: ByteSource) -> ChunkHead:
        """Read a head whose type was read already.

        Raises:
            Damage: if its CRC does not match or the file ends.
        """
        start = kind + source.read(_HEAD.size - len(kind))
        _, count, first_frame, num_frames, num_steps = _HEAD.unpack(start)
        table = source.read(count * _PART.size)
        _check_seal(start + table, source, "head of a chunk")
        parts = tuple(Part(*fields) for fields in _PART.iter_unpack(table))
        return cls(kind, first_frame, num_frames, num_steps, parts)


@dataclass(frozen=True, eq=False)
class Footer:
    """What stands at the end of a whole file.

    Attributes:
        rows: the index: every chunk of codes and every opening of a segment, `[n]` of `ROW`.
        digest: SHA-256 of all bytes before the footer.
    """

    rows: Rows
    digest: bytes

    def to_bytes(self) -> bytes:
        """The footer as it stands in the file."""
        start = _FOOT.pack(FOOT, len(self.rows), count_frames(self.rows))
        footer = _sealed(start + self.rows.tobytes() + self.digest)
        return footer + _TAIL.pack(len(footer) + _TAIL.size, TRAILER)

    @classmethod
    def read(cls, source: ByteSource, most_rows: int) -> Footer:
        """Read a footer whose type was read already, of at most `most_rows`.

        Raises:
            Damage: if anything in it is wrong.
        """
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

    @classmethod
    def find(cls, source: ByteSource, size: int) -> Footer:
        """Read the footer of a seekable file of `size` bytes from its end.

        Raises:
            Damage: if there is none, or anything in it is wrong.
        """
        if size < FOOTER_BYTES:
            raise Damage("no index at its end: it was cut or is not finished")
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


def make_rows(entries: Iterable[IndexEntry]) -> Rows:
    """Rows of the index as they lie in the file."""
    log = RowLog()
    for entry in entries:
        log.append(entry)
    return log.rows()


class RowLog:
    """Rows of an index as they come up, in no more memory than they take in the file."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def __len__(self) -> int:
        return len(self._bytes) // ROW.itemsize

    def append(self, row: IndexEntry) -> None:
        """Put a row behind the others."""
        self._bytes += _ROW.pack(*row)

    def rows(self) -> Rows:
        """All of them so far."""
        return np.frombuffer(bytes(self._bytes), ROW)


def count_frames(rows: Rows) -> int:
    """Frames that all these rows show."""
    if not len(rows):
        return 0
    last = IndexEntry(*rows[-1].tolist())
    return last.first_frame + (last.num_frames if last.num_steps else 0)


def _sealed(record: bytes) -> bytes:
    return record + _CRC.pack(zlib.crc32(record))


def _check_seal(record: bytes, source: ByteSource, what: str) -> None:
    if source.read(_CRC.size) != _CRC.pack(zlib.crc32(record)):
        raise Damage(f"the {what} does not match its CRC")
