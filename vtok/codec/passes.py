"""What goes through the model at once: which frames, or which latent steps, are one pass.

It follows from the size of the frames alone, so codes do not depend on how frames arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from vtok.media.frames import Frames
from vtok.model import Model

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


def steps_per_pass(model: Model, size: tuple[int, int]) -> int:
    """Latent steps that the decoder takes at a time, for frames of (height, width)."""
    return _steps_per_pass(size[0] * size[1], model.tokenizer.temporal_compression)


def _steps_per_pass(pixels: int, temporal: int) -> int:
    """Latent steps that one pass takes: a power of two, so that passes fill chunks exactly."""
    steps = CHUNK_STEPS
    while steps > 1 and steps * temporal * pixels > PASS_PIXELS:
        steps //= 2
    return steps
