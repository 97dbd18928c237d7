"""Cosmos video tokenizers of NVIDIA (arXiv 2501.03575), discrete (DV) and continuous (CV).

Module names follow the published files, so that importing renames few tensors. All layers are
causal: frames are normalized one by one, and convolutions repeat the first frame in time. The
temporal attention reads back without limit, so that the memory of a stream grows.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.errors import OptionError, ShapeError
from vtok.nn.fsq import FSQ
from vtok.nn.interface import Geometry, Stream, Tokenizer, Window
from vtok.nn.layers import (
    CausalConv3d,
    CausalLayer,
    Context,
    StreamState,
    as_clip,
    as_frames,
    channels_first,
)

LEVELS = (8, 8, 8, 5, 5, 5)
MAX_WIDTH, MAX_RESOLUTIONS, MAX_BLOCKS, MAX_ENTRIES, MAX_WINDOW = 1 << 14, 8, 16, 1 << 24, 1 << 12


@dataclass(frozen=True)
class CosmosConfig:
    """Configuration of a Cosmos tokenizer; the defaults are those of DV8x8x8.

    Attributes:
        temporal_compression: Frames per latent step.
        spatial_compression: Pixels per latent position on each side.
        levels: Levels of each latent dimension; empty for a continuous tokenizer.
        latent_dim: Channels of the latents.
        z_channels: Channels that the encoder returns and the decoder takes.
        patch_size: Side of the blocks of the wavelet transform, in frames and pixels.
        channels: Width of the first convolution.
        encoder_widths: Widths from the pixel side.
        decoder_widths: Widths from the pixel side.
        num_res_blocks: Residual blocks for each width of the encoder; the decoder has one more.
        window: Frames of an independent window; 0 for a stream.

    Raises:
        OptionError: A field is invalid.
    """

    temporal_compression: int = 8
    spatial_compression: int = 8
    levels: tuple[int, ...] = LEVELS
    latent_dim: int = 6
    z_channels: int = 16
    patch_size: int = 4
    channels: int = 128
    encoder_widths: tuple[int, ...] = (256, 512, 512)
    decoder_widths: tuple[int, ...] = (256, 512, 512)
    num_res_blocks: int = 2
    window: int = 17

    def __post_init__(self) -> None:
        for name in ("levels", "encoder_widths", "decoder_widths"):  # JSON has lists
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        for name in ("latent_dim", "z_channels", "channels"):
            self._require(name, _is_whole(getattr(self, name), 1, MAX_WIDTH), f"1 to {MAX_WIDTH}")
        blocks = _is_whole(self.num_res_blocks, 1, MAX_BLOCKS)
        self._require("num_res_blocks", blocks, f"1 to {MAX_BLOCKS}")
        self._require("patch_size", self.patch_size in (2, 4), "2 or 4")
        self._check_lists()
        for name in ("temporal_compression", "spatial_compression"):
            value, most = getattr(self, name), self.patch_size << (len(self.encoder_widths) - 1)
            valid = _is_whole(value, self.patch_size, most) and value & (value - 1) == 0
            self._require(name, valid, f"a power of two from {self.patch_size} to {most}")
        ups = [sum(axis) for axis in zip(*self.ups, strict=True)] or [0, 0]
        fits = ups == [self._halvings(self.temporal_compression), self.spatial_halvings]
        self._require("decoder_widths", fits, "widths enough for all compression")
        step = self.temporal_compression
        valid = _is_whole(self.window, 0, MAX_WINDOW) and (
            not self.window or self.window % step == 1
        )
        self._require("window", valid, f"0, or 1 + n * {step} up to {MAX_WINDOW} frames")

    def _check_lists(self) -> None:
        for name in ("encoder_widths", "decoder_widths"):
            value = getattr(self, name)
            valid = isinstance(value, tuple) and 1 <= len(value) <= MAX_RESOLUTIONS
            valid = valid and all(_is_whole(width, 1, MAX_WIDTH) for width in value)
            self._require(name, valid, f"1 to {MAX_RESOLUTIONS} numbers from 1 to {MAX_WIDTH}")
        levels = self.levels
        valid = isinstance(levels, tuple) and all(_is_whole(x, 2, MAX_ENTRIES) for x in levels)
        valid = valid and len(levels) in (0, self.latent_dim) and math.prod(levels) <= MAX_ENTRIES
        expected = f"one number from 2 for each of {self.latent_dim} dimensions, or none"
        self._require("levels", valid, expected)

    def _require(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise OptionError(name, getattr(self, name), expected)

    def _halvings(self, compression: int) -> int:
        return (compression // self.patch_size).bit_length() - 1

    @property
    def spatial_halvings(self) -> int:
        """Times that the encoder halves height and width after the wavelet transform."""
        return self._halvings(self.spatial_compression)

    @property
    def downs(self) -> tuple[tuple[bool, bool], ...]:
        """Axes (time, space) that are halved after each width of the encoder but the last."""
        times, spaces = self._halvings(self.temporal_compression), self.spatial_halvings
        return tuple((i < times, i < spaces) for i in range(len(self.encoder_widths) - 1))

    @property
    def ups(self) -> tuple[tuple[bool, bool], ...]:
        """Axes (time, space) that are doubled after each width of the decoder, from the last one.

        Time starts one width later than space, so this does not mirror the encoder.
        """
        times, spaces = self._halvings(self.temporal_compression), self.spatial_halvings
        numbers = range(len(self.decoder_widths) - 1)
        temporal = [0 < i <= times for i in numbers]
        return tuple((t, t or i < spaces > times) for i, t in zip(numbers, temporal, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        items = dataclasses.asdict(self).items()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in items}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CosmosConfig:
        """Create a configuration from `to_dict`, with defaults for missing fields.

        Raises:
            OptionError: A field is unknown or invalid.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in data:
            if name not in known:
                raise OptionError(str(name)[:80], "given", f"one of {', '.join(known)}")
        return cls(**data)


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


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


class Layers(nn.Sequential):
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


SPACE, TIME, POINT = (1, 3, 3), (3, 1, 1), (1, 1, 1)


def factorized(dim: int, dim_out: int) -> Layers:
    """Create a convolution over space, then one over time."""
    return Layers(conv(dim, dim_out, SPACE), conv(dim_out, dim_out, TIME))


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
        self.block = Layers(*blocks)
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
        self.attn_1 = Layers(SpaceAttention(dim), TimeAttention(dim))
        self.block_2 = ResidualBlock(dim, dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x, context), context), context)


class Encoder(nn.Module):
    """Encoder from wavelet bands to `z_channels`."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        dim = config.channels
        self.conv_in = factorized(3 * config.patch_size**3, dim)
        levels = []
        for number, width in enumerate(config.encoder_widths):
            widths = [dim] + [width] * config.num_res_blocks
            time, space = (*config.downs, (False, False))[number]
            down = Downsample(width, time=time, space=space) if time or space else None
            blocks = [ResidualBlock(*pair) for pair in pairwise(widths)]
            levels.append(Level(blocks, "downsample", down))
            dim = width
        self.down = Layers(*levels)
        self.mid = Middle(dim)
        self.norm_out = FrameNorm(dim)
        self.conv_out = factorized(dim, config.z_channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, 3 * p**3, T, H, W] -> [B, z_channels, t, h, w]."""
        x = self.mid(self.down(self.conv_in(x, context), context), context)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True), context)


class Decoder(nn.Module):
    """Decoder from `z_channels` to wavelet bands."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        dim = config.decoder_widths[-1]
        self.conv_in = factorized(config.z_channels, dim)
        self.mid = Middle(dim)
        levels: list[Level] = []
        for number, width in enumerate(reversed(config.decoder_widths)):
            widths = [dim] + [width] * (config.num_res_blocks + 1)
            time, space = (*config.ups, (False, False))[number]
            up = Upsample(width, time=time, space=space) if time or space else None
            blocks = [ResidualBlock(*pair) for pair in pairwise(widths)]
            levels.insert(0, Level(blocks, "upsample", up))
            dim = width
        self.up = nn.ModuleList(levels)
        self.norm_out = FrameNorm(dim)
        self.conv_out = factorized(dim, 3 * config.patch_size**3)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, z_channels, t, h, w] -> [B, 3 * p**3, T, H, W]."""
        x = self.mid(self.conv_in(x, context), context)
        for level in reversed(self.up):
            x = level(x, context)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True), context)


class CosmosTokenizer(Tokenizer):
    """Cosmos tokenizer, discrete or continuous.

    Args:
        config: Configuration.
    """

    arch = "cosmos"

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        self.config = config
        self.haar = Haar(config.patch_size)
        self.encoder = Encoder(config)
        self.quant_conv = conv(config.z_channels, config.latent_dim, POINT)
        self.post_quant_conv = conv(config.latent_dim, config.z_channels, POINT)
        self.decoder = Decoder(config)
        self.quantizer = FSQ(config.levels) if config.levels else None
        self.geometry = Geometry(
            temporal_compression=config.temporal_compression,
            spatial_compression=config.spatial_compression,
            latent_dim=config.latent_dim,
            entries=math.prod(config.levels) if config.levels else None,
            plan=Window(config.window) if config.window else Stream(None),
        )

    @classmethod
    def from_config(cls, config: CosmosConfig) -> CosmosTokenizer:
        """Create a tokenizer with random weights."""
        return cls(config)

    def encode_clip(self, clip: Tensor, state: StreamState | None) -> Tensor:
        """Encode a padded clip [B, 3, T, H, W] in -1..1 to latents [B, D, t, h, w]."""
        if state is None or not state.started:  # the first frame fills a block
            clip = torch.cat(
                (clip[:, :, :1].expand(-1, -1, self.config.patch_size - 1, -1, -1), clip), 2
            )
        context = Context(state)
        return self.quant_conv(self.encoder(self.haar(clip), context), context)

    def decode_latents(self, latents: Tensor, state: StreamState | None, ahead: int) -> Tensor:
        """Decode latents [B, D, t, h, w] to frames [B, 3, T, H, W], about -1..1."""
        first, context = state is None or not state.started, Context(state)
        latents = latents.to(memory_format=torch.channels_last_3d)
        bands = self.decoder(self.post_quant_conv(latents, context), context)
        return self.haar.inverse(bands)[:, :, self.config.patch_size - 1 if first else 0 :]

    def to_codes(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Quantize latents [B, D, t, h, w] to codes, int64 [B, 1, t, h, w]."""
        if self.quantizer is None:
            return super().to_codes(latents)
        if num_stages not in (None, 1):
            raise ShapeError(f"{num_stages} stages: a Cosmos tokenizer has 1")
        return self.quantizer.to_codes(latents)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Convert codes [B, 1, t, h, w] to quantized latents, float32 [B, D, t, h, w]."""
        return (
            super().from_codes(codes)
            if self.quantizer is None
            else self.quantizer.from_codes(codes)
        )
