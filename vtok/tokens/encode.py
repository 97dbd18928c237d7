"""Learned tokens as bits in a code file: a stage for each token, so a cut drops the last ones."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from einops import rearrange
from torch import Tensor

from vtok.codefile import CodeFileWriter, Header
from vtok.errors import CodeFileError, UsageError
from vtok.models.load import LoadedTokenizer
from vtok.nn.token_pipeline import CODEBOOK_SIZE
from vtok.pipeline.encode import EncodeOptions, frames_to_come, make_header, open_reader
from vtok.pipeline.files import name_of, on_disk, open_output
from vtok.pipeline.model_calls import CodeChunk, Unpack, encode_passes
from vtok.pipeline.result import Counts, Progress, Result, make_result
from vtok.tokens.file import (
    ORIGIN_KEY,
    TokenFileInfo,
    TokenOrigin,
    Tokens,
    token_origin,
    write_token_file,
)
from vtok.tokens.model import DEFAULT_TOKENS, TokenModel, TokenModels, load_token_model
from vtok.video.decoder_process import Decoder
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader


@dataclass(frozen=True)
class TokenResult:
    """What one clip became, or what one file of tokens was decoded to.

    Attributes:
        input, output: names, `-` for a stream.
        width, height, fps, frames: of the clip.
        shape: of the tokens, (t, S, dim).
        bytes: of the file of tokens.
        seconds: of wall time.
        learner: name of the token pipeline's checkpoint.
    """

    input: str
    output: str
    width: int
    height: int
    fps: Fraction
    frames: int
    shape: tuple[int, int, int]
    bytes: int
    seconds: float
    learner: str
    lost: None = None
    note: None = None
    psnr: None = None

    @property
    def bpp(self) -> float:
        """Bits of the file per pixel."""
        return 8 * self.bytes / (self.frames * self.width * self.height)

    @property
    def frames_per_second(self) -> float:
        """Speed over all, model loading left out."""
        return self.frames / max(self.seconds, 1e-9)

    @property
    def contents(self) -> str:
        """How many tokens there are, in words."""
        steps, count, dim = self.shape
        return f"{steps * count:,} tokens of {dim} numbers"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "input": self.input,
            "output": self.output,
            "width": self.width,
            "height": self.height,
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "frames": self.frames,
            "token_shape": list(self.shape),
            "learner": self.learner,
            "bytes": self.bytes,
            "bpp": round(self.bpp, 6),
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 2),
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
        source: a video, or a picture; or a binary stream of one.
        output: the file to write, or a binary stream.
        model: encodes; the learner v11 of `vtok-base` if None.
        num_tokens: S, of each latent step.
        options: size, rate and part; those of codes count for nothing.
        progress: called as it goes.
        decoder: as `encode_file` takes it.

    Raises:
        InputError: if the source is missing or no readable video.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that do not fit, among them more tokens than there are positions.
    """
    model, options = model or load_token_model(), options or EncodeOptions()
    begin = time.perf_counter()
    model.check_count(num_tokens)
    check_token_options(options)
    with (
        on_disk(source) as path,
        open_reader(path, options, decoder) as reader,
        open_output(output, options.overwrite) as stream,
        tempfile.TemporaryFile(prefix="vtok-") as spool,  # how many there are shows at the end
    ):
        header = token_header(name_of(source), reader, model, num_tokens, options)
        steps = frames = 0
        total = frames_to_come(reader, options)
        for tokens, shown in encode_tokens(reader, model, num_tokens):
            spool.write(tokens.astype("<f2").tobytes())
            steps, frames = steps + len(tokens), frames + shown
            if progress is not None:
                progress(frames, total)
        if not steps:
            raise CodeFileError(f"{name_of(source) or 'standard input'}: has no frames")
        shape = (steps, num_tokens, model.pipeline.config.dim)
        info = TokenFileInfo(header, origin_of(model), frames, shape)
        spool.seek(0)
        write_token_file(cast(BinaryIO, stream), info, cast(BinaryIO, spool))
        size = stream.count
    names = (name_of(source) or "-", name_of(output) or "-")
    return token_result(names, info, size, frames, time.perf_counter() - begin)


def encode_tokens(
    reader: VideoReader, model: TokenModel, num_tokens: int
) -> Iterator[tuple[Tokens, int]]:
    """Tokens of a stream of frames, float16 [n, S, dim], and how many frames they show."""

    def to_tokens(latents: Tensor) -> Tokens:
        return model.to_tokens(latents, num_tokens)[0].half().cpu().numpy()

    yield from encode_passes(reader, model.model, to_tokens)


def token_header(
    name: str | None, reader: VideoReader, model: TokenModel, num_tokens: int, how: EncodeOptions
) -> Any:
    """The header that tells of the tokenizer and the source.

    Raises:
        UsageError: if the frames have fewer positions than there are to be tokens.
    """
    width, height = reader.output_size
    model.check_count(num_tokens, (height, width))
    stages = model.model.tokenizer.quantizer.num_stages
    return make_header(name, reader, model.model, stages, how)


def check_token_options(options: EncodeOptions) -> None:
    """Refuse options that only codes have.

    Raises:
        UsageError: naming them.
    """
    if options.num_stages or options.num_bits or options.rate:
        raise UsageError("--stages, --bits, --min-psnr, --max-bpp: not for tokens")


def origin_of(model: TokenModel) -> TokenOrigin:
    """What a file of tokens says of the token pipeline."""
    info = model.info
    return TokenOrigin(info.name, info.config.learner, info.config_sha256, info.weights_sha256)


def token_result(
    names: tuple[str, str], info: TokenFileInfo, size: int, frames: int, seconds: float
) -> TokenResult:
    """A result from what a file of tokens says of itself."""
    shape = info.header.transform
    return TokenResult(
        *names, shape.width, shape.height, shape.fps, frames, info.shape, size, seconds,
        info.origin.name,
    )  # fmt: skip


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


def unpack_tokens(header: Header, model: LoadedTokenizer, tokens: TokenModels, name: str) -> Unpack:
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
