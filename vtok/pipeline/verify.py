"""verify_file: whether a code file is whole and undamaged, and fits the model at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from vtok.codefile import CodeFileReader
from vtok.errors import CodeFileError
from vtok.models.checkpoint import list_models, read_info
from vtok.models.load import ModelCache, ModelLike
from vtok.pipeline.decode import check_fingerprint, find_model
from vtok.pipeline.files import STANDARD_INPUT, name_of, open_input
from vtok.pipeline.model_calls import decode_codes
from vtok.pipeline.random_access import read_codes
from vtok.tokens.model import TokenModels


def verify_file(
    source: str | Path | BinaryIO,
    *,
    model: ModelLike | ModelCache | None = None,
    decode: bool = False,
) -> dict[str, Any]:
    """Check every byte of a code file, and that it was made with the model that it names.

    Args:
        source: a code file, or a binary stream of one.
        model: a name, a path, a loaded tokenizer, a `VideoTokenizer`, or a `ModelCache`; the
            model that the file names if None, where it is shipped.
        decode: whether the codes are decoded too.

    Returns:
        What was found, as plain JSON types. `model_matches` is None where the model is not at
        hand.

    Raises:
        InputError: if the source is missing, or the model where it is needed.
        CodeFileError: for the first thing that is wrong.
    """
    name = name_of(source) or STANDARD_INPUT
    with open_input(source) as stream:
        reader = CodeFileReader(stream, name=name)
        matches: bool | None = True
        if decode:
            _decode(reader, ModelCache.of(model), name)
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
    """Whether the model is the one that encoded; None if it is not at hand.

    Raises:
        CodeFileError: if it is another one.
    """
    named = reader.header.model.name
    if model is None and named not in list_models():
        return None
    if model is None or isinstance(model, (str, Path)):
        info = read_info(model or named)  # without loading the weights
    else:
        info = ModelCache.of(model).get(named).info
    check_fingerprint(reader.header, info, name)
    return True


def _decode(reader: CodeFileReader, models: ModelCache, name: str) -> None:
    """Decode all codes, and check all bytes while they come."""
    header = reader.header
    model, unpack = find_model(header, models, TokenModels(), name)
    size = (header.transform.height, header.transform.width)
    shown = sum(map(len, decode_codes(read_codes(reader), model, size, unpack)))
    if shown != reader.index.num_frames:
        raise CodeFileError(
            f"{name}: decodes to {shown} frames, but says that it has {reader.index.num_frames}"
        )
