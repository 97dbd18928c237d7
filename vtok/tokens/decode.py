"""decode_tokens_file: learned tokens to a video file, to see what they kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from vtok.codefile.index import frames_between
from vtok.errors import CodeFileError, InputError, UsageError
from vtok.models.load import Models
from vtok.nn.config import BASELINES
from vtok.pipeline.decode import DecodeOptions, check_fingerprint, write_video
from vtok.pipeline.files import STANDARD_INPUT, name_of, on_disk
from vtok.pipeline.model_calls import decode_passes, plan_passes, steps_per_pass
from vtok.pipeline.result import Progress
from vtok.tokens.encode import TokenResult, origin_of, token_result
from vtok.tokens.file import TokenFile, TokenFileInfo
from vtok.tokens.model import TokenModel, TokenModels
from vtok.video.frames import Frames


def decode_tokens_file(
    source: str | Path | BinaryIO,
    output: str | Path | BinaryIO,
    *,
    models: Models | None = None,
    tokens: TokenModels | None = None,
    options: DecodeOptions | None = None,
    progress: Progress | None = None,
) -> TokenResult:
    """Decode one file of tokens to a video of the size, rate and number of frames that went in.

    Args:
        source: a file of tokens, or a binary stream of one.
        output: the video to write, its format by its suffix; or a binary stream, which gets
            fragmented mp4.
        models: where the tokenizer comes from; by default the shipped one that the file names.
        tokens: where the token pipeline comes from, likewise.
        options: quality, part, and how many tokens to use; tokens have no stages.
        progress: called as it goes.

    Raises:
        InputError: if the source is missing, or a model that it names is not shipped.
        CodeFileError: if it is damaged, cut, holds NaN, or was made by another model.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that do not fit.
    """
    begin, options = time.perf_counter(), options or DecodeOptions()
    name = name_of(source) or STANDARD_INPUT
    with on_disk(source) as path:
        file = TokenFile(path, name)
        _check_options(file.info, options, name)
        model = _model(file.info, models or Models(), tokens or TokenModels(), name)
        first, last = _frames(file.info, options)
        video = decode_tokens(file, model, (first, last), options.num_tokens)
        write_video(output, file.info.header, _followed(video, last - first, progress), options)
        size = path.stat().st_size
    names = (name_of(source) or "-", name_of(output) or "-")
    seconds = time.perf_counter() - begin
    return token_result(names, file.info, size, last - first, seconds)


def decode_tokens(
    file: TokenFile, model: TokenModel, frames: tuple[int, int], num_tokens: int | None = None
) -> Iterator[Frames]:
    """Some frames of a file of tokens.

    Args:
        file: of tokens.
        model: decodes them.
        frames: the first one, and the one after the last.
        num_tokens: of each step; all that there are if None.

    Yields:
        uint8 [n, H, W, 3].
    """
    header, tokenizer = file.info.header, model.model.tokenizer
    size = (header.transform.height, header.transform.width)
    temporal, lookback = tokenizer.temporal_compression, tokenizer.decoder_lookback
    step = -(-frames[0] // temporal)  # that shows the first frame
    begin = 0 if lookback is None else max(0, step - max(1, lookback))
    end = -(-(frames[1] - 1) // temporal) + 1
    # a decoder that starts at a step shows the last frame of that step first
    skip, shown = frames[0] - begin * temporal, frames[1] - frames[0]
    at_once = steps_per_pass(model.model, size)
    read = file.chunks(range(begin, end), at_once, num_tokens)
    parts = ((torch.from_numpy(part), len(part)) for part, _ in read)

    def to_latents(tokens: torch.Tensor) -> torch.Tensor:
        return model.to_latents(tokens.unsqueeze(0), header.format.grid)

    passes = plan_passes(parts, temporal, skip, shown, begins=True)
    yield from decode_passes(passes, model.model, size, to_latents)


def check_origin(info: TokenFileInfo, model: TokenModel, name: str) -> None:
    """Refuse tokens of another token pipeline.

    Raises:
        CodeFileError: naming both.
    """
    theirs, ours = info.origin, origin_of(model)
    if theirs.weights_sha256 != ours.weights_sha256 or info.shape[2] != model.pipeline.config.dim:
        raise CodeFileError(
            f"{name}: made with the token learner {theirs.name} (weights "
            f"{theirs.weights_sha256[:12]}), not with {ours.name} (weights "
            f"{ours.weights_sha256[:12]}): pass --token-learner FILE"
        )


def _check_options(info: TokenFileInfo, options: DecodeOptions, name: str) -> None:
    num_tokens = options.num_tokens
    if options.num_stages is not None or options.num_bits is not None:
        raise UsageError(f"{name}: tokens have no stages and no bits: give --num-tokens")
    held = info.shape[1]
    if num_tokens is not None and not 1 <= num_tokens <= held:
        raise UsageError(f"--num-tokens {num_tokens}: {name} holds 1 to {held} a step")
    if num_tokens not in (None, held) and info.origin.learner in BASELINES:
        raise UsageError(f"--num-tokens {num_tokens}: averages over cells are used all together")


def _model(info: TokenFileInfo, models: Models, tokens: TokenModels, name: str) -> TokenModel:
    try:
        model = models.get(info.header.model.name)
        check_fingerprint(info.header, model.info, name)
        found = tokens.get(info.origin.learner, model)
    except InputError as exc:
        raise InputError(f"{name}: {exc}") from exc
    check_origin(info, found, name)
    return found


def _frames(info: TokenFileInfo, options: DecodeOptions) -> tuple[int, int]:
    if not options.is_part:
        return 0, info.num_frames
    part = (options.start_seconds, options.duration_seconds)
    return frames_between(info.header, info.num_frames, *part)


def _followed(video: Iterator[Frames], total: int, progress: Progress | None) -> Iterator[Frames]:
    done = 0
    for frames in video:
        yield frames
        done += len(frames)
        if progress is not None:
            progress(done, total)
