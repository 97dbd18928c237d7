"""Tokenizers with the layers of MAGVIT-v2 (arXiv 2310.05737) and LFQ, from their published files.

Four networks with the same layers, told apart by `OpenMagvit2Config.variant`:

- image: Open-MAGVIT2 (arXiv 2409.04410), and 1X's tokenizer, each frame as an image;
- video: Open-MAGVIT2's video tokenizer, 3-D convolutions in windows of 17 frames;
- o2: O2-MAGVIT2, causal 3-D convolutions that stream.

Codes are the integers of the original code: its first latent channel is the lowest bit of a code,
in O2-MAGVIT2 the highest.
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vtok.errors import CheckpointError, ShapeError, UsageError
from vtok.models.family import check_tensors
from vtok.models.open_magvit2_layers import Decoder, Encoder, OpenMagvit2Config
from vtok.models.torch_file import float_tensors, read_tensors
from vtok.nn.interface import Geometry, Stream, StreamState, Tokenizer, Window
from vtok.nn.layers import Context

WINDOW = 17  # frames that Open-MAGVIT2's video tokenizer is run on
BATCH_PIXELS = 1 << 18  # of images that are computed together


class OpenMagvit2Tokenizer(Tokenizer):
    """Tokenizer of the variants image, video and o2.

    Args:
        config: Its configuration.
    """

    arch = "open_magvit2"
    config: OpenMagvit2Config

    def __init__(self, config: OpenMagvit2Config) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        plans: dict[str, Stream | Window] = {
            "image": Stream(0),
            "video": Window(WINDOW),
            "o2": Stream(config.lookback),
        }
        self.geometry = Geometry(
            temporal_compression=math.prod(config.time_strides),
            spatial_compression=2 ** len(config.time_strides),
            latent_dim=config.bits,
            entries=2**config.bits,
            plan=plans[config.variant],
            trained_frames=None if config.variant == "image" else WINDOW,
        )

    @classmethod
    def from_config(cls, config: OpenMagvit2Config) -> OpenMagvit2Tokenizer:
        """Create a tokenizer with random weights."""
        return cls(config)

    def encode_clip(self, clip: Tensor, state: StreamState | None) -> Tensor:
        """Encode a padded clip [B, 3, T, H, W] in -1..1 to latents [B, D, t, h, w]."""
        return self._run(self.encoder, clip, clip.shape[3] * clip.shape[4], state)

    def decode_latents(self, latents: Tensor, state: StreamState | None, ahead: int) -> Tensor:
        """Decode quantized latents [B, D, t, h, w] to frames [B, 3, T, H, W], about -1..1.

        Raises:
            ShapeError: An adaptive norm of Open-MAGVIT2 needs more than one latent position.
        """
        values = latents[0, 0, 0] if self.config.variant == "image" else latents[0, 0]
        if self.config.adaptive and self.config.variant != "o2" and values.numel() == 1:
            raise ShapeError(
                f"latents of shape {list(latents.shape)}: expected more than one position, since "
                "the decoder normalizes by their standard deviation"
            )
        pixels = math.prod(latents.shape[3:]) * self.geometry.spatial_compression**2
        return self._run(self.decoder, latents, pixels, state)

    def to_codes(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Convert latents [B, D, t, h, w] to codes, int64 [B, 1, t, h, w]: a bit for each sign."""
        if num_stages not in (None, 1):
            raise ShapeError(f"{num_stages} stages: expected 1")
        return ((latents > 0).long() << self._places(latents)).sum(1, keepdim=True)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Convert codes [B, 1, t, h, w] to -1 and 1, float32 [B, D, t, h, w]."""
        if codes.ndim != 5 or codes.shape[1] != 1 or codes.is_floating_point():
            expected = "expected integers [B, 1, t, h, w]"
            raise ShapeError(f"codes of shape {list(codes.shape)}, {codes.dtype}: {expected}")
        codes = codes.long()
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << self.config.bits:
            found = f"codes from {int(codes.min())} to {int(codes.max())}"
            raise ShapeError(f"{found}: expected 0 to {2**self.config.bits - 1}")
        return (codes >> self._places(codes) & 1).float() * 2 - 1

    def _places(self, like: Tensor) -> Tensor:
        """Return the place of each latent channel in a code, [D, 1, 1, 1]; 0 is the lowest bit."""
        places = torch.arange(self.config.bits, device=like.device)
        return (places.flip(0) if self.config.variant == "o2" else places).view(-1, 1, 1, 1)

    def _run(
        self, network: Encoder | Decoder, x: Tensor, pixels: int, state: StreamState | None
    ) -> Tensor:
        """Run a network: windows and images without a state, images a few at a time."""
        if self.config.variant != "image":
            return network(x, Context(state if self.config.variant == "o2" else None))
        parts = torch.split(x, max(1, BATCH_PIXELS // pixels), dim=2)
        return torch.cat([network(part, Context()) for part in parts], dim=2)


EMA = "model_ema."
PREFIX = re.compile(r"^(module|tokenizer)\.")  # of files of O2-MAGVIT2's trainer
LEFT_OUT = re.compile(r"(loss|model_ema|quantize)\.")
O2_NAMES = (  # O2-MAGVIT2's to Open-MAGVIT2's, in this order; L is the number of levels - 1
    (r"^(encoder|decoder)\.conv_first\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.conv_last\.", r"\1.conv_out."),
    (r"^(encoder|decoder)\.final_norm\.norm_fn\.", r"\1.norm_out."),
    (r"res_blocks\.res_block_(?:final|pre)\.res_block_(?:final|pre)_(\d+)", r"mid_block.\1"),
    (r"^encoder\.res_blocks\.res_block_(\d+)\.res_block_\d+_(\d+)", r"encoder.down.\1.block.\2"),
    (r"conv_downsample_blocks\.conv_downsample_(\d+)", r"down.\1.downsample"),
    (r"^decoder\.res_blocks\.res_block_(\d+)\.res_block_\d+_(\d+)", r"decoder.up.~\1.block.\2"),
    (r"conv_upsample_blocks\.conv_upsample_(\d+)", r"up.~\1.upsample"),
    (r"cond_norm_layers\.cond_norm_(\d+)", r"adaptive.~\1"),
    (r"\.norm_1\.norm_fn\.", ".norm2."),
    (r"\.norm_0\.norm_fn\.", ".norm1."),
    (r"\.conv_1\.", ".conv2."),
    (r"\.conv_0\.", ".conv1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def read_open_magvit2(
    path: Path, *, ema: bool | None = None
) -> tuple[OpenMagvit2Tokenizer, list[str]]:
    """Read a checkpoint of Open-MAGVIT2, 1X (`magvit2.ckpt`) or O2-MAGVIT2.

    Args:
        path: Lightning checkpoint, file of `torch.save`, or safetensors file.
        ema: Whether to take the averaged weights of a Lightning checkpoint. Default: as the
            original code, which takes them for Open-MAGVIT2, and the last ones for 1X.

    Returns:
        The tokenizer in eval mode, and notes for the user.

    Raises:
        InputError: The file is missing or cannot be read.
        CheckpointError: The file is damaged, needs pickle to run code, or has unknown, missing or
            wrongly shaped tensors; the message names them.
    """
    try:
        state = read_tensors(path, "state_dict")
        return _convert(path, {PREFIX.sub("", name): x for name, x in state.items()}, ema)
    except UsageError as exc:
        wanted = "Open-MAGVIT2, 1X or O2-MAGVIT2"
        raise CheckpointError(f"{path}: not a checkpoint of {wanted}: {exc}") from exc


def _convert(
    path: Path, state: dict[str, Tensor], ema: bool | None
) -> tuple[OpenMagvit2Tokenizer, list[str]]:
    picked, notes = _pick(state, ema)
    named = float_tensors(str(path), picked)
    variant = "image"
    if "encoder.conv_first.conv.weight" in named:
        variant = "o2"
    elif "encoder.conv_in.conv_1.weight" in named:
        variant = "video"
    names = {_our_name(name, variant, named): name for name in named}
    tensors = {
        ours: named[name].unsqueeze(2) if named[name].ndim == 4 else named[name]
        for ours, name in names.items()
    }
    config = _find_config(variant, tensors)
    with torch.device("meta"):  # shapes without memory, until all are known to fit
        tokenizer = OpenMagvit2Tokenizer.from_config(config)
    check_tensors(tensors, tokenizer.state_dict(), names)
    tokenizer = tokenizer.to_empty(device="cpu")
    tokenizer.load_state_dict(tensors, strict=True)
    return tokenizer.eval(), notes


def _pick(state: dict[str, Tensor], ema: bool | None) -> tuple[dict[str, Tensor], list[str]]:
    """Choose the tensors that inference uses; returns notes, too."""
    picked = {key: x for key, x in state.items() if key.startswith(("encoder.", "decoder."))}
    rest = [key for key in state if key not in picked]
    if unknown := sorted(key for key in rest if not LEFT_OUT.match(key)):
        raise UsageError(f"unknown tensors {', '.join(unknown[:5])}")
    averaged = any(key.startswith(EMA) for key in rest)
    if ema is None:  # of published code, only 1X's reads files without adaptive norms
        ema = averaged and any(key.startswith("decoder.adaptive.") for key in picked)
    if ema:
        averages = {key: EMA + key.replace(".", "") for key in picked}
        if missing := [name for name in averages.values() if name not in state]:
            raise UsageError(f"tensor {missing[0]} of the averaged weights is missing")
        picked = {key: state[name] for key, name in averages.items()}
    notes = [f"{len(state) - len(picked)} tensors that inference does not use left out"]
    if averaged:
        notes.append(f"weights: {'averaged' if ema else 'those of the last training step'}")
    return picked, notes


def _our_name(name: str, variant: str, state: Mapping[str, Tensor]) -> str:
    """Translate the name of a published tensor; one that is unknown becomes another unknown one."""
    if variant == "video":
        return name.replace(".conv_1.", ".conv.")
    if variant == "image":
        return re.sub(r"(conv\w*|nin_shortcut|downsample)\.(weight|bias)$", r"\1.conv.\2", name)
    last = sum(key.endswith(".gamma.weight") for key in state) - 1
    for pattern, replacement in O2_NAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"~(\d{1,3})", lambda found: str(last - int(found[1])), name)


def _find_config(variant: str, tensors: Mapping[str, Tensor]) -> OpenMagvit2Config:
    """Find the configuration in the shapes of tensors with our names."""

    def width(name: str) -> int:
        if name not in tensors:
            raise UsageError(f"tensor {name} is missing")
        return tensors[name].shape[0] if tensors[name].ndim else 0

    def count(pattern: str) -> int:
        return len({found[0] for name in tensors if (found := re.match(pattern, name))})

    levels = count(r"encoder\.down\.\d+\.block\.")
    channels = width("encoder.conv_in.conv.weight")
    widths = [width(f"encoder.down.{i}.block.0.conv2.conv.weight") for i in range(levels)]
    outputs = [width(f"decoder.up.{i}.upsample.conv1.conv.weight") for i in range(1, levels)]
    return OpenMagvit2Config(
        variant=variant,
        bits=width("encoder.conv_out.conv.weight"),
        channels=channels,
        multipliers=tuple(number // max(channels, 1) for number in widths),
        time_strides=tuple(
            made // max(4 * number, 1) for made, number in zip(outputs, widths[1:], strict=True)
        ),
        blocks=count(r"encoder\.mid_block\.\d+\."),
        adaptive=count(r"decoder\.adaptive\.\d+\.") > 0,
    )
