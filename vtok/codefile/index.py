"""Random access: the index of a code file, and the latent steps that show given frames."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vtok._times import Part, frame_at
from vtok.codefile.header import CodeFormat, VideoHeader
from vtok.codefile.records import (
    FOOTER_BYTES,
    PLAIN,
    ROW,
    ROW_STRUCT,
    Damage,
    IndexEntry,
    Order,
    Place,
    Rows,
)


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


def frames_between(header: VideoHeader, num_frames: int, part: Part) -> tuple[int, int]:
    """Find the frames of a part of a file: (first, last + 1), at least one frame.

    Args:
        header: of the file.
        num_frames: of the file.
        part: in seconds from the start of the file, or in its frames.

    Raises:
        OptionError: if there is no such frame.
    """
    return part.frames(num_frames, header.transform.fps)


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
