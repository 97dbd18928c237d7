"""Vision tokenizer of Emu3 (arXiv 2409.18869), from its published files.

It takes blocks of 4 frames, each encoded alone as in the original's autoencode.py. Here the first
frame of a video is a step by itself: a block of 4 copies, which is also how the original encodes
an image. Each latent step is decoded alone; of the first, only the last frame is computed. Module
names are those of the published tensors. Channels must not be innermost in memory: for that layout,
the group norm of torch on a CPU computes variances as differences of large numbers.
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.errors import CheckpointError, OptionError, ShapeError, UsageError
from vtok.models.torch_file import float_tensors, read_tensors
from vtok.nn.interface import Geometry, Stream, Tokenizer
from vtok.nn.layers import StreamState, as_clip, as_frames

GROUPS = 32  # of all group norms
MAX_LEVELS, MAX_MULTIPLIER = 8, 64
BATCH_PIXELS = 1 << 18  # of frames that are computed together
MAX_DISTANCES = 1 << 23  # numbers in the largest matrix of distances to the codebook, 32 MB
_MOST = {
    "entries": 1 << 24, "latent_dim": 4096, "z_channels": 4096, "channels": 4096, "blocks": 64,
    "time_halvings": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Emu3Config:
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

    def __post_init__(self) -> None:
        for name in ("multipliers", "attention"):  # JSON has lists in place of tuples
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        for name, most in _MOST.items():
            self._require(name, _fits(getattr(self, name), most), f"a number from 1 to {most}")
        self._require("channels", self.channels % GROUPS == 0, f"a multiple of {GROUPS}")
        same = self.latent_dim == self.z_channels  # both pass through the same layers in time
        self._require("z_channels", same, "the same as latent_dim")
        levels = self.multipliers
        valid = isinstance(levels, tuple) and 1 <= len(levels) <= MAX_LEVELS
        valid = valid and all(_fits(number, MAX_MULTIPLIER) for number in levels)
        self._require("multipliers", valid, f"1 to {MAX_LEVELS} numbers from 1 to {MAX_MULTIPLIER}")
        valid = isinstance(self.attention, tuple) and len(set(self.attention)) <= len(levels)
        valid = valid and all(type(x) is int and 0 <= x < len(levels) for x in self.attention)
        self._require("attention", valid, "numbers of levels")

    def _require(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise OptionError(name, reprlib.repr(getattr(self, name)), expected)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Emu3Config:
        """Convert from JSON values.

        Raises:
            UsageError: A key is unknown or missing, or a value is invalid.
        """
        if set(data) != (known := {field.name for field in dataclasses.fields(cls)}):
            raise UsageError(f"config keys {sorted(data)}: expected {sorted(known)}")
        return cls(**data)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * number for number in self.multipliers)

    @property
    def step(self) -> int:
        """Frames of a block, which give one latent step."""
        return 1 << self.time_halvings


def _fits(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most  # excludes booleans


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


def nearest_entries(latents: Tensor, book: Tensor) -> Tensor:
    """Find the entry of the smallest distance to each of [B, D, t, h, w]: int64 [B, 1, t, h, w].

    Args:
        latents: The vectors.
        book: The codebook, [entries, D].
    """
    book = book.float()
    squares, vectors = book.square().sum(1), latents.float().movedim(1, -1).flatten(0, -2)
    found = [
        (part.square().sum(1, keepdim=True) + squares).sub_(part @ book.T, alpha=2).argmin(1)
        for part in torch.split(vectors, max(1, MAX_DISTANCES // len(book)))
    ]
    return torch.cat(found).view(len(latents), 1, *latents.shape[2:])


class Emu3Tokenizer(Tokenizer):
    """Vision tokenizer of Emu3.

    Args:
        config: Its configuration.
    """

    arch = "emu3"
    config: Emu3Config

    def __init__(self, config: Emu3Config) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.codebook = nn.Embedding(config.entries, config.latent_dim)
        self.quant_conv = TimeConv(config.z_channels, config.latent_dim, (3, 1, 1))
        self.post_quant_conv = TimeConv(config.latent_dim, config.z_channels, (3, 1, 1))
        self.geometry = Geometry(
            temporal_compression=config.step,
            spatial_compression=2 ** (len(config.multipliers) - 1),
            latent_dim=config.latent_dim,
            entries=config.entries,
            plan=Stream(0),
        )

    @classmethod
    def from_config(cls, config: Emu3Config) -> Emu3Tokenizer:
        """Create a tokenizer with random weights."""
        return cls(config)

    def encode_clip(self, clip: Tensor, state: StreamState | None) -> Tensor:
        """Encode a padded clip [B, 3, T, H, W] in -1..1 to latents [B, D, t, h, w]."""
        batch, step = len(clip), self.config.step
        parts = _split(as_frames(clip), clip.shape[3] * clip.shape[4])
        x = as_clip(torch.cat([self.encoder.encode_frames(part) for part in parts]), batch)
        if state is None or not state.started:
            x = F.pad(x, (0, 0, 0, 0, step - 1, 0), mode="replicate")
        blocks = rearrange(x, "b c (t f) h w -> (b t) c f h w", f=step)
        latents = self.quant_conv(self.encoder.encode_blocks(blocks))
        return rearrange(latents, "(b t) c 1 h w -> b c t h w", b=batch)

    def decode_latents(self, latents: Tensor, state: StreamState | None, ahead: int) -> Tensor:
        """Decode quantized latents [B, D, t, h, w] to frames [B, 3, T, H, W], about -1..1."""
        batch, skip = len(latents), 0
        if state is None or not state.started:
            skip = self.config.step - 1
        codes = rearrange(latents, "b c t h w -> (b t) c 1 h w")
        both = self.decoder.decode_blocks(torch.cat((self.post_quant_conv(codes), codes)))
        both = rearrange(both, "(r b t) c f h w -> r b (t f) c h w", r=2, b=batch)[:, :, skip:]
        pixels = math.prod(latents.shape[3:]) * self.geometry.spatial_compression**2
        parts = zip(*(_split(x.flatten(0, 1), pixels) for x in both), strict=True)
        return as_clip(torch.cat([self.decoder.decode_frames(*part) for part in parts]), batch)

    def to_codes(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Convert latents [B, D, t, h, w] to codes, int64 [B, 1, t, h, w]."""
        if num_stages not in (None, 1):
            raise ShapeError(f"{num_stages} stages: expected 1")
        return nearest_entries(latents, self.codebook.weight)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Convert codes [B, 1, t, h, w] to entries of the codebook, float32 [B, D, t, h, w]."""
        if codes.ndim != 5 or codes.shape[1] != 1 or codes.is_floating_point():
            expected = "expected integers [B, 1, t, h, w]"
            raise ShapeError(f"codes of shape {list(codes.shape)}, {codes.dtype}: {expected}")
        codes = codes.long()
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.entries:
            found = f"codes from {int(codes.min())} to {int(codes.max())}"
            raise ShapeError(f"{found}: expected 0 to {self.config.entries - 1}")
        return self.codebook(codes[:, 0]).float().movedim(-1, 1)


def _split(frames: Tensor, pixels: int) -> tuple[Tensor, ...]:
    """Split [N, ...] to parts that bound the memory of the layers with most pixels."""
    return torch.split(frames, max(1, BATCH_PIXELS // pixels))


HF_NAMES = (  # of the model in transformers, and ours, which are the published ones but for one
    (r"^(model\.)?(vqmodel\.)?", ""),
    (r"\.(?:down|up)_block\.", "."),
    (r"\.middle_block\.attn_norm\.", ".mid.attn_1.norm."),
    (r"\.middle_block\.", ".mid."),
    (r"\.attn_norms\.(\d+)\.", r".attn.\1.norm."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
    (r"^quantize\.embedding\.", "codebook."),
)
NETWORK = re.compile(r"(encoder|decoder|codebook|quant_conv|post_quant_conv)\.")


def read_emu3(path: Path) -> tuple[Emu3Tokenizer, list[str]]:
    """Read Emu3-VisionTokenizer: the published folder, its file, or one saved by transformers.

    Args:
        path: The folder, or the file model.safetensors.

    Returns:
        The tokenizer in eval mode, and notes for the user.

    Raises:
        InputError: The file is missing or cannot be read.
        CheckpointError: The file is damaged, or has unknown, missing or wrongly shaped tensors;
            the message names them.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    state = read_tensors(file, "state_dict")
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in HF_NAMES:
            name = re.sub(pattern, replacement, name)
        if NETWORK.match(name) and not name.endswith("num_batches_tracked"):
            linear = tensor.ndim == 2 and ".attn" in name
            tensors[name] = tensor[..., None, None] if linear else tensor
    try:
        config = _find_config(tensors)
        with torch.device("meta"):  # shapes without memory, until all are known to fit
            tokenizer = Emu3Tokenizer.from_config(config)
        _check_fit(tokenizer.state_dict(), tensors)
    except UsageError as exc:
        raise CheckpointError(f"{file}: not Emu3's vision tokenizer: {exc}") from exc
    tokenizer.load_state_dict(float_tensors(str(file), tensors), strict=True, assign=True)
    left_out = len(state) - len(tensors)
    return tokenizer.eval(), [f"{left_out} tensors that inference does not use left out"]


def _check_fit(blank: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    if missing := sorted(set(blank) - set(tensors)):
        raise UsageError(f"tensor {missing[0]} is missing")
    for name, tensor in tensors.items():
        if name not in blank:
            raise UsageError(f"unknown tensor {name}")
        if tensor.shape != blank[name].shape or not tensor.is_floating_point():
            found = f"tensor {name} is {list(tensor.shape)} of {tensor.dtype}"
            raise UsageError(f"{found}, expected floats {list(blank[name].shape)}")


def _find_config(tensors: Mapping[str, Tensor]) -> Emu3Config:
    """Find the configuration in the shapes of the tensors."""

    def width(name: str) -> int:
        if name not in tensors:
            raise UsageError(f"tensor {name} is missing")
        return tensors[name].shape[0] if tensors[name].ndim else 0

    def count(pattern: str) -> int:
        return len({found[0] for name in tensors if (found := re.match(pattern, name))})

    channels, levels = width("encoder.conv_in.weight"), range(count(r"encoder\.down\.\d+\.block\."))
    widths = [width(f"encoder.down.{level}.block.0.conv2.weight") for level in levels]
    return Emu3Config(
        entries=width("codebook.weight"),
        latent_dim=width("quant_conv.conv.weight"),
        z_channels=width("encoder.conv_out.weight"),
        channels=channels,
        multipliers=tuple(number // max(channels, 1) for number in widths),
        blocks=count(r"encoder\.down\.0\.block\.\d+\."),
        attention=tuple(i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in tensors),
        time_halvings=count(r"encoder\.time_conv\.\d+\."),
    )
