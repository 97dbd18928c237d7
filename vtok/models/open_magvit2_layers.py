"""Configuration and layers of the tokenizers in `open_magvit2`."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.models.family import FamilyConfig, are_whole
from vtok.nn.layers import CausalLayer, Context, as_clip, as_frames, pointwise

GROUPS = 32  # of all group norms
SHORT = 5  # frames up to which 2-D convolutions that skip padded frames are faster
VARIANTS = ("image", "video", "o2")
_MOST = {"bits": 24, "channels": 4096, "blocks": 64}
MAX_LEVELS, MAX_MULTIPLIER = 8, 64


@dataclass(frozen=True)
class OpenMagvit2Config(FamilyConfig):
    """Configuration of an `OpenMagvit2Tokenizer`; the defaults are 1X's.

    Attributes:
        variant: image, video or o2.
        bits: Latent channels, one bit of a code each.
        channels: Width of the first level, a multiple of 32.
        multipliers: Width of each level in multiples of `channels`.
        time_strides: Frames that are merged between one level and the next, 1 or 2 each.
        blocks: Residual blocks of a level.
        adaptive: Whether the decoder has norms that depend on the codes.

    Raises:
        OptionError: A field is invalid.
    """

    variant: str = "image"
    bits: int = 18
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    time_strides: tuple[int, ...] = (1, 1, 1, 1)
    blocks: int = 2
    adaptive: bool = False

    def check(self) -> None:
        """Check all fields."""
        self.require("variant", self.variant in VARIANTS, f"one of {', '.join(VARIANTS)}")
        self.require_whole(_MOST)
        self.require("channels", self.channels % GROUPS == 0, f"a multiple of {GROUPS}")
        levels = self.multipliers
        valid = are_whole(levels, 1, MAX_MULTIPLIER) and 1 <= len(levels) <= MAX_LEVELS
        expected = f"1 to {MAX_LEVELS} whole numbers from 1 to {MAX_MULTIPLIER}"
        self.require("multipliers", valid, expected)
        strides, most = self.time_strides, 1 if self.variant == "image" else 2
        valid = are_whole(strides, 1, most) and len(strides) == len(levels) - 1
        self.require("time_strides", valid, f"{len(levels) - 1} numbers from 1 to {most}")
        valid = isinstance(self.adaptive, bool) and (self.adaptive or self.variant == "image")
        self.require("adaptive", valid, "true, or false for the variant image")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * number for number in self.multipliers)

    @property
    def lookback(self) -> int:
        """Latent steps before a frame that the decoder reads."""
        total, frames = 2.0 + 4 * self.blocks, 1  # each convolution reads two steps back
        for level in reversed(range(len(self.multipliers))):
            total += (4 * self.blocks + 2) / frames  # blocks, and the next or last convolution
            frames *= self.time_strides[level - 1] if level else 1
        return math.ceil(total)


class Conv(CausalLayer):
    """Convolution padded with zeros: in space, and before the first frame.

    A short clip at the start of a video is computed as 2-D convolutions, one for each frame of the
    kernel, so that nothing is computed for padded frames. Channels must not be innermost in memory:
    for that layout, the group norm of torch on a CPU computes variances as differences of large
    numbers.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(dim, dim_out, kernel, stride, bias=bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> [B, dim_out, T', H', W']."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        past, padding = context.past(self), 0
        if past is None:
            padding = kernel - 1  # frames of zeros, which are not stored
        else:
            x = torch.cat((past, x), dim=2)
        if keep := kernel - stride:
            recent = x[:, :, -keep:]
            context.remember(self, F.pad(recent, (0, 0, 0, 0, keep - recent.shape[2], 0)))
        if kernel > 1 and (past is not None or x.shape[2] > SHORT):
            x = F.pad(x, (0, 0, 0, 0, padding, 0)).contiguous()
            return F.conv3d(x, self.conv.weight, self.conv.bias, self.conv.stride, (0, 1, 1))
        count = (x.shape[2] + padding - kernel) // stride + 1
        out = self._convolve(x, kernel - 1, kernel - 1 - padding, self.conv.bias)
        for tap in range(kernel - 1):
            begin = -(-max(0, padding - tap) // stride)  # outputs before it see a padded frame
            if begin < count:
                first = tap - padding + stride * begin
                part = self._convolve(x, tap, first, None)[:, :, : count - begin]
                out[:, :, begin:] += part
        return out

    def _convolve(self, x: Tensor, tap: int, first: int, bias: Tensor | None) -> Tensor:
        """Convolve every frame from `first` on, in steps of the stride, with one of the kernel."""
        time, *stride = self.conv.stride
        frames = as_frames(x[:, :, first::time]).contiguous()
        weight = self.conv.weight[:, :, tap]
        if weight.shape[2:] == (1, 1):
            return as_clip(pointwise(frames, weight, bias), x.shape[0])
        return as_clip(F.conv2d(frames, weight, bias, tuple(stride), 1), x.shape[0])


class Norm(nn.GroupNorm):
    """Group norm over each frame, or over all frames of a window."""

    def __init__(self, config: OpenMagvit2Config, dim: int, affine: bool = True) -> None:
        eps = 1e-5 if config.variant == "o2" else 1e-6
        super().__init__(GROUPS, dim, eps, affine)
        self.per_frame = config.variant != "video"

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [B, dim, T, H, W]."""
        if not self.per_frame:
            return super().forward(x)
        return as_clip(super().forward(as_frames(x)), x.shape[0])


class Block(CausalLayer):
    """Residual block: norm, SiLU and convolution, twice."""

    def __init__(self, config: OpenMagvit2Config, dim: int, dim_out: int) -> None:
        super().__init__()
        kernel = _kernel(config)
        self.norm1, self.norm2 = Norm(config, dim), Norm(config, dim_out)
        self.conv1 = Conv(dim, dim_out, kernel, bias=False)
        self.conv2 = Conv(dim_out, dim_out, kernel, bias=False)
        same = dim == dim_out
        self.nin_shortcut = None if same else Conv(dim, dim_out, (1, 1, 1), bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> [B, dim_out, T, H, W]."""
        change = self.conv1(F.silu(self.norm1(x)), context)
        change = self.conv2(F.silu(self.norm2(change)), context)
        return change + (x if self.nin_shortcut is None else self.nin_shortcut(x, context))


class Upsample(CausalLayer):
    """Convolution whose channels become pixels and frames; the first step gives one frame.

    O2-MAGVIT2 drops the first of the frames at the start of a video, Open-MAGVIT2 the second.
    """

    def __init__(self, config: OpenMagvit2Config, dim: int, time: int) -> None:
        super().__init__()
        self.time, self.drop = time, 0 if config.variant == "o2" else 1
        self.conv1 = Conv(dim, dim * time * 4, _kernel(config))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, t, h, w] -> [B, dim, t * time, 2 * h, 2 * w], one frame less at the start."""
        first = context.past(self.conv1) is None
        pattern = "b (f p q c) t h w -> b (t f) c (h p) (w q)"
        x = rearrange(self.conv1(x, context), pattern, f=self.time, p=2, q=2).movedim(1, 2)
        if self.time == 1 or not first:
            return x
        return torch.cat((x[:, :, : self.drop], x[:, :, self.drop + 1 :]), dim=2)


class AdaptiveNorm(nn.Module):
    """Norm whose gain and bias are linear maps of the codes.

    In Open-MAGVIT2 of their standard deviation and mean over a frame or window; in O2-MAGVIT2 of
    the codes at the same place.

    Args:
        config: Configuration of the tokenizer.
        dim: Channels of the input.
        level: Level of the input, which gives its frames and pixels per latent position.
    """

    def __init__(self, config: OpenMagvit2Config, dim: int, level: int) -> None:
        super().__init__()
        self.gn = Norm(config, dim, affine=False)
        self.gamma, self.beta = (nn.Linear(config.bits, dim) for _ in range(2))
        self.local = config.variant == "o2"
        self.time = math.prod(config.time_strides[level:])
        self.space = 2 ** (len(config.multipliers) - 1 - level)

    def forward(self, x: Tensor, codes: Tensor, first: bool) -> Tensor:
        """Normalize [B, dim, T, H, W].

        Args:
            x: The input.
            codes: Quantized latents [B, D, t, h, w].
            first: Whether the input starts a video, so that its first step is one frame.
        """
        x = self.gn(x)
        if self.local:
            return self._modulate_places(x, codes, first)
        axes = (3, 4) if self.gn.per_frame else (2, 3, 4)
        deviation = (codes.var(axes, keepdim=True) + self.gn.eps).sqrt()
        gain = _linear(self.gamma, deviation)
        return torch.addcmul(_linear(self.beta, codes.mean(axes, keepdim=True)), x, gain)

    def _modulate_places(self, x: Tensor, codes: Tensor, first: bool) -> Tensor:
        """Apply gain and bias of each latent position to its frames and pixels."""
        frames = torch.arange(x.shape[2], device=x.device) + (self.time - 1 if first else 0)
        gain, bias = (
            _linear(linear, codes)[:, :, frames // self.time, :, None, :, None]
            for linear in (self.gamma, self.beta)
        )
        pattern, size = "b c t (h p) (w q) -> b c t h p w q", {"p": self.space, "q": self.space}
        x = torch.addcmul(bias, rearrange(x, pattern, **size), gain + 1)
        return rearrange(x, "b c t h p w q -> b c t (h p) (w q)")


def _linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to the channels of [B, C, t, h, w]."""
    return linear(x.movedim(1, -1)).movedim(-1, 1)


def _kernel(config: OpenMagvit2Config) -> tuple[int, int, int]:
    return (1 if config.variant == "image" else 3, 3, 3)


def _blocks(config: OpenMagvit2Config, dim: int, dim_out: int) -> nn.ModuleList:
    widths = (dim, *(dim_out,) * config.blocks)
    return nn.ModuleList(Block(config, *pair) for pair in itertools.pairwise(widths))


class Level(nn.Module):
    """Blocks of one resolution, and the layer that leads to the next one."""

    def __init__(
        self,
        block: nn.ModuleList,
        downsample: Conv | None = None,
        upsample: Upsample | None = None,
    ) -> None:
        super().__init__()
        self.block, self.downsample, self.upsample = block, downsample, upsample

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply the blocks, then change the resolution."""
        x, resample = _run(self.block, x, context), self.downsample or self.upsample
        return x if resample is None else resample(x, context)


class Encoder(nn.Module):
    """Clip to latents; module names follow Open-MAGVIT2."""

    def __init__(self, config: OpenMagvit2Config) -> None:
        super().__init__()
        kernel, widths = _kernel(config), config.widths
        self.conv_in = Conv(3, config.channels, kernel, bias=config.variant == "o2")
        downs = [
            Conv(dim, dim, kernel, (time, 2, 2))
            for dim, time in zip(widths, config.time_strides, strict=False)
        ]
        pairs = itertools.pairwise((config.channels, *widths))
        self.down = nn.ModuleList(
            Level(_blocks(config, *pair), downsample=down)
            for pair, down in zip(pairs, (*downs, None), strict=True)
        )
        self.mid_block = _blocks(config, widths[-1], widths[-1])
        self.norm_out = Norm(config, widths[-1])
        self.conv_out = Conv(widths[-1], config.bits, (1, 1, 1))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, 3, T, H, W] -> [B, D, t, h, w]."""
        x = self.conv_in(x, context)
        for level in self.down:
            x = level(x, context)
        x = _run(self.mid_block, x, context)
        return self.conv_out(F.silu(self.norm_out(x)), context)


class Decoder(nn.Module):
    """Quantized latents to a clip; module names follow Open-MAGVIT2."""

    def __init__(self, config: OpenMagvit2Config) -> None:
        super().__init__()
        kernel, widths = _kernel(config), config.widths
        self.conv_in = Conv(config.bits, widths[-1], kernel)
        self.mid_block = _blocks(config, widths[-1], widths[-1])
        ups = [
            Upsample(config, dim, time)
            for dim, time in zip(widths[1:], config.time_strides, strict=True)
        ]
        inputs = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(
            Level(_blocks(config, dim, dim_out), upsample=up)
            for dim, dim_out, up in zip(inputs, widths, (None, *ups), strict=True)
        )
        norms = inputs if config.adaptive else ()
        self.adaptive = nn.ModuleList(
            AdaptiveNorm(config, dim, level) for level, dim in enumerate(norms)
        )
        self.norm_out = Norm(config, widths[0])
        self.conv_out = Conv(widths[0], 3, kernel)

    def forward(self, codes: Tensor, context: Context) -> Tensor:
        """[B, D, t, h, w] -> [B, 3, T, H, W]."""
        first = context.past(self.conv_in) is None
        x = _run(self.mid_block, self.conv_in(codes, context), context)
        for level in reversed(range(len(self.up))):
            if self.adaptive:
                x = self.adaptive[level](x, codes, first)
            x = self.up[level](x, context)
        return self.conv_out(F.silu(self.norm_out(x)), context)


def _run(blocks: nn.ModuleList, x: Tensor, context: Context) -> Tensor:
    for block in blocks:
        x = block(x, context)
    return x
