"""Bytes to codes: a code file read front to back from anything, or by chunk from a file."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vtok.codefile.container import (
    CODE,
    FOOT,
    PACKED,
    ChunkHead,
    Footer,
    IndexEntry,
    count_frames,
    read_preamble,
)
from vtok.codefile.packing import unpack
from vtok.codefile.rules import check_footer, check_stages, why_not_next
from vtok.codefile.source import ByteSource, Damage
from vtok.errors import CodeFileError, UsageError


@dataclass(frozen=True, eq=False)
class Chunk:
    """The codes of a run of frames.

    Attributes:
        first_frame: number of the first one, from 0.
        num_frames: frames that the codes cover, without padding.
        codes: int64 `[stages, num_codebooks, t, h, w]`, 0 <= code < codebook_size.
    """

    first_frame: int
    num_frames: int
    codes: npt.NDArray[np.int64]


class CodeFileReader:
    """Reads a code file from a binary stream: a file, a BytesIO, or a pipe (once).

    Iterating gives each `Chunk` as soon as its bytes have come and match their CRCs. At the end
    the index and the SHA-256 of the whole file are checked too. (The SHA-256 is not where
    `stages` lets a file be read in part.) A file that is cut or damaged raises a `CodeFileError`
    there, or with `salvage` ends there.

    Attributes:
        version: (major, minor) of the format.
        header: of the file.
        complete: whether a read of the whole file has met its end and found nothing wrong.
        lost: with `salvage`, in one line what was wrong where reading stopped; else None.
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        name: str = "code file",
        stages: int | None = None,
        salvage: bool = False,
    ) -> None:
        """Read the header.

        Args:
            stream: binary, readable, at the start of the file. Short reads are fine.
            name: what errors call the file.
            stages: read the first so many stages only, 1..num_stages; None reads all.
            salvage: stop without an error where the file is cut or damaged.

        Raises:
            CodeFileError: if it is no code file, or of another version, or its header is wrong.
            UsageError: if the file has fewer stages.
        """
        self._name = name
        self._salvage = salvage
        self._source = ByteSource(stream)
        try:
            self.version, self.header = read_preamble(self._source)
        except CodeFileError as exc:
            raise CodeFileError(f"{name}: {exc}") from exc
        self._stages = self.header.format.num_stages
        if stages is not None:
            self.limit_stages(stages)
        self._reading = self._source
        self._index: tuple[IndexEntry, ...] | None = None
        self._begun = False
        self.complete = False
        self.lost: str | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes of the file that the last read took so far, without those of unused stages."""
        return self._reading.offset - self._reading.skipped

    @property
    def num_frames(self) -> int | None:
        """Frames of the file, without padding; of a pipe None until it has been read.

        Raises:
            CodeFileError: if a file is cut and `salvage` is off.
        """
        if self._index is None and not self._source.seekable:
            return None
        return count_frames(self.chunks)

    @property
    def chunks(self) -> tuple[IndexEntry, ...]:
        """The index: where each chunk is, and which frames it covers.

        Of a cut file, with `salvage`, it lists the chunks that are there in full.

        Raises:
            CodeFileError: if a file is cut and `salvage` is off, or a pipe has not been read.
        """
        if self._index is None:
            self._index = self._find_index()
        return self._index

    def limit_stages(self, stages: int) -> None:
        """Read the first so many stages only; to be called before reading.

        Raises:
            UsageError: if the file has fewer, or for none.
        """
        most = self.header.format.num_stages
        if not 1 <= stages <= most:
            raise UsageError(f"{self._name}: {stages} stages asked for, the file has 1..{most}")
        self._stages = stages

    def __iter__(self) -> Iterator[Chunk]:
        source = self._begin()
        whole: list[IndexEntry] = []
        try:
            for head in self._heads(source, whole):
                yield Chunk(head.first_frame, head.num_frames, self._codes(source, head))
        except Damage as exc:
            if not self._salvage:
                raise self._cut_short(exc, whole) from exc
            self.lost = str(exc)
            if self._index is None:
                self._index = tuple(whole)
        else:
            self._index, self.complete = tuple(whole), True

    def read_chunk(self, index: int) -> Chunk:
        """Read one chunk of a seekable file.

        Args:
            index: which, 0 <= index < len(chunks).

        Raises:
            CodeFileError: if there is no such chunk, it is damaged, or the stream is a pipe.
        """
        if not self._source.seekable:
            raise CodeFileError(f"{self._name}: a pipe cannot be read by chunk, save it to a file")
        if not 0 <= index < len(self.chunks):
            raise CodeFileError(f"{self._name}: no chunk {index}, it has {len(self.chunks)}")
        entry = self.chunks[index]
        source = self._source.at(entry.offset)
        try:
            kind = source.read(len(CODE))
            head = ChunkHead.read(kind, source)
            if kind != CODE or head.at(entry.offset) != entry:
                raise Damage("the index does not match it")
            check_stages(self.header.format, head)
            return Chunk(head.first_frame, head.num_frames, self._codes(source, head))
        except Damage as exc:
            raise CodeFileError(f"{self._name}: chunk {index} is damaged: {exc}") from exc

    def verify(self) -> None:
        """Read every byte and check all CRCs, the index and the SHA-256; decode nothing.

        Raises:
            CodeFileError: at the first thing wrong, whether `salvage` is on or not.
        """
        source = self._begin()
        whole: list[IndexEntry] = []
        try:
            for head in self._heads(source, whole):
                for part in head.parts:
                    source.check(part.length, part.crc)
        except Damage as exc:
            raise self._cut_short(exc, whole) from exc
        self._index, self.complete = tuple(whole), True

    def _begin(self) -> ByteSource:
        """The source, just after the header."""
        if self._begun and not self._source.seekable:
            raise CodeFileError(f"{self._name}: a pipe can be read once only")
        self._begun = True
        self._reading = self._source.copy()
        return self._reading

    def _heads(self, source: ByteSource, whole: list[IndexEntry]) -> Iterator[ChunkHead]:
        """Walk the chunks of codes, to and through the footer.

        Whoever takes a head must move the source over its parts before the next one. A chunk
        passed in full is added to `whole`.
        """
        while True:
            offset, digest = source.offset, source.digest()
            kind = source.read_up_to(len(CODE))
            if len(kind) < len(CODE):
                raise Damage("no index at its end: it was cut or is not finished")
            if kind == FOOT:
                check_footer(Footer.read(source, len(whole)), whole, digest)
                if source.read_up_to(1):
                    raise Damage("more bytes after its end")
                return
            head = ChunkHead.read(kind, source)
            if head.kind != CODE:
                self._pass_over(source, head)
                continue
            entry = head.at(offset)
            if why := why_not_next(self.header.format, whole[-1] if whole else None, entry):
                raise Damage(f"chunk {len(whole)} {why}")
            check_stages(self.header.format, head)
            yield head
            whole.append(entry)

    def _pass_over(self, source: ByteSource, head: ChunkHead) -> None:
        if not head.optional:
            kind = str(head.kind)[1:]
            raise CodeFileError(
                f"{self._name}: has a chunk of type {kind}, which this vtok does not know: "
                "update it"
            )
        for part in head.parts:
            source.check(part.length, part.crc)

    def _codes(self, source: ByteSource, head: ChunkHead) -> npt.NDArray[np.int64]:
        """Read the parts of a chunk: the stages asked for, then over the others."""
        layout = self.header.format
        used, unused = head.parts[: self._stages], head.parts[self._stages :]
        for part in used:
            if part.coder != PACKED:
                raise CodeFileError(
                    f"{self._name}: coded by coder {part.coder}, which this vtok does not know: "
                    "update it"
                )
        stages = []
        for number, part in enumerate(used, start=1):
            stages.append(source.read(part.length))
            if zlib.crc32(stages[-1]) != part.crc:
                raise Damage(f"stage {number} at frame {head.first_frame} does not match its CRC")
        source.skip(sum(part.length for part in unused))
        # Only now, when the bytes have come, is memory taken for what they become.
        shape = (layout.num_codebooks, head.num_steps, *layout.grid)  # [K, t, h, w]
        codes = np.empty((len(stages), *shape), np.int64)
        for stage, data in zip(codes, stages, strict=True):
            stage[...] = unpack(data, layout.bits_per_code, stage.size).reshape(shape)
        return codes

    def _find_index(self) -> tuple[IndexEntry, ...]:
        """The index at the end of a seekable file, or by a scan where it has none."""
        if self._source.size is None:
            raise CodeFileError(f"{self._name}: the index of a pipe is known when it has been read")
        try:
            return self._footer_index(self._source.size)
        except Damage as exc:
            whole = self._scan()
            if not self._salvage:
                raise self._cut_short(exc, whole) from exc
            self.lost = str(exc)
            return tuple(whole)

    def _footer_index(self, size: int) -> tuple[IndexEntry, ...]:
        chunks = Footer.find(self._source, size).chunks
        previous = None
        for number, entry in enumerate(chunks):
            if why := why_not_next(self.header.format, previous, entry):
                raise Damage(f"in the index, chunk {number} {why}")
            previous = entry
        return chunks

    def _scan(self) -> list[IndexEntry]:
        """The chunks that lie in full between the header and the first damage."""
        source = self._source.copy()
        whole: list[IndexEntry] = []
        try:
            for head in self._heads(source, whole):
                source.skip(sum(part.length for part in head.parts))
        except Damage:
            pass  # it is where the scan ends
        return whole

    def _cut_short(self, exc: Damage, whole: list[IndexEntry]) -> CodeFileError:
        if not whole:
            return CodeFileError(f"{self._name}: {exc}; no chunk before that is complete")
        return CodeFileError(
            f"{self._name}: {exc}; complete before that: {_count(len(whole), 'chunk')}, "
            f"{_count(count_frames(whole), 'frame')}; --salvage reads the complete part"
        )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
