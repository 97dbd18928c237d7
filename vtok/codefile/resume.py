"""Where a damaged file goes on: the next head of a chunk whose CRC matches."""

import re
from collections.abc import Iterator

from vtok.codefile.container import CODE, SEGMENT, ChunkHead
from vtok.codefile.source import ByteSource, Damage

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
