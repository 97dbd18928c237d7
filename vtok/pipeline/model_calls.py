"""Frames <-> codes, chunk by chunk, with memory that does not grow with the length of the video."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from vtok.codefile import CodedPart, steps_to_code
from vtok.models.load import LoadedTokenizer
from vtok.nn.streaming import StreamState
from vtok.pipeline._runtime import relayed
from vtok.video.frames import Frames

CHUNK_STEPS = 8  # latent steps in a chunk of a code file: about a second of video
PASS_PIXELS = 600_000  # of one pass through the model: 8 frames of 256x256 stay in cache


class EncodePass(NamedTuple):
    """Frames of one pass, and whether they are the first of a video."""

    frames: Frames
    begins: bool


def group_frames(batches: Iterable[Frames], temporal: int) -> Iterator[EncodePass]:
    """Regroup frames into passes through the model; the first frame is a step of its own."""
    held: list[Frames] = []
    count, first = 0, True
    for batch in batches:
        held.append(batch)
        count += len(batch)
        step_frames = temporal * _steps_per_pass(batch.shape[1] * batch.shape[2], temporal)
        wanted = step_frames - (temporal - 1 if first else 0)
        while count >= wanted:
            joined = np.concatenate(held)
            yield EncodePass(joined[:wanted], first)
            held, count = [joined[wanted:]], count - wanted
            first, wanted = False, step_frames
    if count:
        yield EncodePass(np.concatenate(held), first)


class DecodePass(NamedTuple):
    """What one pass decodes.

    Attributes:
        steps: codes or tokens of some latent steps.
        skip: frames to drop of what they decode to.
        shown: frames to give after those.
        begins: whether a video begins with them.
    """

    steps: Tensor
    skip: int
    shown: int
    begins: bool


def plan_passes(
    parts: Iterable[tuple[Tensor, int]], temporal: int, skip: int, shown: int, begins: bool
) -> Iterator[DecodePass]:
    """The passes of a stretch of video, as far as it is shown: nobody sees what follows.

    Args:
        parts: what each pass is to decode, and of how many latent steps that is.
        temporal: frames of a latent step.
        skip: frames to drop first.
        shown: frames to give after those.
        begins: whether a video begins with them, and its first step is a single frame.
    """
    for steps, count in parts:
        if not skip + shown:
            return
        frames = count * temporal - (temporal - 1 if begins else 0)
        dropped = min(skip, frames)
        given = min(shown, frames - dropped)
        yield DecodePass(steps, dropped, given, begins)
        skip, shown, begins = skip - dropped, shown - given, False


def steps_per_pass(model: LoadedTokenizer, size: tuple[int, int]) -> int:
    """Latent steps that the decoder takes at a time, for frames of (height, width)."""
    return _steps_per_pass(size[0] * size[1], model.tokenizer.temporal_compression)


def _steps_per_pass(pixels: int, temporal: int) -> int:
    """Latent steps that one pass takes: a power of two, so that passes fill chunks exactly."""
    steps = CHUNK_STEPS
    while steps > 1 and steps * temporal * pixels > PASS_PIXELS:
        steps //= 2
    return steps


R = TypeVar("R")
Unpack = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CodeChunk:
    """Codes of a run of frames.

    Attributes:
        codes: int64 [stages, codebooks, t, h, w].
        num_frames: frames that they show, without padding.
        restart: whether the decoder starts afresh with them.
        skip: frames to drop of what they decode to, before those shown.
        parts: as they are to be written, where that was found out already.
    """

    codes: npt.NDArray[np.int64]
    num_frames: int
    restart: bool = False
    skip: int = 0
    parts: tuple[CodedPart, ...] | None = None


def codes_of_grid(codes: Tensor) -> Tensor:
    """Codes [stages, codebooks, t, h, w] as the tokenizer takes them, [1, K, t, h, w]."""
    return rearrange(codes, "s k t h w -> 1 (s k) t h w")


def encode_frames(
    batches: Iterable[Frames],
    model: LoadedTokenizer,
    num_stages: int | None = None,
    *,
    beside: bool = True,
) -> Iterator[CodeChunk]:
    """Encode a stream of frames.

    Args:
        batches: uint8 [n, H, W, 3], any n, all of one size.
        model: encodes them.
        num_stages: how many stages of codes to give; all by default.
        beside: whether passes may run ahead of what is asked for; not where they are timed.

    Yields:
        Chunks of `chunk_steps` latent steps, the last one shorter.
    """

    def to_codes(latents: Tensor) -> npt.NDArray[np.int64]:
        codes = model.tokenizer.quantizer.latents_to_codes(latents, num_stages)
        return _with_stages(codes, model).cpu().numpy()

    pending: list[npt.NDArray[np.int64]] = []  # codes of the passes of the chunk under way
    covered = steps = wanted = 0
    for codes, num_frames in encode_passes(batches, model, to_codes, beside=beside):
        pending.append(codes)
        covered += num_frames
        steps += codes.shape[2]
        wanted = wanted or chunk_steps(model, codes.shape[3:], len(codes), steps)
        if steps >= wanted:
            yield CodeChunk(np.concatenate(pending, axis=2), covered)
            pending, covered, steps = [], 0, 0
    if pending:
        yield CodeChunk(np.concatenate(pending, axis=2), covered)


def encode_latents(
    batches: Iterable[Frames], model: LoadedTokenizer
) -> Iterator[tuple[Tensor, int]]:
    """The latents [1, D, t, h, w] of each pass, and how many frames they show."""
    return encode_passes(batches, model, lambda latents: latents)


def encode_passes(
    batches: Iterable[Frames],
    model: LoadedTokenizer,
    then: Callable[[Tensor], R],
    *,
    beside: bool = True,
) -> Iterator[tuple[R, int]]:
    """Encode a stream of frames, pass by pass; see `encode_frames`.

    Args:
        batches: uint8 [n, H, W, 3], any n, all of one size.
        model: encodes them.
        then: takes the latents [1, D, t, h, w] of a pass, in the thread that computed them:
            other threads of torch's would only be in the way of the next passes.
        beside: see `relayed`.

    Yields:
        What `then` made of the latents, and how many frames they show.
    """

    def encode(taken: EncodePass, state: StreamState) -> tuple[R, int]:
        with torch.inference_mode():
            clip = frames_to_clip(taken.frames, model)
            return then(model.tokenizer.encode_latents(clip, state=state)), len(taken.frames)

    passes = group_frames(batches, model.tokenizer.temporal_compression)
    yield from relayed(passes, encode, model, beside=beside)


def decode_codes(
    chunks: Iterable[CodeChunk],
    model: LoadedTokenizer,
    size: tuple[int, int],
    unpack: Unpack = codes_of_grid,
) -> Iterator[Frames]:
    """Decode a stream of codes.

    Args:
        chunks: of a video from its start, or from where the decoder may start afresh.
        model: decodes them.
        size: (height, width) of the frames.
        unpack: what makes of codes [stages, codebooks, t, h, w] what the tokenizer decodes.

    Yields:
        uint8 [n, H, W, 3], as many frames as the chunks show.
    """

    def passes() -> Iterator[DecodePass]:
        begins = True
        for chunk in chunks:
            yield from _passes_of_chunk(chunk, model, size, begins or chunk.restart)
            begins = False

    yield from decode_passes(passes(), model, size, unpack)


def decode_chunk(
    chunk: CodeChunk,
    model: LoadedTokenizer,
    size: tuple[int, int],
    state: StreamState,
    unpack: Unpack = codes_of_grid,
) -> Iterator[Frames]:
    """Decode one chunk of a stream, in as many passes as memory wants; see `decode_codes`."""
    for taken in _passes_of_chunk(chunk, model, size, not state.started):
        if len(frames := _decode_pass(taken, model, size, state, unpack)):
            yield frames


def decode_passes(
    passes: Iterable[DecodePass], model: LoadedTokenizer, size: tuple[int, int], unpack: Unpack
) -> Iterator[Frames]:
    """Frames of passes; see `decode_codes`."""

    def decode(taken: DecodePass, state: StreamState) -> Frames:
        return _decode_pass(taken, model, size, state, unpack)

    yield from filter(len, relayed(passes, decode, model))


def _passes_of_chunk(
    chunk: CodeChunk, model: LoadedTokenizer, size: tuple[int, int], begins: bool
) -> Iterator[DecodePass]:
    parts = torch.split(torch.from_numpy(chunk.codes), steps_per_pass(model, size), dim=2)
    counted = ((part, part.shape[2]) for part in parts)
    temporal = model.tokenizer.temporal_compression
    return plan_passes(counted, temporal, chunk.skip, chunk.num_frames, begins)


def _decode_pass(
    taken: DecodePass,
    model: LoadedTokenizer,
    size: tuple[int, int],
    state: StreamState,
    unpack: Unpack,
) -> Frames:
    """Frames of one pass, uint8 [n, H, W, 3]."""
    last = taken.skip + taken.shown
    with torch.inference_mode():
        ready = unpack(taken.steps.to(model.device))
        clip = model.tokenizer.decode(ready, size=size, state=state, num_frames=last)
        return clip_to_frames(clip[:, :, taken.skip :])


def frames_to_clip(frames: Frames, model: LoadedTokenizer) -> Tensor:
    """uint8 [T, H, W, 3] -> [1, 3, T, H, W] in -1..1, on the model's device, in its type."""
    video = torch.from_numpy(frames).to(model.device).permute(3, 0, 1, 2)
    return video.unsqueeze(0).float().div_(127.5).sub_(1).to(model.dtype)


def clip_to_frames(clip: Tensor) -> Frames:
    """[1, 3, T, H, W] about -1..1 -> uint8 [T, H, W, 3], rounded and clamped."""
    _, channels, count, height, width = clip.shape
    frames = np.empty((count, height, width, channels), np.uint8)
    at_once = 1 if clip.device.type == "cpu" else count  # one frame stays in cache, many do not
    for some, part in zip(
        np.split(frames, range(at_once, count, at_once)),
        torch.split(clip[0], at_once, dim=1),
        strict=True,
    ):
        levels = part.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        np.stack(tuple(levels.cpu().numpy()), axis=-1, out=some)
    return frames


def chunk_steps(model: LoadedTokenizer, grid: Sequence[int], stages: int, at_once: int) -> int:
    """Latent steps in a chunk: `CHUNK_STEPS`, or fewer of a grid of which so many cannot be coded.

    Args:
        model: encodes.
        grid: (h, w) of the latents.
        stages: of codes.
        at_once: steps of a pass through the model, of which a chunk has at least one.
    """
    config = model.tokenizer.config
    shape = (config.num_codebooks, CHUNK_STEPS, grid[0], grid[1])
    return max(at_once, steps_to_code(shape, config.codebook_size.bit_length() - 1, stages))


def _with_stages(codes: Tensor, model: LoadedTokenizer) -> Tensor:
    """[1, t, h, w] or [1, K, t, h, w] -> [stages, codebooks, t, h, w]."""
    codes = codes.unsqueeze(1) if codes.ndim == 4 else codes
    return rearrange(codes, "1 (s k) t h w -> s k t h w", k=model.tokenizer.quantizer.num_codebooks)
