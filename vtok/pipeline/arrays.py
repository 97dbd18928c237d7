"""Decoding of arrays of codes, which are checked against a tokenizer, and of latents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

import vtok
from vtok._times import Part
from vtok.codefile.header import (
    Header,
    LatentHeader,
    SourceVideo,
    Transform,
    VideoHeader,
    source_name,
)
from vtok.codefile.index import expected_frames
from vtok.codefile.sections import FileTimes, FrameDurations, check_durations, find_times
from vtok.errors import CodeFileError, InputError, OptionError
from vtok.models.load import LoadedTokenizer
from vtok.nn.geometry import Geometry
from vtok.pipeline import Extension
from vtok.pipeline._runtime import prefetch
from vtok.pipeline.array_files import (
    READ_STEPS,
    Array,
    LatentFile,
    StoredArray,
    is_latent_file,
    kind_of,
    most_frames,
    read_steps,
    read_stored,
)
from vtok.pipeline.codec import Decoder, steps_per_call
from vtok.pipeline.decode import (
    DecodeRequest,
    check_fingerprint,
    check_model,
    decode_code_file,
    write_video,
)
from vtok.pipeline.encode import code_format, latent_format, model_identity
from vtok.pipeline.files import on_disk
from vtok.pipeline.options import DecodeOptions, choose_stages
from vtok.pipeline.result import CodeChunk, Codes, Counts, Result, make_result
from vtok.pipeline.sections import Extras, frames_of_part
from vtok.video.frames import DEFAULT_FPS, parse_fps, parse_size


@dataclass(frozen=True)
class CodeArray:
    """Codes or latents of one video, ready for a decoder.

    Attributes:
        codes: integers [stages, codebooks, t, h, w], or latents [1, D, t, h, w].
        header: of the file, or made from options and facts.
        num_frames: frames of the video.
        note: remark for the user; None if there is none.
    """

    codes: Array
    header: Header | LatentHeader
    num_frames: int
    note: str | None

    def chunks(
        self, frames: tuple[int, int], lookback: int | None, grain: int
    ) -> Iterator[CodeChunk]:
        """Read what a decoder needs for some frames; see `read_steps`."""
        layout, num_steps = self.header.format, self.codes.shape[2]
        return read_steps(self._read, num_steps, layout, frames, lookback, grain)

    def _read(self, first: int, last: int) -> Codes:
        part = self.codes[:, :, first:last]
        return np.ascontiguousarray(part, None if part.dtype.kind == "f" else np.int64)


def fit_array(stored: StoredArray, model: LoadedTokenizer, options: DecodeOptions) -> CodeArray:
    """Check an array against a tokenizer, and complete its header.

    Args:
        stored: the array, and what is known of the video.
        model: tokenizer that will decode it.
        options: size and frame rate, which precede those of `stored.facts`.

    Raises:
        CodeFileError: if shape, type, values or size do not fit the tokenizer.
        OptionError: for options that do not fit the array.
    """
    geometry, name = model.geometry, stored.name
    codes = _arrange(stored.array, geometry, name, model.info.name)
    steps, window = codes.shape[2], geometry.window_steps
    most = most_frames(steps, geometry.temporal_compression, window)
    if not most:
        raise CodeFileError(f"{name}: has {steps} latent steps, not windows of {window}")
    if stored.facts.get("weights_sha256", model.info.weights_sha256) != model.info.weights_sha256:
        raise CodeFileError(
            f"{name}: made with other weights than those of {model.info.name}: give the model that "
            "made it as `model`"
        )
    if stored.header is not None:
        options.check_stated(name)
        found = _with_header(codes, stored.header, most, geometry, name)
        return replace(found, codes=_limit_stages(codes, geometry, options, name))
    codes = _limit_stages(codes, geometry, options, name)
    header = _make_header(codes, stored, model, options)
    frames = _whole(stored, "frames", most)
    if not 1 <= frames <= most:
        raise CodeFileError(f"{name}: its {steps} steps are not those of {frames} frames")
    fps_known = options.fps is not None or stored.facts.get("fps") is not None
    note = None if fps_known else f"frame rate not known, {DEFAULT_FPS}/s taken"
    return CodeArray(codes, header, frames, note)


def _arrange(array: Array, geometry: Geometry, name: str, model: str) -> Array:
    """View an array as [stages, codebooks, t, h, w] or [1, D, t, h, w]; check type and values."""
    entries, books, shape = geometry.entries, geometry.num_codebooks, array.shape
    kind = "f" if entries is None else "iu"
    if array.dtype.kind not in kind:
        expected = "latents of a float type" if entries is None else "codes, which are integers"
        raise CodeFileError(f"{name}: holds {array.dtype}, but {model} takes {expected}")
    rows = 1 if entries is None else geometry.num_stages  # groups of channels or codebooks
    size = geometry.latent_dim if entries is None else books
    arranged = array[None] if array.ndim == 3 else array
    if arranged.ndim == 5 and arranged.shape[0] == 1 and arranged.shape[1] != size:
        arranged = arranged[0]  # a batch of one
    if arranged.ndim == 4 and arranged.size and arranged.shape[0] % size == 0:
        arranged = arranged.reshape(-1, size, *arranged.shape[1:])
    if (
        arranged.ndim != 5
        or arranged.shape[1] != size
        or not 1 <= arranged.shape[0] <= rows
        or 0 in arranged.shape
    ):
        expected = _shapes(geometry)
        raise CodeFileError(f"{name}: has the shape {list(shape)}, {model} takes {expected}")
    if entries is None:
        if not np.isfinite(array).all():
            raise CodeFileError(f"{name}: holds NaN or infinities")
    elif array.min() < 0 or array.max() >= entries:
        place = np.argwhere((array < 0) | (array >= entries))[0].tolist()
        value = array[tuple(place)]
        raise CodeFileError(
            f"{name}: holds {value} at {place}, the codes of {model} go from 0 to {entries - 1}"
        )
    return arranged


def _limit_stages(codes: Array, geometry: Geometry, options: DecodeOptions, name: str) -> Array:
    """Keep the stages that the options select."""
    for key in ("num_stages", "num_bits", "num_tokens"):
        value = getattr(options, key)
        if value is not None and (geometry.entries is None or key == "num_tokens"):
            held = "latents and no codes" if geometry.entries is None else "codes of a tokenizer"
            raise OptionError(key, value, f"none: {name} holds {held}")
    if geometry.entries is None:
        return codes
    available, bits = len(codes), geometry.stored_bits
    return codes[: choose_stages(options.num_stages, options.num_bits, available, bits)]


def _shapes(geometry: Geometry) -> str:
    """List the shapes that a tokenizer takes."""
    if geometry.entries is None:
        return f"[{geometry.latent_dim}, t, h, w]"
    stages, books = geometry.num_stages, geometry.num_codebooks
    counts = str(books * stages) if stages == 1 else f"{books} to {books * stages}"
    shapes = [f"[{counts}, t, h, w]", f"[{'S, ' if stages > 1 else '1, '}{books}, t, h, w]"]
    return " or ".join([*(["[t, h, w]"] if books == 1 else []), *shapes])


def _with_header(
    codes: Array, header: Header, most: int, geometry: Geometry, name: str
) -> CodeArray:
    """Check an array against the header in its own file."""
    layout, window = header.format, geometry.window_steps
    found = (len(codes), *codes.shape[3:])
    if found != (layout.num_stages, *layout.grid):
        raise CodeFileError(f"{name}: its codes do not match its header")
    frames = expected_frames(header) or most  # the header has an estimate
    temporal = geometry.temporal_compression
    step = temporal if window is None else most_frames(window, temporal)
    return CodeArray(codes, header, frames if most - step < frames <= most else most, None)


def _make_header(
    codes: Array, stored: StoredArray, model: LoadedTokenizer, options: DecodeOptions
) -> Header | LatentHeader:
    """Make the header that a file of these codes would have."""
    geometry, grid = model.geometry, codes.shape[3:]
    width, height = _size(grid, stored, geometry, options)
    fps = options.fps or _fps(stored)
    common: dict[str, Any] = {
        "model": model_identity(model),
        "source": SourceVideo(width, height, fps, name=source_name(stored.name)),
        "transform": Transform(width, height, fps),
        "writer": f"vtok {vtok.__version__}",
    }
    if geometry.entries is None:
        dtype = "float16" if codes.dtype.itemsize == 2 else "float32"
        return LatentHeader(format=latent_format(geometry, grid, dtype), num_frames=0, **common)
    layout = code_format(geometry, grid, len(codes), geometry.window_steps or READ_STEPS)
    return Header(format=layout, **common)


def _size(
    grid: tuple[int, ...], stored: StoredArray, geometry: Geometry, options: DecodeOptions
) -> tuple[int, int]:
    """Return width and height of the frames; all of the grid if they are not known."""
    space = geometry.spatial_compression
    full = grid[1] * space, grid[0] * space
    if options.size is not None:
        width, height = parse_size(options.size, *full)
    else:
        width, height = (_whole(stored, key, most) for key, most in
                         zip(("width", "height"), full, strict=True))  # fmt: skip
    if width < 1 or height < 1 or geometry.grid(height, width) != grid:
        text = f"{stored.name}: a grid of {grid[0]}x{grid[1]} positions"
        if options.size is not None:
            shown = f"a size that fits {full[0]}x{full[1]}, of {text}"
            raise OptionError("size", options.size, shown)
        raise CodeFileError(f"{text} does not fit frames of {width}x{height}")
    return width, height


def _whole(stored: StoredArray, key: str, default: int) -> int:
    value = stored.facts.get(key)
    if value is not None and type(value) is not int:
        raise CodeFileError(f"{stored.name}: its header states {key} {str(value)[:40]!r}")
    return default if value is None else value


def _fps(stored: StoredArray) -> Fraction:
    value = stored.facts.get("fps")
    try:
        return DEFAULT_FPS if value is None else parse_fps(str(value))
    except OptionError as exc:
        text = str(value)[:40]
        raise CodeFileError(f"{stored.name}: its header states a frame rate of {text!r}") from exc


class _Extension(Extension):
    """Arrays of codes and files of latents in the pipeline."""

    def decode(self, request: DecodeRequest) -> Result | None:
        source = request.source
        if (kind := kind_of(source)) is not None:
            with on_disk(source) as path:
                stored = read_stored(path, kind, request.name, request.options)
                if isinstance(stored, StoredArray):
                    return _decode_array(request, stored)
            return decode_code_file(request, BytesIO(stored), is_shard=True)
        return _decode_latents(request) if is_latent_file(source) else None

    def contents(self, path: Path, part: Part) -> tuple[VideoHeader, int] | None:
        if not is_latent_file(path):
            return None
        file = LatentFile(path, str(path))
        header, total = file.header, file.header.num_frames
        times = _times(file.facts, header, total, file.name)
        first, end = frames_of_part(header, total, times, part)
        return header, end - first


EXTENSION = _Extension()


def _decode_latents(request: DecodeRequest) -> Result:
    """Decode one file of latents."""
    begin, name, options = time.perf_counter(), request.name, request.options
    for field in ("num_stages", "num_bits", "num_tokens"):
        if (value := getattr(options, field)) is not None:
            raise OptionError(field, value, f"none: {name} holds latents and no codes")
    options.check_stated(name)
    with on_disk(request.source) as path:
        file = LatentFile(path, name)
        header = file.header
        model = _find_model(request, header.model.name, name)
        check_fingerprint(header, model.info, name)
        if model.geometry.latent_dim != header.format.latent_dim:
            raise CodeFileError(f"{name}: its latents are not those of {model.info.name}: damaged")
        counts = _decode_steps(request, model, file, header.num_frames, name, file.facts)
        counts.bytes = path.stat().st_size
    seconds = time.perf_counter() - begin
    return make_result(request.source, request.output, header, counts, seconds)


def _decode_array(request: DecodeRequest, stored: StoredArray) -> Result:
    """Decode one array of codes or latents."""
    begin, name = time.perf_counter(), stored.name
    model = _find_model(request, stored.model, name)
    if stored.header is not None:
        check_model(stored.header, model, name)
    found = fit_array(stored, model, request.options)
    facts = stored.facts if request.options.fps is None else {}
    counts = _decode_steps(request, model, found, found.num_frames, name, facts)
    counts.bytes = stored.array.nbytes
    counts.note = "; ".join(filter(None, (found.note, counts.note))) or None
    seconds = time.perf_counter() - begin
    return make_result(request.source, request.output, found.header, counts, seconds)


def _find_model(request: DecodeRequest, model: str | None, name: str) -> LoadedTokenizer:
    try:
        return request.models.get(model)
    except InputError as exc:
        raise InputError(f"{name}: {exc}") from exc


def _times(
    facts: dict[str, Any], header: VideoHeader, num_frames: int, name: str
) -> FileTimes | None:
    """Compute the times of frames that facts state; None at an even rate."""
    if (value := facts.get("frame_times")) is None:
        return None
    fps = header.transform.fps
    try:
        durations = FrameDurations.from_json(value)
        if durations.end != num_frames:
            raise ValueError(f"durations of {durations.end} frames, not of {num_frames}")
        return find_times(check_durations([durations], num_frames, fps), num_frames, fps)
    except ValueError as exc:
        raise CodeFileError(f"{name}: its times of frames are damaged: {exc}") from exc
    except CodeFileError as exc:
        raise CodeFileError(f"{name}: {exc}") from exc


def _decode_steps(
    request: DecodeRequest,
    model: LoadedTokenizer,
    file: LatentFile | CodeArray,
    num_frames: int,
    name: str,
    facts: dict[str, Any],
) -> Counts:
    """Decode the requested frames of an array of latent steps, at the times that facts state."""
    header, options = file.header, request.options
    frames, size = (0, num_frames), (header.transform.height, header.transform.width)
    times = _times(facts, header, num_frames, name)
    if options.is_part:
        frames = frames_of_part(header, num_frames, times, options.part)
    extras = Extras(None if options.constant_rate else times, frames)
    counts = Counts(request.progress, frames[1] - frames[0])
    grain = steps_per_call(model, size)
    chunks = prefetch(file.chunks(frames, model.geometry.lookback, grain))
    video = Decoder(model, size, observers=[counts]).decode(chunks)
    write_video(request.output, header, video, options, extras)
    counts.note = "; ".join(extras.notes) or None
    return counts
