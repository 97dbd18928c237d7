"""dump_file, pack_file: code files for other programs, and back."""

from __future__ import annotations

import io
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from vtok.codefile import CodeFileReader, Header
from vtok.codefile.dump import FORMATS, DumpReader, dump
from vtok.codefile.edit import Copied, check_alike, cut, join
from vtok.codefile.index import frames_between
from vtok.errors import UsageError
from vtok.pipeline.files import STANDARD_INPUT, name_of, open_input, open_output
from vtok.pipeline.result import Counts, Progress, Result, choose_stages, make_result

Source = str | Path | BinaryIO


@dataclass(frozen=True)
class CutOptions:
    """What to keep of a code file.

    Attributes:
        num_stages: stages of each chunk; all if None.
        num_bits: in place of `num_stages`, as many stages as fit into so many bits a position.
        start_seconds: where in the video to begin.
        duration_seconds: how much of it; up to its end if None.
        max_bytes: drop stages, the last ones first, until the file is no longer than this.
        overwrite: whether an existing output may be replaced.
    """

    num_stages: int | None = None
    num_bits: int | None = None
    start_seconds: float = 0.0
    duration_seconds: float | None = None
    max_bytes: int | None = None
    overwrite: bool = False


def cut_file(
    source: Source,
    output: Source,
    *,
    options: CutOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Copy a part of a code file, or fewer of its stages.

    It decodes to exactly the frames of the whole: chunks that a decoder must have seen before
    the first frame are kept as well.

    Args:
        source: a code file, or a binary stream of one.
        output: the file to write, or a binary stream.
        options: what to keep.
        progress: called as it goes.

    Raises:
        InputError: if the source is missing.
        CodeFileError: if it is damaged.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that do not fit.
    """
    begin, options = time.perf_counter(), options or CutOptions()
    with open_input(source, seekable=True) as stream:
        reader = CodeFileReader(stream, name=name_of(source) or STANDARD_INPUT)
        layout = reader.header.format
        per_stage = layout.num_codebooks * layout.bits_per_code
        stages = choose_stages(options.num_stages, options.num_bits, layout.num_stages, per_stage)
        part = (options.start_seconds, options.duration_seconds)
        frames = frames_between(reader.header, reader.index.num_frames, *part)
        with open_output(output, options.overwrite) as out:
            copied = cut(
                reader,
                cast(BinaryIO, out),
                frames=frames,
                stages=stages,
                max_bytes=options.max_bytes,
            )
            counts = count_copied(copied, reader.header, progress, frames[1] - frames[0])
            counts.bytes = out.count
    names = (name_of(source) or "-", name_of(output) or "-")
    return make_result(names, reader.header, counts, time.perf_counter() - begin)


def join_files(
    sources: Sequence[Source],
    output: Source,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Join code files of one model, size and frame rate: one video after the other.

    Args:
        sources: code files, or binary streams of them.
        output: the file to write, or a binary stream.
        overwrite: whether an existing output may be replaced.
        progress: called as it goes.

    Raises:
        InputError: if a source is missing.
        CodeFileError: if they do not fit together, or one is damaged.
        OutputError: if the output exists or cannot be written.
    """
    begin = time.perf_counter()
    names = [name_of(source) or STANDARD_INPUT for source in sources]
    streams = {
        id(source): CodeFileReader(source, name=STANDARD_INPUT)
        for source in sources
        if not isinstance(source, (str, Path))
    }
    headers = []
    for source, name in zip(sources, names, strict=True):
        with _opened(source, streams) as reader:
            headers.append(reader.header)
        check_alike(headers[0], headers[-1], names[0], name)
    with open_output(output, overwrite) as out, closing(_each(sources, streams)) as readers:
        copied = join(headers, readers, cast(BinaryIO, out))
        counts = count_copied(copied, headers[0], progress, None)
        counts.bytes = out.count
    label = " ".join(name_of(source) or "-" for source in sources)
    seconds = time.perf_counter() - begin
    return make_result((label, name_of(output) or "-"), headers[0], counts, seconds)


Streams = dict[int, CodeFileReader]
"""Readers of sources that are streams: their headers can be read once only."""


@contextmanager
def _opened(source: Source, streams: Streams) -> Iterator[CodeFileReader]:
    if id(source) in streams:
        yield streams[id(source)]
        return
    with open_input(source) as stream:
        yield CodeFileReader(stream, name=name_of(source) or STANDARD_INPUT)


def _each(sources: Sequence[Source], streams: Streams) -> Generator[CodeFileReader, None, None]:
    """A reader of each source; one file is open at a time, so there may be thousands."""
    for source in sources:
        with _opened(source, streams) as reader:
            yield reader


def count_copied(
    copied: Copied, header: Header, progress: Progress | None, total: int | None
) -> Counts:
    """Copy, and count what goes through."""
    counts = Counts()
    for frames, steps, stages in copied:
        counts.add(frames, steps, stages, stages * steps * header.format.codes_per_step)
        if progress is not None:
            progress(counts.frames, total)
    return counts


@dataclass(frozen=True)
class DumpOptions:
    """How to dump a code file.

    Attributes:
        kind: jsonl, text or bin.
        num_stages: the first so many stages of each chunk; all if None.
        num_bits: in place of `num_stages`, as many stages as fit into so many bits a position.
        overwrite: whether an existing output may be replaced.

    Raises:
        UsageError: for an unknown kind.
    """

    kind: str = "jsonl"
    num_stages: int | None = None
    num_bits: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.kind not in FORMATS:
            raise UsageError(f"--format {self.kind}: expected one of {', '.join(FORMATS)}")


def dump_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    options: DumpOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Write the codes of a code file in a form that other programs read.

    Args:
        source: a code file, or a binary stream of one.
        output: the file to write, or a binary stream.
        options: form and stages.
        progress: called as it goes.

    Raises:
        InputError: if the source is missing.
        CodeFileError: if it is damaged.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that do not fit.
    """
    begin, options = time.perf_counter(), options or DumpOptions()
    with open_input(source) as stream:
        reader = CodeFileReader(stream, name=name_of(source) or STANDARD_INPUT)
        layout = reader.header.format
        per_stage = layout.num_codebooks * layout.bits_per_code
        reader.limit_stages(
            choose_stages(options.num_stages, options.num_bits, layout.num_stages, per_stage)
        )
        with open_output(output, options.overwrite) as out:
            dumped = dump(reader, cast(BinaryIO, out), options.kind)
            counts = count_copied(dumped, reader.header, progress, reader.num_frames)
            counts.bytes = out.count
    names = (name_of(source) or "-", name_of(output) or "-")
    return make_result(names, reader.header, counts, time.perf_counter() - begin)


def pack_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Write the code file that a dump was made of.

    Args:
        source: a dump of any kind, or a binary stream of one.
        output: the file to write, or a binary stream.
        overwrite: whether an existing output may be replaced.
        progress: called as it goes.

    Raises:
        InputError: if the source is missing.
        CodeFileError: if it is no dump, or holds what no code file can hold, by line.
        OutputError: if the output exists or cannot be written.
    """
    begin = time.perf_counter()
    with open_input(source) as stream:
        if isinstance(stream, io.RawIOBase):  # lines of an unbuffered pipe come byte by byte
            stream = cast(BinaryIO, io.BufferedReader(stream))
        reader = DumpReader(stream, name=name_of(source) or STANDARD_INPUT)
        with open_output(output, overwrite) as out:
            counts = count_copied(reader.write(cast(BinaryIO, out)), reader.header, progress, None)
            counts.bytes = out.count
    names = (name_of(source) or "-", name_of(output) or "-")
    return make_result(names, reader.header, counts, time.perf_counter() - begin)
