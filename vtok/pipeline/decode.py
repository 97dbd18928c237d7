"""decode_file: a code file to a video; `arrays` has the decoders of other files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Protocol

from vtok.codefile.header import Header, VideoHeader
from vtok.codefile.index import expected_frames, find_ranges
from vtok.codefile.reader import CodeFileReader
from vtok.errors import CodeFileError, InputError, OptionError
from vtok.models.checkpoint import CheckpointInfo
from vtok.models.load import LoadedTokenizer, ModelCache, ModelLike
from vtok.pipeline import extension_of, extensions
from vtok.pipeline._runtime import prefetch
from vtok.pipeline.codec import Decoder, Unpack, codes_of_grid, steps_per_call
from vtok.pipeline.files import STANDARD_INPUT, name_of, open_input
from vtok.pipeline.options import DecodeOptions, stages_of_file
from vtok.pipeline.result import CodeChunk, Counts, Progress, Result, make_result
from vtok.pipeline.sections import Extras, FileExtras, part_of_file
from vtok.video.frames import Frames
from vtok.video.outputs import open_writer


class Unpacker(Protocol):
    """Decoder of codes that are not a tokenizer's; see `pipeline.Extension`."""

    def unpack(self, header: Header, model: LoadedTokenizer, name: str) -> Unpack:
        """Return the function that turns codes of a file into the tokenizer's input.

        Raises:
            InputError: if a checkpoint that the file names is not shipped.
            CodeFileError: if the file was made with another checkpoint, or is damaged.
        """


@dataclass(frozen=True)
class DecodeRequest:
    """Arguments of `decode_file`, complete."""

    source: Path | BinaryIO
    output: str | Path | BinaryIO
    models: ModelCache
    options: DecodeOptions
    tokens: Unpacker | None
    progress: Progress | None

    @property
    def name(self) -> str:
        """Name of the source in errors."""
        return name_of(self.source) or STANDARD_INPUT


def decode_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    model: ModelLike | ModelCache | None = None,
    tokens: Unpacker | None = None,
    options: DecodeOptions | None = None,
    progress: Progress | None = None,
) -> Result:
    """Decode one code file to a video with the size, rate and number of frames of the source.

    Args:
        source: a code file or a file of latents, or a binary stream of one; an array of codes
            (npy, safetensors or pt; a stream of npy), or a shard of a data set.
        output: the video to write, its format chosen by its suffix: also `.npy`, and a pattern of
            pictures such as `frame_%04d.png`; or a binary stream, which receives fragmented mp4
            unless `options.to` names another format.
        model: a name, a path, a loaded tokenizer, a `VideoTokenizer`, or a `ModelCache`; the
            shipped model that the file, or its data set, names if None.
        tokens: a `TokenModels`, for files of learned tokens; the shipped learners if None.
        options: stages, part and quality; size and rate of an array, and the item of a shard.
        progress: called after each model call.

    Raises:
        InputError: if the source is missing.
        CodeFileError: if it is damaged, cut, or was made by another model.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that the file does not allow.
    """
    request = DecodeRequest(
        Path(source) if isinstance(source, str) else source,
        output,
        ModelCache.of(model),
        options or DecodeOptions(),
        tokens,
        progress,
    )
    for extension in extensions():
        if (result := extension.decode(request)) is not None:
            return result
    return decode_code_file(request, request.source)


def decode_code_file(
    request: DecodeRequest, content: Path | BinaryIO, *, is_shard: bool = False
) -> Result:
    """Decode a code file, or one that is an item of a shard; see `decode_file`.

    Args:
        request: what to decode, and how.
        content: the code file.
        is_shard: the content is an item of the source.
    """
    begin, options = time.perf_counter(), request.options
    name = request.name
    with open_input(content, seekable=options.is_part) as stream:
        reader = CodeFileReader(stream, name=name, salvage=options.salvage)
        header = reader.header
        options.check_stated(name, is_shard=is_shard)
        loaded, unpack = find_model(header, request.models, name, request.tokens)
        reader.limit_stages(_stages(header, options, name))
        frames = part_of_file(reader, options.part) if options.is_part else None
        extras = FileExtras(reader, frames, options)
        found, total = _read(reader, loaded, frames)  # the thread below then owns the stream
        chunks = prefetch(found)
        first = next(chunks, None)  # without a chunk no video is begun
        if first is None or (total == 0 and not reader.lost):
            raise CodeFileError(f"{name}: {reader.lost or 'the file is whole'}; it holds no frames")
        counts = Counts(request.progress, total)
        size = (header.transform.height, header.transform.width)
        decoder = Decoder(loaded, size, unpack, observers=[counts])
        video = decoder.decode(chain([first], chunks))
        write_video(request.output, header, video, options, extras)
    seconds = time.perf_counter() - begin
    counts.audio_bytes = reader.sound_bytes_read
    counts.bytes, counts.lost, counts.gaps = reader.bytes_read, reader.lost, list(reader.gaps)
    if reader.lost and total is not None:
        counts.lost_frames = max(0, total - counts.frames_done)
    counts.start = 0 if frames is None else frames[0]
    counts.close_gaps()
    if counts.start and loaded.geometry.lookback is None:
        extras.notes.append(f"{loaded.info.name} has unbounded lookback: decoded from the start")
    counts.note = "; ".join(extras.notes) or None
    return make_result(request.source, request.output, header, counts, seconds)


def _read(
    reader: CodeFileReader, model: LoadedTokenizer, frames: tuple[int, int] | None
) -> tuple[Iterator[CodeChunk], int | None]:
    """Select the codes to decode; also returns the expected number of frames, if known."""
    total, header = reader.num_frames, reader.header
    if reader.lost:  # the index is lost too, but the header may give the number
        whole = expected_frames(header)
        total = None if whole is None else max(whole, total or 0)
    if frames is None:
        return read_codes(reader), total
    return read_frames(reader, model, frames), frames[1] - frames[0]


def read_codes(reader: CodeFileReader) -> Iterator[CodeChunk]:
    """Read all codes in order."""
    for chunk in reader:
        yield CodeChunk(chunk.codes, chunk.num_frames, chunk.restart, chunk.skip)


def read_frames(
    reader: CodeFileReader, model: LoadedTokenizer, frames: tuple[int, int]
) -> Iterator[CodeChunk]:
    """Read only the codes that are needed to decode a range of frames.

    Args:
        reader: reader of a seekable file.
        model: tokenizer that will decode the codes.
        frames: number of the first frame, and of the one after the last.

    Raises:
        CodeFileError: if a chunk is damaged; a reader that salvages skips it.
    """
    header, lookback = reader.header, model.geometry.lookback
    grain = steps_per_call(model, (header.transform.height, header.transform.width))
    first, fresh = frames[0], False  # fresh: the decoder must be restarted at the next chunk
    for wanted in find_ranges(reader.index, header.format, frames, lookback, grain):
        fresh, end = fresh or wanted.opens is not None, first + wanted.num_frames
        try:
            codes = reader.read_chunk(wanted.chunk).codes
        except CodeFileError as exc:
            if not reader.salvage:
                raise
            reader.lost = reader.lost or str(exc.__cause__ or exc)
            reader.gaps.append((first, end))
        else:
            # if the opening range is lost, the first step of the next decodes to one frame only
            early = header.format.temporal_compression - 1 if fresh and wanted.opens is None else 0
            missing = min(wanted.num_frames, max(0, early - wanted.skip))
            if missing:
                reader.gaps.append((first, first + missing))
            part = codes[:, :, slice(*wanted.steps)]
            frames_left, skip = wanted.num_frames - missing, max(0, wanted.skip - early)
            yield CodeChunk(part, frames_left, fresh, skip)
            fresh = False
        first = end


def find_model(
    header: Header, models: ModelCache, name: str, tokens: Unpacker | None = None
) -> tuple[LoadedTokenizer, Unpack]:
    """Return the model that decodes a file, and the function that prepares the codes for it.

    Raises:
        InputError: if a checkpoint that the file names is not shipped.
        CodeFileError: if the file was made with another one.
    """
    extension = extension_of(header.metadata)
    try:
        model = models.get(header.model.name)
        if extension is None:
            check_model(header, model, name)
            return model, codes_of_grid
        check_fingerprint(header, model.info, name)
        return model, (tokens or extension.unpacker()).unpack(header, model, name)
    except InputError as exc:
        raise InputError(f"{name}: {exc}") from exc


def _stages(header: Header, options: DecodeOptions, name: str) -> int:
    count = options.num_tokens
    if count is None:
        return stages_of_file(header.format, options)
    if extension_of(header.metadata) is None:
        raise OptionError("num_tokens", count, f"a file of learned tokens, which {name} is not")
    if not 1 <= count <= header.format.num_stages:
        raise OptionError("num_tokens", count, f"1 to {header.format.num_stages} for {name}")
    return count


def write_video(
    output: str | Path | BinaryIO,
    header: VideoHeader,
    frames: Iterator[Frames],
    options: DecodeOptions,
    extras: Extras | None = None,
) -> None:
    """Write frames to an output of any format, with the size and frame rate of a header.

    Args:
        output: video, pictures or array to write.
        header: of the file that the frames are from.
        frames: uint8 [n, H, W, 3].
        options: format and quality, and whether to replace an existing output.
        extras: times of the frames, and sound.
    """
    target = Path(output) if isinstance(output, str) else output
    shape = header.transform
    with open_writer(
        target,
        width=shape.width,
        height=shape.height,
        fps=shape.fps,
        crf=options.crf,
        to=options.to,
        overwrite=options.overwrite,
        spool=extras is not None and extras.may_exist,
    ) as writer:
        for batch in frames:
            writer.write(batch)
        if extras is not None:
            extras.give(writer)


def check_fingerprint(header: VideoHeader, info: CheckpointInfo, name: str) -> None:
    """Check that a model has the weights that encoded the file.

    Raises:
        CodeFileError: if it has others; names both models.
    """
    theirs = header.model
    if info.weights_sha256 != theirs.weights_sha256 or info.config_sha256 != theirs.config_sha256:
        raise CodeFileError(
            f"{name}: made with the model {theirs.name} (weights {theirs.weights_sha256[:12]}), "
            f"not with {info.name} (weights {info.weights_sha256[:12]}): give the former as `model`"
        )


def check_model(header: Header, model: LoadedTokenizer, name: str) -> None:
    """Check that a model can decode the codes of a file.

    Raises:
        CodeFileError: if it has other weights, or the layout of the codes differs.
    """
    check_fingerprint(header, model.info, name)
    geometry, layout = model.geometry, header.format
    expected = (
        geometry.entries,
        geometry.num_codebooks,
        geometry.temporal_compression,
        geometry.spatial_compression,
        geometry.lookahead,
        geometry.window_steps,
    )
    found = (
        layout.num_entries,
        layout.num_codebooks,
        layout.temporal_compression,
        layout.spatial_compression,
        layout.decoder_lookahead,
        layout.window,
    )
    if found != expected or layout.num_stages > geometry.num_stages:
        raise CodeFileError(
            f"{name}: its codes are not laid out as those of {model.info.name}: damaged"
        )
