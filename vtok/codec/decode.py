"""decode_file: a code file to a video file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from vtok.codec.result import Counts, Progress, Result, choose_stages, make_result
from vtok.codec.streams import CodeChunk, Frames, decode_codes
from vtok.codefile import CodeFileReader, Header
from vtok.errors import CodeFileError, InputError
from vtok.media.writer import VideoWriter
from vtok.model import Model, Models


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode one code file.

    Attributes:
        num_stages: stages to use; all that the file has if None.
        num_bits: in place of `num_stages`, as many stages as fit into so many bits a position.
        crf: quality of the written video's own compression, 0 (lossless) to 51.
        overwrite: whether an existing output may be replaced.
        salvage: decode the complete part of a cut or damaged file instead of refusing it.
    """

    num_stages: int | None = None
    num_bits: int | None = None
    crf: int = 16
    overwrite: bool = False
    salvage: bool = False


def decode_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    models: Models | None = None,
    options: DecodeOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Decode one code file to a video of the size, rate and number of frames that went in.

    Args:
        source: a code file, or a binary stream of one.
        output: the video to write, its format by its suffix; or a binary stream, which gets
            fragmented mp4.
        models: where the model comes from; by default the shipped one that the file names.
        options: stages and quality.
        progress: called as it goes.

    Raises:
        InputError: if the source is missing.
        CodeFileError: if it is damaged, cut, or was made by another model.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that do not fit.
    """
    begin, options = time.perf_counter(), options or DecodeOptions()
    name = str(source) if isinstance(source, (str, Path)) else "standard input"
    with _open_input(source) as stream:
        reader = CodeFileReader(stream, name=name, salvage=options.salvage)
        header = reader.header
        model = _model(header, models or Models(), name)
        stages = _stages(header, options)
        reader.limit_stages(stages)
        counts = Counts()
        codes = (CodeChunk(chunk.codes, chunk.num_frames) for chunk in reader)
        first = next(codes, None)  # so that no video is begun where there is nothing to put in
        if first is None:
            raise CodeFileError(f"{name}: {reader.lost or 'the file is whole'}; it holds no frames")
        chunks = counts.follow(chain([first], codes), progress, reader.num_frames)
        size = (header.transform.height, header.transform.width)
        _write_video(output, header, decode_codes(chunks, model, size), options)
    names = (
        str(source) if isinstance(source, (str, Path)) else "-",
        str(output) if isinstance(output, (str, Path)) else "-",
    )
    seconds = time.perf_counter() - begin
    counts.bytes, counts.lost = reader.bytes_read, reader.lost
    return make_result(names, header, stages, counts, seconds)


def _model(header: Header, models: Models, name: str) -> Model:
    try:
        model = models.get(header.model.name)
    except InputError as exc:
        raise InputError(f"{name}: {exc}") from exc
    check_model(header, model, name)
    return model


def _stages(header: Header, options: DecodeOptions) -> int:
    layout = header.format
    per_stage = layout.num_codebooks * layout.bits_per_code
    return choose_stages(options.num_stages, options.num_bits, layout.num_stages, per_stage)


def _write_video(
    output: str | Path | BinaryIO, header: Header, frames: Iterator[Frames], options: DecodeOptions
) -> None:
    target = Path(output) if isinstance(output, str) else output
    shape = header.transform
    with VideoWriter(
        target,
        width=shape.width,
        height=shape.height,
        fps=shape.fps,
        crf=options.crf,
        overwrite=options.overwrite,
    ) as writer:
        for batch in frames:
            writer.write(batch)


@contextmanager
def _open_input(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    if not isinstance(source, (str, Path)):
        yield source
        return
    try:
        with Path(source).open("rb") as file:
            yield file
    except FileNotFoundError as exc:
        raise InputError(f"{source}: no such file") from exc
    except IsADirectoryError as exc:
        raise InputError(f"{source}: is a folder, not a code file") from exc
    except OSError as exc:
        raise InputError(f"{source}: cannot be read ({exc.strerror})") from exc


def check_model(header: Header, model: Model, name: str) -> None:
    """Refuse to decode with weights other than those that encoded.

    Raises:
        CodeFileError: naming both models.
    """
    ours, theirs = model.info, header.model
    if ours.weights_sha256 != theirs.weights_sha256 or ours.config_sha256 != theirs.config_sha256:
        raise CodeFileError(
            f"{name}: made with the model {theirs.name} (weights {theirs.weights_sha256[:12]}), "
            f"not with {ours.name} (weights {ours.weights_sha256[:12]}): pass --model"
        )
    tokenizer, layout = model.tokenizer, header.format
    expected = (
        tokenizer.config.codebook_size,
        tokenizer.config.num_codebooks,
        tokenizer.temporal_compression,
        tokenizer.spatial_compression,
    )
    found = (
        layout.codebook_size,
        layout.num_codebooks,
        layout.temporal_compression,
        layout.spatial_compression,
    )
    if found != expected or layout.num_stages > tokenizer.config.num_stages:
        raise CodeFileError(f"{name}: its codes are not laid out as those of {ours.name}: damaged")
