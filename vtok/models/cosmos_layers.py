"""Layers of Cosmos tokenizers: wavelets, residual blocks, attention, and changes of resolution.

Attributes follow the tensor names of the published files.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.nn.layers import (
    CausalConv3d,
    CausalLayer,
    Context,
    as_clip,
    as_frames,
    channels_first,
)
from vtok.nn.winograd import convolve_3x3

LEAST_PIXELS = 256  # of a frame, for which adding taps takes less time than it saves


def haar_matrix(patch_size: int) -> Tensor:
    """Create the signs of a 3-D Haar transform, [bands, frames * rows * columns].

    Bands of the last level are outermost; each level orders its bands by time, height and width.
    """
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    level = torch.kron(torch.kron(pair, pair), pair)
    matrix, size = torch.ones(1, 1), 1
    while size < patch_size:
        axes = {"f": 2, "p": 2, "q": 2, "g": size, "r": size, "s": size}
        pattern = "bands (f p q g r s) -> bands (f g p r q s)"
        matrix, size = rearrange(torch.kron(level, matrix), pattern, **axes), size * 2
    return matrix


class Haar(nn.Module):
    """Wavelet transform of blocks of `patch_size` frames, rows and columns, and its inverse."""

    def __init__(self, patch_size: int, dim: int = 3) -> None:
        super().__init__()
        self.patch_size = patch_size
        signs = torch.kron(haar_matrix(patch_size), torch.eye(dim))
        self.register_buffer("signs", signs, persistent=False)
        self.signs: Tensor

    def forward(self, clip: Tensor) -> Tensor:
        """[B, 3, t * p, h * p, w * p] -> [B, 3 * p**3, t, h, w]."""
        p = self.patch_size
        pattern = "b c (t f) (h p) (w q) -> b t h w (f p q c)"
        blocks = rearrange(clip, pattern, f=p, p=p, q=p)
        return channels_first(F.linear(blocks, self.signs / p**3))

    def inverse(self, bands: Tensor) -> Tensor:
        """[B, 3 * p**3, t, h, w] -> [B, 3, t * p, h * p, w * p]."""
        p = self.patch_size
        blocks = F.linear(bands.movedim(1, -1), self.signs.t())
        pattern = "b t h w (f p q c) -> b c (t f) (h p) (w q)"
        return rearrange(blocks, pattern, f=p, p=p, q=p)


class Layers(nn.ModuleList):
    """Causal layers, one after the other."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply all layers to one chunk."""
        for layer in self:
            x = layer(x, context)
        return x


def point(dim: int, dim_out: int) -> CausalConv3d:
    """Create a convolution of single positions."""
    return CausalConv3d(dim, dim_out, (1, 1, 1))


class SpaceConv(CausalConv3d):
    """3x3 convolution of each frame, padded with zeros."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(dim, dim_out, (1, 3, 3))

    @property
    def weight(self) -> Tensor:
        """Weight [dim_out, dim, 3, 3]."""
        return self.conv.weight[:, :, 0]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> [B, dim_out, T, H, W]."""
        assert self.conv.bias is not None
        return as_clip(convolve_3x3(as_frames(x), self.weight, self.conv.bias), x.shape[0])


def over_time(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """Convolve [B, C, T, H, W] over time without padding, by weight [C', C, taps].

    On a CPU a 2-D convolution is faster than a 3-D one if the channels are innermost in memory.
    """
    frames = F.conv2d(x.flatten(3), weight[..., None], bias, (stride, 1))
    return frames.reshape(*frames.shape[:3], *x.shape[3:])


def paired(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Reduce kernels of 3 taps over repeated values to kernels of 2 taps over the values.

    Args:
        weight: The kernels.
        dim: Dimension of the taps.

    Returns:
        Kernels for the outputs whose first tap, and whose last tap, is the only one on its value.
    """
    first, middle, last = weight.unbind(dim)
    return torch.stack((first, middle + last), dim), torch.stack((first + middle, last), dim)


class TimeConv(CausalConv3d):
    """Convolution over three frames, with two copies of the first frame before it."""

    def __init__(self, dim: int, dim_out: int, stride: int = 1) -> None:
        super().__init__(dim, dim_out, (3, 1, 1), (stride, 1, 1), time_mode="replicate")

    @property
    def weight(self) -> Tensor:
        """Weight [dim_out, dim, 3]."""
        return self.conv.weight[..., 0, 0]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> [B, dim_out, T, H, W]."""
        past, weight, bias = context.past(self), self.weight, self.conv.bias
        if past is None and x.shape[3] * x.shape[4] < LEAST_PIXELS:
            past = x[:, :, :1].repeat_interleave(2, 2)
        kept = x if past is None else torch.cat((past, x), 2)
        last = kept[:, :, -2:] if kept.shape[2] > 1 else kept.repeat_interleave(2, 2)
        context.remember(self, last)
        if past is not None:
            return over_time(kept, weight, bias)
        # copies of a frame are multiplied once, by the sum of their taps
        early, late = paired(weight, 2)
        parts = [over_time(x[:, :, :1], early[..., :1] + early[..., 1:], bias)]
        if x.shape[2] > 1:
            parts.append(over_time(x[:, :, :2], late, bias))
        if x.shape[2] > 2:
            parts.append(over_time(x, weight, bias))
        return torch.cat(parts, 2)


def factorized(dim: int, dim_out: int) -> Layers:
    """Create a convolution over space, then one over time."""
    return Layers([SpaceConv(dim, dim_out), TimeConv(dim_out, dim_out)])


class FrameNorm(nn.GroupNorm):
    """Normalization of each frame over all channels and pixels.

    On a CPU with the channels innermost in memory, the group norm of torch computes the variance
    as a difference of large numbers; its layer norm of whole frames does not.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(1, dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        frames = as_frames(x)
        if x.device.type != "cpu":
            return as_clip(super().forward(frames), x.shape[0])
        flat = frames.permute(0, 2, 3, 1).flatten(1)
        normal = F.layer_norm(flat, flat.shape[1:], eps=self.eps)
        pixels = normal.view(-1, *frames.shape[2:], self.num_channels)
        scaled = channels_first(torch.addcmul(self.bias, pixels, self.weight))
        return as_clip(scaled, x.shape[0])


class ResidualBlock(CausalLayer):
    """Two factorized convolutions, each after a norm and SiLU, added to the input."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(dim), factorized(dim, dim_out)
        self.norm2, self.conv2 = FrameNorm(dim_out), factorized(dim_out, dim_out)
        self.nin_shortcut = point(dim, dim_out) if dim != dim_out else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> [B, dim_out, T, H, W]."""
        hidden = self.conv1(F.silu(self.norm1(x), inplace=True), context)
        hidden = self.conv2(F.silu(self.norm2(hidden), inplace=True), context)
        return hidden + (x if self.nin_shortcut is None else self.nin_shortcut(x, context))


class Attention(CausalLayer):
    """Base class of attention with one head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = FrameNorm(dim)
        self.q, self.k, self.v, self.proj_out = (point(dim, dim) for _ in range(4))

    def _qkv(self, x: Tensor, context: Context) -> list[Tensor]:
        hidden = self.norm(x)
        return [layer(hidden, context) for layer in (self.q, self.k, self.v)]


class SpaceAttention(Attention):
    """Attention among the positions of each frame."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        pattern = "b c t h w -> (b t) 1 (h w) c"
        q, k, v = (rearrange(y, pattern) for y in self._qkv(x, context))
        hidden = F.scaled_dot_product_attention(q, k, v)
        batch, _, _, height, width = x.shape
        pattern = "(b t) 1 (h w) c -> b c t h w"
        hidden = rearrange(hidden, pattern, b=batch, h=height, w=width)
        return x + self.proj_out(hidden, context)


class TimeAttention(Attention):
    """Attention of each position to itself and to earlier steps."""

    lookback = None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        height, steps = x.shape[3], x.shape[2]
        q, k, v = (rearrange(y, "b c t h w -> b (h w) t c") for y in self._qkv(x, context))
        if context.state is not None:
            past = context.past(self)
            both = (
                torch.stack((k, v)) if past is None else torch.cat((past, torch.stack((k, v))), 3)
            )
            context.state.keep(self, both.detach())
            k, v = both
        mask = torch.ones(steps, k.shape[2], dtype=torch.bool, device=x.device)
        mask = mask.tril(k.shape[2] - steps)
        hidden = F.scaled_dot_product_attention(q, k, v, mask if steps > 1 else None)
        hidden = rearrange(hidden, "b (h w) t c -> b c t h w", h=height)
        return x + self.proj_out(hidden, context)


class Downsample(CausalLayer):
    """Halve space and time by strided convolutions plus average pooling, which is part of them."""

    def __init__(self, dim: int, *, time: bool, space: bool) -> None:
        super().__init__()
        self.conv1 = SpaceConv(dim, dim) if space else None
        self.conv2 = TimeConv(dim, dim, stride=2) if time else None
        self.conv3 = point(dim, dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T', H / 2, W / 2]; T' = 1 + n of 1 + 2n frames, n of 2n."""
        if self.conv1 is not None:
            weight, bias = self.conv1.weight.clone(), self.conv1.conv.bias
            weight[..., :2, :2].diagonal().add_(1 / 4)
            frames = F.conv2d(F.pad(as_frames(x), (0, 1, 0, 1)), weight, bias, 2)
            x = as_clip(frames, x.shape[0])
        if self.conv2 is not None:
            weight, bias = self.conv2.weight.clone(), self.conv2.conv.bias
            weight[..., 1:].diagonal().add_(1 / 2)
            past = context.past(self.conv2)
            before = x[:, :, :1].repeat_interleave(2, 2) if past is None else past
            context.remember(self.conv2, x[:, :, -1:])
            x = over_time(torch.cat((before, x), 2), weight, bias, stride=2)
        return self.conv3(x, context)


class Upsample(CausalLayer):
    """Double time and space by repeating frames and pixels, each with a residual convolution.

    Convolving repeated values needs fewer products if the taps on the same value are added first.
    """

    def __init__(self, dim: int, *, time: bool, space: bool) -> None:
        super().__init__()
        self.conv1 = TimeConv(dim, dim) if time else None
        self.conv2 = SpaceConv(dim, dim) if space else None
        self.conv3 = point(dim, dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, t, h, w] -> [B, C, T, h * 2, w * 2]; T = 1 + 2n of 1 + n steps, 2n of n later."""
        if self.conv1 is not None:
            x = self._double_time(x, self.conv1, context)
        if self.conv2 is not None:
            x = self._double_space(x, self.conv2)
        return self.conv3(x, context)

    def _double_time(self, x: Tensor, layer: TimeConv, context: Context) -> Tensor:
        past, weight, bias = context.past(layer), layer.weight, layer.conv.bias
        context.remember(layer, x[:, :, -1:])
        parts = []
        if past is None:  # the first frame is not doubled
            first = x[:, :, :1]
            parts.append(first + over_time(first, weight.sum(2, keepdim=True), bias))
        else:
            x = torch.cat((past, x), 2)
        if x.shape[2] > 1:
            kernels = reversed(paired(weight, 2))
            copies = [x[:, :, 1:] + over_time(x, kernel, bias) for kernel in kernels]
            stacked = torch.stack([copy.movedim(1, -1) for copy in copies], 2)
            parts.append(channels_first(stacked.flatten(1, 2)))
        return torch.cat(parts, 2)

    def _double_space(self, x: Tensor, layer: SpaceConv) -> Tensor:
        frames = as_frames(x)
        count, dim, height, width = frames.shape
        pixels = frames.new_empty(count, height, 2, width, 2, dim)
        for row, rows in enumerate(paired(layer.weight, 2)):
            for column, kernel in enumerate(paired(rows, 3)):
                padded = F.pad(frames, (1 - column, column, 1 - row, row))
                found = F.conv2d(padded, kernel, layer.conv.bias) + frames
                pixels[:, :, row, :, column] = found.movedim(1, -1)
        return as_clip(channels_first(pixels.flatten(3, 4).flatten(1, 2)), x.shape[0])


class Level(nn.Module):
    """Residual blocks of one width, and a change of resolution after them."""

    def __init__(self, blocks: list[ResidualBlock], name: str, resample: nn.Module | None) -> None:
        super().__init__()
        self.block = Layers(blocks)
        self.resample = name
        if resample is not None:
            self.add_module(name, resample)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        x = self.block(x, context)
        resample = getattr(self, self.resample, None)
        return x if resample is None else resample(x, context)


class Middle(nn.Module):
    """Two residual blocks with attention over space and over time between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(dim, dim)
        self.attn_1 = Layers([SpaceAttention(dim), TimeAttention(dim)])
        self.block_2 = ResidualBlock(dim, dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x, context), context), context)
