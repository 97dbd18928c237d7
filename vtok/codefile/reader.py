"""Read code files: front to back from any stream, or by chunk from a seekable file."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO, NoReturn, TypeVar

from vtok._sound import Sound
from vtok.codefile.header import Header
from vtok.codefile.index import Index
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
    PIECE_BYTES,
    PLAIN,
    SEGMENT,
    ByteSource,
    ChunkHead,
    Damage,
    Footer,
    IndexEntry,
    Order,
    Place,
    Rows,
    head_at,
    read_preamble,
)
from vtok.codefile.sections import (
    KINDS,
    SOUND,
    TIME,
    FrameDurations,
    Section,
    read_section,
    sound_of_section,
)
from vtok.errors import CodeFileError, UsageError

T = TypeVar("T")
MOST_RESCANS = 100  # of one file: bounds the time that a hostile file takes
_MOST_TRIES = 10_000  # places that look like a head in one rescan, likewise
_KINDS = re.compile(b"|".join((CODE, SEGMENT)))


def find_heads(source: ByteSource, start: int) -> Iterator[tuple[int, ChunkHead]]:
    """Find intact heads in a seekable source, from `start`: their offsets and the heads."""
    tries, size = 0, source.size or 0
    while start < size and tries < _MOST_TRIES:
        piece = source.at(start).read_up_to(PIECE_BYTES + len(CODE) - 1)
        for match in _KINDS.finditer(piece):
            tries += 1
            head = head_at(source, start + match.start())
            if head is not None:
                yield start + match.start(), head
            if tries == _MOST_TRIES:
                return
        start += PIECE_BYTES


class Scan:
    """Iterates over the heads of chunks of codes, checked against the header and those before.

    The caller must move the source past the parts of a head before taking the next one.

    Attributes:
        source: current position.
        order: chunks of codes passed completely, and the rules for those that follow.
        gaps: lost frames, first and last + 1, before places where the scan resumed.
        sections: known optional sections passed, of a stream that cannot be read again.
        sound_bytes: bytes of the sections of sound passed.
    """

    def __init__(self, source: ByteSource, header: Header, version: tuple[int, int]) -> None:
        self.source = source
        self.gaps: list[tuple[int, int]] = []
        self.sections: list[Section] = []
        self.sound_bytes = 0
        self._begin = self._end = source.offset  # of the current record
        self._rescans = 0
        self._fresh = False  # the decoder starts with a fresh state after a gap
        self._whole: int | None = None  # rows before the first gap
        self._layout, self._version = header.format, version
        self.order = Order(header.format, version)

    @property
    def rows(self) -> Rows:
        """Index of the complete chunks before the first gap."""
        rows = self.order.rows[: self._whole]
        return rows if not len(rows) or rows[-1]["steps"] else rows[:-1]

    def __iter__(self) -> Iterator[tuple[ChunkHead, Place]]:
        source = self.source
        while True:
            offset, digest = source.offset, source.digest()
            self._begin = self._end = offset
            kind = source.read_up_to(len(CODE))
            if len(kind) < len(CODE):
                raise Damage("no index at its end: it was cut or is not finished")
            if kind == FOOT:
                rows = self.order.rows
                Footer.read(source, len(rows)).check(rows, digest)
                if source.read_up_to(1):
                    raise Damage("more bytes after its end")
                return
            head = ChunkHead.read(kind, source)
            row = head.at(offset)
            self._end = source.offset + sum(part.length for part in head.parts)
            if kind == CODE:
                if why := self.order.why_not_next(row):
                    raise Damage(f"chunk {self.order.num_chunks} {why}")
                check_parts(self._layout, self._version, head)
                # Record the chunk only after it was passed completely.
                shown, place = self._after_gap(head, self.order.place(row))
                yield shown, place
                if self._fresh:
                    self.gaps.append((head.first_frame, shown.first_frame))
                    self._fresh = False
                self.order.add(row)
            elif kind == SEGMENT and self._version != PLAIN:
                self._open(head, row)
            elif kind[:1].islower():
                self._pass_optional(head)
            else:
                raise CodeFileError(
                    f"has a chunk of type {str(kind)[1:]}, which this vtok does not know: update it"
                )

    def resume(self) -> bool:
        """Move past damage to the next intact chunk of a seekable file.

        Tries the stated end of the damaged chunk first, then searches from its start.

        Returns:
            True if there is one.
        """
        source = self.source
        if not source.seekable or self._rescans == MOST_RESCANS:
            return False
        next_one = head_at(source, self._end) if self._end > self._begin else None
        heads = iter(() if next_one is None else [(self._end, next_one)])
        if next_one is None:
            self._rescans += 1
            heads = find_heads(source, self._begin + 1)
        for offset, head in heads:
            if head.first_frame >= self.order.num_frames and (
                head.kind == CODE or self._version != PLAIN
            ):
                if head.first_frame > self.order.num_frames:
                    self.gaps.append((self.order.num_frames, head.first_frame))
                self._whole = len(self.order.rows) if self._whole is None else self._whole
                seen = self.order.resume(head.at(offset))
                self._fresh = head.kind == CODE and (self._fresh or not seen)
                source.jump(offset)
                return True
        return False

    def _after_gap(self, head: ChunkHead, place: Place) -> tuple[ChunkHead, Place]:
        """Adjust a chunk after a gap, where a decoder starts with a fresh state."""
        if not self._fresh:
            return head, place
        if self._layout.window is not None:
            return head, Place(0, 0)
        # The first step of a decoder gives its last frame only.
        missing = min(head.num_frames, self._layout.temporal_compression - 1)
        first, frames = head.first_frame + missing, head.num_frames - missing
        return replace(head, first_frame=first, num_frames=frames), Place(0, 0)

    def _pass_optional(self, head: ChunkHead) -> None:
        """Check the parts of an optional chunk, and keep those of a known type from a pipe."""
        if head.kind == SOUND:
            lengths = (part.length for part in head.parts)
            self.sound_bytes += ChunkHead.length(len(head.parts)) + sum(lengths)
        if head.kind in KINDS and not self.source.seekable:
            self.sections.append(read_section(self.source, head))
        else:
            _check(self.source, head)

    def _open(self, head: ChunkHead, row: IndexEntry) -> None:
        why = self.order.why_not_open(row)
        if head.parts or head.num_steps:
            why = why or "holds codes"
        if why:
            raise Damage(f"the segment before chunk {self.order.num_chunks} {why}")
        self.order.open(row)


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
        self._sections: list[Section] = []  # of a pipe
        self._scan: Scan | None = None

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
        for _ in self._each(_check, salvage=False):
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
        if not self._source.seekable:
            yield from (section for section in self._sections if section.kind in kinds)
            return
        source = self._source.at(self._source.offset)
        if len(self.index):
            last = self.index[len(self.index) - 1].offset
            if (head := head_at(source, last)) is None:
                return  # reading the codes tells of the damage
            lengths = sum(part.length for part in head.parts)
            source.jump(last + ChunkHead.length(len(head.parts)) + lengths)
        try:
            while (kind := source.read(len(CODE))) != FOOT:
                head = ChunkHead.read(kind, source)
                if kind in kinds:
                    yield read_section(source, head)
                else:
                    source.skip(sum(part.length for part in head.parts))
        except Damage as exc:
            if not self.salvage:
                self._fail(exc)

    def frame_durations(self) -> list[FrameDurations]:
        """Read the durations of frames that the file states; see `sections`."""
        return list(self._contents(TIME, FrameDurations.from_section))

    def sound(self) -> Iterator[Sound]:
        """Iterate over the blocks of sound; see `sections`."""
        return self._contents(SOUND, sound_of_section)

    def _contents(self, kind: bytes, read: Callable[[Section], T]) -> Iterator[T]:
        try:
            for section in self.sections(kind):
                yield read(section)
        except Damage as exc:
            if not self.salvage:
                self._fail(exc)

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
        self._sections, self._scan = scan.sections, scan
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
                scan.source.skip(sum(part.length for part in head.parts))
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


def _check(source: ByteSource, head: ChunkHead, place: Place | None = None) -> None:
    """Check the CRCs of the parts of a chunk."""
    for part in head.parts:
        source.check(part.length, part.crc)
