"""decode_file: a code file to a video file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from vtok.codefile import CodeFileReader, Header
from vtok.codefile.index import expected_frames, frames_between
from vtok.errors import CodeFileError, InputError, UsageError
from vtok.models.checkpoint import CheckpointInfo
from vtok.models.load import Model, Models
from vtok.pipeline._runtime import ahead
from vtok.pipeline.files import STANDARD_INPUT, name_of, open_input
from vtok.pipeline.model_calls import CodeChunk, Unpack, codes_of_grid, decode_codes
from vtok.pipeline.random_access import read_codes, read_frames
from vtok.pipeline.result import Counts, Progress, Result, choose_stages, make_result
from vtok.tokens.encode import unpack_tokens
from vtok.tokens.file import ORIGIN_KEY, token_origin
from vtok.tokens.model import TokenModels
from vtok.video.frames import Frames
from vtok.video.writer import VideoWriter


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode one code file.

    Attributes:
        num_stages: stages to use; all that the file has if None.
        num_bits: in place of `num_stages`, as many stages as fit into so many bits a position.
        num_tokens: of a file of learned tokens, use the first so many of each latent step.
        crf: quality of the written video's own compression, 0 (lossless) to 51.
        overwrite: whether an existing output may be replaced.
        salvage: decode the complete part of a cut or damaged file instead of refusing it.
        start_seconds: where in the video to begin. Only what is needed is read and decoded, and
            the frames are those that a decode of the whole file gives; a model that looks back
            without bound is decoded from the start.
        duration_seconds: how much of it; up to its end if None.
    """

    num_stages: int | None = None
    num_bits: int | None = None
    num_tokens: int | None = None
    crf: int = 16
    overwrite: bool = False
    salvage: bool = False
    start_seconds: float = 0.0
    duration_seconds: float | None = None

    @property
    def is_part(self) -> bool:
        """Whether less than the whole video is asked for."""
        return self.start_seconds != 0 or self.duration_seconds is not None


def decode_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    models: Models | None = None,
    tokens: TokenModels | None = None,
    options: DecodeOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Decode one code file to a video of the size, rate and number of frames that went in.

    Args:
        source: a code file, or a binary stream of one.
        output: the video to write, its format by its suffix; or a binary stream, which gets
            fragmented mp4.
        models: where the model comes from; by default the shipped one that the file names.
        tokens: where the token learner comes from, for a file of quantized tokens; likewise.
        options: stages and quality.
        progress: called as it goes.

    Raises:
        InputError: if the source is missing.
        CodeFileError: if it is damaged, cut, or was made by another model.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that do not fit.
    """
    begin, options = time.perf_counter(), options or DecodeOptions()
    name = name_of(source) or STANDARD_INPUT
    with open_input(source, seekable=options.is_part) as stream:
        reader = CodeFileReader(stream, name=name, salvage=options.salvage)
        header = reader.header
        model, unpack = find_model(header, models or Models(), tokens or TokenModels(), name)
        stages = _stages(header, options, name)
        reader.limit_stages(stages)
        size, counts = (header.transform.height, header.transform.width), Counts()
        coded, total = _codes(reader, model, options)
        codes = ahead(coded)
        first = next(codes, None)  # so that no video is begun where there is nothing to put in
        if first is None or (total == 0 and not reader.lost):
            raise CodeFileError(f"{name}: {reader.lost or 'the file is whole'}; it holds no frames")
        chunks = counts.follow(chain([first], codes), progress, total)
        write_video(output, header, decode_codes(chunks, model, size, unpack), options)
    seconds = time.perf_counter() - begin
    counts.bytes, counts.lost, counts.gaps = reader.bytes_read, reader.lost, list(reader.gaps)
    if reader.lost and total is not None:
        counts.lost_frames = max(0, total - counts.frames)
    if options.is_part:
        part = (options.start_seconds, options.duration_seconds)
        counts.start = frames_between(header, reader.index.num_frames, *part)[0]
    counts.close_gaps()
    if options.start_seconds and model.tokenizer.decoder_lookback is None:
        counts.note = f"{model.info.name} looks back without bound: decoded from the start"
    names = (name_of(source) or "-", name_of(output) or "-")
    return make_result(names, header, counts, seconds)


def _codes(
    reader: CodeFileReader, model: Model, options: DecodeOptions
) -> tuple[Iterator[CodeChunk], int | None]:
    """The codes to decode, and how many frames there should be, where that is known."""
    total, header = reader.num_frames, reader.header
    if reader.lost:  # the index was lost too: the header may still tell
        whole = expected_frames(header)
        total = None if whole is None else max(whole, total or 0)
    if not options.is_part:
        return read_codes(reader), total
    held = reader.index.num_frames
    frames = frames_between(header, held, options.start_seconds, options.duration_seconds)
    return read_frames(reader, model, frames), frames[1] - frames[0]


def find_model(
    header: Header, models: Models, tokens: TokenModels, name: str
) -> tuple[Model, Unpack]:
    """The model that decodes a file, and what makes of the file's codes what it takes.

    Raises:
        InputError: if one that the file names is not shipped.
        CodeFileError: if the file was made with another one.
    """
    try:
        model = models.get(header.model.name)
        if token_origin(header, name) is None:
            check_model(header, model, name)
            return model, codes_of_grid
        check_fingerprint(header, model.info, name)
        return model, unpack_tokens(header, model, tokens, name)
    except InputError as exc:
        raise InputError(f"{name}: {exc}") from exc


def _stages(header: Header, options: DecodeOptions, name: str) -> int:
    layout = header.format
    per_stage = layout.num_codebooks * layout.bits_per_code
    if options.num_tokens is not None:
        if ORIGIN_KEY not in header.metadata:
            raise UsageError(f"--num-tokens {options.num_tokens}: {name} holds no learned tokens")
        if not 1 <= options.num_tokens <= layout.num_stages:
            raise UsageError(
                f"--num-tokens {options.num_tokens}: {name} holds 1 to {layout.num_stages} a step"
            )
        return options.num_tokens
    return choose_stages(options.num_stages, options.num_bits, layout.num_stages, per_stage)


def write_video(
    output: str | Path | BinaryIO, header: Header, frames: Iterator[Frames], options: DecodeOptions
) -> None:
    """Write frames to a video of the size and rate that a header tells."""
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


def check_fingerprint(header: Header, info: CheckpointInfo, name: str) -> None:
    """Refuse a model with weights other than those that encoded.

    Raises:
        CodeFileError: naming both models.
    """
    theirs = header.model
    if info.weights_sha256 != theirs.weights_sha256 or info.config_sha256 != theirs.config_sha256:
        raise CodeFileError(
            f"{name}: made with the model {theirs.name} (weights {theirs.weights_sha256[:12]}), "
            f"not with {info.name} (weights {info.weights_sha256[:12]}): pass --model"
        )


def check_model(header: Header, model: Model, name: str) -> None:
    """Refuse to decode with weights other than those that encoded.

    Raises:
        CodeFileError: naming both models, or if the codes are none of this model's.
    """
    check_fingerprint(header, model.info, name)
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
        raise CodeFileError(
            f"{name}: its codes are not laid out as those of {model.info.name}: damaged"
        )
