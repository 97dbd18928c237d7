"""VidTok video tokenizers of Microsoft (arXiv 2412.13061), discrete (FSQ) and continuous (KL).

Three variants share the names and shapes of their tensors, except that causal files have
".conv" and ".norm" once more in some names:

- 1.0 causal: convolutions pad time with zeros, frames are doubled by repetition.
- 1.1 causal: convolutions repeat the first frame, frames are doubled by linear interpolation, so
  that the decoder reads one latent step ahead. The first latent step is interpolated alone.
- Not causal: convolutions pad time with zeros on both sides.

Every variant gets temporal_compression - 1 copies of the first frame before the clip, so that
1 + n * temporal_compression frames give 1 + n latent steps; the decoder drops their frames. A model
that is not causal was trained on 16 frames and is used in windows of 13 frames and 3 copies: its
codes equal those of the original on the clip padded in this way, not those of 16 new frames.

Latents of a continuous model are the mean of the posterior.

Tensors inside the networks are [B, T, H, W, C], contiguous: fast on a CPU, and frames are joined
and cut without a copy. Two products are computed on the small side of an upsampling, where they
cost half or less: convolutions commute with the interpolation of time, and a 3x3 kernel on pixels
that were doubled by repetition equals four 2x2 kernels on the pixels before.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtok.errors import CheckpointError, InputError, OptionError, ShapeError, UsageError
from vtok.models.torch_file import float_tensors, read_torch_file
from vtok.nn.fsq import FSQ
from vtok.nn.interface import Geometry, Stream, Tokenizer, Window
from vtok.nn.layers import Context, StreamState

VERSIONS = ("1.0", "1.1")
MAX_WIDTH, MAX_LEVELS, MAX_BLOCKS, MAX_ENTRIES = 1 << 14, 8, 16, 1 << 24
PUBLISHED_FSQ_LEVEL = 8  # of every dimension of every published discrete model
NORM_EPSILON = 1e-6
LEVEL_LISTS = ("encoder_space", "encoder_time", "decoder_space", "decoder_time")


@dataclass(frozen=True)
class VidTokConfig:
    """Configuration of a VidTok tokenizer; the defaults are those of most published models.

    Attributes:
        version: 1.0 or 1.1.
        causal: Whether no frame depends on later latent steps, except one in version 1.1.
        latent_dim: Channels of the latents.
        fsq_levels: Levels of each latent dimension; empty for a continuous tokenizer.
        width: Width of the first convolution.
        multipliers: Width of each resolution, from the pixels on, in units of `width`.
        blocks: Residual blocks per resolution of the encoder; the decoder has one more.
        encoder_space, encoder_time: Resolutions after which the encoder halves space and time.
        decoder_space, decoder_time: Resolutions after which the decoder doubles space and time.

    Raises:
        OptionError: A field is invalid.
    """

    version: str
    causal: bool = True
    latent_dim: int = 6
    fsq_levels: tuple[int, ...] = ()
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    encoder_space: tuple[int, ...] = (0, 1, 2)
    encoder_time: tuple[int, ...] = (1, 2)
    decoder_space: tuple[int, ...] = (1, 2, 3)
    decoder_time: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        for name in ("fsq_levels", "multipliers", *LEVEL_LISTS):  # JSON has lists
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        self._require("version", self.version in VERSIONS, " or ".join(VERSIONS))
        self._require("causal", isinstance(self.causal, bool), "true or false")
        self._require("version", self.causal or self.version == "1.0", "1.0 if it is not causal")
        for name, most in (("latent_dim", MAX_WIDTH), ("width", MAX_WIDTH), ("blocks", MAX_BLOCKS)):
            valid = _are_whole((getattr(self, name),), 1, most)
            self._require(name, valid, f"a whole number from 1 to {most}")
        widths = self.multipliers
        valid = _are_whole(widths, 1, MAX_WIDTH // self.width) and 1 <= len(widths) <= MAX_LEVELS
        self._require("multipliers", valid, f"1 to {MAX_LEVELS} factors to at most {MAX_WIDTH}")
        levels = self.fsq_levels
        valid = _are_whole(levels, 2, MAX_ENTRIES) and len(levels) in (0, self.latent_dim)
        valid = valid and math.prod(levels) <= MAX_ENTRIES
        expected = f"none, or {self.latent_dim} numbers with a product of at most {MAX_ENTRIES}"
        self._require("fsq_levels", valid, expected)
        self._check_resolutions()

    def _check_resolutions(self) -> None:
        last = len(self.multipliers) - 1
        for name in LEVEL_LISTS:
            value = getattr(self, name)
            valid = _are_whole(value, 0, last) and list(value) == sorted(set(value))
            self._require(name, valid, f"rising resolutions from 0 to {last}")
        for side in ("encoder", "decoder"):
            within = set(getattr(self, f"{side}_time")) <= set(getattr(self, f"{side}_space"))
            self._require(f"{side}_time", within, f"resolutions of {side}_space")
        for axis in ("space", "time"):
            count = len(getattr(self, f"encoder_{axis}"))
            equal = len(getattr(self, f"decoder_{axis}")) == count
            self._require(f"decoder_{axis}", equal, f"{count} resolutions, as encoder_{axis} has")

    def _require(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise OptionError(name, str(getattr(self, name))[:80], expected)

    @property
    def interpolates(self) -> bool:
        """Whether frames are doubled by interpolation and convolutions repeat the first frame."""
        return self.version == "1.1"

    @property
    def temporal_compression(self) -> int:
        """Frames per latent step."""
        return 1 << len(self.encoder_time)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        items = dataclasses.asdict(self).items()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in items}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VidTokConfig:
        """Convert from JSON values.

        Raises:
            UsageError: A key is unknown or missing, or a value is invalid.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(data) != known:
            names = ", ".join(sorted(set(data) ^ known)[:5])
            raise UsageError(f"unknown or missing config keys: {names[:200]}")
        return cls(**data)


def _are_whole(values: object, least: int, most: int) -> bool:
    return isinstance(values, tuple) and all(type(x) is int and least <= x <= most for x in values)


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
    return frames.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class Convolution(nn.Module):
    """Base class of convolutions: weight and bias, and the padding of time."""

    def __init__(self, config: VidTokConfig, shape: tuple[int, ...], dim_out: int) -> None:
        super().__init__()
        self.causal, self.repeats = config.causal, config.interpolates
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(dim_out))
        nn.init.kaiming_uniform_(self.weight, math.sqrt(5))

    def pad_time(self, x: Tensor, call: Call, before: int, after: int = 0) -> Tensor:
        """Put `before` past frames in front of [B, T, H, W, C], and `after` zeros at the end.

        At the start of a video the past is zeros or copies of the first frame.
        """
        past = call.past(self)
        if past is None:
            past = x[:, :1].expand(-1, before, -1, -1, -1)
            past = past if self.repeats else torch.zeros_like(past)
        padded = torch.cat((past, x, x.new_zeros(*x[:, :after].shape)), 1)
        end = padded.shape[1] - call.ahead
        call.remember(self, padded[:, end - before : end])
        return padded

    def add_delayed(self, taps: Iterable[Tensor], call: Call) -> Tensor:
        """Sum the products of the three frames of a kernel, from the oldest frame on.

        Each product is [B, T, H, W, C] and holds, at frame T, what the input at T contributes. The
        state is the contribution of past frames to the next two.
        """
        oldest, middle, newest = taps
        frames, end = oldest.shape[1], oldest.shape[1] - call.ahead
        past = call.past(self)
        if past is None:
            past = torch.cat((oldest[:, :1] + middle[:, :1], oldest[:, :1]), 1)
            past = past if self.repeats else torch.zeros_like(past)
        total = torch.cat((past, oldest), 1)
        total[:, 1:-1] += middle
        if call.state is not None:
            call.remember(self, torch.cat((total[:, end : end + 1], oldest[:, end - 1 : end]), 1))
        total[:, :-2] += newest
        total = total[:, :frames] if self.causal else total[:, 1 : frames + 1]
        return total.add_(self.bias)


class SpaceConv(Convolution):
    """3x3 convolution of each frame, or 1x1."""

    def __init__(self, config: VidTokConfig, dim: int, dim_out: int, kernel: int = 3) -> None:
        super().__init__(config, (dim_out, dim, kernel, kernel), dim_out)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        return convolve(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class TimeConv(Convolution):
    """Convolution of three frames at each position, as a 2-D one over frames and positions."""

    def __init__(self, config: VidTokConfig, dim: int, dim_out: int) -> None:
        super().__init__(config, (dim_out, dim, 3, 1), dim_out)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        if self.causal:
            x, padding = self.pad_time(x, call, 2), 0
        else:
            padding = 1
        rows = F.conv2d(
            x.flatten(2, 3).permute(0, 3, 1, 2), self.weight, self.bias, 1, (padding, 0)
        )
        return rows.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4])


class SpaceTimeConv(Convolution):
    """3x3x3 convolution, as a 2-D one that gives the products of three frames."""

    def __init__(self, config: VidTokConfig, dim: int, dim_out: int) -> None:
        super().__init__(config, (3 * dim_out, dim, 3, 3), dim_out)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        return self.add_delayed(convolve(x, self.weight, padding=1).chunk(3, -1), call)


class PixelConv(Convolution):
    """3x3x3 convolution of few channels, as a 2-D one of three frames joined in one."""

    def __init__(self, config: VidTokConfig, dim: int, dim_out: int) -> None:
        super().__init__(config, (dim_out, 3 * dim, 3, 3), dim_out)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        before, after = (2, 0) if self.causal else (1, 1)
        padded, frames = self.pad_time(x, call, before, after), x.shape[1]
        joined = torch.cat([padded[:, i : i + frames] for i in range(3)], -1)
        return convolve(joined, self.weight, self.bias, padding=1)


class SpaceDownsample(Convolution):
    """Halve height and width by a convolution."""

    def __init__(self, config: VidTokConfig, dim: int) -> None:
        super().__init__(config, (dim, dim, 3, 3), dim)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H/2, W/2, dim]."""
        return convolve(F.pad(x, (0, 0, 0, 1, 0, 1)), self.weight, self.bias, stride=2)


class SpaceUpsample(Convolution):
    """Double height and width by repetition, then convolve: computed as four 2x2 kernels."""

    def __init__(self, config: VidTokConfig, dim: int) -> None:
        super().__init__(config, (dim, dim, 3, 3), dim)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, h, w, dim] -> [B, T, 2h, 2w, dim]."""
        batch, frames, h, w, dim = x.shape
        rows = _fold(self.weight, 2)
        kernels = torch.cat([part for row in rows for part in _fold(row, 3)])
        parts = convolve(x, kernels, self.bias.repeat(4), padding=1)  # [B, T, h + 1, w + 1, 4 dim]
        out = parts.new_empty(batch, frames, h, 2, w, 2, dim)
        for number, part in enumerate(parts.chunk(4, -1)):
            p, q = divmod(number, 2)
            out[:, :, :, p, :, q] = part[:, :, p : p + h, q : q + w]
        return out.view(batch, frames, 2 * h, 2 * w, dim)


def _fold(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Reduce three weights along an axis to the two of even, and of odd, doubled positions."""
    first, second, third = weight.split(1, axis)
    even = torch.cat((first, second + third), axis)
    return even, torch.cat((first + second, third), axis)


class TimeDownsample(nn.Module):
    """Halve the frames: a learned mix of the mean of three frames and a 3x3x3 convolution."""

    def __init__(self, config: VidTokConfig, dim: int) -> None:
        super().__init__()
        self.conv = SpaceTimeConv(config, dim, dim)
        self.mix_factor = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T/2, H, W, dim]."""
        before, after = (1, 0) if self.conv.causal else (0, 1)
        padded, half = self.conv.pad_time(x, call, before, after), x.shape[1] // 2
        taps = [padded[:, i::2][:, :half] for i in range(3)]
        oldest, middle, newest = self.conv.weight.chunk(3)
        mixed = convolve(taps[2], newest, self.conv.bias, padding=1)
        mixed += convolve(taps[1], middle, padding=1)
        mixed += convolve(taps[0], oldest, padding=1)
        mean = (taps[0] + taps[1] + taps[2]) / 3
        return torch.lerp(mixed, mean, self.mix_factor.sigmoid())


class TimeUpsample(nn.Module):
    """Double the frames: a learned mix of the doubled frames and their 3x3x3 convolution.

    Args:
        config: Configuration of the tokenizer.
        dim: Channels.
        step: Frames per latent step in the input.
        last: Whether no later layer doubles frames, so that none needs a frame ahead.
    """

    def __init__(self, config: VidTokConfig, dim: int, step: int, last: bool) -> None:
        super().__init__()
        self.conv = SpaceTimeConv(config, dim, dim)
        self.mix_factor = nn.Parameter(torch.full((1,), 2.0))
        self.step, self.last, self.interpolates = step, last, config.interpolates

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, 2T, H, W, dim], with at most one frame of those ahead."""
        past = call.past(self) if self.interpolates else x[:, :0]
        first, skipped = past is None, 0 if past is None else past.shape[1]
        x = x if past is None else torch.cat((past, x), 1)
        if self.interpolates:  # past: the last frame, but none after the first step alone
            end = x.shape[1] - call.ahead
            call.remember(self, x[:, max(end - 1, self.step if first else 0) : end])
        kept = dataclasses.replace(call, ahead=0 if self.last else call.ahead)
        end = 2 * (x.shape[1] - call.ahead) + kept.ahead

        def double(frames: Tensor) -> Tensor:
            if not self.interpolates:
                return frames.repeat_interleave(2, 1)
            parts = (
                frames.split((self.step, frames.shape[1] - self.step), 1) if first else (frames,)
            )
            return torch.cat([_interpolate(part) for part in parts], 1)[:, 2 * skipped : end]

        taps = convolve(x, self.conv.weight, padding=1).chunk(3, -1)
        mixed = self.conv.add_delayed(map(double, taps), kept)
        return mixed.lerp_(double(x), self.mix_factor.sigmoid())


def _interpolate(x: Tensor) -> Tensor:
    """[B, T, H, W, C] -> [B, 2T, H, W, C]: a quarter of the neighbour, three of the frame."""
    before, after = torch.cat((x[:, :1], x[:, :-1]), 1), torch.cat((x[:, 1:], x[:, -1:]), 1)
    pairs = torch.stack((before.lerp_(x, 0.75), after.lerp_(x, 0.75)), 2)
    return pairs.flatten(1, 2)


class Norm(nn.LayerNorm):
    """Normalization of the channels at each position."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, NORM_EPSILON)

    def activate(self, x: Tensor) -> Tensor:
        """Normalize, then apply SiLU."""
        return F.silu(self(x), inplace=True)


class ResBlock(nn.Module):
    """Two times normalization, SiLU and convolution, beside a shortcut."""

    def __init__(
        self, config: VidTokConfig, kind: type[SpaceConv | TimeConv | SpaceTimeConv],
        dim: int, dim_out: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1, self.conv1 = Norm(dim), kind(config, dim, dim_out)
        self.norm2, self.conv2 = Norm(dim_out), kind(config, dim_out, dim_out)
        self.nin_shortcut = None if dim == dim_out else SpaceConv(config, dim, dim_out, 1)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim_out]."""
        hidden = self.conv1(self.norm1.activate(x), call)
        hidden = self.conv2(self.norm2.activate(hidden), call)
        return hidden.add_(x if self.nin_shortcut is None else self.nin_shortcut(x, call))


class Attention(nn.Module):
    """Attention of one head among the positions of each frame, beside a shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Norm(dim)
        self.q, self.k, self.v, self.proj_out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim]."""
        tokens = self.norm(x).flatten(2, 3)
        found = F.scaled_dot_product_attention(self.q(tokens), self.k(tokens), self.v(tokens))
        return self.proj_out(found).unflatten(2, x.shape[2:4]).add_(x)


class Middle(nn.Module):
    """Residual blocks around the attention, at the lowest resolution."""

    def __init__(self, config: VidTokConfig, dim: int) -> None:
        super().__init__()
        self.block_1, self.attn_1 = ResBlock(config, SpaceTimeConv, dim, dim), Attention(dim)
        self.block_2 = ResBlock(config, SpaceTimeConv, dim, dim)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, dim] -> [B, T, H, W, dim]."""
        return self.block_2(self.attn_1(self.block_1(x, call)), call)


class Level(nn.Module):
    """Residual blocks of one resolution, over space or over time, and its resampling."""

    def __init__(self, blocks: Iterable[ResBlock], resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.resample = resample


def _run(space: Level, time: Level, x: Tensor, call: Call) -> Tensor:
    for spatial, temporal in zip(space.block, time.block, strict=True):
        x = temporal(spatial(x, call), call)
    for level in (space, time):
        x = x if level.resample is None else level.resample(x, call)
    return x


class Encoder(nn.Module):
    """Encoder; module names follow the published files."""

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        dim, down, down_temporal = config.width, [], []
        self.conv_in = PixelConv(config, 3, dim)
        for number, factor in enumerate(config.multipliers):
            width = factor * config.width
            dims = [dim, *[width] * config.blocks]
            space = SpaceDownsample(config, width) if number in config.encoder_space else None
            time = TimeDownsample(config, width) if number in config.encoder_time else None
            blocks = [ResBlock(config, SpaceConv, *pair) for pair in zip(dims, dims[1:])]  # noqa: B905, RUF007
            down.append(Level(blocks, space))
            blocks = [ResBlock(config, TimeConv, width, width) for _ in range(config.blocks)]
            down_temporal.append(Level(blocks, time))
            dim = width
        self.down, self.down_temporal = nn.ModuleList(down), nn.ModuleList(down_temporal)
        self.mid, self.norm_out = Middle(config, dim), Norm(dim)
        self.conv_out = SpaceTimeConv(config, dim, config.latent_dim)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, 3] -> [B, t, h, w, latent_dim]."""
        x = self.conv_in(x, call)
        for space, time in zip(self.down, self.down_temporal, strict=True):
            x = _run(space, time, x, call)
        return self.conv_out(self.norm_out.activate(self.mid(x, call)), call)


class Decoder(nn.Module):
    """Decoder; module names follow the published files, which number resolutions from pixels on."""

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        dim, up, up_temporal, step = config.width * config.multipliers[-1], [], [], 1
        self.conv_in, self.mid = SpaceTimeConv(config, config.latent_dim, dim), Middle(config, dim)
        for number, factor in reversed(list(enumerate(config.multipliers))):
            width, count = factor * config.width, config.blocks + 1
            dims = [dim, *[width] * count]
            space = SpaceUpsample(config, width) if number in config.decoder_space else None
            time = None
            if number in config.decoder_time:
                time = TimeUpsample(config, width, step, number == config.decoder_time[0])
                step *= 2
            blocks = [ResBlock(config, SpaceConv, *pair) for pair in zip(dims, dims[1:])]  # noqa: B905, RUF007
            up.append(Level(blocks, space))
            blocks = [ResBlock(config, TimeConv, width, width) for _ in range(count)]
            up_temporal.append(Level(blocks, time))
            dim = width
        self.up, self.up_temporal = nn.ModuleList(up[::-1]), nn.ModuleList(up_temporal[::-1])
        self.norm_out, self.conv_out = Norm(dim), SpaceTimeConv(config, dim, 3)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, t, h, w, latent_dim] -> [B, T, H, W, 3]."""
        x = self.mid(self.conv_in(x, call), call)
        for space, time in zip(reversed(self.up), reversed(self.up_temporal), strict=True):
            x = _run(space, time, x, call)
            if isinstance(time.resample, TimeUpsample) and time.resample.last:
                call = dataclasses.replace(call, ahead=0)
        return self.conv_out(self.norm_out.activate(x), call)


def lookback(config: VidTokConfig) -> int:
    """Count the latent steps before a step that its frames depend on, from the output back."""
    frames = 2  # of the last convolution
    for number in range(len(config.multipliers)):
        if number in config.decoder_time:
            frames += 2
            frames = frames // 2 + 1 if config.interpolates else (frames + 1) // 2
        frames += 4 * (config.blocks + 1)
    return frames + 8 + 2


class VidTokTokenizer(Tokenizer):
    """VidTok tokenizer; see the module for the variants."""

    arch = "vidtok"

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.fsq = FSQ(config.fsq_levels) if config.fsq_levels else None
        step = config.temporal_compression
        self.geometry = Geometry(
            temporal_compression=step,
            spatial_compression=1 << len(config.encoder_space),
            latent_dim=config.latent_dim,
            entries=self.fsq.entries if self.fsq else None,
            plan=Stream(lookback(config), int(config.interpolates and step > 1))
            if config.causal
            else Window(1 + 3 * step),
            trained_frames=None if config.version == "1.1" else 17 if config.causal else 13,
        )

    @classmethod
    def from_config(cls, config: VidTokConfig) -> VidTokTokenizer:
        """Create a tokenizer with random weights."""
        return cls(config)

    def encode_clip(self, clip: Tensor, state: StreamState | None) -> Tensor:
        """Encode a padded clip [B, 3, T, H, W] to latents [B, D, t, h, w].

        A tokenizer that is not causal ignores the state: every clip is a window.
        """
        state = state if self.config.causal else None
        frames = clip.movedim(1, -1).contiguous()
        if state is None or not state.started:
            copies = frames[:, :1].expand(-1, self.config.temporal_compression - 1, -1, -1, -1)
            frames = torch.cat((copies, frames), 1)
        return self.encoder(frames, Call(state)).movedim(-1, 1)

    def decode_latents(self, latents: Tensor, state: StreamState | None, ahead: int) -> Tensor:
        """Decode latents [B, D, t, h, w] to frames [B, 3, T, H, W].

        Raises:
            ShapeError: There are fewer steps than `ahead` and one more, or `ahead` is too large.
        """
        if not 0 <= ahead <= min(self.geometry.lookahead, latents.shape[2] - 1):
            raise ShapeError(
                f"{latents.shape[2]} latent steps, {ahead} of them ahead: expected at most "
                f"{self.geometry.lookahead} ahead, and one more step"
            )
        state = state if self.config.causal else None
        first = state is None or not state.started
        frames = self.decoder(latents.movedim(1, -1).contiguous(), Call(state, ahead=ahead))
        dropped = self.config.temporal_compression - 1 if first else 0
        return frames[:, dropped:].movedim(-1, 1)

    def to_codes(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Quantize latents [B, D, t, h, w] to codes, int64 [B, 1, t, h, w]."""
        if self.fsq is None or num_stages not in (None, 1):
            if self.fsq is None:
                return super().to_codes(latents, num_stages)
            raise ShapeError(f"{num_stages} stages: expected 1")
        return self.fsq.to_codes(latents)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Convert codes [B, 1, t, h, w] to quantized latents, float32 [B, D, t, h, w]."""
        return super().from_codes(codes) if self.fsq is None else self.fsq.from_codes(codes)


RENAMES = (  # published names to those of the modules above; causal files repeat "conv" and "norm"
    (r"\b(down|up)\.(\d+)\.(?:down|up)sample\.conv\.", r"\1.\2.resample."),
    (r"\.(?:down|up)sample\.", ".resample."),
    (r"\b(conv\w*|q|k|v|proj_out)\.conv\.", r"\1."),
    (r"\b(norm\w*)\.norm\.", r"\1."),
)
YAML_KEYS = ("target", "levels", "init_pad_mode", "norm_type", "interpolation_mode")


def read_vidtok(
    path: Path, *, version: str | None = None, config: Path | None = None
) -> tuple[VidTokTokenizer, tuple[str, ...]]:
    """Read a published checkpoint of VidTok: `.ckpt` of Lightning, or `.safetensors`.

    Args:
        path: The checkpoint.
        version: 1.0 or 1.1, for a causal model; default: read off `config` or the name of the file,
            since both versions have the same tensors.
        config: YAML file of the model, which also states the levels of FSQ; default: 8 each.

    Returns:
        The tokenizer, in eval mode, and notes on what was assumed and left out.

    Raises:
        InputError: A file is missing or cannot be read.
        OptionError: The version cannot be told.
        CheckpointError: The file is damaged or of another kind, or has unknown, missing or wrongly
            shaped tensors; the message names them.
    """
    found = _read_state(path)
    stated = {} if config is None else _read_yaml(config)
    kept = {name: found[name] for name in found if name.startswith(("encoder.", "decoder."))}
    if any(name.startswith("regularization.") for name in found):
        raise CheckpointError(f"{path}: projections around the quantizer are not supported")
    tensors = {_rename(name): tensor for name, tensor in float_tensors(str(path), kept).items()}
    if len(tensors) < len(kept):
        raise CheckpointError(f"{path}: tensors of causal and other models in one file")
    causal = "encoder.conv_in.conv.weight" in kept
    version = _find_version(path, version, stated.get("target", "")) if causal else "1.0"
    made = _find_config(path, tensors, version, causal, stated.get("levels"))
    tensors = {name: _convert(name, tensor, made) for name, tensor in tensors.items()}
    _check(path, tensors, made)
    tokenizer = VidTokTokenizer(made)
    tokenizer.load_state_dict(tensors)
    notes = [f"version {version}"] if causal else ["not causal"]
    if made.fsq_levels and "levels" not in stated:
        notes.append(f"assumed {len(made.fsq_levels)} FSQ dimensions of {PUBLISHED_FSQ_LEVEL}")
    notes.append(f"left out {len(found) - len(kept)} tensors of training")
    return tokenizer.eval(), tuple(notes)


def _read_state(path: Path) -> dict[str, Tensor]:
    package = read_torch_file(path)
    state = package.get("state_dict", package) if isinstance(package, dict) else package
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path}: expected tensors by name")
    return state


def _read_yaml(path: Path) -> dict[str, str]:
    """Find the few values that matter, with the first `target` of a network, without a parser."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as exc:
        raise InputError(f"{path}: cannot be read as text ({exc})") from exc
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition("#")[0].strip().partition(":")
        if key in YAML_KEYS and (key != "target" or ".model_3d" in value):
            found.setdefault(key, value.strip())
    for key, expected in (("init_pad_mode", "replicate"), ("norm_type", "layernorm")):
        if found.get(key, expected) != expected:
            raise CheckpointError(f"{path}: {key}: {found[key][:80]}: only {expected} is supported")
    if "_v1_1" in found.get("target", "") and found.get("interpolation_mode") != "trilinear":
        raise CheckpointError(f"{path}: version 1.1 without interpolation_mode: trilinear")
    return found


def _find_version(path: Path, version: str | None, target: str) -> str:
    if version is not None:
        return version
    if target:
        return "1.1" if "_v1_1" in target else "1.0"
    if re.search(r"v1[._]1", path.name):
        return "1.1"
    if re.fullmatch(r"vidtok_(fsq|kl)_causal_\d+_\d+(chn)?", path.stem):
        return "1.0"
    expected = "1.0 or 1.1: both have the same tensors, and the name of the file tells neither"
    raise OptionError("version", "none", expected)


def _rename(name: str) -> str:
    for pattern, new in RENAMES:
        name = re.sub(pattern, new, name)
    return name


def _find_config(
    path: Path, tensors: dict[str, Tensor], version: str, causal: bool, levels: str | None
) -> VidTokConfig:
    """Read the configuration off names and shapes."""

    def numbers(pattern: str) -> tuple[int, ...]:
        matches = (re.fullmatch(pattern.replace("#", r"(\d{1,2})"), name) for name in tensors)
        return tuple(sorted(int(match[1]) for match in matches if match))

    try:
        width, outputs = (len(tensors[f"encoder.{name}.bias"]) for name in ("conv_in", "conv_out"))
        latent_dim = tensors["decoder.conv_in.weight"].shape[1]
        resolutions = numbers(r"encoder\.down\.#\.block\.0\.conv1\.bias")
        widths = [len(tensors[f"encoder.down.{i}.block.0.conv1.bias"]) for i in resolutions]
    except (KeyError, TypeError, IndexError) as exc:
        raise CheckpointError(f"{path}: not a VidTok checkpoint ({exc})") from exc
    if outputs not in (latent_dim, 2 * latent_dim) or not width or any(w % width for w in widths):
        raise CheckpointError(f"{path}: not a VidTok checkpoint (widths {width}, {outputs})")
    given = re.findall(r"\d+", levels or "") or [PUBLISHED_FSQ_LEVEL] * latent_dim
    try:
        return VidTokConfig(
            version=version,
            causal=causal,
            latent_dim=latent_dim,
            fsq_levels=tuple(map(int, given)) if outputs == latent_dim else (),
            width=width,
            multipliers=tuple(w // width for w in widths),
            blocks=len(numbers(r"encoder\.down\.0\.block\.#\.conv1\.bias")),
            encoder_space=numbers(r"encoder\.down\.#\.resample\.bias"),
            encoder_time=numbers(r"encoder\.down_temporal\.#\.resample\.mix_factor"),
            decoder_space=numbers(r"decoder\.up\.#\.resample\.bias"),
            decoder_time=numbers(r"decoder\.up_temporal\.#\.resample\.mix_factor"),
        )
    except OptionError as exc:
        if exc.field == "version":
            raise
        raise CheckpointError(f"{path}: {exc}") from exc


def _convert(name: str, tensor: Tensor, config: VidTokConfig) -> Tensor:
    """Bring a published tensor to the shape of the module above."""
    if name.startswith("encoder.conv_out."):  # the rest is the logarithm of the variance
        tensor = tensor[: config.latent_dim]
    if name == "encoder.conv_in.weight" and tensor.ndim == 5:
        return tensor.movedim(2, 1).flatten(1, 2)
    if ".attn_1." in name and tensor.ndim > 2:
        return tensor.flatten(1)
    if tensor.ndim == 5:
        return tensor.movedim(2, 0).flatten(0, 1)
    return tensor.unsqueeze(-1) if tensor.ndim == 3 else tensor


def _check(path: Path, tensors: dict[str, Tensor], config: VidTokConfig) -> None:
    """Compare names and shapes with the configuration before the tokenizer takes memory."""
    with torch.device("meta"):
        blank = VidTokTokenizer(config).state_dict()
    for word, names in (
        ("unknown", tensors.keys() - blank.keys()),
        ("missing", blank.keys() - tensors.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:5])
            raise CheckpointError(f"{path}: {word} tensors: {shown[:300]}")
    for name, tensor in tensors.items():
        if tensor.shape != blank[name].shape:
            shapes = f"{list(tensor.shape)}, expected {list(blank[name].shape)}"
            raise CheckpointError(f"{path}: tensor {name} has shape {shapes}")
