"""Configuration and layers of `Emu3Tokenizer`; module names are those of the published tensors.

Channels must not be innermost in memory: for that layout, the group norm of torch on a CPU computes
variances as differences of large numbers.
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.models.family import FamilyConfig, are_whole

GROUPS = 32  # of all group norms
MAX_LEVELS, MAX_MULTIPLIER = 8, 64
_MOST = {
    "entries": 1 << 24, "latent_dim": 4096, "z_channels": 4096, "channels": 4096, "blocks": 64,
    "time_halvings": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Emu3Config(FamilyConfig):
    """Configuration of an `Emu3Tokenizer`; the defaults are those of the published model.

    Attributes:
        entries: Entries of the codebook.
        latent_dim: Numbers of an entry.
        z_channels: Channels of the layers in time.
        channels: Width of the first level, a multiple of 32.
        multipliers: Width of each level in multiples of `channels`.
        blocks: Residual blocks of a level.
        attention: Numbers of the levels with attention.
        time_halvings: Times that the frames of a block are halved to get one latent step.

    Raises:
        OptionError: A field is invalid.
    """

    entries: int = 32768
    latent_dim: int = 4
    z_channels: int = 4
    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (3,)
    time_halvings: int = 2

    def check(self) -> None:
        """Check all fields."""
        self.require_whole(_MOST)
        self.require("channels", self.channels % GROUPS == 0, f"a multiple of {GROUPS}")
        same = self.latent_dim == self.z_channels  # both pass through the same layers in time
        self.require("z_channels", same, "the same as latent_dim")
        levels = self.multipliers
        valid = are_whole(levels, 1, MAX_MULTIPLIER) and 1 <= len(levels) <= MAX_LEVELS
        self.require("multipliers", valid, f"1 to {MAX_LEVELS} numbers from 1 to {MAX_MULTIPLIER}")
        valid = are_whole(self.attention, 0, len(levels) - 1)
        self.require("attention", valid, "numbers of levels")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * number for number in self.multipliers)

    @property
    def step(self) -> int:
        """Frames of a block, which give one latent step."""
        return 1 << self.time_halvings


class Norm(nn.GroupNorm):
    """Group norm of the encoder, which has no codes to depend on."""

    def __init__(self, dim: int) -> None:
        super().__init__(GROUPS, dim, eps=1e-6)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Normalize [N, dim, H, W]."""
        return super().forward(x)


class SpatialNorm(nn.Module):
    """Group norm of the decoder, with gain and bias from the codes at the same place."""

    def __init__(self, dim: int, dim_codes: int) -> None:
        super().__init__()
        self.norm_layer = Norm(dim)
        self.conv_y, self.conv_b = (nn.Conv2d(dim_codes, dim, 1) for _ in range(2))

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """Normalize [N, dim, h * s, w * s] with `codes` [N, D, h, w]."""
        size = x.shape[-1] // codes.shape[-1]
        gain, bias = (conv(codes)[..., None, :, None] for conv in (self.conv_y, self.conv_b))
        pattern = "n c (h p) (w q) -> n c h p w q"
        x = rearrange(self.norm_layer(x), pattern, p=size, q=size)
        return rearrange(torch.addcmul(bias, x, gain), "n c h p w q -> n c (h p) (w q)")


def _norm(dim: int, dim_codes: int | None) -> nn.Module:
    return Norm(dim) if dim_codes is None else SpatialNorm(dim, dim_codes)


class Block(nn.Module):
    """Residual block of each frame: norm, SiLU and convolution, twice."""

    def __init__(self, dim: int, dim_out: int, dim_codes: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(dim, dim_codes), _norm(dim_out, dim_codes)
        self.conv1 = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        self.nin_shortcut = None if dim == dim_out else nn.Conv2d(dim, dim_out, 1)

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        """[N, dim, H, W] -> [N, dim_out, H, W]."""
        change = self.conv1(F.silu(self.norm1(x, codes)))
        change = self.conv2(F.silu(self.norm2(change, codes)))
        return change + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """Residual attention of each frame, with a single head."""

    def __init__(self, dim: int, dim_codes: int | None) -> None:
        super().__init__()
        self.norm = _norm(dim, dim_codes)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        """[N, dim, H, W] -> the same shape."""
        normed = self.norm(x, codes)
        q, k, v = (
            rearrange(conv(normed), "n c h w -> n 1 (h w) c") for conv in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = rearrange(mixed, "n 1 (h w) c -> n c h w", h=x.shape[2])
        return x + self.proj_out(mixed.contiguous())


class Downsample(nn.Module):
    """Convolution that halves height and width, padded with zeros at the right and the bottom."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim, H, W] -> [N, dim, H / 2, W / 2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Repetition of each pixel 2x2, then a 3x3 convolution.

    Each of the 2x2 pixels depends on 2x2 pixels of the input, so that four kernels of this size,
    sums of entries of the 3x3 kernel, give the same result with 4/9 of the products.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim, H, W] -> [N, dim, 2H, 2W]."""
        weight = self.conv.weight
        sums = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        out = x.new_empty(len(x), len(weight), x.shape[2], 2, x.shape[3], 2)
        for p, q in ((0, 0), (0, 1), (1, 0), (1, 1)):
            kernel = torch.einsum("im,jn,ocmn->ocij", sums[p], sums[q], weight)
            padded = F.pad(x, (1 - q, q, 1 - p, p))
            out[:, :, :, p, :, q] = F.conv2d(padded, kernel, self.conv.bias)
        return out.flatten(4, 5).flatten(2, 3)


class Level(nn.Module):
    """Blocks of one resolution, each with attention or none, and the change of resolution."""

    def __init__(
        self,
        widths: tuple[int, ...],
        attends: bool,
        dim_codes: int | None = None,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.block = nn.ModuleList(Block(*pair, dim_codes) for pair in pairs)
        count = len(pairs) if attends else 0
        self.attn = nn.ModuleList(Attention(widths[-1], dim_codes) for _ in range(count))
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """Apply the blocks, then change the resolution."""
        for number, block in enumerate(self.block):
            x = block(x, codes)
            if self.attn:
                x = self.attn[number](x, codes)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Middle(nn.Module):
    """Block, attention and block at the lowest resolution."""

    def __init__(self, dim: int, dim_codes: int | None = None) -> None:
        super().__init__()
        self.block_1, self.block_2 = (Block(dim, dim, dim_codes) for _ in range(2))
        self.attn_1 = Attention(dim, dim_codes)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        """[N, dim, h, w] -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x, codes), codes), codes)


class TimeConv(nn.Module):
    """3-D convolution, padded with zeros in space and with two frames of zeros in front."""

    def __init__(self, dim: int, dim_out: int, kernel: tuple[int, int, int], stride: int = 1):
        super().__init__()
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(dim, dim_out, kernel, (stride, 1, 1), padding)

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim, T, h, w] -> [N, dim_out, T', h, w]."""
        return self.conv(F.pad(x, (0, 0, 0, 0, 2, 0)))


class TimeResample(nn.Module):
    """Convolution that halves or doubles the frames of a block, and SiLU."""

    def __init__(self, dim: int, *, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.conv = TimeConv(dim, dim, (4 if halves else 3, 3, 3), 2 if halves else 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim, T, h, w] -> [N, dim, T / 2 or 2 * T, h, w]."""
        return F.silu(self.conv(x if self.halves else x.repeat_interleave(2, dim=2)))


class FixedNorm(nn.Module):
    """Batch norm with the statistics of the training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.running_mean: Tensor
        self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [N, dim, T, h, w]."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class TimeBlock(nn.Module):
    """Residual block with 3-D convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = FixedNorm(dim), FixedNorm(dim)
        self.conv1, self.conv2 = (TimeConv(dim, dim, (3, 3, 3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[N, dim, T, h, w] -> the same shape."""
        change = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(change)))


class Encoder(nn.Module):
    """Frames to latents, in two parts: each frame alone, and each block in time."""

    def __init__(self, config: Emu3Config) -> None:
        super().__init__()
        widths, last, dim = config.widths, len(config.widths) - 1, config.z_channels
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                (widths[level - 1] if level else config.channels, *(width,) * config.blocks),
                level in config.attention,
                downsample=Downsample(width) if level < last else None,
            )
            for level, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = Norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], dim, 3, padding=1)
        self.time_conv = nn.ModuleList(
            TimeResample(dim, halves=True) for _ in range(config.time_halvings)
        )
        self.time_res_stack = nn.ModuleList(TimeBlock(dim) for _ in range(config.blocks))

    def encode_frames(self, frames: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, z, h, w]."""
        x = self.conv_in(frames.contiguous())
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))

    def encode_blocks(self, x: Tensor) -> Tensor:
        """[N, z, step, h, w] -> [N, z, 1, h, w]."""
        for layer in (*self.time_conv, *self.time_res_stack):
            x = layer(x)
        return x


class Decoder(nn.Module):
    """Latents to frames, in two parts: each block in time, and each frame alone."""

    def __init__(self, config: Emu3Config) -> None:
        super().__init__()
        widths, dim, dim_codes = config.widths, config.z_channels, config.latent_dim
        self.time_res_stack = nn.ModuleList(TimeBlock(dim) for _ in range(config.blocks))
        self.time_conv = nn.ModuleList(
            TimeResample(dim, halves=False) for _ in range(config.time_halvings)
        )
        self.conv_in = nn.Conv2d(dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], dim_codes)
        self.up = nn.ModuleList(
            Level(
                (before, *(width,) * (config.blocks + 1)),
                level in config.attention,
                dim_codes,
                upsample=Upsample(width) if level else None,
            )
            for level, (before, width) in enumerate(
                zip((*widths[1:], widths[-1]), widths, strict=True)
            )
        )
        self.norm_out = SpatialNorm(widths[0], dim_codes)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def decode_blocks(self, x: Tensor) -> Tensor:
        """[N, z, 1, h, w] -> [N, z, step, h, w]."""
        for layer in (*self.time_res_stack, *self.time_conv):
            x = layer(x)
        return x

    def decode_frames(self, x: Tensor, codes: Tensor) -> Tensor:
        """[N, z, h, w] and [N, D, h, w] -> [N, 3, H, W]."""
        x = self.mid(self.conv_in(x.contiguous()), codes)
        for level in reversed(self.up):
            x = level(x, codes)
        return self.conv_out(F.silu(self.norm_out(x, codes)))
