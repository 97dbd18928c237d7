"""A pass over the chunks of a code file, front to back, to and through the footer."""

from collections.abc import Iterator
from dataclasses import replace

from vtok.codefile.container import (
    CODE,
    FOOT,
    PLAIN,
    SEGMENT,
    ChunkHead,
    Footer,
    IndexEntry,
    RowLog,
    Rows,
)
from vtok.codefile.header import Header
from vtok.codefile.resume import find_heads, head_at
from vtok.codefile.rules import Order, Place, check_footer, check_stages
from vtok.codefile.source import ByteSource, Damage
from vtok.errors import CodeFileError

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
