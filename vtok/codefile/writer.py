"""Write code files chunk by chunk, front to back, so also into a pipe."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy.typing as npt

from vtok.codefile.header import Header
from vtok.codefile.packing import CodedPart, encode_parts
from vtok.codefile.records import (
    CODE,
    PLAIN,
    SEGMENT,
    VERSION,
    ChunkHead,
    Footer,
    IndexEntry,
    Order,
    Part,
    preamble_to_bytes,
)
from vtok.codefile.sections import MAX_SECTIONS, Section
from vtok.errors import OutputError, ShapeError


class CodeFileWriter:
    """Writes a code file to a binary stream without seeking.

    Flushes each chunk, so that chunks written before a crash can be salvaged. As a context manager,
    writes the footer at the end, but not if an exception ends the block: an incomplete file must
    not look complete. Leaves the stream open.

        with CodeFileWriter(stream, header) as writer:
            for codes, num_frames in chunks:
                writer.write(codes, num_frames)
    """

    def __init__(
        self, stream: BinaryIO, header: Header, *, version: tuple[int, int] = PLAIN
    ) -> None:
        """Write the header.

        Args:
            stream: binary, writable.
            header: of the file.
            version: (major, minor) of the format: 1.0, or 1.1 for segments and for chunks of
                fewer stages than the header says; 1.2 if the header needs it.

        Raises:
            CodeFileError: if the header is too long.
            OSError: if writing to the stream fails.
        """
        self.header = header
        self._stream = stream
        self._version = version = max(version, VERSION if header.format.added else PLAIN)
        self._hash = hashlib.sha256()
        self._offset = 0
        self._order = Order(header.format, version)
        self._num_sections = 0
        self._open = True
        self._emit(preamble_to_bytes(header, version))

    @property
    def num_frames(self) -> int:
        """Frames that the chunks so far show."""
        return self._order.num_frames

    def open_segment(self, drop: int = 0) -> None:
        """Start a segment with the next chunk: decoders start it with a fresh state.

        The first chunk of a file needs no call, unless frames are dropped.

        Args:
            drop: frames to drop at the start of the segment, which are decoded only for the frames
                after them.

        Raises:
            ShapeError: if no segment can start here.
            OutputError, OSError: as `write`.
        """
        row = IndexEntry(self._offset, self._order.num_frames, drop, 0)
        why = self._order.why_not_open(row)
        if self._version == PLAIN:
            why = "needs version 1.1 of the format"
        elif not 0 <= drop < 2**32:
            why = f"drops {drop} frames, not 0..{2**32 - 1}"
        if why:
            raise ShapeError(f"the segment before chunk {self._order.num_chunks} {why}")
        self._emit(ChunkHead(SEGMENT, *row[1:], ()).to_bytes())
        self._order.open(row)

    def write(self, codes: npt.NDArray[Any], num_frames: int) -> None:
        """Write one chunk.

        Args:
            codes: integers `[num_stages, num_codebooks, t, h, w]`, 0 <= code < codebook_size,
                1 <= t <= chunk_steps; in version 1.1 of 1 to num_stages stages.
            num_frames: frames of these latent steps, without padding: `t * temporal_compression`,
                less `temporal_compression - 1` in the first chunk, less up to
                `temporal_compression - 1` in the last chunk. In version 1.1, without dropped
                frames; at least 1 in the last chunk of a segment.

        Raises:
            ShapeError: for codes or a number of frames that do not fit the header; nothing is
                written then, and the writer remains usable.
            OutputError: after `close`, or after a failed write.
            OSError: if writing to the stream fails.
        """
        layout, shape = self.header.format, codes.shape
        expected = (layout.num_codebooks, *layout.grid)
        if codes.ndim != 5 or (shape[1], *shape[3:]) != expected or not self._fits(shape[0]):
            sizes = (layout.num_stages, layout.num_codebooks, "t", *layout.grid)
            says = ", ".join(map(str, sizes))
            raise ShapeError(f"codes are {list(shape)}, the header says [{says}]")
        self.write_parts(encode_parts(codes, layout), shape[2], num_frames)

    def write_parts(
        self,
        parts: Sequence[CodedPart],
        num_steps: int,
        num_frames: int,
        opens: int | None = None,
    ) -> None:
        """Write one chunk of coded stages; raises as `write`.

        Args:
            parts: from `encode_parts`, or from a reader of a file of the same layout.
            num_steps: latent steps t.
            num_frames: as for `write`.
            opens: frames to drop, if the chunk starts a segment; as `Chunk.opens`.
        """
        if opens is not None and (self._order.num_chunks or opens):
            self.open_segment(opens)
        if not self._fits(len(parts)):
            most = self.header.format.num_stages
            raise ShapeError(f"{len(parts)} stages, the header says {most}")
        row = IndexEntry(self._offset, self._order.num_frames, num_frames, num_steps)
        if why := self._order.why_not_next(row):
            raise ShapeError(f"chunk {self._order.num_chunks} {why}")
        table = tuple(Part(coder, len(data), zlib.crc32(data)) for coder, data in parts)
        head = ChunkHead(CODE, *row[1:], table)
        self._emit(head.to_bytes() + b"".join(part.data for part in parts))
        self._order.add(row)

    def write_section(self, section: Section) -> int:
        """Write an optional section after the last chunk; return its bytes. Raises as `write`."""
        self._num_sections += 1
        if self._num_sections > MAX_SECTIONS:
            raise OutputError(f"more than {MAX_SECTIONS} optional sections: join fewer files")
        self._emit(section.to_bytes())
        return section.num_bytes

    def close(self) -> None:
        """Write the footer, unless it was written or a write failed.

        Raises:
            OSError: if writing to the stream fails.
        """
        if self._open:
            self._emit(Footer(self._order.rows, self._hash.digest()).to_bytes())
            self._open = False

    def __enter__(self) -> CodeFileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()

    def _fits(self, stages: int) -> bool:
        most = self.header.format.num_stages
        return stages == most or (self._version != PLAIN and 1 <= stages < most)

    def _emit(self, data: bytes) -> None:
        """Write all of `data`; until that is done, the writer counts as closed."""
        if not self._open:
            raise OutputError("the code file is closed, or a write to it failed: write a new one")
        self._open = False
        rest = memoryview(data)
        while rest:  # a raw stream may take only a part
            taken = self._stream.write(rest)
            if not taken:
                raise OutputError("the output takes no more bytes")
            rest = rest[taken:]
        self._stream.flush()
        self._hash.update(data)
        self._offset += len(data)
        self._open = True
