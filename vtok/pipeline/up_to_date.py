"""Whether an output that is there already is the one that would be written again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from vtok.codefile import CodeFileReader, Header, source_name
from vtok.codefile.header import rational
from vtok.codefile.index import frames_between
from vtok.errors import VtokError
from vtok.models.load import Model
from vtok.pipeline.decode import DecodeOptions
from vtok.pipeline.encode import EncodeOptions, stages_for
from vtok.tokens.encode import origin_of
from vtok.tokens.file import TokenFile, is_token_file, token_origin
from vtok.tokens.model import TokenModel
from vtok.video.frames import parse_size
from vtok.video.images import PICTURE_SUFFIXES
from vtok.video.probe import read_index
from vtok.video.reader import probe


def is_encoded(output: Path, source: Path, model: Model, options: EncodeOptions) -> bool:
    """Whether `output` is whole, undamaged, and made of a `source` of that name in the same way.

    A .npy file does not tell what it was made from: being whole is enough there.
    """
    try:
        if options.to == "npy":
            np.load(output, mmap_mode="r", allow_pickle=False)
            return True
        header = _read_header(output, options.to)
    except (OSError, ValueError, EOFError, SafetensorError, VtokError):
        return False
    names = (None, source_name(str(source)))  # a stream has none
    return header.source.name in names and _same_options(header, model, options)


def _read_header(output: Path, to: str) -> Header:
    """The header of a code file or of a safetensors file, which is checked for being whole."""
    if to == "safetensors":
        with safe_open(output, framework="np") as file:
            return Header.from_json((file.metadata() or {}).get("vtok", "").encode())
    with output.open("rb") as stream:
        reader = CodeFileReader(stream)
        reader.verify()
        return reader.header


def are_tokens_encoded(
    output: Path, source: Path, model: TokenModel, num_tokens: int, options: EncodeOptions
) -> bool:
    """As `is_encoded`, for a file of learned tokens or a code file of their bits."""
    try:
        if is_token_file(output):
            info = TokenFile(output, str(output)).info
            header, origin, held = info.header, info.origin, info.shape[1]
        else:
            header = _read_header(output, "vtok")
            found = token_origin(header, str(output))
            if found is None:
                return False
            origin, held = found, header.format.num_stages
    except (OSError, VtokError):
        return False
    same = origin == origin_of(model) and held == num_tokens
    names = (None, source_name(str(source)))
    return same and header.source.name in names and _same_part(header, model.model, options)


def _same_options(header: Header, model: Model, options: EncodeOptions) -> bool:
    return (
        header.format.num_stages == stages_for(model, options.num_stages, options.num_bits)
        and header.metadata.get("rate", "") == str(options.rate)
        and _same_part(header, model, options)
    )


def _same_part(header: Header, model: Model, options: EncodeOptions) -> bool:
    shape, source = header.transform, header.source
    size = (source.width, source.height)
    if options.size is not None:
        size = parse_size(options.size, source.width, source.height)
    return (
        header.model.weights_sha256 == model.info.weights_sha256
        and (shape.width, shape.height) == size
        and shape.fps == (options.fps or source.fps)
        and shape.start == (rational(options.start_seconds) or None)
        and shape.duration == rational(options.duration_seconds)
    )


def is_decoded(output: Path, source: Path, options: DecodeOptions) -> bool:
    """Whether `output` is a whole video with the size and the frames of the code file `source`.

    A video does not tell what it was made from: which stages were used, and how well it was
    compressed, is not looked at.
    """
    try:
        header, frames = _contents(source)
        shape = header.transform
        if options.is_part:
            part = (options.start_seconds, options.duration_seconds)
            first, end = frames_between(header, frames, *part)
            frames = end - first
        if output.suffix.lower() in PICTURE_SUFFIXES:
            picture = probe(output)
            found = (picture.width, picture.height, picture.num_frames)
        else:
            index = read_index(output)
            whole = index.timeline.num_frames if index.damage is None else None
            found = (index.width, index.height, whole)
    except (OSError, VtokError):
        return False
    return found == (shape.width, shape.height, frames)


def _contents(source: Path) -> tuple[Header, int]:
    """The header and the number of frames of a code file or a file of tokens."""
    if is_token_file(source):
        info = TokenFile(source, str(source)).info
        return info.header, info.num_frames
    with source.open("rb") as stream:
        reader = CodeFileReader(stream)
        return reader.header, reader.index.num_frames
