"""The index of a code file: where each chunk is, which frames it shows, where decoders start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.byte_source import Damage
from vtok.codefile.header import CodeFormat
from vtok.codefile.packing import packed_length
from vtok.codefile.parts import CodedPart
from vtok.codefile.records import (
    FOOTER_BYTES,
    PACKED,
    PLAIN,
    ROW,
    ChunkHead,
    Footer,
    IndexEntry,
    Rows,
    count_frames,
)


class Place(NamedTuple):
    """What a decoder must know of a chunk beside its codes.

    Attributes:
        opens: of the first chunk of a segment, where the decoder starts afresh, the frames to
            drop at the segment's start; None of all others.
        skip: frames to drop of what the chunk itself decodes to.
    """

    opens: int | None
    skip: int


class Order:
    """Which record may come next, given those that it was told of.

    Attributes:
        num_frames: frames shown so far.
    """

    def __init__(self, layout: CodeFormat, version: tuple[int, int]) -> None:
        self.num_frames = 0
        self._layout = layout
        self._plain = version == PLAIN
        self._offset = -1  # of the record before
        self._full = True  # whether the chunk before shows all that it covers
        self._drop = 0  # frames that the segment drops at its start
        self._covered = 0  # frames that the steps of the segment cover so far
        self._opened = False  # whether a segment waits for its first chunk

    def why_not_open(self, row: IndexEntry) -> str | None:
        """Say why a segment cannot be opened here; None if it can."""
        return "opens a segment again" if self._opened else self._why_not_here(row)

    def why_not_next(self, row: IndexEntry) -> str | None:
        """Say why a chunk cannot come here; None if it can."""
        if why := self._why_not_here(row):
            return why
        if not self._full:
            return "follows a chunk that is not full, which only the last one may be"
        if not 1 <= row.num_steps <= self._layout.chunk_steps:
            return f"has t = {row.num_steps}, not 1..{self._layout.chunk_steps}"
        most = self._most_frames(row)
        least = min(1, most)
        if self._plain:
            least = max(1, most - self._layout.temporal_compression + 1)
        if not least <= row.num_frames <= most:
            covers = f"t = {row.num_steps} covers {least}..{most} here"
            return f"has num_frames {row.num_frames}, but {covers}"
        return None

    def open(self, row: IndexEntry) -> None:
        """Take note of a segment that `why_not_open` has nothing against."""
        self._offset, self._full, self._opened = row.offset, True, True
        self._drop, self._covered = row.num_frames, 0

    def resume(self, row: IndexEntry) -> bool:
        """Go on with a chunk or a segment after some that were lost.

        Returns:
            whether a decoder has seen chunks of its segment, as far as can be told.
        """
        seen = self._covered > 0
        self.num_frames, self._full, self._opened = row.first_frame, True, False
        # what the lost ones covered is not known, nor does it matter after the drop
        self._covered = max(1, self._covered, self._drop)
        return seen

    def place(self, row: IndexEntry) -> Place:
        """Where a chunk stands that `why_not_next` has nothing against."""
        skip = min(max(0, self._drop - self._covered), self._end(row) - self._covered)
        return Place(None if self._covered else self._drop, skip)

    def add(self, row: IndexEntry) -> None:
        """Take note of a chunk that `why_not_next` has nothing against."""
        self._full = row.num_frames == self._most_frames(row)
        self._covered = self._end(row)
        self._offset, self._opened = row.offset, False
        self.num_frames += row.num_frames

    def _why_not_here(self, row: IndexEntry) -> str | None:
        if row.first_frame != self.num_frames:
            return f"begins at frame {row.first_frame}, not {self.num_frames}"
        if row.offset <= self._offset:
            return "lies before the chunk that it follows"
        return None

    def _end(self, row: IndexEntry) -> int:
        """Frames that the segment covers with this chunk; its first frame is a step of its own."""
        temporal = self._layout.temporal_compression
        return row.num_steps * temporal + (self._covered or 1 - temporal)

    def _most_frames(self, row: IndexEntry) -> int:
        """Frames of this chunk that are not dropped."""
        return max(0, self._end(row) - max(self._covered, self._drop))


def in_order(layout: CodeFormat, version: tuple[int, int], rows: Rows) -> bool:
    """Whether an `Order` would take all these rows: the same rules, for all rows at once."""
    offsets, firsts = rows["offset"], rows["first_frame"]
    steps, frames = rows["steps"].astype(np.int64), rows["frames"].astype(np.int64)
    opens = steps == 0
    if not (bool((steps <= layout.chunk_steps).all()) and bool((offsets[1:] > offsets[:-1]).all())):
        return False
    shown = np.where(opens, 0, frames)
    if (firsts != (shown.cumsum() - shown).astype(np.uint64)).any():
        return False
    if (version == PLAIN and opens.any()) or (opens[1:] & opens[:-1]).any():
        return False
    drop, before, after = coverage(layout, rows)
    most = np.maximum(0, after - np.maximum(before, drop))
    least = np.minimum(1, most)
    if version == PLAIN:
        least = np.maximum(1, most - layout.temporal_compression + 1)
    last = np.append(opens[1:], True)  # of its segment
    return bool((opens | (frames == most) | (last & (least <= frames) & (frames <= most))).all())


def coverage(layout: CodeFormat, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the steps of each row cover, in frames from the start of its segment.

    Returns:
        int64 `[n]` each: frames that the row's segment drops, that are covered before the row,
        and with it. Of the rows that open segments, they say nothing.
    """
    temporal = layout.temporal_compression
    opens = rows["steps"] == 0
    steps = rows["steps"].astype(np.int64).cumsum()  # with each row, from the start of the file
    number = opens.cumsum()  # of the segment; rows before the first opening are a segment too
    drops = np.append(0, rows["frames"][opens].astype(np.int64))
    starts = np.append(0, steps[opens])
    after = (steps - starts[number]) * temporal - (temporal - 1)
    before = after - rows["steps"].astype(np.int64) * temporal
    return drops[number], np.maximum(0, before), after


def check_stages(layout: CodeFormat, version: tuple[int, int], head: ChunkHead) -> None:
    """Refuse lengths that this many codes cannot have, before anything is read.

    A packed stage has exactly the length of its codes, and no coder may need more.

    Raises:
        Damage: if a chunk has other stages than the header says, or one of another length.
    """
    stages, most = len(head.parts), layout.num_stages
    least = most if version == PLAIN else 1
    if not least <= stages <= most:
        expected = most if least == most else f"{least}..{most}"
        raise Damage(f"{stages} stages at frame {head.first_frame}, the header says {expected}")
    packed = packed_length(layout.bits_per_code, layout.codes_per_step * head.num_steps)
    for part in head.parts:
        if part.length > packed or (part.coder == PACKED and part.length < packed):
            raise Damage(
                f"a stage of {part.length} bytes, not {packed}, at frame {head.first_frame}"
            )


def check_footer(footer: Footer, rows: Rows, digest: bytes | None) -> None:
    """Refuse a footer that is not of these rows, or not of this digest if one is known.

    Raises:
        Damage: if so.
    """
    if footer.rows.tobytes() != rows.tobytes():
        raise Damage("the index does not match the chunks")
    if digest is not None and footer.digest != digest:
        raise Damage("the bytes do not match their SHA-256")


@dataclass(frozen=True, eq=False)
class Chunk:
    """The codes of a run of frames.

    Attributes:
        first_frame: number of the first one, from 0.
        num_frames: frames that the chunk shows, without padding.
        codes: int64 `[stages, num_codebooks, t, h, w]`, 0 <= code < codebook_size.
        opens: of the first chunk of a segment, the frames dropped at its start; None of others.
        skip: frames to drop of what the codes decode to, before those shown.
        coders: of each stage.
    """

    first_frame: int
    num_frames: int
    codes: npt.NDArray[np.int64]
    opens: int | None = None
    skip: int = 0
    coders: tuple[int, ...] = ()

    @property
    def restart(self) -> bool:
        """Whether the decoder starts afresh here."""
        return self.opens is not None


@dataclass(frozen=True, eq=False)
class StoredChunk:
    """A chunk as it lies in the file, to be copied.

    Attributes:
        num_frames: frames that it shows.
        num_steps: latent steps.
        parts: of the first stage, the second, and so on.
        opens: of the first chunk of a segment, the frames dropped at its start; None of others.
    """

    num_frames: int
    num_steps: int
    parts: tuple[CodedPart, ...]
    opens: int | None


class Index:
    """Every chunk of codes of a file, by number.

    It is made of arrays, since a file of a gigabyte has tens of thousands of chunks.

    Attributes:
        num_frames: frames that all chunks show.
        num_steps: latent steps of all chunks.
        bounds: first frame of each chunk and, at the end, the number of frames: int64 `[n + 1]`.
        opens: whether a decoder starts afresh with a chunk, bool `[n]`.
    """

    def __init__(self, layout: CodeFormat, version: tuple[int, int], rows: Rows) -> None:
        """Check the rows.

        Args:
            layout: of the file.
            version: of the file.
            rows: of its footer.

        Raises:
            Damage: naming the first row that cannot stand where it does.
        """
        if not in_order(layout, version, rows):
            _raise_first_wrong(layout, version, rows)
        drop, before, after = coverage(layout, rows)
        codes = rows["steps"] > 0
        self._rows, self._num_rows = rows[codes], len(rows)
        self._drop, self._before, self._after = drop[codes], before[codes], after[codes]
        self.num_frames = count_frames(rows)
        self.num_steps = int(self._rows["steps"].sum(dtype=np.int64))
        firsts = self._rows["first_frame"].astype(np.int64)
        self.bounds = np.append(firsts, self.num_frames)
        self.opens = self._before == 0

    def __len__(self) -> int:
        """Number of chunks of codes."""
        return len(self._rows)

    def __getitem__(self, number: int) -> IndexEntry:
        return IndexEntry(*self._rows[number].tolist())

    @cached_property
    def entries(self) -> tuple[IndexEntry, ...]:
        """The row of every chunk of codes."""
        return tuple(map(IndexEntry._make, self._rows.tolist()))

    @property
    def num_segments(self) -> int:
        """How often a decoder starts afresh."""
        return int(self.opens.sum())

    def chunk_bytes(self, size: int) -> tuple[int, int, int]:
        """Bytes of the smallest chunk, of the mean one and of the largest, in a file of `size`."""
        if not len(self):
            return 0, 0, 0
        footer = FOOTER_BYTES + self._num_rows * ROW.itemsize
        lengths = np.diff(self._rows["offset"].astype(np.int64), append=size - footer)
        return int(lengths.min()), round(float(lengths.mean())), int(lengths.max())

    def place(self, number: int) -> Place:
        """What a decoder must know of a chunk beside its codes."""
        drop, before = int(self._drop[number]), int(self._before[number])
        skip = min(max(0, drop - before), int(self._after[number]) - before)
        return Place(None if before else drop, skip)

    def covers(self, number: int) -> tuple[int, int]:
        """First frame that a chunk covers and the one after the last, from its segment's start."""
        return int(self._before[number]), int(self._after[number])


def _raise_first_wrong(layout: CodeFormat, version: tuple[int, int], rows: Rows) -> None:
    """One row after the other, for the words.

    Raises:
        Damage: at the first one that is wrong.
    """
    order = Order(layout, version)
    for number, row in enumerate(map(IndexEntry._make, rows.tolist())):
        opens = row.num_steps == 0 and version[1] > 0
        why = order.why_not_open(row) if opens else order.why_not_next(row)
        if why:
            raise Damage(f"in the index, chunk {number} {why}")
        if opens:
            order.open(row)
        else:
            order.add(row)
