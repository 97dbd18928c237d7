"""A stream read in exact lengths, whether file or pipe: counted, hashed, in bounded pieces."""

from __future__ import annotations

import copy
import hashlib
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from vtok.errors import CodeFileError

_PIECE = 1 << 20  # bytes asked for at a time: memory grows with what comes, not with a promise


class Damage(CodeFileError):
    """Bytes that are missing or changed, as opposed to those of a format that is not known.

    The reader tells the two apart: what lies before damage can be salvaged.
    """


class ByteSource:
    """A place in a stream, and a digest of all bytes from the start of the file up to it.

    Copies of a seekable source are places of their own: reading from one does not move the other.

    Attributes:
        offset: bytes from the start of the file.
        skipped: how many of these were passed over with `skip`.
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
        """Whether it is a file rather than a pipe."""
        return self.size is not None

    def at(self, offset: int) -> ByteSource:
        """A copy of this seekable source at another place, without a digest."""
        other = copy.copy(self)
        other.offset = offset
        other._hash = None
        return other

    def jump(self, offset: int) -> None:
        """Go to another place of a file; the digest is lost."""
        self.offset, self._hash = offset, None

    def copy(self) -> ByteSource:
        """A copy at the same place; of a pipe, it replaces this one."""
        other = copy.copy(self)
        other._hash = self._hash.copy() if self._hash else None
        return other

    def digest(self) -> bytes | None:
        """SHA-256 of all bytes up to here, or None if some were not read."""
        return self._hash.digest() if self._hash else None

    def read_up_to(self, length: int) -> bytes:
        """The next `length` bytes, or fewer where the stream ends."""
        if self.size is not None:
            self._stream.seek(self._start + self.offset)
        pieces = []
        missing = length
        while missing and (piece := self._stream.read(min(missing, _PIECE))):
            pieces.append(piece)
            missing -= len(piece)
        data = b"".join(pieces)
        self.offset += len(data)
        if self._hash:
            self._hash.update(data)
        return data

    def read(self, length: int) -> bytes:
        """The next `length` bytes.

        Raises:
            Damage: if the stream ends before.
        """
        data = self.read_up_to(length)
        if len(data) < length:
            raise Damage(f"the file ends at byte {self.offset}, in the middle of a record")
        return data

    def check(self, length: int, crc: int) -> None:
        """Read over `length` bytes whose CRC-32 must be `crc`.

        Raises:
            Damage: if it is another, or the stream ends before.
        """
        start, running = self.offset, 0
        for piece in _pieces(length):
            running = zlib.crc32(self.read(piece), running)
        if running != crc:
            raise Damage(f"the {length} bytes at {start} do not match their CRC")

    def skip(self, length: int) -> None:
        """Pass over `length` bytes: in a file without reading them, so the digest is lost.

        Raises:
            Damage: if the stream ends before.
        """
        if self.size is None:
            for piece in _pieces(length):
                self.read(piece)
        elif self.offset + length > self.size:
            raise Damage(f"the file ends at byte {self.size}, in the middle of a record")
        elif length:
            self.offset += length
            self._hash = None
        self.skipped += length


def _pieces(length: int) -> Iterator[int]:
    for start in range(0, length, _PIECE):
        yield min(_PIECE, length - start)
