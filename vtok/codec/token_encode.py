"""encode_tokens_file: a video file to a few learned tokens a latent step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

from torch import Tensor

from vtok.codec.encode import EncodeOptions, frames_to_come, make_header, open_reader
from vtok.codec.files import name_of, open_output
from vtok.codec.result import Progress
from vtok.codec.spool import on_disk
from vtok.codec.streams import encode_passes
from vtok.codec.token_file import TokenFileInfo, TokenOrigin, Tokens, write_token_file
from vtok.codec.token_model import DEFAULT_TOKENS, TokenModel, load_token_model
from vtok.errors import CodeFileError, UsageError
from vtok.media.decoder import Decoder
from vtok.media.reader import VideoReader


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
