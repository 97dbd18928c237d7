"""Cut and join code files without decoding them to frames.

Chunks are copied as stored. A cut codes the first and the last one again, without loss, where only
a part of their latent steps is needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import BinaryIO, cast

import numpy as np

from vtok._sound import Sound
from vtok.codefile.header import Header
from vtok.codefile.index import StepRange, find_ranges
from vtok.codefile.packing import StoredChunk, encode_parts
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import (
    FOOTER_BYTES,
    PLAIN,
    ROW,
    SEGMENTED,
    ByteSource,
    ChunkHead,
    preamble_to_bytes,
)
from vtok.codefile.sections import (
    SOUND,
    FrameDurations,
    Section,
    find_seconds,
    read_section,
    sound_between,
    sound_to_section,
)
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import CodeFileError, OptionError

Copied = Iterator[tuple[int, int, int]]
"""Frames, latent steps and stages of each copied chunk."""

CUT_STEPS = 8
"""Latent steps that a cut does not split: a multiple of those of every model call. A decoder then
makes the same calls as for the whole file, and the frames are equal to the last bit."""


@dataclass
class Kept:
    """Facts about optional sections that were copied.

    Attributes:
        sound_bytes: bytes of those of sound.
        notes: remarks about what is left out.
    """

    sound_bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def write(self, writer: CodeFileWriter, section: Section) -> None:
        """Write a section and count it."""
        size = writer.write_section(section)
        self.sound_bytes += size if section.kind == SOUND else 0


def cut(
    reader: CodeFileReader,
    stream: BinaryIO,
    *,
    frames: tuple[int, int],
    stages: int | None = None,
    max_bytes: int | None = None,
    audio: bool = True,
    kept: Kept | None = None,
) -> Copied:
    """Copy a part of a code file, or fewer of its stages, or both.

    Keeps the latent steps that show the frames and those before them that a decoder must have seen,
    in groups of `CUT_STEPS`. The new file decodes to the same frames as the old one.

    Args:
        reader: of a seekable file.
        stream: binary, writable.
        frames: first and last + 1 to show.
        stages: number of stages to keep of each chunk; None for all.
        max_bytes: drop more stages, the last ones first, until the file is no longer than this.
            If only some chunks need to lose their last stage, the largest are dropped first.
        audio: keep the sound.
        kept: receives facts about the sound.

    Raises:
        CodeFileError: if a needed chunk is damaged.
        UsageError: if the file has fewer stages.
        OptionError: if one stage already exceeds `max_bytes`.
    """
    header, layout = reader.header, reader.header.format
    reader.limit_stages(layout.num_stages if stages is None else stages)
    ranges = _find_ranges(reader, frames)
    if frames != (0, reader.index.num_frames):
        shape, (begin, end) = header.transform, find_seconds(reader, frames)
        start = (shape.start or Fraction(0)) + begin or None
        shape = replace(shape, start=start, duration=end - begin)
        header = replace(header, transform=shape)
    ahead = sum(some.is_ahead for some in ranges)
    shown = ranges[: len(ranges) - ahead]
    recoded = dict(_recode(reader, shown, ranges[len(shown) :]))
    steps = max([layout.chunk_steps, *(chunk.num_steps for chunk in recoded.values())])
    header = replace(header, format=replace(layout, chunk_steps=steps))
    counts = [min(stages or layout.num_stages, layout.num_stages)] * len(shown)
    if reader.version != PLAIN or max_bytes is not None:
        lengths = _lengths(reader, shown, recoded, counts[0])
        counts = [len(parts) for parts in lengths]
        if max_bytes is not None:
            fixed = _fixed_bytes(header, shown)
            fixed += sum(one.num_bytes for one in _sections(reader, frames, audio))
            counts = fit_stages(lengths, max_bytes - fixed, max_bytes)
    header = replace(header, format=replace(header.format, num_stages=max(counts)))
    version = PLAIN if _is_plain(reader, ranges, counts) else SEGMENTED
    with CodeFileWriter(stream, header, version=version) as writer:
        for some, count in zip(shown, counts, strict=True):
            reader.limit_stages(count)
            chunk = recoded.get(some.chunk) or reader.read_stored(some.chunk)
            parts = chunk.parts[:count]
            writer.write_parts(parts, chunk.num_steps, some.num_frames, some.opens)
            yield some.num_frames, chunk.num_steps, count
        for section in _sections(reader, frames, audio):
            (kept or Kept()).write(writer, section)


def _find_ranges(reader: CodeFileReader, frames: tuple[int, int]) -> list[StepRange]:
    """Find the steps to keep: some of the first and last chunk shown, all of the others.

    Segments in between are copied as stored, even if some of their steps show nothing: coding
    every segment of a joined file again would take much time and memory.
    """
    layout = reader.header.format
    trimmed, ranges = (
        list(find_ranges(reader.index, layout, frames, layout.decoder_lookback, grain))
        for grain in (CUT_STEPS if layout.window is None else None, None)
    )
    last = len(ranges) - sum(some.is_ahead for some in ranges) - 1
    for place in (0, last):
        ranges[place] = trimmed[place]
    return ranges


def _sections(reader: CodeFileReader, frames: tuple[int, int], audio: bool) -> Iterator[Section]:
    """Iterate over the optional sections of a part of a file."""
    for span in reader.frame_durations():
        if (part := span.between(*frames)) is not None:
            yield from part.to_sections()
    if audio:
        yield from map(sound_to_section, sound_between(reader, frames))


def _recode(
    reader: CodeFileReader, shown: Sequence[StepRange], ahead: Sequence[StepRange]
) -> Iterator[tuple[int, StoredChunk]]:
    """Code the chunks again of which not all steps are kept, or which get steps appended.

    Args:
        reader: of the file, which reads the wanted stages.
        shown: ranges with frames to show.
        ahead: ranges after them, on which only the frames before depend.

    Yields:
        The number of each such chunk, and what to store for it.
    """
    layout = reader.header.format
    for some in shown:
        after = ahead if some is shown[-1] else ()
        if not after and some.steps == (0, reader.index[some.chunk].num_steps):
            continue
        chunk = reader.read_chunk(some.chunk)
        codes = chunk.codes[:, :, slice(*some.steps)]
        if after:
            following = [reader.read_chunk(other.chunk).codes for other in after]
            steps = np.concatenate(following, axis=2)[:, :, : layout.decoder_lookahead]
            codes = np.concatenate([codes, steps], axis=2)
        parts = encode_parts(codes, layout, chunk.coders)
        yield some.chunk, StoredChunk(some.num_frames, codes.shape[2], parts, some.opens)


def _lengths(
    reader: CodeFileReader, shown: Sequence[StepRange], recoded: dict[int, StoredChunk], most: int
) -> list[list[int]]:
    """Bytes of each stage of each chunk, with its row in the head, of the first `most` stages."""
    row = ChunkHead.length(1) - ChunkHead.length(0)
    lengths = []
    for some in shown:
        if chunk := recoded.get(some.chunk):
            parts = [len(part.data) for part in chunk.parts]
        else:
            parts = [part.length for part in reader.read_head(some.chunk).parts]
        lengths.append([row + length for length in parts[:most]])
    return lengths


def join(
    headers: Sequence[Header],
    readers: Iterable[CodeFileReader],
    stream: BinaryIO,
    kept: Kept,
) -> Copied:
    """Copy the chunks of several code files into one file, each as a segment.

    Args:
        headers: of the files, checked with `check_alike`.
        readers: of the files; pipes are allowed.
        stream: binary, writable.
        kept: receives facts about the sound.

    Raises:
        CodeFileError: if a file is damaged.
    """
    first = headers[0]
    header = replace(
        first,
        format=replace(
            first.format,
            num_stages=max(header.format.num_stages for header in headers),
            chunk_steps=max(header.format.chunk_steps for header in headers),
        ),
        source=replace(first.source, num_frames=None),  # unknown for all sources together
        transform=replace(first.transform, duration=None),
    )
    with CodeFileWriter(stream, header, version=SEGMENTED) as writer, Joint(kept.notes) as joint:
        for reader in readers:
            before = writer.num_frames
            for chunk in reader.stored():
                writer.write_parts(chunk.parts, chunk.num_steps, chunk.num_frames, chunk.opens)
                yield chunk.num_frames, chunk.num_steps, len(chunk.parts)
            joint.add(reader, before)
        for section in joint.sections():
            kept.write(writer, section)


class Joint:
    """Optional sections of files that are joined.

    Sound waits in a temporary file, since it follows the codes of all files.

    Args:
        notes: receives remarks about sound that is missing or left out.
    """

    def __init__(self, notes: list[str]) -> None:
        self._notes, self._silent = notes, list[str]()
        self._spans: list[FrameDurations] = []
        self._begin = Fraction(0)  # seconds before the next file
        self._first: Sound | None = None
        self._last: Sound | None = None  # the last block, which is not yet written
        self._held = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Joint:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def add(self, reader: CodeFileReader, frames_before: int) -> None:
        """Add the sections of a file that was read."""
        for span in reader.frame_durations():
            first = frames_before + span.first_frame
            self._spans.append(replace(span, first_frame=first))
        _, length = find_seconds(reader, (0, reader.index.num_frames))
        is_next, begin, block = False, Fraction(0) if self._begin else None, None
        for block in reader.sound():
            self._first = self._first or block
            if block.kind != self._first.kind:
                self._notes.append(
                    f"{reader.name}: its sound is left out: {block.summary}, "
                    f"but before it is {self._first.summary}"
                )
                break
            part = block.between(begin, length).shifted(self._begin)
            if part.packets:
                self._add_sound(replace(part, setup=self._first.setup), is_next)
                is_next = True
        self._begin += length
        self._silent += [] if block else [reader.name]

    def _add_sound(self, block: Sound, is_next: bool) -> None:
        """Add a block, after leaving out the packets of an earlier file that overlap it."""
        if self._last is not None:
            start = block.packets[0].start * block.time_base
            self._hold(self._last if is_next else self._last.until(start))
        self._last = block

    def _hold(self, block: Sound) -> None:
        self._held.write(sound_to_section(block).to_bytes())

    def sections(self) -> Iterator[Section]:
        """Iterate over the sections of the joined file."""
        for span in self._spans:
            yield from span.to_sections()
        if self._last is not None:
            self._hold(self._last)
            if self._silent:
                others = f" and {len(self._silent) - 1} more" if len(self._silent) > 1 else ""
                self._notes.append(f"there is no sound in {self._silent[0]}{others}")
        size = self._held.tell()
        self._held.seek(0)
        source = ByteSource(cast(BinaryIO, self._held))
        while source.offset < size:
            yield read_section(source, ChunkHead.read(source.read(len(SOUND)), source))


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


def _is_plain(reader: CodeFileReader, ranges: Sequence[StepRange], counts: Sequence[int]) -> bool:
    """Check if a cut of these ranges is a file of version 1.0."""
    if ranges[-1].is_ahead:
        return False
    temporal = reader.header.format.temporal_compression
    steps = sum(end - begin for begin, end in (some.steps for some in ranges))
    unshown = (steps - 1) * temporal + 1 - sum(some.num_frames for some in ranges)
    return (
        reader.version == PLAIN
        and min(counts) == max(counts)
        and ranges[0].opens == 0
        and unshown < temporal
    )


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
    ours, theirs = _identity(first), _identity(other)
    for what in ours:
        if ours[what] != theirs[what]:
            raise CodeFileError(f"{other_name}: {what} {theirs[what]}, but {name} has {ours[what]}")
    stages, steps = first.format.num_stages, first.format.chunk_steps
    if replace(other.format, num_stages=stages, chunk_steps=steps) != first.format:
        raise CodeFileError(f"{other_name}: its codes are not laid out as those of {name}")


def _identity(header: Header) -> dict[str, object]:
    """Return the properties that joined files share, by their name in messages."""
    model, shape = header.model, header.transform
    return {
        "model": model.name,
        "weights": model.weights_sha256[:12],
        "config": model.config_sha256[:12],
        "size": f"{shape.width}x{shape.height}",
        "frame rate": shape.fps,
        "colour": shape.colour,
        "token learner": header.metadata.get("token_learner", "none"),
    }
