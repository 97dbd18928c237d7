"""Read code files: front to back from any stream, or by chunk from a seekable file."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO, NoReturn, TypeVar

from vtok._sound import Sound
from vtok.codefile.header import Header
from vtok.codefile.index import Index, Scan, check_crcs
from vtok.codefile.packing import (
    Chunk,
    CodedPart,
    StoredChunk,
    check_coder,
    check_parts,
    decode_parts,
)
from vtok.codefile.records import (
    CODE,
    FOOT,
    ByteSource,
    ChunkHead,
    Damage,
    Footer,
    IndexEntry,
    Place,
    head_at,
    read_preamble,
)
from vtok.codefile.sections import (
    MAX_SECTIONS,
    SOUND,
    TIME,
    FrameDurations,
    Section,
    check_durations,
    read_section,
    sound_of_section,
)
from vtok.errors import CodeFileError, UsageError

T = TypeVar("T")


class CodeFileReader:
    """Reads a code file from a binary stream: a file, a BytesIO, or a pipe (once).

    Iteration yields each `Chunk` after its CRCs were checked, and checks the index and the SHA-256
    of the file at the end (not the SHA-256 if `stages` skips bytes). A cut or damaged file raises
    a `CodeFileError` at the damage; with `salvage`, iteration continues with the next intact chunk
    of a seekable file.

    Attributes:
        name: of the file, for errors.
        version: (major, minor) of the format.
        header: of the file.
        salvage: read the intact chunks of cut and damaged files.
        complete: true after the whole file was read without an error.
        lost: with `salvage`, the first error in one line; else None.
        gaps: with `salvage`, lost frames between intact chunks, first and last + 1.
        damaged: with `salvage`, types of optional sections some of which were damaged.
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
            name: of the file, for errors.
            stages: number of stages to read, 1..num_stages; None for all.
            salvage: read the intact chunks of a cut or damaged file.

        Raises:
            CodeFileError: for anything but a code file of a known version with a valid header.
            UsageError: if the file has fewer stages.
        """
        self.name = name
        self.salvage = salvage
        self._source = ByteSource(stream)
        try:
            self.version, self.header = read_preamble(self._source)
        except CodeFileError as exc:
            self._fail(exc)
        self._stages = self.header.format.num_stages
        if stages is not None:
            self.limit_stages(stages)
        self._reading = self._source
        self._picked = 0  # bytes of chunks read by number
        self._index: Index | None = None
        self._begun = False
        self.complete = False
        self.lost: str | None = None
        self.gaps: list[tuple[int, int]] = []
        self.damaged: set[bytes] = set()
        self._scan: Scan | None = None  # of the last iteration

    @property
    def bytes_read(self) -> int:
        """Bytes read by the last iteration, without unused stages, and by reads by number."""
        return self._reading.offset - self._reading.skipped + self._picked

    @property
    def seekable(self) -> bool:
        """True for a file, false for a pipe."""
        return self._source.seekable

    @property
    def sound_bytes_read(self) -> int:
        """Bytes of sound among `bytes_read`."""
        return 0 if self._scan is None else self._scan.sound_bytes

    @property
    def num_frames(self) -> int | None:
        """Frames of the file, without padding; None for a pipe before it was read.

        Raises:
            CodeFileError: if the file is cut and `salvage` is off.
        """
        if self._index is None and not self._source.seekable:
            return None
        return self.index.num_frames

    @property
    def index(self) -> Index:
        """Index of the chunks; with `salvage`, of the complete chunks of a cut file.

        Raises:
            CodeFileError: if the file is cut and `salvage` is off, or a pipe was not read yet.
        """
        if self._index is not None:
            return self._index
        if self._source.size is None:
            raise CodeFileError(f"{self.name}: the index of a pipe is known when it has been read")
        try:
            rows = Footer.find(self._source, self._source.size).rows
            self._index = Index(self.header.format, self.version, rows)
        except Damage as exc:
            scan = self._scan_to_damage()
            if not self.salvage:
                self._fail(exc, scan)
            self.lost = str(exc)
            self._index = Index(self.header.format, self.version, scan.rows)
        return self._index

    @property
    def chunks(self) -> tuple[IndexEntry, ...]:
        """Rows of the index; raises as `index`."""
        return tuple(self.index[number] for number in range(len(self.index)))

    @property
    def limited_header(self) -> Header:
        """Header of a file of the stages that are read."""
        layout = replace(self.header.format, num_stages=self._stages)
        return replace(self.header, format=layout)

    def limit_stages(self, stages: int) -> None:
        """Set the number of stages to read, before reading.

        Raises:
            UsageError: if the file has fewer, or for a number below 1.
        """
        most = self.header.format.num_stages
        if not 1 <= stages <= most:
            raise UsageError(f"{self.name}: {stages} stages asked for, the file has 1..{most}")
        self._stages = stages

    def __iter__(self) -> Iterator[Chunk]:
        return self._each(self._chunk, self.salvage)

    def stored(self) -> Iterator[StoredChunk]:
        """Iterate over the chunks as stored, with the same checks."""
        return self._each(self._stored, self.salvage)

    def verify(self) -> None:
        """Check all CRCs, the index and the SHA-256; raise `CodeFileError` at the first error."""
        for _ in self._each(check_crcs, salvage=False):
            pass

    def read_chunk(self, index: int) -> Chunk:
        """Read one chunk of a seekable file.

        Args:
            index: 0 <= index < len(chunks).

        Raises:
            CodeFileError: if there is no such chunk, it is damaged, or the stream is a pipe.
        """
        return self._pick(index, self._chunk)

    def read_stored(self, index: int) -> StoredChunk:
        """Read one chunk of a seekable file as stored; see `read_chunk`."""
        return self._pick(index, self._stored)

    def read_head(self, index: int) -> ChunkHead:
        """Read the head of a chunk of a seekable file; see `read_chunk`."""
        return self._pick(index, lambda source, head, place: head)

    def sections(self, *kinds: bytes) -> Iterator[Section]:
        """Iterate over optional sections; of a pipe, after its chunks were read.

        Args:
            kinds: types to read; the others are skipped.

        Raises:
            CodeFileError: if one is damaged and `salvage` is off.
        """
        return self._contents(kinds, lambda section: section)

    def section_bytes(self) -> Counter[bytes]:
        """Sum the bytes of the optional sections of a seekable file by their type."""
        found: Counter[bytes] = Counter()
        for head, _ in self._section_heads():
            found[head.kind] += head.num_bytes
        return found

    def frame_durations(self) -> list[FrameDurations]:
        """Read the durations of frames that the file states; see `sections`."""
        spans = self._contents((TIME,), FrameDurations.from_section)
        try:
            found = check_durations(spans, self.index.num_frames, self.header.transform.fps)
        except Damage as exc:
            self._lose(TIME, exc)
        return [] if TIME in self.damaged else found

    def sound(self) -> Iterator[Sound]:
        """Iterate over the blocks of sound; see `sections`."""
        first: list[Sound] = []

        def read(section: Section) -> Sound:
            block = sound_of_section(section)
            if first and first[0].kind != block.kind:
                raise Damage("holds sound of several kinds")
            first[:] = [block]
            return block

        return self._contents((SOUND,), read)

    def _contents(self, kinds: tuple[bytes, ...], read: Callable[[Section], T]) -> Iterator[T]:
        """Apply `read` to optional sections, except to damaged ones with `salvage`."""
        for head, source in self._section_heads():
            if head.kind in kinds:
                try:
                    content = read(read_section(source, head))
                except Damage as exc:
                    self._lose(head.kind, exc)
                else:
                    yield content

    def _section_heads(self) -> Iterator[tuple[ChunkHead, ByteSource]]:
        """Iterate over the heads after the last chunk of codes, and where their parts begin."""
        if not self._source.seekable:
            for section in () if self._scan is None else self._scan.sections:
                source = ByteSource(io.BytesIO(section.to_bytes()))
                yield ChunkHead.read(source.read(len(CODE)), source), source
            return
        source = self._source.at(self._source.offset)
        if len(self.index):
            last = self.index[len(self.index) - 1].offset
            if (head := head_at(source, last)) is None:
                return  # reading the codes tells of the damage
            source.jump(last + head.num_bytes)
        count = 0
        try:
            while (kind := source.read(len(CODE))) != FOOT:
                head = ChunkHead.read(kind, source)
                yield head, source.at(source.offset)
                source.skip(head.part_bytes)
                count += 1
                if count > MAX_SECTIONS:
                    raise Damage(f"has more than {MAX_SECTIONS} optional sections")
        except Damage as exc:  # of no known type
            self._lose(b"", exc)

    def _lose(self, kind: bytes, damage: Damage) -> None:
        """Raise the damage of an optional section, or note it with `salvage`."""
        if not self.salvage:
            self._fail(damage)
        self.damaged.add(kind)

    def _each(
        self, read: Callable[[ByteSource, ChunkHead, Place], T], salvage: bool
    ) -> Iterator[T]:
        """Apply `read` to each chunk of codes, front to back."""
        if self._begun and not self._source.seekable:
            raise CodeFileError(f"{self.name}: a pipe can be read once only")
        self._begun = True
        self._reading = source = self._source.copy()
        scan = Scan(source, self.header, self.version)
        self.gaps, going, damage = scan.gaps, True, None
        self._scan = scan
        while going:
            try:
                for head, place in scan:
                    yield read(source, head, place)
                going = False
            except Damage as exc:
                if not salvage:
                    self._fail(exc, scan)
                self.lost = damage = damage or str(exc)
                going = scan.resume()
            except CodeFileError as exc:
                self._fail(exc)
        self.damaged |= {kind for kind, _ in scan.damaged}
        self.complete = damage is None
        if self.complete or self._index is None:
            self._index = Index(self.header.format, self.version, scan.rows)

    def _pick(self, number: int, read: Callable[[ByteSource, ChunkHead, Place], T]) -> T:
        """Apply `read` to one chunk of codes."""
        if not self._source.seekable:
            raise CodeFileError(f"{self.name}: a pipe cannot be read by chunk, save it to a file")
        if not 0 <= number < len(self.index):
            raise CodeFileError(f"{self.name}: no chunk {number}, it has {len(self.index)}")
        entry = self.index[number]
        source = self._source.at(entry.offset)
        skipped = source.skipped
        try:
            kind = source.read(len(CODE))
            head = ChunkHead.read(kind, source)
            if kind != CODE or head.at(entry.offset) != entry:
                raise Damage("the index does not match it")
            check_parts(self.header.format, self.version, head)
            result = read(source, head, self.index.place(number))
        except Damage as exc:
            raise CodeFileError(f"{self.name}: chunk {number} is damaged: {exc}") from exc
        except CodeFileError as exc:
            self._fail(exc)
        self._picked += source.offset - entry.offset - (source.skipped - skipped)
        return result

    def _chunk(self, source: ByteSource, head: ChunkHead, place: Place) -> Chunk:
        for part in head.parts[: self._stages]:
            check_coder(part.coder)
        parts = self._stored(source, head, place).parts
        # Allocate memory for the codes only after their bytes were read.
        codes = decode_parts(parts, head.num_steps, self.header.format)
        coders = tuple(part.coder for part in parts)
        return Chunk(head.first_frame, head.num_frames, codes, *place, coders)

    def _stored(self, source: ByteSource, head: ChunkHead, place: Place) -> StoredChunk:
        """Read the parts of the wanted stages and skip the others."""
        parts = []
        for number, part in enumerate(head.parts[: self._stages], start=1):
            parts.append(CodedPart(part.coder, source.read(part.length)))
            if zlib.crc32(parts[-1].data) != part.crc:
                raise Damage(f"stage {number} at frame {head.first_frame} does not match its CRC")
        source.skip(sum(part.length for part in head.parts[self._stages :]))
        return StoredChunk(head.num_frames, head.num_steps, tuple(parts), place.opens)

    def _scan_to_damage(self) -> Scan:
        scan = Scan(self._source.copy(), self.header, self.version)
        try:
            for head, _ in scan:
                scan.source.skip(head.part_bytes)
        except Damage:
            pass  # the scan ends here
        except CodeFileError as exc:
            self._fail(exc)
        return scan

    def _fail(self, exc: CodeFileError, scan: Scan | None = None) -> NoReturn:
        """Raise an error with the name of the file and what a scan has passed before it."""
        left = "" if scan is None else "; no chunk before that is complete"
        if scan is not None and scan.order.num_chunks:
            chunks, frames = scan.order.num_chunks, scan.order.num_frames
            left = (
                f"; complete before that: {chunks} chunk{'s' * (chunks != 1)}, "
                f"{frames} frame{'s' * (frames != 1)}; salvage reads the complete part"
            )
        raise CodeFileError(f"{self.name}: {exc}{left}") from exc
