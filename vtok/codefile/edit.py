"""Cut and join code files by copying the parts of their chunks, without decoding them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO

from vtok.codefile.header import Header
from vtok.codefile.index import StepRange, find_ranges
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import FOOTER_BYTES, PLAIN, ROW, VERSION, ChunkHead, preamble_to_bytes
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import CodeFileError, OptionError

Copied = Iterator[tuple[int, int, int]]
"""Frames, latent steps and stages of each copied chunk."""


def cut(
    reader: CodeFileReader,
    stream: BinaryIO,
    *,
    frames: tuple[int, int],
    stages: int | None = None,
    max_bytes: int | None = None,
) -> Copied:
    """Copy a part of a code file, or fewer of its stages, or both.

    Keeps the chunks that show the frames and those before them that a decoder must have seen. The
    new file decodes to the same frames as the old one.

    Args:
        reader: of a seekable file.
        stream: binary, writable.
        frames: first and last + 1 to show.
        stages: number of stages to keep of each chunk; None for all.
        max_bytes: drop more stages, the last ones first, until the file is no longer than this.
            If only some chunks need to lose their last stage, the largest are dropped first.

    Raises:
        CodeFileError: if a needed chunk is damaged.
        UsageError: if the file has fewer stages.
        OptionError: if one stage already exceeds `max_bytes`.
    """
    header, layout = reader.header, reader.header.format
    reader.limit_stages(layout.num_stages if stages is None else stages)
    ranges = list(find_ranges(reader.index, layout, frames, layout.decoder_lookback))
    if frames != (0, reader.index.num_frames):
        header = _of_part(header, frames)
    counts = [min(stages or layout.num_stages, layout.num_stages)] * len(ranges)
    if reader.version != PLAIN or max_bytes is not None:
        heads = [reader.read_head(some.chunk) for some in ranges]
        counts = [min(count, len(head.parts)) for count, head in zip(counts, heads, strict=True)]
        if max_bytes is not None:
            lengths = [_lengths(head, count) for head, count in zip(heads, counts, strict=True)]
            counts = fit_stages(lengths, max_bytes - _fixed_bytes(header, ranges), max_bytes)
    header = replace(header, format=replace(layout, num_stages=max(counts)))
    version = PLAIN if _is_plain(reader, ranges, counts) else VERSION
    with CodeFileWriter(stream, header, version=version) as writer:
        for number, (some, count) in enumerate(zip(ranges, counts, strict=True)):
            if some.opens is not None and (number or some.opens):
                writer.open_segment(some.opens)
            reader.limit_stages(count)
            chunk = reader.read_stored(some.chunk)
            writer.write_parts(chunk.parts, chunk.num_steps, some.num_frames)
            yield some.num_frames, chunk.num_steps, count


def join(headers: Sequence[Header], readers: Iterable[CodeFileReader], stream: BinaryIO) -> Copied:
    """Copy the chunks of several code files into one file, each as a segment.

    Args:
        headers: of the files, checked with `check_alike`.
        readers: of the files; pipes are allowed.
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
    # The length of the first source is not that of all.
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
    """Choose the number of stages of each chunk so that all fit into `room` bytes.

    Args:
        lengths: bytes of each stage of each chunk.
        room: bytes for all of them.
        max_bytes: value of the option, for the error.

    Raises:
        OptionError: if one stage of each takes more.
    """
    counts, total = [len(parts) for parts in lengths], sum(map(sum, lengths))
    for level in range(max(counts), 1, -1):
        chunks = [number for number, count in enumerate(counts) if count == level]
        # Equal ones in a scattered order, so that the loss is spread over the video.
        chunks.sort(key=lambda number: (-lengths[number][level - 1], number * 0x9E3779B1 % 2**32))
        for number in chunks:
            if total <= room:
                return counts
            total -= lengths[number][level - 1]
            counts[number] -= 1
    if total > room:
        needed = max_bytes + total - room
        raise OptionError("max_bytes", max_bytes, f"{needed} or more, which one stage takes")
    return counts


def _of_part(header: Header, frames: tuple[int, int]) -> Header:
    """Return the header of a part, with its start and duration."""
    shape = header.transform
    start = (shape.start or Fraction(0)) + frames[0] / shape.fps
    duration = (frames[1] - frames[0]) / shape.fps
    return replace(header, transform=replace(shape, start=start or None, duration=duration))


def _is_plain(reader: CodeFileReader, ranges: Sequence[StepRange], counts: Sequence[int]) -> bool:
    """Check if a cut of these ranges is a file of version 1.0."""
    last = ranges[-1]
    before, after = reader.index.covers(last.chunk)
    unshown = after - before - last.skip - last.num_frames
    return (
        reader.version == PLAIN
        and min(counts) == max(counts)
        and ranges[0].opens == 0
        and unshown < reader.header.format.temporal_compression
    )


def _lengths(head: ChunkHead, count: int) -> list[int]:
    """Compute the bytes of each of the first stages of a chunk, with its row in the head."""
    return [ChunkHead.length(1) - ChunkHead.length(0) + part.length for part in head.parts[:count]]


def _fixed_bytes(header: Header, ranges: Sequence[StepRange]) -> int:
    """Compute the bytes of a file of these ranges without any stage."""
    segments = sum(some.opens is not None for some in ranges)
    segments -= ranges[0].opens == 0
    records = len(ranges) + segments
    return (
        len(preamble_to_bytes(header))
        + records * (ChunkHead.length(0) + ROW.itemsize)
        + FOOTER_BYTES
    )


def check_alike(first: Header, other: Header, name: str, other_name: str) -> None:
    """Check that two files can be decoded as one video.

    Raises:
        CodeFileError: naming the difference.
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
