"""Chunks of a code file: their index, the latent steps that show given frames, and a scan."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vtok._times import frame_at
from vtok.codefile.header import CodeFormat, Header, VideoHeader
from vtok.codefile.packing import check_parts
from vtok.codefile.records import (
    CODE,
    FOOT,
    FOOTER_BYTES,
    PIECE_BYTES,
    PLAIN,
    ROW,
    ROW_STRUCT,
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
)
from vtok.codefile.sections import MAX_BYTES, MAX_SECTIONS, SOUND, Section, read_section
from vtok.errors import CodeFileError

MOST_RESCANS = 100  # of one file: bounds the time that a hostile file takes
_MOST_TRIES = 10_000  # places that look like a head in one rescan, likewise
_KINDS = re.compile(b"|".join((CODE, SEGMENT)))


class Index:
    """Chunks of codes of a file, by number.

    Raises `Damage` naming the first row of a footer that breaks the rules of `Order`.

    Attributes:
        num_frames: frames that all chunks show.
        num_steps: latent steps of all chunks.
        bounds: first frame of each chunk, then the number of frames: int64 `[n + 1]`.
        opens: true for chunks where a decoder starts with a fresh state, bool `[n]`.
    """

    def __init__(self, layout: CodeFormat, version: tuple[int, int], rows: Rows) -> None:
        order, spans = Order(layout, version), array("q")
        for number, row in enumerate(map(IndexEntry._make, ROW_STRUCT.iter_unpack(rows.tobytes()))):
            opens = row.num_steps == 0 and version != PLAIN
            why = order.why_not_open(row) if opens else order.why_not_next(row)
            if why:
                raise Damage(f"in the index, chunk {number} {why}")
            if opens:
                order.open(row)
            else:
                place, before = order.place(row), order.covered
                order.add(row)
                spans.extend((place.opens or 0, place.skip, before, order.covered))
        self._spans = np.frombuffer(spans, np.int64).reshape(-1, 4)
        self._rows, self._num_rows = rows[rows["steps"] > 0], len(rows)
        self.num_frames = order.num_frames
        self.num_steps = int(self._rows["steps"].sum(dtype=np.int64))
        firsts = self._rows["first_frame"].astype(np.int64)
        self.bounds = np.append(firsts, self.num_frames)
        self.opens = self._spans[:, 2] == 0

    def __len__(self) -> int:
        """Return the number of chunks of codes."""
        return len(self._rows)

    def __getitem__(self, number: int) -> IndexEntry:
        return IndexEntry(*self._rows[number].tolist())

    @property
    def num_segments(self) -> int:
        """Number of chunks where a decoder starts with a fresh state."""
        return int(self.opens.sum())

    def chunk_bytes(self, size: int) -> tuple[int, int, int]:
        """Return the smallest, mean and largest bytes of a chunk in a file of `size` bytes."""
        if not len(self):
            return 0, 0, 0
        footer = FOOTER_BYTES + self._num_rows * ROW.itemsize
        lengths = np.diff(self._rows["offset"].astype(np.int64), append=size - footer)
        return int(lengths.min()), round(float(lengths.mean())), int(lengths.max())

    def place(self, number: int) -> Place:
        """Return the place of a chunk in its segment."""
        drop, skip, before, _ = self._spans[number].tolist()
        return Place(None if before else drop, skip)

    def covers(self, number: int) -> tuple[int, int]:
        """Return the frames that a chunk covers: first and last + 1 from its segment's start."""
        before, after = self._spans[number, 2:].tolist()
        return before, after


def expected_frames(header: VideoHeader) -> int | None:
    """Compute the frames of a file from its header; None if the source's length is unknown."""
    source, shape = header.source, header.transform
    lengths = [] if shape.duration is None else [shape.duration]
    if source.num_frames is not None:
        lengths.append(source.num_frames / source.fps - (shape.start or 0))
    return max(0, frame_at(min(lengths), shape.fps)) if lengths else None


@dataclass(frozen=True)
class StepRange:
    """Consecutive latent steps of one chunk.

    Attributes:
        chunk: number of the chunk.
        steps: first and last + 1, from the start of the chunk.
        opens: for the first range of a stream, where the decoder starts with a fresh state, the
            frames to drop at the stream's start; None for others.
        skip: frames to drop of those that the range decodes to.
        num_frames: frames to show.
    """

    chunk: int
    steps: tuple[int, int]
    opens: int | None
    skip: int
    num_frames: int

    @property
    def is_ahead(self) -> bool:
        """True if only the frames of earlier steps depend on these."""
        return not self.skip + self.num_frames


def find_ranges(
    index: Index,
    layout: CodeFormat,
    frames: tuple[int, int],
    lookback: int | None,
    grain: int | None = None,
) -> Iterator[StepRange]:
    """Find the latent steps to decode for some frames, exactly as in a decode from the start.

    A decoder that starts at a later step gives the same frames as one that starts at the first,
    once it has seen `lookback` steps. Windows are read whole; with look-ahead, the steps after the
    last frame are read too.

    Args:
        index: of the file.
        layout: of the file.
        frames: first and last + 1.
        lookback: steps that the decoder must have seen; None for all of the segment.
        grain: steps that are decoded together, which a range does not split; None for a chunk.

    Yields:
        Ranges in order. Each segment of the file that is needed starts a stream.
    """
    first = int(np.searchsorted(index.bounds, frames[0], side="right")) - 1
    while first < len(index) and index.bounds[first] < frames[1]:
        end = first + 1  # of the needed chunks of this segment
        while end < len(index) and not index.opens[end] and index.bounds[end] < frames[1]:
            end += 1
        yield from _ranges_of_segment(index, layout, frames, (first, end), lookback, grain)
        first = end


def _ranges_of_segment(
    index: Index,
    layout: CodeFormat,
    frames: tuple[int, int],
    chunks: tuple[int, int],
    lookback: int | None,
    grain: int | None,
) -> Iterator[StepRange]:
    """Find the ranges that show the frames of `chunks`, first and last + 1, of one segment."""
    temporal, (first, end) = layout.temporal_compression, chunks
    # wanted frames, counted as the segment covers them
    low, high = (
        index.covers(number)[0] + index.place(number).skip + frame - int(index.bounds[number])
        for number, frame in (
            (first, max(frames[0], int(index.bounds[first]))),
            (end - 1, min(frames[1], int(index.bounds[end]))),
        )
    )
    # The first step of a stream gives its last frame only, so start at least one step before.
    begin = 0 if lookback is None else max(0, -(-low // temporal) - max(1, lookback))
    stop = -(-(high - 1) // temporal) + 1 + layout.decoder_lookahead
    if layout.window is not None:
        begin, stop = 0, layout.window
    while (
        end < len(index) and not index.opens[end] and index.covers(end)[0] <= (stop - 1) * temporal
    ):
        end += 1
    while index.covers(first)[0] > begin * temporal:
        first -= 1
    opens: int | None = None
    start = 0
    for number in range(first, end):
        before = -(-index.covers(number)[0] // temporal)  # latent steps of the segment
        held = index[number].num_steps
        size = grain or held
        low_step = max(0, begin - before) // size * size
        high_step = min(held, -(-(stop - before) // size) * size)
        if number == first:
            start = before + low_step
            opens = low - start * temporal
        # frames that the stream covers before and after the range; its first step covers one
        since, until = (
            max(0, (before + step - start - 1) * temporal + 1) for step in (low_step, high_step)
        )
        skip = min(max(0, low - start * temporal - since), until - since)
        shown = max(0, min(until, high - start * temporal) - since - skip)
        yield StepRange(number, (low_step, high_step), opens, skip, shown)
        opens = None


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
        num_sections: number of known optional sections passed.
        damaged: types and faults of damaged optional sections passed.
        sound_bytes: bytes of the sections of sound passed.
    """

    def __init__(self, source: ByteSource, header: Header, version: tuple[int, int]) -> None:
        self.source = source
        self.gaps: list[tuple[int, int]] = []
        self.sections: list[Section] = []
        self.num_sections = self.sound_bytes = 0
        self.damaged: list[tuple[bytes, str]] = []
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
                self._check_end(digest)
                return
            head = ChunkHead.read(kind, source)
            row = head.at(offset)
            self._end = source.offset + head.part_bytes
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

    def _check_end(self, digest: bytes | None) -> None:
        """Check the footer; `digest` is the SHA-256 of all before it, if known."""
        if self.damaged:
            bad = f"{len(self.damaged)} of {self.num_sections} optional sections"
            raise Damage(f"damaged in {bad} ({self.damaged[0][1]}), its codes are whole")
        rows = self.order.rows
        Footer.read(self.source, len(rows)).check(rows, digest)
        if self.source.read_up_to(1):
            raise Damage("more bytes after its end")

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
        is_known = head.kind in MAX_BYTES
        self.num_sections += is_known
        self.sound_bytes += self._end - self._begin if head.kind == SOUND else 0
        if self.num_sections > MAX_SECTIONS:
            raise Damage(f"has more than {MAX_SECTIONS} optional sections")
        try:
            if is_known and not self.source.seekable:
                self.sections.append(read_section(self.source, head))
            else:
                check_crcs(self.source, head)
        except Damage as exc:
            self.source.skip(self._end - self.source.offset)  # fails where the file ends before
            self.damaged.append((head.kind, str(exc)))

    def _open(self, head: ChunkHead, row: IndexEntry) -> None:
        why = self.order.why_not_open(row)
        if head.parts or head.num_steps:
            why = why or "holds codes"
        if why:
            raise Damage(f"the segment before chunk {self.order.num_chunks} {why}")
        self.order.open(row)


def check_crcs(source: ByteSource, head: ChunkHead, place: Place | None = None) -> None:
    """Check the CRCs of the parts of a chunk."""
    for part in head.parts:
        source.check(part.length, part.crc)
