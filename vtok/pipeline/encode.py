"""encode_file: a video file to a code file or a tensor file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import vtok
from vtok.codefile import (
    PLAIN,
    VERSION,
    CodedPart,
    CodeFileWriter,
    CodeFormat,
    Header,
    ModelIdentity,
    SourceVideo,
    Transform,
    encode_parts,
    source_name,
)
from vtok.codefile.header import rational
from vtok.models.load import Model, load_model
from vtok.pipeline._runtime import worked
from vtok.pipeline.files import (
    TENSOR_WRITERS,
    CountingStream,
    join_codes,
    name_of,
    on_disk,
    open_output,
)
from vtok.pipeline.model_calls import CodeChunk, chunk_steps, encode_frames, steps_per_pass
from vtok.pipeline.options import EncodeOptions as EncodeOptions
from vtok.pipeline.options import open_reader as open_reader
from vtok.pipeline.psnr import RateControl
from vtok.pipeline.result import Counts, Progress, Result, choose_stages, make_result
from vtok.video.decoder_process import Decoder
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader


def stages_for(model: Model, num_stages: int | None, num_bits: int | None) -> int:
    """How many stages of `model` are asked for; see `choose_stages`."""
    quantizer = model.tokenizer.quantizer
    return choose_stages(num_stages, num_bits, quantizer.num_stages, quantizer.bits_per_stage)


def encode_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    model: Model | None = None,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
    decoder: Decoder | None = None,
) -> Result:
    """Encode one video file.

    Args:
        source: a video, or a picture; or a binary stream of one, which is saved to a temporary
            file first, since most formats cannot be read front to back.
        output: the file to write, or a binary stream.
        model: encodes; `vtok-base` if None.
        options: size, rate, part and format.
        progress: called as it goes.
        decoder: reads the video, if it is to read others too; one is started for it if None.

    Raises:
        InputError: if the source is missing or no readable video.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that do not fit.
    """
    model, options, begin = model or load_model(), options or EncodeOptions(), time.perf_counter()
    stages_for(model, options.num_stages, options.num_bits)  # nonsense is an error before any work
    with (
        on_disk(source) as path,
        open_reader(path, options, decoder) as reader,
        open_output(output, options.overwrite) as stream,
    ):
        header, counts = encode_opened(
            reader, stream, name=name_of(source), model=model, options=options, progress=progress
        )
    names = (name_of(source) or "-", name_of(output) or "-")
    return make_result(names, header, counts, time.perf_counter() - begin)


def encode_opened(
    reader: VideoReader,
    stream: CountingStream,
    *,
    name: str | None,
    model: Model,
    options: EncodeOptions,
    progress: Progress | None = None,
    frames: Iterable[Frames] | None = None,
    tap: Callable[[Header, Iterator[CodeChunk]], Iterator[CodeChunk]] | None = None,
) -> tuple[Header, Counts]:
    """Encode what an open reader gives; see `encode_file`.

    Args:
        reader: of the video.
        stream: where to.
        name: of the video, for the header.
        model: encodes.
        options: what the reader was opened with, too.
        progress: called as it goes.
        frames: those of the reader, where somebody stands in between.
        tap: passes the chunks on, for somebody who wants to see them.
    """
    stages = stages_for(model, options.num_stages, options.num_bits)
    header, counts = make_header(name, reader, model, stages, options), Counts()
    control = RateControl(model, header, options.rate, options.compress)
    frames = reader if frames is None else frames
    every = control.encode(frames) if options.rate else encode_frames(frames, model, stages)
    encoded = every if tap is None else tap(header, every)
    chunks = counts.follow(encoded, progress, frames_to_come(reader, options))
    if options.to == "vtok":
        _write_code_file(stream, header, chunks, options)
    else:
        _write_tensor(stream, header, chunks, options.to)
    counts.bytes, counts.psnr = stream.count, control.psnr
    return header, counts


def make_header(
    name: str | None, reader: VideoReader, model: Model, stages: int, options: EncodeOptions
) -> Header:
    """The header of a code file of what `reader` gives, `stages` stages of `model` a chunk."""
    tokenizer, info = model.tokenizer, reader.info
    width, height = reader.output_size
    space = tokenizer.spatial_compression
    grid = (-(-height // space), -(-width // space))
    return Header(
        format=CodeFormat(
            codebook_size=tokenizer.config.codebook_size,
            num_codebooks=tokenizer.config.num_codebooks,
            num_stages=stages,
            temporal_compression=tokenizer.temporal_compression,
            spatial_compression=space,
            grid=grid,
            chunk_steps=chunk_steps(model, grid, stages, steps_per_pass(model, (height, width))),
            decoder_lookback=tokenizer.decoder_lookback,
        ),
        model=ModelIdentity(
            name=model.info.name,
            config_sha256=model.info.config_sha256,
            weights_sha256=model.info.weights_sha256,
            dtype=model.dtype_name,
            device=model.device.type,
        ),
        source=SourceVideo(
            width=info.width,
            height=info.height,
            fps=info.fps,
            num_frames=info.num_frames,
            rotation=info.rotation,
            variable_frame_rate=info.variable_frame_rate,
            name=None if name is None else source_name(name),
        ),
        transform=Transform(
            width=width,
            height=height,
            fps=reader.output_fps,
            start=rational(options.start_seconds) or None,
            duration=rational(options.duration_seconds),
        ),
        writer=f"vtok {vtok.__version__}",
        metadata={"rate": str(options.rate)} if options.rate else {},
    )


def frames_to_come(reader: VideoReader, options: EncodeOptions) -> int | None:
    """About how many frames there will be, for the time left."""
    if reader.info.num_frames is None:
        known = options.duration_seconds
        return None if known is None else round(known * reader.output_fps)
    seconds = float(reader.info.num_frames / reader.info.fps) - options.start_seconds
    if options.duration_seconds is not None:
        seconds = min(seconds, options.duration_seconds)
    return max(1, round(seconds * reader.output_fps))


def _write_code_file(
    stream: CountingStream, header: Header, chunks: Iterator[CodeChunk], options: EncodeOptions
) -> None:
    version = VERSION if options.rate else PLAIN

    def code(chunk: CodeChunk) -> tuple[CodedPart, ...]:
        return chunk.parts or encode_parts(chunk.codes, header.format, compress=options.compress)

    with CodeFileWriter(cast(BinaryIO, stream), header, version=version) as writer:
        for chunk, parts in worked(chunks, code):
            writer.write_parts(parts, chunk.codes.shape[2], chunk.num_frames)


def _write_tensor(
    stream: CountingStream, header: Header, chunks: Iterator[CodeChunk], to: str
) -> None:
    codes = join_codes(list(chunks), header.format.codebook_size)
    TENSOR_WRITERS[to](cast(BinaryIO, stream), codes, header)
