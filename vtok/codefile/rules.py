"""What the parts of a code file must be, given those before them."""

from collections.abc import Sequence

from vtok.codefile.container import PACKED, ChunkHead, Footer, IndexEntry, count_frames
from vtok.codefile.header import CodeFormat
from vtok.codefile.packing import packed_length
from vtok.codefile.source import Damage


def why_not_next(layout: CodeFormat, previous: IndexEntry | None, entry: IndexEntry) -> str | None:
    """Say why a chunk cannot follow the previous one (None: it is the first); None if it can."""
    chunks = [previous] if previous else []
    if entry.first_frame != count_frames(chunks):
        return f"begins at frame {entry.first_frame}, not {count_frames(chunks)}"
    if previous and entry.offset <= previous.offset:
        return "lies before the chunk that it follows"
    if previous and previous.num_frames < _most_frames(layout, previous):
        return "follows a chunk that is not full, which only the last one may be"
    if not 1 <= entry.num_steps <= layout.chunk_steps:
        return f"has t = {entry.num_steps}, not 1..{layout.chunk_steps}"
    most = _most_frames(layout, entry)
    least = max(1, most - layout.temporal_compression + 1)
    if not least <= entry.num_frames <= most:
        covers = f"t = {entry.num_steps} covers {least}..{most} here"
        return f"has num_frames {entry.num_frames}, but {covers}"
    return None


def check_stages(layout: CodeFormat, head: ChunkHead) -> None:
    """Refuse lengths that this many codes cannot have, before anything is read.

    A packed stage has exactly the length of its codes, and no coder may need more.

    Raises:
        Damage: if a chunk has other stages than the header says, or one of another length.
    """
    stages, expected = len(head.parts), layout.num_stages
    if stages != expected:
        raise Damage(f"{stages} stages at frame {head.first_frame}, the header says {expected}")
    packed = packed_length(layout.bits_per_code, layout.codes_per_step * head.num_steps)
    for part in head.parts:
        if part.length > packed or (part.coder == PACKED and part.length < packed):
            raise Damage(
                f"a stage of {part.length} bytes, not {packed}, at frame {head.first_frame}"
            )


def check_footer(footer: Footer, chunks: Sequence[IndexEntry], digest: bytes | None) -> None:
    """Refuse a footer that is not of these chunks, or not of this digest if one is known.

    Raises:
        Damage: if so.
    """
    if footer.chunks != tuple(chunks):
        raise Damage("the index does not match the chunks")
    if digest is not None and footer.digest != digest:
        raise Damage("the bytes do not match their SHA-256")


def _most_frames(layout: CodeFormat, entry: IndexEntry) -> int:
    """Frames of a full chunk; the first frame of a video is a latent step of its own."""
    frames = entry.num_steps * layout.temporal_compression
    return frames if entry.first_frame else frames - layout.temporal_compression + 1
