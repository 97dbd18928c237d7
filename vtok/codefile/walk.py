"""A pass over the chunks of a code file, front to back, to and through the footer."""

from collections.abc import Iterator

from vtok.codefile.container import (
    CODE,
    FOOT,
    PLAIN,
    SEGMENT,
    ChunkHead,
    Footer,
    IndexEntry,
    Rows,
    make_rows,
)
from vtok.codefile.header import Header
from vtok.codefile.rules import Order, Place, check_footer, check_stages
from vtok.codefile.source import ByteSource, Damage
from vtok.errors import CodeFileError


class Walk:
    """Gives the head of each chunk of codes, checked against the header and those before it.

    Whoever takes a head must move the source over its parts before the next one.

    Attributes:
        source: where the walk is.
        num_chunks: chunks of codes that were passed in full.
    """

    def __init__(self, source: ByteSource, header: Header, version: tuple[int, int]) -> None:
        self.source = source
        self.num_chunks = 0
        self._layout, self._version = header.format, version
        self._order = Order(header.format, version)
        self._rows: list[IndexEntry] = []

    @property
    def rows(self) -> Rows:
        """The index of what was passed in full."""
        rows = self._rows
        return make_rows(rows if not rows or rows[-1].num_steps else rows[:-1])

    @property
    def num_frames(self) -> int:
        """Frames that the chunks show that were passed in full."""
        return self._order.num_frames

    def __iter__(self) -> Iterator[tuple[ChunkHead, Place]]:
        source = self.source
        while True:
            offset, digest = source.offset, source.digest()
            kind = source.read_up_to(len(CODE))
            if len(kind) < len(CODE):
                raise Damage("no index at its end: it was cut or is not finished")
            if kind == FOOT:
                check_footer(Footer.read(source, len(self._rows)), make_rows(self._rows), digest)
                if source.read_up_to(1):
                    raise Damage("more bytes after its end")
                return
            head = ChunkHead.read(kind, source)
            row = head.at(offset)
            if kind == CODE:
                if why := self._order.why_not_next(row):
                    raise Damage(f"chunk {self.num_chunks} {why}")
                check_stages(self._layout, self._version, head)
                # only a chunk that is passed in full counts: the order is told afterwards
                yield head, self._order.place(row)
                self._order.add(row)
                self.num_chunks += 1
                self._rows.append(row)
            elif kind == SEGMENT and self._version != PLAIN:
                self._open(head, row)
            else:
                self._pass_over(head)

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
