"""encode_file: a video file to a code file or a tensor file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

import vtok
from vtok._times import exact
from vtok.codefile.header import (
    CodeFormat,
    Header,
    LatentFormat,
    LatentHeader,
    ModelIdentity,
    SourceVideo,
    Transform,
    rational,
    source_name,
)
from vtok.codefile.packing import CodedPart, encode_parts
from vtok.codefile.records import PLAIN, SEGMENTED
from vtok.codefile.sections import FrameDurations, sound_to_section
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import OptionError
from vtok.models.load import LoadedTokenizer, ModelLike, resolve
from vtok.nn.geometry import Geometry, Window
from vtok.pipeline._runtime import map_in_background
from vtok.pipeline.codec import (
    CHUNK_STEPS,
    RATE_STEPS,
    Encoder,
    chunk_steps,
    steps_per_call,
)
from vtok.pipeline.files import (
    CountingStream,
    name_of,
    on_disk,
    open_output,
    write_array,
)
from vtok.pipeline.latents import write_latents
from vtok.pipeline.options import EncodeOptions, part_metadata, select_stages
from vtok.pipeline.rate import RateControl
from vtok.pipeline.refine import refiners
from vtok.pipeline.result import CodeChunk, Counts, Observer, Progress, Result, make_result
from vtok.video.decoder_process import Decoder
from vtok.video.reader import VideoReader


def encode_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    model: ModelLike | None = None,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
    decoder: Decoder | None = None,
) -> Result:
    """Encode one video file.

    Args:
        source: a video or an image, or a binary stream of one, which is copied to a temporary
            file because most formats cannot be read front to back.
        output: the file to write, or a binary stream.
        model: a name, a path, a loaded tokenizer or a `VideoTokenizer`; `vtok-base` if None.
        options: size, rate, part and format.
        progress: called after each model call.
        decoder: process that reads the video; pass one to use it for several videos.

    Raises:
        InputError: if the source is missing or no readable video.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that the source or the model does not allow.
    """
    begin, loaded, options = time.perf_counter(), resolve(model), options or EncodeOptions()
    stages_of_model(loaded, options)  # refuses options before any work
    with (
        on_disk(source) as path,
        open_reader(path, options, decoder) as reader,
        open_output(output, options.overwrite) as stream,
    ):
        header, counts = encode_reader(
            reader, stream, name=name_of(source), model=loaded, options=options, progress=progress
        )
    add_left_out(counts, reader, options, options.to)
    return make_result(source, output, header, counts, time.perf_counter() - begin)


def open_reader(
    source: Path, options: EncodeOptions, decoder: Decoder | None = None
) -> VideoReader:
    """Open the part of a source that the options select, at their size and frame rate."""
    return VideoReader(
        source,
        **vars(options.part),
        fps=options.fps,
        size=options.size,
        reading=options.reading,
        timeout_seconds=options.timeout_seconds,
        decoder=decoder,
    )


def encode_reader(
    reader: VideoReader,
    stream: CountingStream,
    *,
    name: str | None,
    model: LoadedTokenizer,
    options: EncodeOptions,
    progress: Progress | None = None,
    observers: Sequence[Observer] = (),
) -> tuple[Header | LatentHeader, Counts]:
    """Encode the frames of an open reader; see `encode_file`.

    Args:
        reader: opened with the same options.
        stream: output.
        name: name of the video, for the header.
        model: tokenizer to encode with.
        options: rate and format.
        progress: called after each model call.
        observers: follow the encoder, after rate control.
    """
    stages = stages_of_model(model, options)
    if model.geometry.entries is None:
        return _encode_latents(reader, stream, name, model, options, progress, observers)
    header = make_header(name, reader, model, stages, options)
    counts = Counts(progress, frames_to_come(reader, options))
    rate = RateControl(model, header, options.rate, options.compress) if options.rate else None
    changes = refiners(model, options.effort, options.hysteresis, stages)
    followers = [*([rate] if rate else []), *changes, *observers, counts]
    steps = header.format.chunk_steps
    encoder = Encoder(model, stages, observers=followers, steps_per_chunk=steps, fast=options.fast)
    chunks = encoder.encode(reader)
    if options.to == "vtok":
        counts.audio_bytes = write_code_file(stream, header, chunks, options, reader)
    else:
        parts = (chunk.codes for chunk in chunks)
        durations = partial(frame_durations, reader)
        write_array(cast(BinaryIO, stream), parts, header, options.to, durations)
    counts.bytes, counts.psnr = stream.count, rate.psnr if rate else None
    add_remarks(counts, reader, model.geometry)
    return header, counts


def add_remarks(counts: Counts, reader: VideoReader, geometry: Geometry | None = None) -> None:
    """Add what a reader at its end has left out, and a clip longer than those of the training."""
    counts.missing_frames, notes = reader.missing_frames, list(reader.notes)
    if reader.missing_frames:
        lost = "frame is" if reader.missing_frames == 1 else "frames are"
        notes.append(f"{reader.missing_frames} {lost} missing: lost or damaged in the source")
    if geometry and (trained := geometry.trained_frames):
        frames = geometry.plan.frames if isinstance(geometry.plan, Window) else counts.frames_done
        if frames > trained:
            notes.append(
                f"run on {frames} frames at once, trained on {trained}: quality may suffer"
            )
    counts.note = "; ".join(notes) or None


def add_left_out(counts: Counts, reader: VideoReader, options: EncodeOptions, to: str) -> None:
    """Add that a file of the format `to` holds no sound, or no times of frames, of its source."""
    notes = [counts.note] if counts.note else []
    if to in ("npy", "tokens") and reader.durations is not None:
        notes.append(f"times of frames are left out: {to} files have one rate")
    if to != "vtok" and reader.info.has_sound and options.audio != "none":
        notes.append(f"the sound is left out: {to} files hold none")
    counts.note = "; ".join(notes) or None


def _encode_latents(
    reader: VideoReader,
    stream: CountingStream,
    name: str | None,
    model: LoadedTokenizer,
    options: EncodeOptions,
    progress: Progress | None,
    observers: Sequence[Observer],
) -> tuple[LatentHeader, Counts]:
    """Encode the frames of a reader to latents; see `encode_reader`."""
    counts = Counts(progress, frames_to_come(reader, options))
    header = make_latent_header(name, reader, model, options)
    encoder = Encoder(model, observers=[*observers, counts], latent_dtype=options.latent_dtype)
    chunks = encoder.encode(reader)
    durations = partial(frame_durations, reader)
    header = write_latents(cast(BinaryIO, stream), header, chunks, options.to, durations)
    counts.bytes = stream.count
    add_remarks(counts, reader, model.geometry)
    return header, counts


def write_code_file(
    stream: CountingStream,
    header: Header,
    chunks: Iterator[CodeChunk],
    options: EncodeOptions,
    reader: VideoReader,
) -> int:
    """Write the chunks of a reader's frames to a code file, their times if uneven, and the sound.

    Chunks are entropy-coded while the model encodes the next ones.

    Returns:
        Bytes of the sound.
    """

    def code(chunk: CodeChunk) -> tuple[CodedPart, ...]:
        return chunk.parts or encode_parts(chunk.codes, header.format, compress=options.compress)

    version = SEGMENTED if options.rate else PLAIN
    with CodeFileWriter(cast(BinaryIO, stream), header, version=version) as writer:
        for chunk, parts in map_in_background(chunks, code):
            opens = 0 if chunk.restart else None
            writer.write_parts(parts, chunk.codes.shape[2], chunk.num_frames, opens)
        durations = frame_durations(reader)
        for section in () if durations is None else durations.to_sections():
            writer.write_section(section)
        sound = map(sound_to_section, reader.sound() if options.keeps_sound else ())
        return sum(map(writer.write_section, sound))


def frame_durations(reader: VideoReader) -> FrameDurations | None:
    """Return the durations of frames of a reader at its end; None at an even rate."""
    if reader.durations is None:
        return None
    time_base, ticks = reader.durations
    return FrameDurations(0, time_base, np.array(ticks, np.int64))


def stages_of_model(model: LoadedTokenizer, options: EncodeOptions) -> int:
    """Return the number of stages that options select of a model; see `select_stages`."""
    return select_stages(options, model.info)


def make_header(
    name: str | None,
    reader: VideoReader,
    model: LoadedTokenizer,
    stages: int,
    options: EncodeOptions,
    size: tuple[int, int] | None = None,
) -> Header:
    """Make the header of a code file: frames of `reader`, encoded by `model` to `stages` stages.

    Args:
        name, reader, model, stages, options: as in `encode_reader`.
        size: (width, height) of the frames that are encoded; default: those of `reader`.

    Raises:
        OptionError: if the model does not take frames of this size.
    """
    geometry, (width, height) = model.geometry, size or reader.output_size
    grid = geometry.grid(height, width)
    most = RATE_STEPS if options.rate else CHUNK_STEPS
    steps = chunk_steps(model, grid, stages, steps_per_call(model, (height, width)), most)
    origin = _origin(name, reader, model, options, (width, height))
    return Header(format=code_format(geometry, grid, stages, steps), **origin)


def make_latent_header(
    name: str | None,
    reader: VideoReader,
    model: LoadedTokenizer,
    options: EncodeOptions,
    size: tuple[int, int] | None = None,
) -> LatentHeader:
    """Make the header of a file of latents, without its number of frames; see `make_header`."""
    geometry, (width, height) = model.geometry, size or reader.output_size
    layout = latent_format(geometry, geometry.grid(height, width), options.latent_dtype)
    origin = _origin(name, reader, model, options, (width, height))
    return LatentHeader(format=layout, num_frames=0, **origin)


def code_format(
    geometry: Geometry, grid: tuple[int, int], num_stages: int, chunk_steps: int
) -> CodeFormat:
    """Return the layout of a tokenizer's codes; the arguments are fields of `CodeFormat`."""
    return CodeFormat(
        codebook_size=geometry.codebook_size,
        num_codebooks=geometry.num_codebooks,
        num_stages=num_stages,
        temporal_compression=geometry.temporal_compression,
        spatial_compression=geometry.spatial_compression,
        grid=grid,
        chunk_steps=chunk_steps,
        decoder_lookback=geometry.lookback,
        entries=None if geometry.entries == geometry.codebook_size else geometry.entries,
        decoder_lookahead=geometry.lookahead,
        window=geometry.window_steps,
    )


def latent_format(geometry: Geometry, grid: tuple[int, int], dtype: str) -> LatentFormat:
    """Return the layout of a tokenizer's latents; the arguments are fields of `LatentFormat`."""
    return LatentFormat(
        latent_dim=geometry.latent_dim,
        dtype=dtype,
        temporal_compression=geometry.temporal_compression,
        spatial_compression=geometry.spatial_compression,
        grid=grid,
        decoder_lookahead=geometry.lookahead,
        window=geometry.window_steps,
    )


def model_identity(model: LoadedTokenizer) -> ModelIdentity:
    """Return the name and the fingerprints of a model, for a header."""
    return ModelIdentity(
        name=model.info.name,
        config_sha256=model.info.config_sha256,
        weights_sha256=model.info.weights_sha256,
        dtype=model.dtype_name,
        device=model.device.type,
    )


def _origin(
    name: str | None,
    reader: VideoReader,
    model: LoadedTokenizer,
    options: EncodeOptions,
    size: tuple[int, int],
) -> dict[str, Any]:
    """Make the fields of a header that describe the model and the video."""
    info = reader.info
    start, duration = rational(options.start_seconds), rational(options.duration_seconds)
    if options.start_frame is not None:
        start = rational(reader.start_seconds)
    if options.num_frames is not None:
        duration = rational(options.num_frames / info.fps)
    width, height = size
    if expected := model.geometry.other_size(height, width):
        refused = f"{expected}: {model.info.name} takes no frames of {width}x{height}"
        raise OptionError("size", options.size or "source", refused)
    return {
        "model": model_identity(model),
        "source": SourceVideo(
            width=info.width,
            height=info.height,
            fps=info.fps,
            num_frames=info.num_frames,
            rotation=info.rotation,
            variable_frame_rate=info.variable_frame_rate,
            name=None if name is None else source_name(name),
        ),
        "transform": Transform(
            width=width,
            height=height,
            fps=reader.output_fps,
            start=start or None,
            duration=duration,
        ),
        "writer": f"vtok {vtok.__version__}",
        "metadata": {
            **part_metadata(options.part),
            **options.reading.metadata(),
            **({"rate": str(options.rate)} if options.rate else {}),
            **({"fast": "yes"} if options.fast else {}),
            **({"effort": str(options.effort)} if options.effort else {}),
            **({"hysteresis": f"{options.hysteresis:g}"} if options.hysteresis else {}),
        },
    }


def frames_to_come(reader: VideoReader, options: EncodeOptions) -> int | None:
    """Estimate the number of frames, for the progress display; None if unknown."""
    info, part = reader.info, options.part
    if info.num_frames is None:
        known = part.duration_seconds
        return None if known is None else round(known * reader.output_fps)
    seconds = info.num_frames / info.fps - reader.start_seconds
    if part.num_frames is not None:
        seconds = min(seconds, part.num_frames / info.fps)
    elif part.duration_seconds is not None:
        seconds = min(seconds, exact(part.duration_seconds))
    return max(1, round(seconds * reader.output_fps))
