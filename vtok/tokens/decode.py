"""decode_tokens_file: learned tokens to a video file, to see what they kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from vtok.errors import CodeFileError, InputError, OptionError, UsageError
from vtok.models.load import ModelCache, ModelLike
from vtok.nn.config import BASELINES
from vtok.pipeline.codec import Decoder, plan_decoding, steps_per_call
from vtok.pipeline.decode import check_fingerprint, write_video
from vtok.pipeline.files import STANDARD_INPUT, name_of, on_disk
from vtok.pipeline.options import DecodeOptions
from vtok.pipeline.result import Observer, Progress
from vtok.tokens.encode import TokenResult, token_result
from vtok.tokens.file import TokenFile, TokenFileInfo
from vtok.tokens.model import TokenModel, TokenModels
from vtok.video.frames import Frames


def decode_tokens_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    model: ModelLike | ModelCache | None = None,
    tokens: TokenModels | None = None,
    options: DecodeOptions | None = None,
    progress: Progress | None = None,
) -> TokenResult:
    """Decode one file of tokens to a video with the size, rate and number of frames of the source.

    Args:
        source: a file of tokens, or a binary stream of one.
        output: as in `decode_file`.
        model: as in `decode_file`.
        tokens: cache of token pipelines; the shipped one that the file names if None.
        options: quality, part, and number of tokens; tokens have no stages.
        progress: called after each model call.

    Raises:
        InputError: if the source is missing, or a model that it names is not shipped.
        CodeFileError: if it is damaged, cut, holds NaN, or was made by another model.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that the file does not allow.
    """
    begin, options = time.perf_counter(), options or DecodeOptions()
    name = name_of(source) or STANDARD_INPUT
    with on_disk(source) as path:
        file = TokenFile(path, name)
        _check_options(file.info, options, name)
        options.check_stated(name)
        loaded = _model(file.info, ModelCache.of(model), tokens or TokenModels(), name)
        first, last = _frames(file.info, options)
        observers = [_FrameProgress(progress, last - first)] if progress is not None else []
        video = decode_tokens(file, loaded, (first, last), options.num_tokens, observers=observers)
        write_video(output, file.info.header, video, options)
        size = path.stat().st_size
    seconds = time.perf_counter() - begin
    return token_result(source, output, file.info, last - first, size, seconds)


def decode_tokens(
    file: TokenFile,
    model: TokenModel,
    frames: tuple[int, int],
    num_tokens: int | None = None,
    *,
    observers: Sequence[Observer] = (),
) -> Iterator[Frames]:
    """Decode some frames of a file of tokens.

    Args:
        file: tokens to decode.
        model: token pipeline and tokenizer.
        frames: number of the first frame, and of the one after the last.
        num_tokens: tokens per latent step to use; all if None.
        observers: follow the frames.

    Yields:
        uint8 [n, H, W, 3].
    """
    header, geometry = file.info.header, model.model.geometry
    size = (header.transform.height, header.transform.width)
    temporal, lookback = geometry.temporal_compression, geometry.lookback
    step = -(-frames[0] // temporal)  # shows the first frame
    begin = 0 if lookback is None else max(0, step - max(1, lookback))
    end = -(-(frames[1] - 1) // temporal) + 1
    # a decoder that starts at a step shows the last frame of that step first
    skip, shown = frames[0] - begin * temporal, frames[1] - frames[0]
    at_once = steps_per_call(model.model, size)
    read = file.chunks(range(begin, end), at_once, num_tokens)
    parts = ((torch.from_numpy(part), len(part)) for part, _ in read)

    def to_latents(tokens: torch.Tensor) -> torch.Tensor:
        return model.to_latents(tokens.unsqueeze(0), header.format.grid)

    calls = plan_decoding(parts, temporal, skip, shown, begins=True)
    yield from Decoder(model.model, size, to_latents, observers=observers).run(calls)


class _FrameProgress(Observer):
    """Observer that reports the frames decoded so far."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def on_frames(self, frames: Frames) -> None:
        self._done += len(frames)
        self._progress(self._done, self._total)


def _check_options(info: TokenFileInfo, options: DecodeOptions, name: str) -> None:
    count, held = options.num_tokens, info.shape[1]
    if options.num_stages is not None or options.num_bits is not None:
        raise UsageError(f"{name}: tokens have no stages and no bits: give `num_tokens`")
    if count is not None and not 1 <= count <= held:
        raise OptionError("num_tokens", count, f"1 to {held} for {name}")
    if count not in (None, held) and info.origin.learner in BASELINES:
        raise OptionError("num_tokens", count, f"{held}: averages over cells need all tokens")


def _model(info: TokenFileInfo, models: ModelCache, tokens: TokenModels, name: str) -> TokenModel:
    try:
        model = models.get(info.header.model.name)
        check_fingerprint(info.header, model.info, name)
        found = tokens.get_checked(info.origin, model, name)
    except InputError as exc:
        raise InputError(f"{name}: {exc}") from exc
    if info.shape[2] != found.pipeline.config.dim:
        raise CodeFileError(f"{name}: {found.info.name} has tokens of another size: damaged")
    return found


def _frames(info: TokenFileInfo, options: DecodeOptions) -> tuple[int, int]:
    if not options.is_part:
        return 0, info.num_frames
    return options.part.frames(info.num_frames, info.header.transform.fps)
