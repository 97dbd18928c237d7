"""Causal convolutions, and the layers that compress and expand space and time.

On a CPU, convolutions are fastest if the channels of a tensor are innermost in memory. Layers that
rearrange pixels therefore end with `channels_first`, a view, so that no convolution has to copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.errors import ShapeError
from vtok.nn.interface import StreamState
from vtok.nn.shapes import PATCH_SPACE, PATCH_TIME

HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
ONEDNN_NUMBERS = 20480  # torch gives a single image of at most this size to its own kernel


@dataclass(frozen=True)
class Context:
    """Inputs that every layer shares.

    Attributes:
        state: State of the stream; None if the input is the whole clip.
        cond: Condition vectors [B, dim_cond], or None.
    """

    state: StreamState | None = None
    cond: Tensor | None = None

    def past(self, layer: nn.Module) -> Tensor | None:
        """Return what `layer` stored at the previous chunk; None at the start of the video."""
        return None if self.state is None else self.state.past(layer)

    def remember(self, layer: nn.Module, recent: Tensor) -> None:
        """Store `recent` for `layer` until the next chunk."""
        if self.state is not None:  # a copy, since a view would keep the whole chunk in memory
            self.state.keep(layer, recent.detach().clone())


class CausalLayer(nn.Module):
    """Base class of layers on [B, C, T, H, W] whose output never depends on later frames.

    Attributes:
        lookback: Steps that the layer reads back, counted on the finer of its input and output
            grids; None if unbounded.
    """

    lookback: int | None = 0

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply the layer to one chunk."""
        raise NotImplementedError


def as_frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W]; a view if the channels are innermost in memory."""
    return rearrange(x, "b c t h w -> (b t) c h w")


def as_clip(frames: Tensor, batch: int) -> Tensor:
    """[B*T, C, H, W] -> [B, C, T, H, W]; the inverse of `as_frames`."""
    return rearrange(frames, "(b t) c h w -> b c t h w", b=batch)


def channels_first(x: Tensor) -> Tensor:
    """[N, ..., C] -> [N, C, ...], as a view, so that channels stay innermost in memory."""
    return x.movedim(-1, 1)


def per_channel(values: Tensor) -> Tensor:
    """[B, C] -> [B, C, 1, 1, 1], to multiply a clip by."""
    return rearrange(values, "b c -> b c 1 1 1")


def norm_channels(frames: Tensor) -> Tensor:
    """Normalize the channels of each position of [N, C, H, W] to mean 0 and variance 1.

    Positions are independent, so borders of chunks and tiles cannot change the result.
    """
    return F.layer_norm(frames.permute(0, 2, 3, 1), frames.shape[1:2]).permute(0, 3, 1, 2)


def convolve(frames: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
    """Apply `F.conv2d`; in training the bias is added apart.

    On a CPU, torch sums the gradient of a convolution's bias several times slower than that of an
    addition (`scripts/profile_training.py`).
    """
    if bias is None or not (bias.requires_grad and torch.is_grad_enabled()):
        return F.conv2d(frames, weight, bias, **options)
    return F.conv2d(frames, weight, **options).add_(bias.view(-1, 1, 1))


def pointwise(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a 1x1 convolution: [N, C, H, W] and weight [C', C, 1, 1] -> [N, C', H, W].

    On one thread torch computes 1x1 convolutions of few images as a general matrix product, which
    adds the bias in another pass over memory and rounds differently from oneDNN, used on several
    threads. Dilation has no effect on a 1x1 kernel but makes torch choose oneDNN always: as fast
    on one thread, and the same bits on any number of threads (`scripts/roofline.py`).
    """
    onednn = frames.device.type == "cpu" and frames.dtype == torch.float32 and HAS_ONEDNN
    dilated = onednn and (len(frames) > 1 or frames.numel() > ONEDNN_NUMBERS)
    return convolve(frames, weight, bias, dilation=2 if dilated else 1)


def pad_space(x: Tensor, amounts: tuple[int, int], mode: str) -> Tensor:
    """Pad height and width of [B, C, T, H, W] by `amounts` on both sides.

    A reflection needs more pixels than it adds; frames with fewer are padded by their edge.
    """
    if amounts == (0, 0):
        return x
    if mode == "reflect" and (x.shape[-2] <= amounts[0] or x.shape[-1] <= amounts[1]):
        mode = "replicate"
    return F.pad(x, (amounts[1], amounts[1], amounts[0], amounts[0], 0, 0), mode=mode)


def modulation(linear: nn.Linear, context: Context) -> Tensor:
    """Map the condition vectors [B, dim_cond] to one number per channel, [B, C].

    Raises:
        ShapeError: There is no condition, or its width is wrong.
    """
    cond, expected = context.cond, f"a tensor [B, {linear.in_features}]"
    if cond is None:
        raise ShapeError(f"this tokenizer is conditioned: pass cond=, {expected}")
    if cond.ndim != 2 or cond.shape[1] != linear.in_features:
        raise ShapeError(f"cond of shape {list(cond.shape)}: expected {expected}")
    return linear(cond.to(linear.weight.dtype))


class CausalConv3d(CausalLayer):
    """3-D convolution whose output never depends on later frames.

    Space is padded by `pad_mode`. Time is padded before the first frame only: with zeros, or with
    copies of the first frame (a reflection would look ahead).

    Args:
        dim: Input channels.
        dim_out: Output channels.
        kernel_size: Over time, height and width; odd in space.
        stride: Over time, height and width; at most the kernel size.
        pad_mode: constant, reflect or replicate.
        time_mode: constant or replicate; default: constant if `pad_mode` is, else replicate.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel_size: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        pad_mode: str = "constant",
        time_mode: str | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(dim, dim_out, kernel_size, stride)
        self.pad_mode = pad_mode
        self.time_mode = time_mode or ("constant" if pad_mode == "constant" else "replicate")
        self.kernel_size = kernel_size
        self.lookback = kernel_size[0] - 1

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> [B, dim_out, T', H', W']."""
        amounts = (self.kernel_size[1] // 2, self.kernel_size[2] // 2)
        if self.kernel_size[0] == 1:
            return self._convolve_frames(x, amounts)
        padded = pad_space(self._pad_time(x, context), amounts, self.pad_mode)
        return self.conv(padded)

    def _pad_time(self, x: Tensor, context: Context) -> Tensor:
        past = context.past(self)
        if past is None:
            x = F.pad(x, (0, 0, 0, 0, self.kernel_size[0] - 1, 0), mode=self.time_mode)
        else:
            x = torch.cat((past, x), dim=2)
        keep = self.kernel_size[0] - self.conv.stride[0]
        context.remember(self, x[:, :, x.shape[2] - keep :])
        return x

    def _convolve_frames(self, x: Tensor, amounts: tuple[int, int]) -> Tensor:
        """Compute the same result by a 2-D convolution, several times faster on a CPU."""
        weight, bias = self.conv.weight.squeeze(2), self.conv.bias
        if self.kernel_size == (1, 1, 1):
            return as_clip(pointwise(as_frames(x), weight, bias), x.shape[0])
        if self.pad_mode != "constant":
            x, amounts = pad_space(x, amounts, self.pad_mode), (0, 0)
        stride = self.conv.stride[1:]
        frames = convolve(as_frames(x), weight, bias, stride=stride, padding=amounts)
        return as_clip(frames, x.shape[0])


class Expand(CausalLayer):
    """Multiply frames, height and width: pointwise convolution, SiLU, channels to pixels.

    If it multiplies time, the output starts with `time - 1` frames before the first one, which the
    tokenizer drops.
    """

    def __init__(self, dim: int, dim_out: int, *, time: int = 1, space: int = 1) -> None:
        super().__init__()
        self.time, self.space = time, space
        self.conv = CausalConv3d(dim, dim_out * time * space**2, (1, 1, 1))
        _init_as_repeat(self.conv.conv, time * space**2)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, t, h, w] -> [B, dim_out, t * time, h * space, w * space]."""
        hidden = F.silu(self.conv(x, context))
        return rearrange(
            hidden,
            "b (c f p q) t h w -> b c (t f) (h p) (w q)",
            f=self.time, p=self.space, q=self.space,
        )  # fmt: skip


@torch.no_grad()
def _init_as_repeat(conv: nn.Conv3d, times: int) -> None:
    """Initialize so that all pixels made from one position are equal, without a checkerboard."""
    weight = torch.empty(conv.weight.shape[0] // times, *conv.weight.shape[1:])
    nn.init.kaiming_uniform_(weight)
    conv.weight.copy_(weight.repeat_interleave(times, dim=0))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


class SpaceTimePatchEmbed(CausalLayer):
    """Patch embedding: each block of `time` frames of `space` x `space` pixels is one position.

    The first frame of a video is repeated to fill a whole step.
    """

    def __init__(
        self, dim: int, dim_out: int, *, time: int = PATCH_TIME, space: int = PATCH_SPACE
    ) -> None:
        super().__init__()
        self.time, self.space = time, space
        self.project = nn.Conv2d(dim * time * space**2, dim_out, 1)

    def patches(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, 1 + nf, hp, wp] (nf frames in a later chunk) -> [B * (1 + n), dim * fpp, h, w].

        f is `time` and p is `space`; channels are ordered frame, row, column, channel.
        """
        if context.past(self) is None:
            # not F.pad, which torch.compile cannot compile after a decoder
            x = torch.cat([x[:, :, :1]] * (self.time - 1) + [x], 2)
        context.remember(self, x.new_zeros(()))
        pattern = "b c (t f) (h p) (w q) -> (b t) h w (f p q c)"
        return channels_first(rearrange(x, pattern, f=self.time, p=self.space, q=self.space))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, 1 + nf, hp, wp] (nf frames in a later chunk) -> [B, dim_out, 1 + n, h, w]."""
        return self.embed(self.patches(x, context), x.shape[0])

    def embed(self, patches: Tensor, batch: int) -> Tensor:
        """Map the result of `patches`, of `batch` clips -> [B, dim_out, 1 + n, h, w]."""
        return as_clip(pointwise(patches, self.project.weight, self.project.bias), batch)


class SpaceTimePatchUnembed(CausalLayer):
    """Mirror of `SpaceTimePatchEmbed`: each position becomes a block of frames and pixels.

    The output starts with `time - 1` frames before the first one, which the tokenizer drops.
    """

    def __init__(
        self, dim: int, dim_out: int, *, time: int = PATCH_TIME, space: int = PATCH_SPACE
    ) -> None:
        super().__init__()
        self.time, self.space = time, space
        self.project = nn.Conv2d(dim, dim_out * time * space**2, 1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, t, h, w] -> [B, dim_out, t * time, h * space, w * space]."""
        patches = pointwise(as_frames(x), self.project.weight, self.project.bias)
        pixels = rearrange(
            patches,
            "(b t) (f p q c) h w -> b (t f) (h p) (w q) c",
            b=x.shape[0], f=self.time, p=self.space, q=self.space,
        )  # fmt: skip
        return channels_first(pixels)
