"""Cut a video into model calls: how many frames or latent steps go through the model at once.

A model call takes a power of two of latent steps, so that calls fill the chunks of a code file
exactly, and few enough pixels for its activations to stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtok.codefile.packing import steps_to_code
from vtok.models.load import LoadedTokenizer
from vtok.video.frames import Frames

CHUNK_STEPS = 8
"""Latent steps in a chunk of a code file: about a second of video."""
CALL_PIXELS = 600_000
"""Most pixels in a model call: 8 frames of 256x256 stay in the cache."""

Unpack = Callable[[Tensor], Tensor]
"""Turns codes [stages, codebooks, t, h, w] of a chunk into the decoder's input."""


class EncodeCall(NamedTuple):
    """Frames of one model call of the encoder.

    Attributes:
        frames: uint8 [n, H, W, 3].
        begins: whether they are the first of a video.
    """

    frames: Frames
    begins: bool


class DecodeCall(NamedTuple):
    """Codes of one model call of the decoder.

    Attributes:
        steps: codes or tokens of some latent steps.
        skip: decoded frames to drop at the start.
        shown: frames to keep after those.
        begins: whether they are the first of a video.
    """

    steps: Tensor
    skip: int
    shown: int
    begins: bool


def plan_encoding(batches: Iterable[Frames], temporal: int) -> Iterator[EncodeCall]:
    """Regroup batches of frames into model calls; the first frame is a latent step by itself."""
    held: list[Frames] = []
    count, first = 0, True
    for batch in batches:
        held.append(batch)
        count += len(batch)
        call_frames = temporal * _steps_of_pixels(batch.shape[1] * batch.shape[2], temporal)
        wanted = call_frames - (temporal - 1 if first else 0)
        while count >= wanted:
            joined = np.concatenate(held)
            yield EncodeCall(joined[:wanted], first)
            held, count = [joined[wanted:]], count - wanted
            first, wanted = False, call_frames
    if count:
        yield EncodeCall(np.concatenate(held), first)


def plan_decoding(
    parts: Iterable[tuple[Tensor, int]], temporal: int, skip: int, shown: int, begins: bool
) -> Iterator[DecodeCall]:
    """Plan the model calls for a range of frames; steps after the last frame shown are left out.

    Args:
        parts: input of each model call and its number of latent steps.
        temporal: frames per latent step.
        skip: decoded frames to drop at the start.
        shown: frames to keep after those.
        begins: whether the first step starts a video and decodes to a single frame.
    """
    for steps, count in parts:
        if not skip + shown:
            return
        frames = count * temporal - (temporal - 1 if begins else 0)
        dropped = min(skip, frames)
        given = min(shown, frames - dropped)
        yield DecodeCall(steps, dropped, given, begins)
        skip, shown, begins = skip - dropped, shown - given, False


def steps_per_call(model: LoadedTokenizer, size: tuple[int, int]) -> int:
    """Latent steps in a model call for frames of (height, width)."""
    return _steps_of_pixels(size[0] * size[1], model.tokenizer.temporal_compression)


def chunk_steps(model: LoadedTokenizer, grid: Sequence[int], stages: int, per_call: int) -> int:
    """Latent steps in a chunk: `CHUNK_STEPS`, or fewer where the entropy coder's limit is lower.

    Args:
        model: encoder of the chunk.
        grid: (h, w) of the latents.
        stages: stages of codes.
        per_call: latent steps in a model call, the least that a chunk has.
    """
    config = model.tokenizer.config
    shape = (config.num_codebooks, CHUNK_STEPS, grid[0], grid[1])
    return max(per_call, steps_to_code(shape, config.codebook_size.bit_length() - 1, stages))


def frames_to_clip(frames: Frames, model: LoadedTokenizer) -> Tensor:
    """Convert uint8 [T, H, W, 3] to [1, 3, T, H, W] in -1..1 on the model's device, in its type."""
    video = torch.from_numpy(frames).to(model.device).permute(3, 0, 1, 2)
    return video.unsqueeze(0).float().div_(127.5).sub_(1).to(model.dtype)


def clip_to_frames(clip: Tensor) -> Frames:
    """Convert [1, 3, T, H, W] in about -1..1 to uint8 [T, H, W, 3], rounded and clamped."""
    _, channels, count, height, width = clip.shape
    frames = np.empty((count, height, width, channels), np.uint8)
    at_once = 1 if clip.device.type == "cpu" else count  # one frame fits the cache, many do not
    for some, part in zip(
        np.split(frames, range(at_once, count, at_once)),
        torch.split(clip[0], at_once, dim=1),
        strict=True,
    ):
        levels = part.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        np.stack(tuple(levels.cpu().numpy()), axis=-1, out=some)
    return frames


def _steps_of_pixels(pixels: int, temporal: int) -> int:
    steps = CHUNK_STEPS
    while steps > 1 and steps * temporal * pixels > CALL_PIXELS:
        steps //= 2
    return steps
