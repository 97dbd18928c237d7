"""Bytes to codes: a code file read front to back from anything, or by chunk from a file."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO, NoReturn, TypeVar

from vtok.codefile.byte_source import ByteSource, Damage
from vtok.codefile.header import Header
from vtok.codefile.index import Chunk, Index, Order, Place, StoredChunk, check_footer, check_stages
from vtok.codefile.parts import CodedPart, check_coder, decode_parts
from vtok.codefile.records import (
    CODE,
    FOOT,
    PLAIN,
    SEGMENT,
    ChunkHead,
    Footer,
    IndexEntry,
    RowLog,
    Rows,
    read_preamble,
)
from vtok.errors import CodeFileError, UsageError

_KINDS = re.compile(b"|".join((CODE, SEGMENT)))
_PIECE = 1 << 20  # bytes that are looked through at a time
_MOST_TRIES = 10_000  # places that look like a head: bounds the time of a file made of them


def find_heads(source: ByteSource, start: int) -> Iterator[tuple[int, ChunkHead]]:
    """The offsets of what is a whole head, from `start` on, and the heads; of a seekable source."""
    tries, size = 0, source.size or 0
    while start < size and tries < _MOST_TRIES:
        piece = source.at(start).read_up_to(_PIECE + len(CODE) - 1)
        for match in _KINDS.finditer(piece):
            tries += 1
            head = head_at(source, start + match.start())
            if head is not None:
                yield start + match.start(), head
            if tries == _MOST_TRIES:
                return
        start += _PIECE


def head_at(source: ByteSource, offset: int) -> ChunkHead | None:
    """The head at an offset, if there is one and its CRC matches."""
    there = source.at(offset)
    try:
        kind = there.read(len(CODE))
        return ChunkHead.read(kind, there) if _KINDS.fullmatch(kind) else None
    except Damage:
        return None


MOST_RESCANS = 100  # of one file: bounds the time of one that was made to be damaged


class Walk:
    """Gives the head of each chunk of codes, checked against the header and those before it.

    Whoever takes a head must move the source over its parts before the next one.

    Attributes:
        source: where the walk is.
        num_chunks: chunks of codes that were passed in full.
        gaps: frames that were lost before a place where the walk went on: the first of them, and
            the one after the last.
    """

    def __init__(self, source: ByteSource, header: Header, version: tuple[int, int]) -> None:
        self.source = source
        self.num_chunks = 0
        self.gaps: list[tuple[int, int]] = []
        self._begin = self._end = source.offset  # of the record under way
        self._rescans = 0
        self._fresh = False  # whether the decoder starts afresh after a gap
        self._whole: int | None = None  # rows before the first gap
        self._layout, self._version = header.format, version
        self._order = Order(header.format, version)
        self._rows = RowLog()

    @property
    def rows(self) -> Rows:
        """The index of what was passed in full, before the first gap."""
        rows = self._rows.rows()[: self._whole]
        return rows if not len(rows) or rows[-1]["steps"] else rows[:-1]

    @property
    def num_frames(self) -> int:
        """Frames that the chunks show that were passed in full."""
        return self._order.num_frames

    def __iter__(self) -> Iterator[tuple[ChunkHead, Place]]:
        source = self.source
        while True:
            offset, digest = source.offset, source.digest()
            self._begin = self._end = offset
            kind = source.read_up_to(len(CODE))
            if len(kind) < len(CODE):
                raise Damage("no index at its end: it was cut or is not finished")
            if kind == FOOT:
                check_footer(Footer.read(source, len(self._rows)), self._rows.rows(), digest)
                if source.read_up_to(1):
                    raise Damage("more bytes after its end")
                return
            head = ChunkHead.read(kind, source)
            row = head.at(offset)
            self._end = source.offset + sum(part.length for part in head.parts)
            if kind == CODE:
                if why := self._order.why_not_next(row):
                    raise Damage(f"chunk {self.num_chunks} {why}")
                check_stages(self._layout, self._version, head)
                # only a chunk that is passed in full counts: the order is told afterwards
                shown, place = self._after_gap(head, self._order.place(row))
                yield shown, place
                if self._fresh:
                    self.gaps.append((head.first_frame, shown.first_frame))
                    self._fresh = False
                self._order.add(row)
                self.num_chunks += 1
                self._rows.append(row)
            elif kind == SEGMENT and self._version != PLAIN:
                self._open(head, row)
            else:
                self._pass_over(head)

    def resume(self) -> bool:
        """After damage, go on with the next chunk that is there; of a file that can be sought in.

        Its head is looked for where the damaged chunk says that it ends, else from its start on.

        Returns:
            whether there is one.
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
            if head.first_frame >= self._order.num_frames and (
                head.kind == CODE or self._version != PLAIN
            ):
                self._go_on(offset, head)
                return True
        return False

    def _go_on(self, offset: int, head: ChunkHead) -> None:
        lost = self._order.num_frames
        self._whole = len(self._rows) if self._whole is None else self._whole
        seen = self._order.resume(head.at(offset))
        self._fresh = head.kind == CODE and (self._fresh or not seen)
        self.source.jump(offset)
        if head.first_frame > lost:
            self.gaps.append((lost, head.first_frame))

    def _after_gap(self, head: ChunkHead, place: Place) -> tuple[ChunkHead, Place]:
        """A chunk, or what a decoder that starts afresh with it makes of it."""
        if not self._fresh:
            return head, place
        # the first step of a decoder gives its last frame only
        missing = min(head.num_frames, self._layout.temporal_compression - 1)
        first, frames = head.first_frame + missing, head.num_frames - missing
        return replace(head, first_frame=first, num_frames=frames), Place(0, 0)

    def _open(self, head: ChunkHead, row: IndexEntry) -> None:
        why = self._order.why_not_open(row)
        if head.parts or head.num_steps:
            why = why or "holds codes"
        if why:
            raise Damage(f"the segment before chunk {self.num_chunks} {why}")
        self._order.open(row)
        self._rows.append(row)

    def _pass_over(self, head: ChunkHead) -> None:
        if not head.optional:
            kind = str(head.kind)[1:]
            raise CodeFileError(
                f"has a chunk of type {kind}, which this vtok does not know: update it"
            )
        for part in head.parts:
            self.source.check(part.length, part.crc)


T = TypeVar("T")


class CodeFileReader:
    """Reads a code file from a binary stream: a file, a BytesIO, or a pipe (once).

    Iterating gives each `Chunk` as soon as its bytes have come and match their CRCs. At the end
    the index and the SHA-256 of the whole file are checked too. (The SHA-256 is not where
    `stages` lets a file be read in part.) A file that is cut or damaged raises a `CodeFileError`
    there; with `salvage` it goes on with the next chunk that is whole, if it can be sought in.

    Attributes:
        version: (major, minor) of the format.
        header: of the file.
        salvage: whether it reads what is whole of a file that is cut or damaged.
        complete: whether a read of the whole file has met its end and found nothing wrong.
        lost: with `salvage`, in one line the first thing that was wrong; else None.
        gaps: with `salvage`, frames that were lost before others that were not: of each run the
            first one, and the one after the last.
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
            salvage: read what is whole of a file that is cut or damaged.

        Raises:
            CodeFileError: if it is no code file, or of another version, or its header is wrong.
            UsageError: if the file has fewer stages.
        """
        self._name = name
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
        self._picked = 0  # bytes of chunks that were read by number
        self._index: Index | None = None
        self._begun = False
        self.complete = False
        self.lost: str | None = None
        self.gaps: list[tuple[int, int]] = []

    @property
    def bytes_read(self) -> int:
        """Bytes read so far: of the last read from the front, without those of unused stages, and
        of chunks read by number."""
        return self._reading.offset - self._reading.skipped + self._picked

    @property
    def num_frames(self) -> int | None:
        """Frames of the file, without padding; of a pipe None until it has been read.

        Raises:
            CodeFileError: if a file is cut and `salvage` is off.
        """
        if self._index is None and not self._source.seekable:
            return None
        return self.index.num_frames

    @property
    def index(self) -> Index:
        """Where each chunk is, and which frames it shows.

        Of a cut file, with `salvage`, it lists the chunks that are there in full.

        Raises:
            CodeFileError: if a file is cut and `salvage` is off, or a pipe has not been read.
        """
        if self._index is None:
            self._index = self._find_index()
        return self._index

    @property
    def chunks(self) -> tuple[IndexEntry, ...]:
        """The rows of the index; raises as `index` does."""
        return self.index.entries

    @property
    def limited_header(self) -> Header:
        """The header of a file of the stages that are read."""
        layout = replace(self.header.format, num_stages=self._stages)
        return replace(self.header, format=layout)

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
        return self._each(self._chunk, self.salvage)

    def stored(self) -> Iterator[StoredChunk]:
        """The chunks as they lie in the file, checked as those that iterating gives."""
        return self._each(self._stored, self.salvage)

    def verify(self) -> None:
        """Read every byte and check all CRCs, the index and the SHA-256; decode nothing.

        Raises:
            CodeFileError: at the first thing wrong, whether `salvage` is on or not.
        """
        for _ in self._each(_check, salvage=False):
            pass

    def read_chunk(self, index: int) -> Chunk:
        """Read one chunk of a seekable file.

        Args:
            index: which, 0 <= index < len(chunks).

        Raises:
            CodeFileError: if there is no such chunk, it is damaged, or the stream is a pipe.
        """
        return self._pick(index, self._chunk)

    def read_stored(self, index: int) -> StoredChunk:
        """Read one chunk of a seekable file as it lies there; see `read_chunk`."""
        return self._pick(index, self._stored)

    def read_head(self, index: int) -> ChunkHead:
        """Read the head of a chunk of a seekable file; see `read_chunk`."""
        return self._pick(index, lambda source, head, place: head)

    def _each(
        self, read: Callable[[ByteSource, ChunkHead, Place], T], salvage: bool
    ) -> Iterator[T]:
        """What `read` makes of each chunk of codes, front to back."""
        if self._begun and not self._source.seekable:
            raise CodeFileError(f"{self._name}: a pipe can be read once only")
        self._begun = True
        self._reading = source = self._source.copy()
        walk = Walk(source, self.header, self.version)
        self.gaps, going, damage = walk.gaps, True, None
        while going:
            try:
                for head, place in walk:
                    yield read(source, head, place)
                going = False
            except Damage as exc:
                if not salvage:
                    self._fail(exc, walk)
                self.lost = damage = damage or str(exc)
                going = walk.resume()
            except CodeFileError as exc:
                self._fail(exc)
        self.complete = damage is None
        if self.complete or self._index is None:
            self._index = self._index_of(walk)

    def _pick(self, number: int, read: Callable[[ByteSource, ChunkHead, Place], T]) -> T:
        """What `read` makes of one chunk of codes."""
        if not self._source.seekable:
            raise CodeFileError(f"{self._name}: a pipe cannot be read by chunk, save it to a file")
        if not 0 <= number < len(self.index):
            raise CodeFileError(f"{self._name}: no chunk {number}, it has {len(self.index)}")
        entry = self.index[number]
        source = self._source.at(entry.offset)
        skipped = source.skipped
        try:
            kind = source.read(len(CODE))
            head = ChunkHead.read(kind, source)
            if kind != CODE or head.at(entry.offset) != entry:
                raise Damage("the index does not match it")
            check_stages(self.header.format, self.version, head)
            result = read(source, head, self.index.place(number))
        except Damage as exc:
            raise CodeFileError(f"{self._name}: chunk {number} is damaged: {exc}") from exc
        except CodeFileError as exc:
            self._fail(exc)
        self._picked += source.offset - entry.offset - (source.skipped - skipped)
        return result

    def _chunk(self, source: ByteSource, head: ChunkHead, place: Place) -> Chunk:
        for part in head.parts[: self._stages]:
            check_coder(part.coder)
        parts = self._parts(source, head)
        # Only now, when the bytes have come, is memory taken for what they become.
        codes = decode_parts(parts, head.num_steps, self.header.format)
        coders = tuple(part.coder for part in parts)
        return Chunk(head.first_frame, head.num_frames, codes, *place, coders)

    def _stored(self, source: ByteSource, head: ChunkHead, place: Place) -> StoredChunk:
        parts = self._parts(source, head)
        return StoredChunk(head.num_frames, head.num_steps, parts, place.opens)

    def _parts(self, source: ByteSource, head: ChunkHead) -> tuple[CodedPart, ...]:
        """Read the parts of a chunk: the stages asked for, then over the others."""
        parts = []
        for number, part in enumerate(head.parts[: self._stages], start=1):
            parts.append(CodedPart(part.coder, source.read(part.length)))
            if zlib.crc32(parts[-1].data) != part.crc:
                raise Damage(f"stage {number} at frame {head.first_frame} does not match its CRC")
        source.skip(sum(part.length for part in head.parts[self._stages :]))
        return tuple(parts)

    def _find_index(self) -> Index:
        """The index at the end of a seekable file, or by a scan where it has none."""
        if self._source.size is None:
            raise CodeFileError(f"{self._name}: the index of a pipe is known when it has been read")
        try:
            footer = Footer.find(self._source, self._source.size)
            return Index(self.header.format, self.version, footer.rows)
        except Damage as exc:
            walk = self._scan()
            if not self.salvage:
                self._fail(exc, walk)
            self.lost = str(exc)
            return self._index_of(walk)

    def _scan(self) -> Walk:
        """A walk to the first damage: what it has passed lies there in full."""
        walk = Walk(self._source.copy(), self.header, self.version)
        try:
            for head, _ in walk:
                walk.source.skip(sum(part.length for part in head.parts))
        except Damage:
            pass  # it is where the scan ends
        except CodeFileError as exc:
            self._fail(exc)
        return walk

    def _index_of(self, walk: Walk) -> Index:
        return Index(self.header.format, self.version, walk.rows)

    def _fail(self, exc: CodeFileError, walk: Walk | None = None) -> NoReturn:
        """Raise what is wrong, with the name of the file and what a walk has passed before it."""
        left = ""
        if walk is not None:
            left = "; no chunk before that is complete"
            if walk.num_chunks:
                left = (
                    f"; complete before that: {_count(walk.num_chunks, 'chunk')}, "
                    f"{_count(walk.num_frames, 'frame')}; decode --salvage reads the complete part"
                )
        raise CodeFileError(f"{self._name}: {exc}{left}") from exc


def _check(source: ByteSource, head: ChunkHead, place: Place) -> None:
    """Read over the parts of a chunk, whose CRCs must match."""
    for part in head.parts:
        source.check(part.length, part.crc)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
