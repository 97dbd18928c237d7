"""Edit code files without decoding: cut, join, dump for other programs, and pack dumps."""

from __future__ import annotations

import io
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from vtok.codefile.dump import DumpReader, dump
from vtok.codefile.edit import Copied, Kept, check_alike, cut, join
from vtok.codefile.header import Header
from vtok.codefile.reader import CodeFileReader
from vtok.pipeline.files import STANDARD_INPUT, name_of, open_input, open_output
from vtok.pipeline.options import CutOptions, DumpOptions, stages_of_file
from vtok.pipeline.result import Counts, End, Progress, Result, make_result
from vtok.pipeline.sections import part_of_file


def cut_file(
    source: End,
    output: End,
    *,
    options: CutOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Copy a part of a code file, or fewer of its stages.

    The part decodes to exactly the frames of the whole file: latent steps before the first frame
    that the decoder needs are kept as well.

    Args:
        source: a code file, or a binary stream of one.
        output: the file to write, or a binary stream.
        options: part and stages to keep.
        progress: called after each chunk.

    Raises:
        InputError: if the source is missing.
        CodeFileError: if it is damaged.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that do not fit.
    """
    begin, options = time.perf_counter(), options or CutOptions()
    with open_input(source, seekable=True) as stream:
        reader = CodeFileReader(stream, name=name_of(source) or STANDARD_INPUT)
        stages = stages_of_file(reader.header.format, options)
        frames = part_of_file(reader, options.part)
        with open_output(output, options.overwrite) as out:
            kept = Kept()
            copied = cut(
                reader,
                cast(BinaryIO, out),
                frames=frames,
                stages=stages,
                max_bytes=options.max_bytes,
                audio=options.audio,
                kept=kept,
            )
            counts = count_copied(copied, reader.header, progress, frames[1] - frames[0])
            counts.bytes, counts.audio_bytes = out.count, kept.sound_bytes
    return make_result(source, output, reader.header, counts, time.perf_counter() - begin)


def join_files(
    sources: Sequence[End],
    output: End,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Join code files of one model, size and frame rate into one video, in order.

    Args:
        sources: code files, or binary streams of them.
        output: the file to write, or a binary stream.
        overwrite: replace an existing output.
        progress: called after each chunk.

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
        kept = Kept()
        copied = join(headers, readers, cast(BinaryIO, out), kept)
        counts = count_copied(copied, headers[0], progress, None)
        counts.bytes, counts.audio_bytes = out.count, kept.sound_bytes
        counts.note = "; ".join(kept.notes) or None
    label = " ".join(name_of(source) or "-" for source in sources)
    seconds = time.perf_counter() - begin
    return make_result(label, output, headers[0], counts, seconds)


Streams = dict[int, CodeFileReader]
"""Readers of sources that are streams, whose headers can be read only once."""


@contextmanager
def _opened(source: End, streams: Streams) -> Iterator[CodeFileReader]:
    if id(source) in streams:
        yield streams[id(source)]
        return
    with open_input(source) as stream:
        yield CodeFileReader(stream, name=name_of(source) or STANDARD_INPUT)


def _each(sources: Sequence[End], streams: Streams) -> Generator[CodeFileReader, None, None]:
    """Iterate over readers of the sources; one file is open at a time, for thousands of files."""
    for source in sources:
        with _opened(source, streams) as reader:
            yield reader


def count_copied(
    copied: Copied, header: Header, progress: Progress | None, total: int | None
) -> Counts:
    """Run a copy and count its chunks."""
    counts = Counts(progress, total)
    for frames, steps, stages in copied:
        counts.add(frames, steps, stages, stages * steps * header.format.codes_per_step)
    return counts


def dump_file(
    source: End,
    output: End,
    *,
    options: DumpOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Write the codes of a code file in a format for other programs.

    Arguments and errors are those of `cut_file`; the options are format and stages.
    """
    begin, options = time.perf_counter(), options or DumpOptions()
    with open_input(source) as stream:
        reader = CodeFileReader(stream, name=name_of(source) or STANDARD_INPUT)
        reader.limit_stages(stages_of_file(reader.header.format, options))
        with open_output(output, options.overwrite) as out:
            dumped = dump(reader, cast(BinaryIO, out), options.kind)
            counts = count_copied(dumped, reader.header, progress, reader.num_frames)
            counts.bytes = out.count
    return make_result(source, output, reader.header, counts, time.perf_counter() - begin)


def pack_file(
    source: End,
    output: End,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Write the code file that a dump was made from.

    Args:
        source: a dump of any format, or a binary stream of one.
        output: the file to write, or a binary stream.
        overwrite: replace an existing output.
        progress: called after each chunk.

    Raises:
        InputError: if the source is missing.
        CodeFileError: if it is no dump, or holds values that no code file can; names the line.
        OutputError: if the output exists or cannot be written.
    """
    begin = time.perf_counter()
    with open_input(source) as stream:
        if isinstance(stream, io.RawIOBase):  # reads lines of an unbuffered pipe byte by byte
            stream = cast(BinaryIO, io.BufferedReader(stream))
        reader = DumpReader(stream, name=name_of(source) or STANDARD_INPUT)
        with open_output(output, overwrite) as out:
            counts = count_copied(reader.write(cast(BinaryIO, out)), reader.header, progress, None)
            counts.bytes = out.count
    return make_result(source, output, reader.header, counts, time.perf_counter() - begin)
