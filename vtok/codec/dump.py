"""dump_file, pack_file: code files for other programs, and back."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from vtok.codec.copy import count_copied
from vtok.codec.files import STANDARD_INPUT, name_of, open_input, open_output
from vtok.codec.result import Progress, Result, choose_stages, make_result
from vtok.codefile import CodeFileReader
from vtok.codefile.dump import FORMATS, dump
from vtok.codefile.load import DumpReader
from vtok.errors import UsageError


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
