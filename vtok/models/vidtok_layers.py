"""Layers of VidTok.

All tensors are [B, T, H, W, C], contiguous: convolutions of single frames are fast on a CPU, and
frames are joined and cut without rearranging them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtok.nn.layers import Context

NORM_EPSILON = 1e-6


class TimePadding(Enum):
    """Padding of time in convolutions of three frames."""

    ZEROS = "two frames of zeros before the clip"
    REPEAT = "two copies of the first frame before the clip"
    CENTERED = "a frame of zeros before the clip and one after it"


@dataclass(frozen=True)
class Call(Context):
    """Inputs that every layer shares.

    Attributes:
        ahead: Frames at the end, 0 or 1, that later frames of the output need. Layers compute
            them, and their state does not advance over them.
    """

    ahead: int = 0


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """Apply a 2-D convolution to each frame of [B, T, H, W, C]."""
    frames = x.flatten(0, 1).permute(0, 3, 1, 2)
    frames = F.conv2d(frames, weight, bias, stride, padding)
    return frames.permute(0, 2, 3, 1).reshape(*x.shape[:2], *frames.shape[2:], -1)


class Convolution(nn.Module):
    """Base class of convolutions: weight, bias, and the past that they need.

    Args:
        padding: Padding of time.
        shape: Shape of the weight, as the 2-D convolution of the subclass takes it.
        dim_out: Output channels.
    """

    def __init__(self, padding: TimePadding, shape: tuple[int, ...], dim_out: int) -> None:
        super().__init__()
        self.causal, self.repeats = padding != TimePadding.CENTERED, padding == TimePadding.REPEAT
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(dim_out))
        nn.init.kaiming_uniform_(self.weight, math.sqrt(5))

    def pad_time(self, x: Tensor, call: Call, before: int, after: int = 0) -> Tensor:
        """Put `before` past frames in front of [B, T, H, W, C], and `after` zeros at the end."""
        past = call.past(self)
        if past is None:
            past = x[:, :1].expand(-1, before, -1, -1, -1)
            past = past if self.repeats else torch.zeros_like(past)
        padded = torch.cat((past, x, torch.zeros_like(x[:, :after])), 1)
        end = padded.shape[1] - call.ahead
        call.remember(self, padded[:, end - before : end])
        return padded

    def add_delayed(self, taps: Iterable[Tensor], call: Call) -> Tensor:
        """Sum the products of three frames with their weights, and the bias.

        The state is what past frames add to the next two. Sums begin with the oldest frame, in a
        stream as in a whole clip.

        Args:
            taps: The products with the weights of the oldest frame, the one between and the newest,
                each [B, T, H, W, C] and at its own frame of the input. Each is made when needed.
            call: State, and frames ahead.
        """
        taps, past = iter(taps), call.past(self)
        starts, oldest = past is None, next(taps)
        frames, end = oldest.shape[1], oldest.shape[1] - call.ahead
        if past is None:
            past = oldest[:, :1].expand(-1, 2, -1, -1, -1)
            past = past if self.repeats else torch.zeros_like(past)
        total = torch.cat((past, oldest), 1)
        final = oldest[:, end - 1 : end].clone()
        del oldest
        middle = next(taps)
        if starts and self.repeats:
            total[:, :1] += middle[:, :1]
        total[:, 1:-1] += middle
        del middle
        if call.state is not None:
            call.remember(self, torch.cat((total[:, end : end + 1], final), 1))
        total[:, :-2] += next(taps)
        total = total[:, :frames] if self.causal else total[:, 1 : frames + 1]
        return total.add_(self.bias)


class SpaceConv(Convolution):
    """3x3 convolution of each frame, or 1x1."""

    def __init__(self, padding: TimePadding, dim: int, dim_out: int, kernel: int = 3) -> None:
        super().__init__(padding, (dim_out, dim, kernel, kernel), dim_out)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        return convolve(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class TimeConv(Convolution):
    """Convolution of three frames at each position: a 2-D one over frames and positions."""

    def __init__(self, padding: TimePadding, dim: int, dim_out: int) -> None:
        super().__init__(padding, (dim_out, dim, 3, 1), dim_out)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        padded = self.pad_time(x, call, 2) if self.causal else x
        rows = padded.flatten(2, 3).permute(0, 3, 1, 2)
        rows = F.conv2d(rows, self.weight, self.bias, padding=(0 if self.causal else 1, 0))
        return rows.permute(0, 2, 3, 1).reshape(*x.shape[:4], -1)


class SpaceTimeConv(Convolution):
    """3x3x3 convolution: a 2-D one that gives the products of the three frames of the kernel."""

    def __init__(self, padding: TimePadding, dim: int, dim_out: int) -> None:
        super().__init__(padding, (3 * dim_out, dim, 3, 3), dim_out)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        return self.add_delayed(convolve(x, self.weight, padding=1).chunk(3, -1), call)


class PixelConv(Convolution):
    """3x3x3 convolution of few channels: a 2-D one of three frames joined to one."""

    def __init__(self, padding: TimePadding, dim: int, dim_out: int) -> None:
        super().__init__(padding, (dim_out, 3 * dim, 3, 3), dim_out)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        padded = self.pad_time(x, call, *((2, 0) if self.causal else (1, 1)))
        joined = torch.cat([padded[:, i : i + x.shape[1]] for i in range(3)], -1)
        return convolve(joined, self.weight, self.bias, padding=1)


class SpaceDownsample(Convolution):
    """Convolution that halves height and width."""

    def __init__(self, padding: TimePadding, dim: int) -> None:
        super().__init__(padding, (dim, dim, 3, 3), dim)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H/2, W/2, dim]."""
        return convolve(F.pad(x, (0, 0, 0, 1, 0, 1)), self.weight, self.bias, stride=2)


class SpaceUpsample(Convolution):
    """Repetition of pixels to twice the height and width, and a 3x3 convolution.

    Computed as four 2x2 convolutions of the input, one for each pixel of a 2x2 block: less than
    half the multiplications.
    """

    def __init__(self, padding: TimePadding, dim: int) -> None:
        super().__init__(padding, (dim, dim, 3, 3), dim)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, h, w, dim] -> [B, T, 2h, 2w, dim]."""
        batch, frames, h, w, dim = x.shape
        kernels = torch.cat([part for rows in _fold(self.weight, 2) for part in _fold(rows, 3)])
        parts = convolve(x, kernels, self.bias.repeat(4), padding=1)  # [B, T, h + 1, w + 1, 4 dim]
        out = parts.new_empty(batch, frames, h, 2, w, 2, dim)
        for number, part in enumerate(parts.chunk(4, -1)):
            p, q = divmod(number, 2)
            out[:, :, :, p, :, q] = part[:, :, p : p + h, q : q + w]
        return out.view(batch, frames, 2 * h, 2 * w, dim)


def _fold(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Reduce three weights along an axis to the two that even, and odd, positions read."""
    first, second, third = weight.chunk(3, axis)
    even = torch.cat((first, second + third), axis)
    return even, torch.cat((first + second, third), axis)


class TimeDownsample(nn.Module):
    """Halving of frames: a learned mix of the mean of three frames and a 3x3x3 convolution."""

    def __init__(self, padding: TimePadding, dim: int) -> None:
        super().__init__()
        self.conv = SpaceTimeConv(padding, dim, dim)
        self.mix_factor = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T/2, H, W, dim], rounded up."""
        padded = self.conv.pad_time(x, call, *((1, 0) if self.conv.causal else (0, 1)))
        if x.shape[1] % 2:  # the first latent step is a single frame
            padded = torch.cat((padded[:, :1], padded), 1)
        frames = [padded[:, i::2][:, : padded.shape[1] // 2] for i in range(3)]
        oldest, middle, newest = self.conv.weight.chunk(3)
        mixed = convolve(frames[0], oldest, self.conv.bias, padding=1)
        mixed += convolve(frames[1], middle, padding=1)
        mixed += convolve(frames[2], newest, padding=1)
        mean = (frames[0] + frames[1] + frames[2]) / 3
        return mixed.lerp_(mean, self.mix_factor.sigmoid())


class TimeUpsample(nn.Module):
    """Doubling of frames: a learned mix of the doubled frames and their 3x3x3 convolution.

    Doubling commutes with products of single frames, so these are computed of the input: half the
    multiplications.

    Args:
        padding: Padding of time. With REPEAT, frames are doubled by linear interpolation, except
            the first one of a video, which stays single; else by repetition.
        dim: Channels.
        last: Whether no later layer doubles frames, so that none needs a frame ahead.
    """

    def __init__(self, padding: TimePadding, dim: int, last: bool) -> None:
        super().__init__()
        self.conv = SpaceTimeConv(padding, dim, dim)
        self.mix_factor = nn.Parameter(torch.full((1,), 2.0))
        self.last = last

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, 2T, H, W, dim]; a frame ahead stays single, or is dropped."""
        x, double = self._doubling(x, call)
        kept = dataclasses.replace(call, ahead=0 if self.last else call.ahead)
        taps = map(double, convolve(x, self.conv.weight, padding=1).chunk(3, -1))
        mixed = self.conv.add_delayed(taps, kept)
        del taps  # and the products that it holds
        return mixed.lerp_(double(x), self.mix_factor.sigmoid())

    def _doubling(self, x: Tensor, call: Call) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Add the past frame that the interpolation needs, and choose how to double frames."""
        if not self.conv.repeats:
            return x, lambda frames: frames.repeat_interleave(2, 1)
        past = call.past(self)
        single, skipped = (1, 0) if past is None else (0, 2 * past.shape[1])
        x = x if past is None else torch.cat((past, x), 1)
        end = x.shape[1] - call.ahead
        call.remember(self, x[:, max(end - 1, single) : end])
        wanted = slice(skipped, 2 * end - single + (0 if self.last else call.ahead))

        def double(frames: Tensor) -> Tensor:
            doubled = _interpolate(frames[:, single:])
            return torch.cat((frames[:, :single], doubled), 1)[:, wanted]

        return x, double


def _interpolate(x: Tensor) -> Tensor:
    """[B, T, H, W, C] -> [B, 2T, H, W, C]: three quarters of a frame, a quarter of the nearer."""
    before, after = torch.cat((x[:, :1], x[:, :-1]), 1), torch.cat((x[:, 1:], x[:, -1:]), 1)
    return torch.stack((before.lerp_(x, 0.75), after.lerp_(x, 0.75)), 2).flatten(1, 2)


class Norm(nn.LayerNorm):
    """Normalization of the channels at each position."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, NORM_EPSILON)

    def activate(self, x: Tensor) -> Tensor:
        """Normalize, then apply SiLU."""
        return F.silu(self(x), inplace=True)


Kind = type[SpaceConv] | type[TimeConv] | type[SpaceTimeConv]


class ResBlock(nn.Module):
    """Two convolutions of a kind, each after normalization and SiLU, and a shortcut."""

    def __init__(self, padding: TimePadding, kind: Kind, dim: int, dim_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(dim), kind(padding, dim, dim_out)
        self.norm2, self.conv2 = Norm(dim_out), kind(padding, dim_out, dim_out)
        self.nin_shortcut = None if dim == dim_out else SpaceConv(padding, dim, dim_out, 1)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        hidden = self.conv1(self.norm1.activate(x), call)
        hidden = self.conv2(self.norm2.activate(hidden), call)
        return hidden.add_(x if self.nin_shortcut is None else self.nin_shortcut(x, call))


class Attention(nn.Module):
    """Attention with one head among the positions of each frame, and a shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Norm(dim)
        self.q, self.k, self.v, self.proj_out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim]."""
        tokens = self.norm(x).flatten(2, 3)
        found = F.scaled_dot_product_attention(self.q(tokens), self.k(tokens), self.v(tokens))
        return self.proj_out(found).view(x.shape).add_(x)


class Middle(nn.Module):
    """Attention between two residual blocks, at the lowest resolution."""

    def __init__(self, padding: TimePadding, dim: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = ResBlock(padding, SpaceTimeConv, dim, dim), Attention(dim)
        self.block_2 = ResBlock(padding, SpaceTimeConv, dim, dim)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim]."""
        return self.block_2(self.attn_1(self.block_1(x, call)), call)


class Level(nn.Module):
    """Residual blocks of one resolution, over space or over time, and its resampling.

    Args:
        padding: Padding of time.
        kind: Kind of convolution.
        dims: Channels before, between and after the blocks.
        resample: Layer after the blocks, or None.
    """

    def __init__(
        self, padding: TimePadding, kind: Kind, dims: Sequence[int], resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(padding, kind, *pair) for pair in pairwise(dims))
        self.resample = resample


def run_levels(space: nn.Module, time: nn.Module, x: Tensor, call: Call) -> Tensor:
    """Apply blocks over space and over time in turns, then resample space and time."""
    assert isinstance(space, Level)
    assert isinstance(time, Level)
    for spatial, temporal in zip(space.block, time.block, strict=True):
        x = temporal(spatial(x, call), call)
    for level in (space, time):
        x = x if level.resample is None else level.resample(x, call)
    return x
