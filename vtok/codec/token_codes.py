"""Learned tokens as bits in a code file: a stage for each token, so a cut drops the last ones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
from einops import rearrange
from torch import Tensor

from vtok.codec.encode import EncodeOptions, frames_to_come, open_reader
from vtok.codec.files import name_of, open_output
from vtok.codec.result import Counts, Progress, Result, make_result
from vtok.codec.spool import on_disk
from vtok.codec.streams import CodeChunk, Unpack, encode_passes
from vtok.codec.token_encode import check_token_options, origin_of, token_header
from vtok.codec.token_file import ORIGIN_KEY, token_origin
from vtok.codec.token_model import DEFAULT_TOKENS, TokenModel, TokenModels, load_token_model
from vtok.codefile import CodeFileWriter, Header
from vtok.errors import CodeFileError, UsageError
from vtok.media.decoder import Decoder
from vtok.media.frames import Frames
from vtok.model import Model
from vtok.nn.token_bits import CODEBOOK_SIZE

CHUNK_STEPS = 32  # latent steps in a chunk: there is little in each


def encode_token_codes_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    model: TokenModel | None = None,
    num_tokens: int = DEFAULT_TOKENS,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
    decoder: Decoder | None = None,
) -> Result:
    """Encode one video file to quantized tokens in a code file: video of a very low rate.

    Its grid is one position, the whole frame; each token is a stage, and each 8 bits of it are a
    codebook. Arguments and errors are those of `encode_tokens_file`.
    """
    model, options = model or load_token_model(), options or EncodeOptions()
    begin = time.perf_counter()
    model.check_count(num_tokens)
    check_token_options(options)
    if options.to != "vtok":
        raise UsageError(f"--to {options.to}: --num-tokens is for --to tokens and --to vtok")
    with (
        on_disk(source) as path,
        open_reader(path, options, decoder) as reader,
        open_output(output, options.overwrite) as stream,
    ):
        plain = token_header(name_of(source), reader, model, num_tokens, options)
        header, counts = _header(plain, model, num_tokens), Counts()
        chunks = _encode(reader, model, num_tokens)
        with CodeFileWriter(cast(BinaryIO, stream), header) as writer:
            for chunk in counts.follow(chunks, progress, frames_to_come(reader, options)):
                writer.write(chunk.codes, chunk.num_frames)
        counts.bytes = stream.count
    names = (name_of(source) or "-", name_of(output) or "-")
    return make_result(names, header, counts, time.perf_counter() - begin)


def unpack_tokens(header: Header, model: Model, tokens: TokenModels, name: str) -> Unpack:
    """What makes latents of the codes of a file of quantized tokens.

    Raises:
        InputError: if the token learner that it names is not shipped.
        CodeFileError: if it was made with another one.
    """
    origin = token_origin(header, name)
    assert origin is not None
    found, layout = tokens.get(origin.learner, model), header.format
    ours = origin_of(found)
    if origin.weights_sha256 != ours.weights_sha256:
        raise CodeFileError(
            f"{name}: made with the token learner {origin.name} (weights "
            f"{origin.weights_sha256[:12]}), not with {ours.name} (weights "
            f"{ours.weights_sha256[:12]}): pass --token-learner FILE"
        )
    expected = (CODEBOOK_SIZE, found.pipeline.bits.num_codes, (1, 1))
    if (layout.codebook_size, layout.num_codebooks, layout.grid) != expected:
        raise CodeFileError(f"{name}: its codes are not laid out as those of {ours.name}: damaged")
    space = model.tokenizer.spatial_compression
    grid = (-(-header.transform.height // space), -(-header.transform.width // space))

    def unpack(codes: Tensor) -> Tensor:
        by_token = rearrange(codes, "s k t 1 1 -> 1 t s k")
        return found.to_latents(found.pipeline.bits.from_codes(by_token), grid)

    return unpack


def _header(plain: Header, model: TokenModel, num_tokens: int) -> Header:
    shape, about = plain.transform, json.dumps(asdict(origin_of(model)), sort_keys=True)
    layout = replace(
        plain.format,
        codebook_size=CODEBOOK_SIZE,
        num_codebooks=model.pipeline.bits.num_codes,
        num_stages=num_tokens,
        spatial_compression=max(shape.width, shape.height),
        grid=(1, 1),
        chunk_steps=CHUNK_STEPS,
    )
    return replace(plain, format=layout, metadata={**plain.metadata, ORIGIN_KEY: about})


def _encode(frames: Iterable[Frames], model: TokenModel, num_tokens: int) -> Iterator[CodeChunk]:

    def to_codes(latents: Tensor) -> npt.NDArray[np.int64]:
        codes = model.pipeline.bits.to_codes(model.to_tokens(latents, num_tokens))
        return rearrange(codes, "1 t s k -> s k t 1 1").cpu().numpy()

    pending: list[npt.NDArray[np.int64]] = []
    covered = 0
    for codes, shown in encode_passes(frames, model.model, to_codes):
        pending.append(codes)
        covered += shown
        if sum(part.shape[2] for part in pending) >= CHUNK_STEPS:
            yield CodeChunk(np.concatenate(pending, axis=2), covered)
            pending, covered = [], 0
    if pending:
        yield CodeChunk(np.concatenate(pending, axis=2), covered)
