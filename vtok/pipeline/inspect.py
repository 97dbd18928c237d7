"""Look at files without converting them: facts, verification, and whether they are up to date."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from vtok._times import Part
from vtok.codefile.header import Header, LatentHeader, VideoHeader, rational, source_name
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import MAGIC
from vtok.codefile.sections import SOUND, TIME
from vtok.errors import CodeFileError, InputError, VideoError, VtokError
from vtok.models.checkpoint import list_models, read_info
from vtok.pipeline import extension_of, extensions
from vtok.pipeline.array_files import LatentFile, is_latent_file, parse_header
from vtok.pipeline.files import STANDARD_INPUT, name_of, on_disk, open_input
from vtok.pipeline.latents import FORMAT
from vtok.pipeline.options import PART_KEYS, DecodeOptions, EncodeOptions, part_metadata
from vtok.pipeline.sections import part_of_file
from vtok.video.container import read_index
from vtok.video.frames import ReadOptions, parse_size
from vtok.video.images import PICTURE_SUFFIXES
from vtok.video.outputs import is_picture_pattern
from vtok.video.reader import VideoReader, probe
from vtok.video.suffixes import find_numbered, is_pattern, list_pictures

if TYPE_CHECKING:
    from vtok.models.load import LoadedTokenizer, ModelCache, ModelLike

Facts = dict[str, Any]
MAX_HEADS = 1000
"""Most chunks whose heads are read; for longer files that takes too long."""


def inspect_file(name: str) -> Facts:
    """Return facts about a file as plain JSON types; `kind` names the kind of file.

    Args:
        name: path of a video, a code file or a checkpoint, or the name of a shipped checkpoint.

    Raises:
        InputError: if it is missing or of no known kind.
        CodeFileError: for a damaged code file.
        CheckpointError: for a damaged checkpoint.
    """
    path = Path(name)
    for extension in extensions():
        if (facts := extension.inspect(path)) is not None:
            return facts
    if is_latent_file(path):
        return inspect_latents(path)
    if path.suffix == ".safetensors" or not (path.exists() or is_pattern(path)):
        return inspect_checkpoint(name)
    try:
        if path.is_file():  # reading from a pipe would consume the data
            with path.open("rb") as stream:
                if stream.read(len(MAGIC)) == MAGIC:
                    stream.seek(0)
                    return inspect_code_file(stream, name)
    except OSError as exc:
        raise InputError(f"{name}: cannot be read ({exc.strerror})") from exc
    return inspect_video(path)


def inspect_stream(stream: BinaryIO) -> Facts:
    """Return facts about a stream of a video or a code file; see `inspect_file`."""
    with on_disk(stream) as path:
        return {**inspect_file(str(path)), "name": "-"}


def inspect_code_file(stream: BinaryIO, name: str) -> Facts:
    """Return facts about a seekable code file from its header and its index."""
    reader = CodeFileReader(stream, name=name)
    index, header = reader.index, reader.header
    frames = index.num_frames
    size = stream.seek(0, os.SEEK_END)
    sections = reader.section_bytes()
    sound = next(reader.sound(), None) if sections[SOUND] else None
    coded = size - sections[SOUND]
    layout, shape = header.format, header.transform
    space = layout.spatial_compression
    position_bits = layout.num_stages * layout.num_codebooks * layout.bits_per_code
    pixels = max(1, frames * shape.width * shape.height)
    facts: Facts = {
        "kind": "code file",
        "name": name,
        "version": ".".join(map(str, reader.version)),
        **video_facts(header, frames),
        "codes": [layout.num_stages * layout.num_codebooks, index.num_steps, *layout.grid],
        "codebook_size": layout.num_entries,
        "stages": layout.num_stages,
        "bits_per_position": position_bits,
        "compression": f"{layout.temporal_compression}x{space}x{space}",
        "chunks": len(index),
        "chunk_bytes": dict(
            zip(("least", "mean", "most"), index.chunk_bytes(coded - sections[TIME]), strict=True)
        ),
        "segments": index.num_segments,
        **({} if layout.window is None else {"window": layout.window}),
        "bytes": size,
        **({"audio": sound.summary, "audio_bytes": sections[SOUND]} if sound else {}),
        "bpp": round(8 * coded / pixels, 6),
        "kbps": round(8 * coded / 1000 / max(1e-9, float(frames / shape.fps)), 2),
        **origin_facts(header),
    }
    choices = ("fast", "effort", "hysteresis")
    facts |= {key: header.metadata[key] for key in choices if key in header.metadata}
    if "rate" in header.metadata:
        facts["rate"] = header.metadata["rate"]
        if len(index) <= MAX_HEADS:
            facts["chunk_stages"] = _chunk_stages(reader)
    if (extension := extension_of(header.metadata)) is not None:
        facts |= extension.describe(header, name)
    return facts


def video_facts(header: VideoHeader, frames: int) -> Facts:
    """Return facts about the video that a file with this header decodes to."""
    shape = header.transform
    return {
        "width": shape.width,
        "height": shape.height,
        "fps": str(shape.fps),
        "frames": frames,
        "seconds": round(float(frames / shape.fps), 3),
    }


def origin_facts(header: VideoHeader) -> Facts:
    """Return facts about the model and the video that a file was made from."""
    model, source = header.model, header.source
    return {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "encoded_as": f"{model.dtype} on {model.device}",
        "source": f"{source.name or '-'} {source.width}x{source.height}",
        "writer": header.writer,
    }


def inspect_latents(path: Path) -> Facts:
    """Return facts about a file of latents."""
    file, size = LatentFile(path, str(path)), path.stat().st_size
    header, layout = file.header, file.header.format
    space = layout.spatial_compression
    return {
        "kind": "latents",
        "name": str(path),
        **video_facts(header, header.num_frames),
        "latents": [layout.latent_dim, file.num_steps, *layout.grid],
        "type": layout.dtype,
        "compression": f"{layout.temporal_compression}x{space}x{space}",
        **({} if layout.window is None else {"window": layout.window}),
        "bytes": size,
        **origin_facts(header),
    }


def _chunk_stages(reader: CodeFileReader) -> dict[str, int]:
    """Count chunks by their number of stages."""
    heads = (reader.read_head(number) for number in range(len(reader.index)))
    counts = Counter(len(head.parts) for head in heads)
    return {str(stages): counts[stages] for stages in sorted(counts)}


def inspect_checkpoint(name: str) -> Facts:
    """Return facts about a checkpoint."""
    if not Path(name).exists() and name not in list_models():
        raise InputError(
            f"{name}: no such file, and no shipped checkpoint ({', '.join(list_models())})"
        )
    info = read_info(name)
    geometry = info.geometry
    return {
        "kind": "checkpoint",
        "name": info.name,
        "path": str(info.path),
        "parameters": info.num_parameters,
        "bytes": info.path.stat().st_size,
        "arch": info.arch,
        "compression": geometry.compression,
        "codebook_size": geometry.entries,
        "num_codebooks": geometry.num_codebooks,
        "stages": geometry.num_stages,
        "latent_dim": geometry.latent_dim,
        **({"window": geometry.window_steps} if geometry.window_steps else {}),
        **({"licence": info.licence} if info.licence else {}),
        **({"source": info.source} if info.source else {}),
        "weights_sha256": info.weights_sha256,
        "config_sha256": info.config_sha256,
    }


def inspect_video(path: Path) -> Facts:
    """Return facts about a video."""
    info = probe(path)
    files = list_pictures(path) if path.is_dir() or is_pattern(path) else [path]
    frames, missing, notes = info.num_frames, info.missing_frames, list(info.notes)
    if missing or info.damage:  # others may not be decodable
        with (
            suppress(VideoError),
            VideoReader(path, reading=ReadOptions(on_damage="skip")) as reader,
        ):
            decoded = sum(map(len, reader))
            frames, missing, notes = decoded, reader.missing_frames or 0, reader.notes
    return {
        "kind": "video",
        "name": str(path),
        "width": info.width,
        "height": info.height,
        "fps": str(info.fps),
        "frames": frames,
        "missing_frames": missing,
        "seconds": None if info.duration_seconds is None else round(info.duration_seconds, 3),
        "variable_frame_rate": info.variable_frame_rate,
        "rotation": info.rotation,
        **({"pixel_aspect": info.pixel_aspect} if info.pixel_aspect != "1:1" else {}),
        "codec": info.codec,
        "reader": info.reader,
        "bytes": sum(one.stat().st_size for one in files),
        **({"note": "; ".join(notes)} if notes else {}),
    }


def verify_file(
    source: str | Path | BinaryIO,
    *,
    model: ModelLike | ModelCache | None = None,
    decode: bool = False,
) -> dict[str, Any]:
    """Check every byte of a code file, and that it was encoded by a model.

    Args:
        source: a code file, or a binary stream of one.
        model: a name, a path, a loaded tokenizer, a `VideoTokenizer`, or a `ModelCache`; the
            shipped model that the file names if None.
        decode: also decode the codes.

    Returns:
        Facts as plain JSON types; `model_matches` is None if the model is not available.

    Raises:
        InputError: if the source is missing, or the model is needed and missing.
        CodeFileError: for the first error found.
    """
    name = name_of(source) or STANDARD_INPUT
    with open_input(source) as stream:
        reader = CodeFileReader(stream, name=name)
        matches: bool | None = True
        if decode:
            _decode(reader, model, name)
        else:
            reader.verify()
            matches = _matches(reader, model, name)
    index = reader.index
    return {
        "name": name_of(source) or "-",
        "version": ".".join(map(str, reader.version)),
        "frames": index.num_frames,
        "chunks": len(index),
        "segments": index.num_segments,
        "bytes": reader.bytes_read,
        "model": reader.header.model.name,
        "model_matches": matches,
        "decoded": decode,
    }


def _matches(
    reader: CodeFileReader, model: ModelLike | ModelCache | None, name: str
) -> bool | None:
    """Return whether the model is the one that encoded; None if it is not available.

    Raises:
        CodeFileError: if it is another one.
    """
    from vtok.models.load import ModelCache  # imports torch
    from vtok.pipeline.decode import check_fingerprint

    named = reader.header.model.name
    if model is None and named not in list_models():
        return None
    if model is None or isinstance(model, (str, Path)):
        info = read_info(model or named)  # without loading the weights
    else:
        info = ModelCache.of(model).get(named).info
    check_fingerprint(reader.header, info, name)
    return True


def _decode(reader: CodeFileReader, model: ModelLike | ModelCache | None, name: str) -> None:
    """Decode all codes, which also checks all bytes."""
    from vtok.models.load import ModelCache  # imports torch
    from vtok.pipeline.codec import Decoder
    from vtok.pipeline.decode import find_model, read_codes

    header = reader.header
    loaded, unpack = find_model(header, ModelCache.of(model), name)
    size = (header.transform.height, header.transform.width)
    shown = sum(map(len, Decoder(loaded, size, unpack).decode(read_codes(reader))))
    if shown != reader.index.num_frames:
        raise CodeFileError(
            f"{name}: decodes to {shown} frames, but says that it has {reader.index.num_frames}"
        )


def is_encoded(output: Path, source: Path, model: LoadedTokenizer, options: EncodeOptions) -> bool:
    """Return whether an output is undamaged and was made from a source of that name the same way.

    A .npy file does not record its source: being readable is enough.
    """
    from vtok.pipeline.encode import stages_of_model  # imports torch

    try:
        if options.to == "npy":
            np.load(output, mmap_mode="r", allow_pickle=False)
            return True
        header = read_header(output, options.to)
    except (OSError, ValueError, EOFError, SafetensorError, VtokError):
        return False
    if isinstance(header, LatentHeader):
        as_asked = header.format.dtype == options.latent_dtype
        return as_asked and same_part(header, source, model, options)
    return (
        header.format.num_stages == stages_of_model(model, options)
        and header.metadata.get("rate", "") == str(options.rate)
        and header.metadata.get("fast", "") == ("yes" if options.fast else "")
        and header.metadata.get("effort", "0") == str(options.effort)
        and header.metadata.get("hysteresis", "0") == f"{options.hysteresis:g}"
        and same_part(header, source, model, options)
    )


def read_header(output: Path, to: str) -> Header | LatentHeader:
    """Read the header of a code file, every byte of which is checked, or of another output."""
    text = ""
    if to == "safetensors":
        with safe_open(output, framework="np") as file:
            text = (file.metadata() or {}).get("vtok", "")
    elif to == "pt":
        from vtok.models.torch_file import read_foreign  # imports torch

        text = str(read_foreign(output).values.get("vtok", ""))
    if FORMAT in text:
        return parse_header(text, str(output))
    if to in ("safetensors", "pt"):
        return Header.from_json(text.encode())
    with output.open("rb") as stream:
        reader = CodeFileReader(stream)
        reader.verify()
        return reader.header


def same_part(
    header: VideoHeader, source: Path, model: LoadedTokenizer, options: EncodeOptions
) -> bool:
    """Return whether a header has the source's name, the model, and the part of the options."""
    shape, video = header.transform, header.source
    size = (video.width, video.height)
    if options.size is not None:
        size = parse_size(options.size, video.width, video.height)
    return (
        video.name in (None, source_name(str(source)))  # None for a stream
        and header.model.weights_sha256 == model.info.weights_sha256
        and (shape.width, shape.height) == size
        and shape.fps == (options.fps or video.fps)
        and _has_reading(header, options.reading)
        and _has_part(header, options.part)
    )


def _has_reading(header: VideoHeader, reading: ReadOptions) -> bool:
    """Return whether a header states these options; a file without damage suits any choice."""
    given = {key: header.metadata[key] for key in vars(reading) if key in header.metadata}
    wanted = reading.metadata()
    undamaged = {key: value for key, value in wanted.items() if key != "on_damage"}
    return given in (wanted, undamaged)


def _has_part(header: VideoHeader, part: Part) -> bool:
    """Return whether a header states this part of the source."""
    shape, given = header.transform, header.metadata
    if part_metadata(part) != {key: given[key] for key in PART_KEYS if key in given}:
        return False
    start, duration = rational(part.start_seconds) or None, rational(part.duration_seconds)
    return (part.start_frame is not None or shape.start == start) and (
        part.num_frames is not None or shape.duration == duration
    )


def is_decoded(output: Path, source: Path, options: DecodeOptions) -> bool:
    """Return whether an output is a whole video with the size and frames of a code file.

    A video does not record its source: stages and quality are not compared.
    """
    try:
        header, frames = _contents(source, options.part)
        shape = header.transform
        if (measured := _measure_output(output)) is not None:
            found = measured
        elif output.suffix.lower() in PICTURE_SUFFIXES:
            picture = probe(output)
            found = (picture.width, picture.height, picture.num_frames)
        else:
            index = read_index(output)
            whole = index.timeline.num_frames if index.damage is None else None
            found = (index.width, index.height, whole)
    except (OSError, ValueError, VtokError):
        return False
    return found == (shape.width, shape.height, frames)


def _measure_output(output: Path) -> tuple[int, int, int | None] | None:
    """Return width, height and frames of pictures or a npy file; None for a video.

    Raises:
        InputError, OSError, ValueError, VideoError: It is missing or damaged.
    """
    if is_picture_pattern(output):
        found = list(find_numbered(output).values())
        if not found:
            raise InputError(f"{output}: no such pictures")
        info = probe(found[-1])
        return info.width, info.height, len(found)
    if output.suffix.lower() != ".npy":
        return None
    array = np.load(output, mmap_mode="r", allow_pickle=False)
    if array.ndim != 4 or array.dtype != np.uint8:
        raise ValueError(f"{output}: holds no frames")
    return array.shape[2], array.shape[1], array.shape[0]


def _contents(source: Path, part: Part) -> tuple[VideoHeader, int]:
    """Return the header and the frames in a part of a file that decodes to a video."""
    for extension in extensions():
        if (found := extension.contents(source, part)) is not None:
            return found
    with source.open("rb") as stream:
        reader = CodeFileReader(stream)
        first, end = part_of_file(reader, part)
        return reader.header, end - first
