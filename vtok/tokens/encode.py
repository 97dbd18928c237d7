"""Encode videos to learned tokens: as floats in a safetensors file, or as bits in a code file.

In a code file each token is a stage, so a cut drops the last tokens.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from einops import rearrange
from torch import Tensor

from vtok.codefile.header import Header
from vtok.errors import CodeFileError, OptionError, UsageError, VtokError
from vtok.nn.token_pipeline import CODEBOOK_SIZE
from vtok.pipeline.codec import Encoder
from vtok.pipeline.encode import (
    add_left_out,
    add_remarks,
    frames_to_come,
    make_header,
    open_reader,
    write_code_file,
)
from vtok.pipeline.files import CountingStream, name_of, on_disk, open_output
from vtok.pipeline.inspect import read_header, same_part
from vtok.pipeline.options import EncodeOptions
from vtok.pipeline.result import Codes, Conversion, Counts, End, Progress, Result, make_result
from vtok.tokens import ORIGIN_KEY
from vtok.tokens.file import (
    TokenFile,
    TokenFileInfo,
    TokenOrigin,
    Tokens,
    is_token_file,
    token_origin,
    write_token_file,
)
from vtok.tokens.model import DEFAULT_TOKENS, STAGES, TokenModel, load_token_model
from vtok.video.decoder_process import Decoder
from vtok.video.reader import VideoReader

CHUNK_STEPS = 32
"""Latent steps in a chunk of a code file of tokens: more than usual, since each is small."""


@dataclass(frozen=True)
class TokenResult(Conversion):
    """Result of encoding a video to tokens, or of decoding a file of tokens.

    Attributes:
        shape: (t, S, dim) of the tokens.
        learner: name of the token pipeline's checkpoint.
        note, missing_frames: as in `Result`, of an encoded source.
    """

    shape: tuple[int, int, int]
    learner: str
    lost: None = None
    note: str | None = None
    missing_frames: int | None = None
    psnr: None = None

    @property
    def contents(self) -> str:
        """Number of tokens, in words."""
        steps, count, dim = self.shape
        return f"{steps * count:,} tokens of {dim} numbers"

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return {
            **super().to_json(),
            "token_shape": list(self.shape),
            "learner": self.learner,
            "note": self.note,
            "missing_frames": self.missing_frames,
        }


def encode_tokens_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    model: TokenModel | None = None,
    num_tokens: int = DEFAULT_TOKENS,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
    decoder: Decoder | None = None,
) -> TokenResult:
    """Encode one video file to learned tokens, float16 [t, S, dim] in a safetensors file.

    Args:
        source: a video or an image, or a binary stream of one.
        output: the file to write, or a binary stream.
        model: token pipeline and tokenizer; the learner v11 of `vtok-base` if None.
        num_tokens: tokens per latent step, S.
        options: size, rate and part; options of codes are refused.
        progress: called after each model call.
        decoder: process that reads the video, as in `encode_file`.

    Raises:
        InputError: if the source is missing or no readable video.
        OutputError: if the output exists or cannot be written.
        UsageError: for unusable options, or more tokens than positions.
    """
    begin, model, options = time.perf_counter(), model or load_token_model(), options or _DEFAULTS
    check_token_options(options, as_floats=True)

    def to_tokens(latents: Tensor) -> Tokens:
        return model.to_tokens(latents, num_tokens)[0].half().cpu().numpy()

    with (
        _opened(source, output, model, num_tokens, options, decoder) as (reader, stream, header),
        tempfile.TemporaryFile(prefix="vtok-") as spilled,  # their number is known at the end only
    ):
        steps = frames = 0
        total = frames_to_come(reader, options)
        for tokens, shown in Encoder(model.model, STAGES).map_latents(reader, to_tokens):
            spilled.write(tokens.astype("<f2").tobytes())
            steps, frames = steps + len(tokens), frames + shown
            if progress is not None:
                progress(frames, total)
        if not steps:
            raise CodeFileError(f"{name_of(source) or 'standard input'}: has no frames")
        shape = (steps, num_tokens, model.pipeline.config.dim)
        info = TokenFileInfo(header, model.origin, frames, shape)
        spilled.seek(0)
        write_token_file(cast(BinaryIO, stream), info, cast(BinaryIO, spilled))
        size, counts = stream.count, Counts()
        add_remarks(counts, reader)
        add_left_out(counts, reader, options, "tokens")
    result = token_result(source, output, info, frames, size, time.perf_counter() - begin)
    return replace(result, note=counts.note, missing_frames=counts.missing_frames)


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
    """Encode one video file to quantized tokens in a code file of a very low rate.

    The grid has one position, the whole frame; each token is a stage, with a codebook for each 8
    bits. Arguments and errors are those of `encode_tokens_file`.
    """
    begin, model, options = time.perf_counter(), model or load_token_model(), options or _DEFAULTS
    if options.to != "vtok":
        raise OptionError("to", options.to, "tokens or vtok for learned tokens")

    def to_codes(latents: Tensor) -> Codes:
        codes = model.pipeline.bits.to_codes(model.to_tokens(latents, num_tokens))
        return rearrange(codes, "1 t s k -> s k t 1 1").cpu().numpy()

    with _opened(source, output, model, num_tokens, options, decoder) as (reader, stream, plain):
        header, counts = _header(plain, model, num_tokens), Counts(progress)
        counts.total = frames_to_come(reader, options)
        encoder = Encoder(
            model.model, STAGES, to_codes=to_codes, steps_per_chunk=CHUNK_STEPS, observers=[counts]
        )
        plain_options = replace(options, compress=False)
        chunks = encoder.encode(reader)
        counts.audio_bytes = write_code_file(stream, header, chunks, plain_options, reader)
        counts.bytes = stream.count
        add_remarks(counts, reader)
    return make_result(source, output, header, counts, time.perf_counter() - begin)


_DEFAULTS = EncodeOptions()


@contextmanager
def _opened(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    model: TokenModel,
    num_tokens: int,
    options: EncodeOptions,
    decoder: Decoder | None,
) -> Iterator[tuple[VideoReader, CountingStream, Header]]:
    """Check the options; open source and output; make the header of tokenizer and source."""
    model.check_count(num_tokens)
    check_token_options(options)
    with (
        on_disk(source) as path,
        open_reader(path, options, decoder) as reader,
        open_output(output, options.overwrite) as stream,
    ):
        width, height = reader.output_size
        model.check_count(num_tokens, (height, width))
        stages = model.model.geometry.num_stages
        yield reader, stream, make_header(name_of(source), reader, model.model, stages, options)


def check_token_options(options: EncodeOptions, *, as_floats: bool = False) -> None:
    """Refuse options that only codes have, and sound for a file of tokens that are floats.

    Raises:
        UsageError: naming them.
    """
    for field in ("num_stages", "num_bits", "min_psnr", "max_bpp", "fast", "effort", "hysteresis"):
        if getattr(options, field):
            raise UsageError(f"`{field}` does not apply to tokens")
    if as_floats and options.audio == "copy":
        raise OptionError("audio", options.audio, "none: files of tokens hold no sound")


def are_tokens_encoded(
    output: Path, source: Path, model: TokenModel, num_tokens: int, options: EncodeOptions
) -> bool:
    """Return whether an output of this module is up to date; see `is_encoded`."""
    try:
        if is_token_file(output):
            info = TokenFile(output, str(output)).info
            header, count = info.header, info.shape[1]
            origin: TokenOrigin | None = info.origin
        else:
            found = read_header(output, "vtok")
            assert isinstance(found, Header)
            header = found
            origin, count = token_origin(header, str(output)), header.format.num_stages
    except (OSError, VtokError):
        return False
    same = origin == model.origin and count == num_tokens
    return same and same_part(header, source, model.model, options)


def token_result(
    source: End, output: End, info: TokenFileInfo, frames: int, size: int, seconds: float
) -> TokenResult:
    """Make a result from the metadata of a file of tokens."""
    name, target, shape = name_of(source) or "-", name_of(output) or "-", info.header.transform
    return TokenResult(
        name, target, shape.width, shape.height, shape.fps, frames, size, seconds, info.shape,
        info.origin.name,
    )  # fmt: skip


def _header(plain: Header, model: TokenModel, num_tokens: int) -> Header:
    shape, origin = plain.transform, json.dumps(asdict(model.origin), sort_keys=True)
    layout = replace(
        plain.format,
        codebook_size=CODEBOOK_SIZE,
        num_codebooks=model.pipeline.bits.num_codes,
        num_stages=num_tokens,
        spatial_compression=max(shape.width, shape.height),
        grid=(1, 1),
        chunk_steps=CHUNK_STEPS,
    )
    return replace(plain, format=layout, metadata={**plain.metadata, ORIGIN_KEY: origin})
