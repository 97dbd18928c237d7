"""Which chunks, and which latent steps of them, give the frames that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from vtok.codefile.header import CodeFormat, Header
from vtok.codefile.index import Index
from vtok.errors import UsageError


@dataclass(frozen=True)
class Piece:
    """A run of latent steps within one chunk.

    Attributes:
        chunk: its number.
        steps: the first one and the one after the last, counted in the chunk.
        opens: of the first piece of a stream, where the decoder starts afresh, the frames to
            drop at the stream's start; None of the others.
        skip: frames to drop of what the piece itself decodes to.
        num_frames: frames that it shows.
    """

    chunk: int
    steps: tuple[int, int]
    opens: int | None
    skip: int
    num_frames: int


def rational(seconds: float | None) -> Fraction | None:
    """Seconds as headers hold them, exact to the microsecond."""
    return None if seconds is None else Fraction(seconds).limit_denominator(1_000_000)


def frames_between(
    header: Header, num_frames: int, start: float, duration: float | None
) -> tuple[int, int]:
    """The frames whose times lie in a part of the video: frame i is shown at i / fps.

    Args:
        header: of the file.
        num_frames: that the file has.
        start: seconds from the start of the file.
        duration: seconds; None for up to the end.

    Returns:
        (first, last + 1), at least one frame.

    Raises:
        UsageError: if there is no such frame.
    """
    fps, begin = header.transform.fps, rational(start) or Fraction(0)
    first = ceil(begin * fps)
    if begin < 0 or first >= num_frames:
        seconds = float(num_frames / fps)
        raise UsageError(f"--start {start:g}: the file holds {num_frames} frames, {seconds:g} s")
    length = rational(duration)
    if length is None:
        return first, num_frames
    if length <= 0:
        raise UsageError(f"--duration {duration:g}: expected more than 0 seconds")
    # no shorter than a frame: the one that is shown at the start is asked for in any case
    return first, min(num_frames, max(first + 1, ceil((begin + length) * fps)))


def expected_frames(header: Header) -> int | None:
    """How many frames the file of a header should have; None where the header does not tell."""
    source, shape = header.source, header.transform
    lengths = [] if shape.duration is None else [shape.duration]
    if source.num_frames is not None:
        lengths.append(source.num_frames / source.fps - (shape.start or 0))
    return max(0, ceil(min(lengths) * shape.fps)) if lengths else None


def find_pieces(
    index: Index,
    layout: CodeFormat,
    frames: tuple[int, int],
    lookback: int | None,
    grain: int | None = None,
) -> Iterator[Piece]:
    """What to decode to get some frames, exactly as in a decode from the start.

    A decoder that starts afresh at a later step than the first makes the same frames as one that
    came all the way, once it has seen `lookback` steps.

    Args:
        index: of the file.
        layout: of the file.
        frames: the first one, and the one after the last.
        lookback: steps that the decoder must have seen; None: all from the start of the segment.
        grain: steps that are decoded together, which a piece does not split; None: a chunk.

    Yields:
        Pieces in order. A segment of the file, as far as it is needed, begins a stream.
    """
    first = int(np.searchsorted(index.bounds, frames[0], side="right")) - 1
    while first < len(index) and index.bounds[first] < frames[1]:
        end = first + 1  # of the chunks of this segment that are needed
        while end < len(index) and not index.opens[end] and index.bounds[end] < frames[1]:
            end += 1
        yield from _of_segment(index, layout, frames, (first, end), lookback, grain)
        first = end


def _of_segment(
    index: Index,
    layout: CodeFormat,
    frames: tuple[int, int],
    chunks: tuple[int, int],
    lookback: int | None,
    grain: int | None,
) -> Iterator[Piece]:
    """The pieces of one segment that show the frames of `chunks`, first and last + 1."""
    temporal, (first, end) = layout.temporal_compression, chunks
    # frames wanted, counted as the segment covers them
    low = _covered_at(index, first, max(frames[0], int(index.bounds[first])))
    high = _covered_at(index, end - 1, min(frames[1], int(index.bounds[end])))
    step = (low + temporal - 1) // temporal  # that holds the first of them
    # of the first step of a stream only the last frame comes out, so one more is taken
    begin = 0 if lookback is None else max(0, step - max(1, lookback))
    last = (high - 1 + temporal - 1) // temporal
    while _first_step(index, layout, first) > begin:
        first -= 1
    opens: int | None = None
    start = 0
    for number in range(first, end):
        before = _first_step(index, layout, number)
        held = index[number].num_steps
        size = grain or held
        low_step = max(0, begin - before) // size * size
        high_step = min(held, -(-(last + 1 - before) // size) * size)
        if number == first:
            start = before + low_step
            opens = low - start * temporal
        covered = (
            _frames_before(before + low_step, start, temporal),
            _frames_before(before + high_step, start, temporal),
        )
        wanted = (low - start * temporal, high - start * temporal)
        skip = min(max(0, wanted[0] - covered[0]), covered[1] - covered[0])
        shown = max(0, min(covered[1], wanted[1]) - covered[0] - skip)
        yield Piece(number, (low_step, high_step), opens, skip, shown)
        opens = None


def _covered_at(index: Index, number: int, frame: int) -> int:
    """A frame that chunk `number` shows, or its end, counted as its segment covers them."""
    place = index.place(number)
    return index.covers(number)[0] + place.skip + frame - int(index.bounds[number])


def _first_step(index: Index, layout: CodeFormat, number: int) -> int:
    """Latent steps of the segment before a chunk."""
    covered = index.covers(number)[0]
    return -(-covered // layout.temporal_compression)


def _frames_before(step: int, start: int, temporal: int) -> int:
    """Frames that a decoder gives before latent step `step` if it starts afresh at `start`."""
    return 0 if step == start else (step - start - 1) * temporal + 1
