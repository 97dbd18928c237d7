"""What the records of a code file must be, given those before them."""

from typing import NamedTuple

import numpy as np

from vtok.codefile.container import PACKED, PLAIN, ChunkHead, Footer, IndexEntry, Rows
from vtok.codefile.header import CodeFormat
from vtok.codefile.packing import packed_length
from vtok.codefile.source import Damage


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
