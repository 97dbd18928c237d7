"""Frames of a clip as the batch of 2-D operations, their channels innermost in memory: no copies.

In a clip [B, C, T, H, W] whose channels lie innermost (`channels_last_3d`) the frames are already
a batch [B*T, C, H, W] in the same order (`channels_last`), so going from one to the other is free.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
ONEDNN_NUMBERS = 20480  # a single image of so many or fewer is not worth it to torch


def as_frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W]; a view where the channels lie innermost."""
    return rearrange(x, "b c t h w -> (b t) c h w")


def as_clip(frames: Tensor, batch: int) -> Tensor:
    """[B*T, C, H, W] -> [B, C, T, H, W]; the inverse of `as_frames`."""
    return rearrange(frames, "(b t) c h w -> b c t h w", b=batch)


def channels_first(x: Tensor) -> Tensor:
    """A view [N, C, ...] of [N, ..., C], to end a copy with that is to leave channels innermost.

    A copy lies in memory as it was asked for: asked for with channels second, it scatters them,
    and the next convolution gathers them again.
    """
    return x.movedim(-1, 1)


def pointwise(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of [N, C, H, W] with weight [C', C, 1, 1] -> [N, C', H, W].

    On one thread torch hands few images of a 1x1 convolution to a general matrix product, which
    takes a further pass over its output for the bias and rounds otherwise than oneDNN, to which
    it goes on several threads. Dilation means nothing to a 1x1 kernel, and with it torch takes
    oneDNN every time: as fast on one thread, and the same bits on any number of them.
    """
    dilation = 2 if goes_to_onednn(frames) else 1
    return F.conv2d(frames, weight, bias, dilation=dilation)


def goes_to_onednn(frames: Tensor) -> bool:
    """Whether torch hands a dilated convolution of [N, C, H, W] to oneDNN; no small image alone."""
    if frames.device.type != "cpu" or frames.dtype != torch.float32 or not HAS_ONEDNN:
        return False
    return len(frames) > 1 or frames.numel() > ONEDNN_NUMBERS
