"""Code files cut and joined by copying the parts of their chunks: no code is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO

from vtok.codefile.header import Header
from vtok.codefile.ranges import Piece, find_pieces
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import FOOTER_BYTES, PLAIN, ROW, VERSION, ChunkHead, preamble_to_bytes
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import CodeFileError, UsageError

Copied = Iterator[tuple[int, int, int]]
"""Frames, latent steps and stages of each chunk that was copied."""


def cut(
    reader: CodeFileReader,
    stream: BinaryIO,
    *,
    frames: tuple[int, int],
    stages: int | None = None,
    max_bytes: int | None = None,
) -> Copied:
    """Copy a part of a code file, or fewer of its stages, or both.

    The chunks are kept that show the frames, and those before them that a decoder must have
    seen; what these decode to beyond the frames is dropped by whoever decodes. So the new file
    decodes to the frames that a decode of the old one gives.

    Args:
        reader: of a file that can be sought in.
        stream: binary, writable.
        frames: the first one to show, and the one after the last.
        stages: keep the first so many of each chunk; all if None.
        max_bytes: drop more stages, the last ones first, until the file is no longer than this.
            While only some chunks need to lose their last stage, those go first where it is
            largest.

    Raises:
        CodeFileError: if a chunk that is needed is damaged.
        UsageError: if the file has fewer stages, or even one stage is too long.
    """
    header, layout = reader.header, reader.header.format
    reader.limit_stages(layout.num_stages if stages is None else stages)
    pieces = list(find_pieces(reader.index, layout, frames, layout.decoder_lookback))
    if frames != (0, reader.index.num_frames):
        header = _of_part(header, frames)
    counts = [min(stages or layout.num_stages, layout.num_stages)] * len(pieces)
    if reader.version != PLAIN or max_bytes is not None:
        heads = [reader.read_head(piece.chunk) for piece in pieces]
        counts = [min(count, len(head.parts)) for count, head in zip(counts, heads, strict=True)]
        if max_bytes is not None:
            lengths = [_lengths(head, count) for head, count in zip(heads, counts, strict=True)]
            counts = fit_stages(lengths, max_bytes - _fixed_bytes(header, pieces), max_bytes)
    header = replace(header, format=replace(layout, num_stages=max(counts)))
    version = PLAIN if _is_plain(reader, pieces, counts) else VERSION
    with CodeFileWriter(stream, header, version=version) as writer:
        for number, (piece, count) in enumerate(zip(pieces, counts, strict=True)):
            if piece.opens is not None and (number or piece.opens):
                writer.open_segment(piece.opens)
            reader.limit_stages(count)
            chunk = reader.read_stored(piece.chunk)
            writer.write_parts(chunk.parts, chunk.num_steps, piece.num_frames)
            yield piece.num_frames, chunk.num_steps, count


def join(headers: Sequence[Header], readers: Iterable[CodeFileReader], stream: BinaryIO) -> Copied:
    """Copy the chunks of several code files into one: each file begins a segment.

    Args:
        headers: of the files, found alike by `check_alike`.
        readers: of the files, which may be pipes.
        stream: binary, writable.

    Raises:
        CodeFileError: if a file is damaged.
    """
    first = headers[0]
    layout = replace(
        first.format,
        num_stages=max(header.format.num_stages for header in headers),
        chunk_steps=max(header.format.chunk_steps for header in headers),
    )
    # what is said of the length of the first one is not true of all
    source = replace(first.source, num_frames=None)
    header = replace(
        first, format=layout, source=source, transform=replace(first.transform, duration=None)
    )
    with CodeFileWriter(stream, header, version=VERSION) as writer:
        begun = False
        for reader in readers:
            for chunk in reader.stored():
                if chunk.opens is not None and (begun or chunk.opens):
                    writer.open_segment(chunk.opens)
                begun = True
                writer.write_parts(chunk.parts, chunk.num_steps, chunk.num_frames)
                yield chunk.num_frames, chunk.num_steps, len(chunk.parts)


def fit_stages(lengths: Sequence[Sequence[int]], room: int, max_bytes: int) -> list[int]:
    """How many stages of each chunk fit into `room` bytes.

    Args:
        lengths: for each chunk, the bytes that each of its stages takes.
        room: for all of them.
        max_bytes: what was asked for, for the error.

    Raises:
        UsageError: if one stage of each takes more.
    """
    counts, total = [len(parts) for parts in lengths], sum(map(sum, lengths))
    for level in range(max(counts), 1, -1):
        chunks = [number for number, count in enumerate(counts) if count == level]
        # among equals in a scattered order, so that no half of the video is the worse one
        chunks.sort(key=lambda number: (-lengths[number][level - 1], number * 0x9E3779B1 % 2**32))
        for number in chunks:
            if total <= room:
                return counts
            total -= lengths[number][level - 1]
            counts[number] -= 1
    if total > room:
        needed = max_bytes + total - room
        raise UsageError(
            f"--max-bytes {max_bytes}: one stage takes {needed} bytes already: "
            "give more, or a shorter --duration"
        )
    return counts


def _of_part(header: Header, frames: tuple[int, int]) -> Header:
    """The header of a part: where in the source it lies."""
    shape = header.transform
    start = (shape.start or Fraction(0)) + frames[0] / shape.fps
    duration = (frames[1] - frames[0]) / shape.fps
    return replace(header, transform=replace(shape, start=start or None, duration=duration))


def _is_plain(reader: CodeFileReader, pieces: Sequence[Piece], counts: Sequence[int]) -> bool:
    """Whether a cut of these pieces needs nothing of version 1.1."""
    last = pieces[-1]
    before, after = reader.index.covers(last.chunk)
    unshown = after - before - last.skip - last.num_frames
    return (
        reader.version == PLAIN
        and min(counts) == max(counts)
        and pieces[0].opens == 0
        and unshown < reader.header.format.temporal_compression
    )


def _lengths(head: ChunkHead, count: int) -> list[int]:
    """Bytes that each of the first stages of a chunk takes, with its row in the head."""
    return [ChunkHead.length(1) - ChunkHead.length(0) + part.length for part in head.parts[:count]]


def _fixed_bytes(header: Header, pieces: Sequence[Piece]) -> int:
    """Bytes of a file of these pieces without any stage."""
    segments = sum(piece.opens is not None for piece in pieces)
    segments -= pieces[0].opens == 0
    records = len(pieces) + segments
    return (
        len(preamble_to_bytes(header))
        + records * (ChunkHead.length(0) + ROW.itemsize)
        + FOOTER_BYTES
    )


def check_alike(first: Header, other: Header, name: str, other_name: str) -> None:
    """Refuse to join what no decoder could decode as one video.

    Raises:
        CodeFileError: naming what differs.
    """
    for what, ours, theirs in (
        ("model", first.model.name, other.model.name),
        ("weights", first.model.weights_sha256[:12], other.model.weights_sha256[:12]),
        ("config", first.model.config_sha256[:12], other.model.config_sha256[:12]),
        ("size", _size(first), _size(other)),
        ("frame rate", first.transform.fps, other.transform.fps),
        ("colour", first.transform.colour, other.transform.colour),
        ("token learner", _token_learner(first), _token_learner(other)),
    ):
        if ours != theirs:
            raise CodeFileError(f"{other_name}: {what} {theirs}, but {name} has {ours}")
    same = replace(
        other.format,
        num_stages=first.format.num_stages,
        chunk_steps=first.format.chunk_steps,
    )
    if same != first.format:
        raise CodeFileError(f"{other_name}: its codes are not laid out as those of {name}")


def _token_learner(header: Header) -> str:
    return header.metadata.get("token_learner", "none")  # fingerprint included, as JSON


def _size(header: Header) -> str:
    return f"{header.transform.width}x{header.transform.height}"
