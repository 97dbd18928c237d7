"""The index of a code file: where each chunk is, which frames it shows, where decoders start."""

from functools import cached_property

import numpy as np

from vtok.codefile.container import FOOTER_BYTES, ROW, IndexEntry, Rows, count_frames
from vtok.codefile.header import CodeFormat
from vtok.codefile.rules import Order, Place, coverage, in_order
from vtok.codefile.source import Damage


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
