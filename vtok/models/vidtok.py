"""VidTok video tokenizers of Microsoft (arXiv 2412.13061), discrete (FSQ) and continuous (KL).

The three variants have the same tensors:

- 1.0 causal: convolutions pad time with zeros, frames are doubled by repetition.
- 1.1 causal: convolutions repeat the first frame, frames are doubled by linear interpolation, so
  that the decoder reads one latent step ahead.
- Not causal: convolutions pad time with zeros on both sides.

Every variant puts temporal_compression - 1 copies of the first frame before a clip, so that
1 + n * temporal_compression frames give 1 + n latent steps, and drops their frames from the
output. In version 1.1 the copies change no other frame, and are left out. The variant that is not
causal was trained on 16 frames and is used in windows of 13 frames and 3 copies: its codes equal
those of the original for the clip with these copies, not those of 16 frames without.

Latents of a continuous model are the mean of the posterior.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vtok.errors import CheckpointError, InputError, OptionError, ShapeError, UsageError
from vtok.models.family import FamilyConfig, MisfitError, are_whole, check_tensors
from vtok.models.torch_file import ForeignFile, float_tensors, read_foreign
from vtok.models.vidtok_layers import (
    Call,
    Level,
    Middle,
    Norm,
    PixelConv,
    SpaceConv,
    SpaceDownsample,
    SpaceTimeConv,
    SpaceUpsample,
    TimeConv,
    TimeDownsample,
    TimePadding,
    TimeUpsample,
    run_levels,
)
from vtok.nn.fsq import FSQ
from vtok.nn.interface import Geometry, Stream, StreamState, Tokenizer, Window

VERSIONS = ("1.0", "1.1")
MAX_WIDTH, MAX_LEVELS, MAX_BLOCKS, MAX_ENTRIES = 1 << 14, 8, 16, 1 << 24
FSQ_LEVEL = 8  # of every dimension of every published discrete model
LEVEL_LISTS = ("encoder_space", "encoder_time", "decoder_space", "decoder_time")


@dataclass(frozen=True)
class VidTokConfig(FamilyConfig):
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

    def check(self) -> None:
        """Check all fields."""
        self.require("version", self.version in VERSIONS, " or ".join(VERSIONS))
        self.require("causal", isinstance(self.causal, bool), "true or false")
        self.require("version", self.causal or self.version == "1.0", "1.0 if it is not causal")
        self.require_whole({"latent_dim": MAX_WIDTH, "width": MAX_WIDTH, "blocks": MAX_BLOCKS})
        widths = self.multipliers
        valid = are_whole(widths, 1, MAX_WIDTH // self.width) and 1 <= len(widths) <= MAX_LEVELS
        self.require("multipliers", valid, f"1 to {MAX_LEVELS} factors to at most {MAX_WIDTH}")
        levels = self.fsq_levels
        valid = are_whole(levels, 2, MAX_ENTRIES) and len(levels) in (0, self.latent_dim)
        valid = valid and math.prod(levels) <= MAX_ENTRIES
        expected = f"none, or {self.latent_dim} numbers with a product of at most {MAX_ENTRIES}"
        self.require("fsq_levels", valid, expected)
        self._check_resolutions()

    def _check_resolutions(self) -> None:
        last = len(self.multipliers) - 1
        for name in LEVEL_LISTS:
            value = getattr(self, name)
            valid = are_whole(value, 0, last) and list(value) == sorted(set(value))
            self.require(name, valid, f"rising resolutions from 0 to {last}")
        for side in ("encoder", "decoder"):
            within = set(getattr(self, f"{side}_time")) <= set(getattr(self, f"{side}_space"))
            self.require(f"{side}_time", within, f"resolutions of {side}_space")
        for axis in ("space", "time"):
            count = len(getattr(self, f"encoder_{axis}"))
            equal = len(getattr(self, f"decoder_{axis}")) == count
            self.require(f"decoder_{axis}", equal, f"{count} resolutions, as encoder_{axis} has")

    @property
    def padding(self) -> TimePadding:
        """Padding of time, which tells the variants apart."""
        if not self.causal:
            return TimePadding.CENTERED
        return TimePadding.REPEAT if self.version == "1.1" else TimePadding.ZEROS

    @property
    def copies(self) -> int:
        """Copies of the first frame that the encoder gets and the decoder returns."""
        return 0 if self.padding == TimePadding.REPEAT else self.temporal_compression - 1

    @property
    def temporal_compression(self) -> int:
        """Frames per latent step."""
        return 1 << len(self.encoder_time)


class Encoder(nn.Module):
    """Encoder; module names follow the published files."""

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        padding, dim, blocks = config.padding, config.width, config.blocks
        self.conv_in = PixelConv(padding, 3, dim)
        self.down, self.down_temporal = nn.ModuleList(), nn.ModuleList()
        for number, factor in enumerate(config.multipliers):
            width = factor * config.width
            space = SpaceDownsample(padding, width) if number in config.encoder_space else None
            time = TimeDownsample(padding, width) if number in config.encoder_time else None
            self.down.append(Level(padding, SpaceConv, [dim, *[width] * blocks], space))
            self.down_temporal.append(Level(padding, TimeConv, [width] * (blocks + 1), time))
            dim = width
        self.mid, self.norm_out = Middle(padding, dim), Norm(dim)
        self.conv_out = SpaceTimeConv(padding, dim, config.latent_dim)

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, T, H, W, 3] -> [B, t, h, w, latent_dim]."""
        x = self.conv_in(x, call)
        for space, time in zip(self.down, self.down_temporal, strict=True):
            x = run_levels(space, time, x, call)
        return self.conv_out(self.norm_out.activate(self.mid(x, call)), call)


class Decoder(nn.Module):
    """Decoder; module names follow the published files, which number resolutions from pixels on."""

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        padding, dim, blocks = config.padding, config.width * config.multipliers[-1], config.blocks
        self.conv_in, self.mid = (
            SpaceTimeConv(padding, config.latent_dim, dim),
            Middle(padding, dim),
        )
        up, up_temporal = [], []
        for number, factor in reversed(list(enumerate(config.multipliers))):
            width, time = factor * config.width, None
            space = SpaceUpsample(padding, width) if number in config.decoder_space else None
            if number in config.decoder_time:
                time = TimeUpsample(padding, width, last=number == config.decoder_time[0])
            up.append(Level(padding, SpaceConv, [dim, *[width] * (blocks + 1)], space))
            up_temporal.append(Level(padding, TimeConv, [width] * (blocks + 2), time))
            dim = width
        self.up, self.up_temporal = nn.ModuleList(up[::-1]), nn.ModuleList(up_temporal[::-1])
        self.norm_out, self.conv_out = Norm(dim), SpaceTimeConv(padding, dim, 3)
        self.last_doubling = min(config.decoder_time, default=len(up))

    def forward(self, x: Tensor, call: Call) -> Tensor:
        """[B, t, h, w, latent_dim] -> [B, T, H, W, 3]."""
        x = self.mid(self.conv_in(x, call), call)
        for number in reversed(range(len(self.up))):
            x = run_levels(self.up[number], self.up_temporal[number], x, call)
            if number == self.last_doubling:  # no frame is needed ahead any more
                call = dataclasses.replace(call, ahead=0)
        return self.conv_out(self.norm_out.activate(x), call)


def lookback(config: VidTokConfig) -> int:
    """Count the latent steps before a step that its frames depend on, from the output back."""
    frames = 2  # of the last convolution
    for number in range(len(config.multipliers)):
        if number in config.decoder_time:
            frames += 2
            frames = frames // 2 + 1 if config.version == "1.1" else (frames + 1) // 2
        frames += 4 * (config.blocks + 1)
    return frames + 8 + 2  # of the blocks in the middle, and the first convolution


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
            plan=Stream(lookback(config), int(config.version == "1.1" and step > 1))
            if config.causal
            else Window(1 + 3 * step),
            trained_frames=None if config.version == "1.1" else 17 if config.causal else 13,
        )

    @classmethod
    def from_config(cls, config: VidTokConfig) -> VidTokTokenizer:
        """Create a tokenizer with random weights."""
        return cls(config)

    def encode_clip(self, clip: Tensor, state: StreamState | None) -> Tensor:
        """Encode a padded clip [B, 3, T, H, W] in -1..1 to latents [B, D, t, h, w].

        Raises:
            ShapeError: The tokenizer is not causal, and the state is not new.
        """
        frames = clip.movedim(1, -1)
        if self._starts(state):
            copies = frames[:, :1].expand(-1, self.config.copies, -1, -1, -1)
            frames = torch.cat((copies, frames), 1)
        call = Call(state if self.config.causal else None)
        return self.encoder(frames.contiguous(), call).movedim(-1, 1)

    def decode_latents(self, latents: Tensor, state: StreamState | None, ahead: int) -> Tensor:
        """Decode latents [B, D, t, h, w] to frames [B, 3, T, H, W], about -1..1.

        Raises:
            ShapeError: `ahead` is too large, or there are no other steps; or the tokenizer is not
                causal, and the state is not new.
        """
        most = min(self.geometry.lookahead, latents.shape[2] - 1)
        if not 0 <= ahead <= most:
            raise ShapeError(f"{ahead} of {latents.shape[2]} latent steps ahead: at most {most}")
        dropped = self.config.copies if self._starts(state) else 0
        call = Call(state if self.config.causal else None, ahead=ahead)
        frames = self.decoder(latents.movedim(1, -1).contiguous(), call)
        return frames[:, dropped:].movedim(-1, 1)

    def _starts(self, state: StreamState | None) -> bool:
        if state is None or not state.started:
            return True
        if not self.config.causal:
            raise ShapeError("this tokenizer is not causal: use a new state for each window")
        return False

    def to_codes(self, latents: Tensor, num_stages: int | None = None) -> Tensor:
        """Quantize latents [B, D, t, h, w] to codes, int64 [B, 1, t, h, w]."""
        if self.fsq is None:
            return super().to_codes(latents, num_stages)
        if num_stages not in (None, 1):
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
) -> tuple[VidTokTokenizer, list[str]]:
    """Read a published file of VidTok, `.ckpt` or `.safetensors`, in float32 and eval mode.

    Args:
        path: The file.
        version: 1.0 or 1.1, for a causal model. Needed only if neither `config`, nor the file, nor
            its published name states it, since both versions have the same tensors.
        config: YAML file of the model, which also states the levels of FSQ; default: 8 for each
            dimension.

    Returns:
        The tokenizer, and remarks about the file.

    Raises:
        InputError: A file is missing or cannot be read.
        UsageError: `version` is missing or invalid.
        CheckpointError: The file is damaged, or not one of VidTok; the message tells why.
    """
    file = read_foreign(path, "state_dict")
    stated = {} if config is None else _read_yaml(config)
    kept = {n: t for n, t in file.tensors.items() if n.startswith(("encoder.", "decoder."))}
    if any(name.startswith("regularization.") for name in file.tensors):
        raise CheckpointError(f"{path}: projections around the quantizer are not supported")
    tensors = {_rename(name): tensor for name, tensor in float_tensors(str(path), kept).items()}
    if len(tensors) < len(kept):
        raise CheckpointError(f"{path}: tensors of a causal and another model in one file")
    causal = "encoder.conv_in.conv.weight" in kept
    version = _find_version(path, file, version, stated) if causal else "1.0"
    found = _find_config(path, tensors, version, causal, stated.get("levels"))
    tensors = {name: _convert(name, tensor, found) for name, tensor in tensors.items()}
    with torch.device("meta"):  # shapes without memory, until all are known to fit
        blank = VidTokTokenizer(found).state_dict()
    try:
        check_tensors(tensors, blank)
    except MisfitError as exc:
        raise CheckpointError(f"{path}: not a VidTok checkpoint, or damaged: {exc}") from exc
    tokenizer = VidTokTokenizer(found)
    tokenizer.load_state_dict(tensors)
    notes = [f"version {version}, causal" if causal else "not causal"]
    if found.fsq_levels and "levels" not in stated:
        notes.append(f"{FSQ_LEVEL} levels assumed for each of {found.latent_dim} dimensions")
    if left_out := len(file.tensors) - len(kept):
        notes.append(f"{left_out} tensors of training left out")
    return tokenizer.eval(), notes


def _read_yaml(path: Path) -> dict[str, str]:
    """Read the few values that matter, without a parser; `target` is the class of the encoder."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not a YAML file") from exc
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition("#")[0].strip().partition(":")
        if key in YAML_KEYS and (key != "target" or ".model_3d" in value):
            found.setdefault(key, value.strip())
    if "target" not in found:
        raise CheckpointError(f"{path}: not a configuration of VidTok: it names no encoder")
    expected = {"init_pad_mode": "replicate", "norm_type": "layernorm"}
    if "_v1_1" in found["target"]:
        found.setdefault("interpolation_mode", "nearest")
        expected["interpolation_mode"] = "trilinear"
    for key, value in expected.items():
        if found.get(key, value) != value:
            raise CheckpointError(f"{path}: {key} is {found[key][:80]}: vtok supports {value} only")
    return found


def _find_version(
    path: Path, file: ForeignFile, version: str | None, stated: dict[str, str]
) -> str:
    targets = [stated.get("target", ""), *map(str, file.values.values())]
    target = next((text for text in targets if "model_3dcausal" in text), "")
    if version is not None:
        return version
    if target:
        return "1.1" if "model_3dcausal_v1_1" in target else "1.0"
    if re.search(r"v1[._]1", path.name):
        return "1.1"
    if re.fullmatch(r"vidtok_(fsq|kl)_causal_\d+_\d+(chn)?", path.stem):
        return "1.0"
    raise UsageError(
        f"{path}: pass `version` 1.0 or 1.1, or `config`: both versions have the same tensors and "
        "compute different results, and neither the file nor its name states the version"
    )


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
    given = re.findall(r"\d{1,9}", levels or "") or [FSQ_LEVEL] * latent_dim
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
