"""Vision tokenizer of Emu3 (arXiv 2409.18869), from its published files.

It takes blocks of 4 frames, each encoded alone as in the original's autoencode.py. Here the first
frame of a video is a step by itself: a block of 4 copies, which is also how the original encodes
an image. Each latent step is decoded alone; of the first, only the last frame is computed.
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.errors import CheckpointError, InputError, ShapeError, UsageError
from vtok.models.emu3_layers import Decoder, Emu3Config, Encoder, TimeConv
from vtok.models.family import check_tensors
from vtok.models.torch_file import float_tensors, read_tensors
from vtok.nn.interface import Geometry, Stream, StreamState, Tokenizer
from vtok.nn.layers import as_clip, as_frames

BATCH_PIXELS = 1 << 18  # of frames that are computed together
MAX_DISTANCES = 1 << 23  # numbers in the largest matrix of distances to the codebook, 32 MB


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
    if path.is_dir() and not file.exists():
        raise InputError(f"{path}: expected a folder of Emu3 with model.safetensors")
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
        check_tensors(tensors, tokenizer.state_dict())
    except UsageError as exc:
        raise CheckpointError(f"{file}: not Emu3's vision tokenizer: {exc}") from exc
    tokenizer.load_state_dict(float_tensors(str(file), tensors), strict=True, assign=True)
    left_out = len(state) - len(tensors)
    return tokenizer.eval(), [f"{left_out} tensors that inference does not use left out"]


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
