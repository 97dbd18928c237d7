"""Whether an output that is there already is the one that would be written again."""

from __future__ import annotations

from pathlib import Path

from vtok.codec.encode import EncodeOptions, rational, stages_for
from vtok.codefile import CodeFileReader, Header
from vtok.errors import VtokError
from vtok.media.frames import parse_size
from vtok.media.reader import probe
from vtok.model import Model


def is_encoded(output: Path, model: Model, options: EncodeOptions) -> bool:
    """Whether `output` is a whole and undamaged file, made by `model` with these options."""
    if options.to != "vtok":
        return output.is_file() and output.stat().st_size > 0
    try:
        with output.open("rb") as stream:
            reader = CodeFileReader(stream)
            reader.verify()
            return _same_options(reader.header, model, options)
    except (OSError, VtokError):
        return False


def _same_options(header: Header, model: Model, options: EncodeOptions) -> bool:
    shape, source = header.transform, header.source
    size = (source.width, source.height)
    if options.size is not None:
        size = parse_size(options.size, source.width, source.height)
    return (
        header.model.weights_sha256 == model.info.weights_sha256
        and header.format.num_stages == stages_for(model, options.num_stages, options.num_bits)
        and (shape.width, shape.height) == size
        and shape.fps == (options.fps or source.fps)
        and shape.start == (rational(options.start_seconds) or None)
        and shape.duration == rational(options.duration_seconds)
    )


def is_decoded(output: Path, source: Path) -> bool:
    """Whether `output` is a readable video with as many frames as the code file `source`."""
    try:
        with source.open("rb") as stream:
            return probe(output).num_frames == CodeFileReader(stream).num_frames
    except (OSError, VtokError):
        return False
