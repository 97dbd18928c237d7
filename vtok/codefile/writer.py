"""Codes to bytes: a code file written chunk by chunk, front to back, so also into a pipe."""

import hashlib
import zlib
from types import TracebackType
from typing import Any, BinaryIO

import numpy.typing as npt

from vtok.codefile.container import (
    CODE,
    PACKED,
    ChunkHead,
    Footer,
    IndexEntry,
    Part,
    count_frames,
    preamble_to_bytes,
)
from vtok.codefile.header import Header
from vtok.codefile.packing import pack
from vtok.codefile.rules import why_not_next
from vtok.errors import OutputError, ShapeError


class CodeFileWriter:
    """Writes a code file to a binary stream, which may be a pipe: it never seeks.

    Each chunk is flushed, so what was written before a crash can be salvaged. As a context
    manager it writes the footer at the end, but not where an exception ends the block: a file
    that is not whole must not look whole. The stream stays open.

        with CodeFileWriter(stream, header) as writer:
            for codes, num_frames in chunks:
                writer.write(codes, num_frames)
    """

    def __init__(self, stream: BinaryIO, header: Header) -> None:
        """Write the header.

        Args:
            stream: binary, writable.
            header: of the file.

        Raises:
            CodeFileError: if the header is too long.
            OSError: if the stream takes no more.
        """
        self.header = header
        self._stream = stream
        self._hash = hashlib.sha256()
        self._offset = 0
        self._chunks: list[IndexEntry] = []
        self._open = True
        self._emit(preamble_to_bytes(header))

    def write(self, codes: npt.NDArray[Any], num_frames: int) -> None:
        """Write one chunk.

        Args:
            codes: integers `[num_stages, num_codebooks, t, h, w]`, 0 <= code < codebook_size,
                1 <= t <= chunk_steps.
            num_frames: frames that these latent steps cover, without padding: of t steps
                `t * temporal_compression`, in the first chunk `temporal_compression - 1` fewer,
                and in the last chunk up to `temporal_compression - 1` fewer.

        Raises:
            ShapeError: for codes or a number of frames that do not fit the header; nothing was
                written then, and the writer can go on.
            OutputError: after `close`, or after a write that failed.
            OSError: if the stream takes no more.
        """
        layout = self.header.format
        expected = (layout.num_stages, layout.num_codebooks, *layout.grid)
        if codes.ndim != 5 or (*codes.shape[:2], *codes.shape[3:]) != expected:
            raise ShapeError(
                f"codes are {list(codes.shape)}, the header says [{expected[0]}, {expected[1]}, t, "
                f"{expected[2]}, {expected[3]}]"
            )
        entry = IndexEntry(self._offset, count_frames(self._chunks), num_frames, codes.shape[2])
        if why := why_not_next(layout, self._chunks[-1] if self._chunks else None, entry):
            raise ShapeError(f"chunk {len(self._chunks)} {why}")
        stages = [pack(stage.reshape(-1), layout.bits_per_code) for stage in codes]
        parts = tuple(Part(PACKED, len(stage), zlib.crc32(stage)) for stage in stages)
        head = ChunkHead(CODE, entry.first_frame, num_frames, entry.num_steps, parts)
        self._emit(head.to_bytes() + b"".join(stages))
        self._chunks.append(entry)

    def close(self) -> None:
        """Write the footer, once; after a write that failed there is none to write.

        Raises:
            OSError: if the stream takes no more.
        """
        if self._open:
            self._emit(Footer(tuple(self._chunks), self._hash.digest()).to_bytes())
            self._open = False

    def __enter__(self) -> "CodeFileWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def _emit(self, data: bytes) -> None:
        """Write all of `data`; while it is not all written, the writer counts as closed."""
        if not self._open:
            raise OutputError("the code file is closed, or a write to it failed: start it anew")
        self._open = False
        rest = memoryview(data)
        while rest:  # a raw stream may take a part only
            taken = self._stream.write(rest)
            if not taken:
                raise OutputError("the output takes no more bytes")
            rest = rest[taken:]
        self._stream.flush()
        self._hash.update(data)
        self._offset += len(data)
        self._open = True
