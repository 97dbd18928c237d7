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

SPACE, TIME, POINT = (1, 3, 3), (3, 1, 1), (1, 1, 1)


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


def conv(dim: int, dim_out: int, kernel: tuple[int, int, int], stride: int = 1) -> CausalConv3d:
    """Create a convolution that pads space with zeros and time with the first frame."""
    strides = tuple(stride if size > 1 else 1 for size in kernel)
    return CausalConv3d(dim, dim_out, kernel, strides, time_mode="replicate")  # type: ignore[arg-type]


def factorized(dim: int, dim_out: int) -> Layers:
    """Create a convolution over space, then one over time."""
    return Layers([conv(dim, dim_out, SPACE), conv(dim_out, dim_out, TIME)])


class FrameNorm(nn.GroupNorm):
    """Normalization of each frame over all channels and pixels."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        return as_clip(super().forward(as_frames(x)), x.shape[0])


class ResidualBlock(CausalLayer):
    """Two factorized convolutions, each after a norm and SiLU, added to the input."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(dim), factorized(dim, dim_out)
        self.norm2, self.conv2 = FrameNorm(dim_out), factorized(dim_out, dim_out)
        self.nin_shortcut = conv(dim, dim_out, POINT) if dim != dim_out else None

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
        self.q, self.k, self.v, self.proj_out = (conv(dim, dim, POINT) for _ in range(4))

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
        self.conv1 = conv(dim, dim, SPACE, 2) if space else None
        self.conv2 = conv(dim, dim, TIME, 2) if time else None
        self.conv3 = conv(dim, dim, POINT)
        self.lookback = 2 if time else 0

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T', H / 2, W / 2]; T' = 1 + n of 1 + 2n frames, n of 2n."""
        if self.conv1 is not None:
            layer = self.conv1.conv
            weight = layer.weight[:, :, 0].clone()
            weight[..., :2, :2].diagonal().add_(0.25)
            frames = F.conv2d(F.pad(as_frames(x), (0, 1, 0, 1)), weight, layer.bias, 2)
            x = as_clip(frames, x.shape[0])
        if self.conv2 is not None:
            layer = self.conv2.conv
            weight = layer.weight.clone()
            weight[:, :, 1:].diagonal().add_(0.5)
            x = F.conv3d(self.conv2._pad_time(x, context), weight, layer.bias, (2, 1, 1))
        return self.conv3(x, context)


class Upsample(CausalLayer):
    """Double time and space by repeating frames and pixels, each with a residual convolution."""

    def __init__(self, dim: int, *, time: bool, space: bool) -> None:
        super().__init__()
        self.conv1 = conv(dim, dim, TIME) if time else None
        self.conv2 = conv(dim, dim, SPACE) if space else None
        self.conv3 = conv(dim, dim, POINT)
        self.lookback = 2 if time else 0

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, t, h, w] -> [B, C, T, h * 2, w * 2]; T = 1 + 2n of 1 + n steps, 2n of n later."""
        if self.conv1 is not None:
            first = context.past(self.conv1) is None
            x = x.repeat_interleave(2, dim=2)[:, :, int(first) :]
            x = self.conv1(x, context) + x
        if self.conv2 is not None:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.conv2(x, context) + x
        return self.conv3(x, context)


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
