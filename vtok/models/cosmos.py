"""Cosmos video tokenizers of NVIDIA (arXiv 2501.03575), discrete (DV) and continuous (CV).

Module names follow the published files, so that importing renames few tensors. All layers are
causal: frames are normalized one by one, and convolutions repeat the first frame in time. The
temporal attention reads back without limit, so that the memory of a stream grows.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtok.errors import CheckpointError, InputError, OptionError, ShapeError
from vtok.models.cosmos_layers import (
    Downsample,
    FrameNorm,
    Haar,
    Layers,
    Level,
    Middle,
    ResidualBlock,
    Upsample,
    factorized,
    point,
)
from vtok.models.family import FamilyConfig, MisfitError, are_whole, check_tensors, is_whole
from vtok.models.torch_file import float_tensors, read_tensors
from vtok.nn.fsq import FSQ
from vtok.nn.interface import Geometry, Stream, StreamState, Tokenizer, Window
from vtok.nn.layers import Context

LEVELS = (8, 8, 8, 5, 5, 5)
TRAINED_FRAMES = 121  # of the longest clips that any published file was trained on
MAX_WIDTH, MAX_RESOLUTIONS, MAX_BLOCKS, MAX_ENTRIES, MAX_WINDOW = 1 << 14, 8, 16, 1 << 24, 1 << 12


@dataclass(frozen=True)
class CosmosConfig(FamilyConfig):
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

    def check(self) -> None:
        """Check all fields."""
        widths = dict.fromkeys(("latent_dim", "z_channels", "channels"), MAX_WIDTH)
        self.require_whole({**widths, "num_res_blocks": MAX_BLOCKS})
        patch = is_whole(self.patch_size, 2, 4) and self.patch_size != 3
        self.require("patch_size", patch, "2 or 4")
        self._check_lists()
        for name in ("temporal_compression", "spatial_compression"):
            value, most = getattr(self, name), self.patch_size << (len(self.encoder_widths) - 1)
            valid = is_whole(value, self.patch_size, most) and value & (value - 1) == 0
            self.require(name, valid, f"a power of two from {self.patch_size} to {most}")
        ups = [sum(axis) for axis in zip(*self.ups, strict=True)] or [0, 0]
        fits = ups == [self._halvings(self.temporal_compression), self.spatial_halvings]
        self.require("decoder_widths", fits, "widths enough for all compression")
        step = self.temporal_compression
        valid = is_whole(self.window, 0, MAX_WINDOW) and (
            not self.window or self.window % step == 1
        )
        self.require("window", valid, f"0, or 1 + n * {step} up to {MAX_WINDOW} frames")

    def _check_lists(self) -> None:
        for name in ("encoder_widths", "decoder_widths"):
            value = getattr(self, name)
            valid = are_whole(value, 1, MAX_WIDTH) and 1 <= len(value) <= MAX_RESOLUTIONS
            self.require(name, valid, f"1 to {MAX_RESOLUTIONS} numbers from 1 to {MAX_WIDTH}")
        levels = self.levels
        valid = are_whole(levels, 2, MAX_ENTRIES) and len(levels) in (0, self.latent_dim)
        valid = valid and math.prod(levels) <= MAX_ENTRIES
        expected = f"one number from 2 for each of {self.latent_dim} dimensions, or none"
        self.require("levels", valid, expected)

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

    @property
    def compression(self) -> str:
        """Frames x pixels x pixels of a latent position, such as 8x16x16."""
        return f"{self.temporal_compression}" + f"x{self.spatial_compression}" * 2


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
            blocks = [ResidualBlock(*pair) for pair in itertools.pairwise(widths)]
            levels.append(Level(blocks, "downsample", down))
            dim = width
        self.down = Layers(levels)
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
            blocks = [ResidualBlock(*pair) for pair in itertools.pairwise(widths)]
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
        self.quant_conv = point(config.z_channels, config.latent_dim)
        self.post_quant_conv = point(config.latent_dim, config.z_channels)
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


ANCHOR = "encoder.conv_in.0.conv3d.weight"
FOLDER_FILES = (("encoder.jit", "decoder.jit"), ("autoencoder.jit",), ("model.pt",))
CONSTANTS = ("encoder.patcher3d.", "decoder.unpatcher3d.", "quantizer.", "inv_quant.quantizer.")
RESAMPLING = re.compile(r"(encoder\.down\.\d+\.down|decoder\.up\.\d+\.up)sample\.conv[123]\.")


def read_cosmos(
    path: Path, *, compression: str | None = None, window: int = 17
) -> tuple[CosmosTokenizer, list[str]]:
    """Read a published Cosmos video tokenizer, in float32 and eval mode.

    Args:
        path: A folder with encoder.jit and decoder.jit, autoencoder.jit, model.pt or a safetensors
            file; or one of these files.
        compression: Such as 8x8x8. Needed only if the file also holds the layers of the other
            compressions and the name of the file or folder does not state it.
        window: Frames of an independent window; 0 for a stream.

    Returns:
        The tokenizer, and remarks about the file.

    Raises:
        InputError: A file is missing or cannot be read.
        OptionError: `compression` is missing or contradicts the file, or `window` is invalid.
        CheckpointError: The file is damaged or not a Cosmos video tokenizer.
    """
    found: dict[str, Tensor] = {}
    for file in _files(path):
        found |= read_tensors(file, "model")
    try:
        theirs, notes = _select(found)
        config = _config(theirs, compression or _named_compression(path), window)
        if compression and compression != config.compression:
            raise OptionError("compression", compression, f"{config.compression}, as in the file")
        constants = {name: theirs.pop(name) for name in list(theirs) if name.startswith(CONSTANTS)}
        _check_constants(constants)
        weights = {_our_name(name): tensor for name, tensor in theirs.items()}
        with torch.device("meta"):  # shapes without memory, until all are known to fit
            blank = CosmosTokenizer(config).state_dict()
        spare = [name for name in weights if name not in blank and RESAMPLING.match(name)]
        for name in spare:
            del weights[name]
        check_tensors(weights, blank)
    except MisfitError as exc:
        raise CheckpointError(f"{path}: {exc}: not a Cosmos video tokenizer, or damaged") from exc
    if left_out := len(found) - len(weights):
        what = "tensor" if left_out == 1 else "tensors"
        notes.append(f"{left_out} {what} left out: constants, training state and unused layers")
    if not 0 < config.window <= TRAINED_FRAMES:
        windows = f"windows of {config.window} frames" if config.window else "a stream"
        notes.append(f"{windows}: trained on at most {TRAINED_FRAMES} frames, quality may suffer")
    tokenizer = CosmosTokenizer(config)
    tokenizer.load_state_dict(float_tensors(str(path), weights), strict=True)
    return tokenizer.eval(), notes


def _files(path: Path) -> list[Path]:
    """List the files to read, of a folder or of a file whose counterpart is next to it."""
    if path.name in FOLDER_FILES[0]:
        return [path.with_name(name) for name in FOLDER_FILES[0]]
    if not path.is_dir():
        return [path]
    for names in FOLDER_FILES:
        if all((path / name).is_file() for name in names):
            return [path / name for name in names]
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        expected = "encoder.jit and decoder.jit, autoencoder.jit, model.pt or one safetensors file"
        raise InputError(f"{path}: nothing to import: expected {expected}")
    return found


def _select(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Select the network by the names of the .jit files; the moving average if there is one."""
    for separator, notes in (("-", ["the moving average of the weights is used"]), (".", [])):
        anchor = ANCHOR.replace(".", separator)
        roots = [name.removesuffix(anchor) for name in tensors if name.endswith(anchor)]
        if roots:
            root = min(roots, key=len)
            names = {name: name[len(root) :] for name in tensors if name.startswith(root)}
            return {new.replace(separator, "."): tensors[old] for old, new in names.items()}, notes
    raise MisfitError(f"tensor {ANCHOR} is missing")


def _our_name(name: str) -> str:
    return re.sub(r"(norm\w*)\.norm\.", r"\1.", name.replace(".conv3d.", ".conv."))


def _named_compression(path: Path) -> str | None:
    # the cache of the Hub has files at REPOSITORY/snapshots/COMMIT/FILE
    for name in reversed(path.absolute().parts[-4:]):
        if match := re.search(r"\d+x(\d+)x\1(?!\d)", name):
            return match[0]
    return None


def _config(theirs: dict[str, Tensor], compression: str | None, window: int) -> CosmosConfig:
    """Derive the configuration from names and shapes."""

    def shape(name: str) -> torch.Size:
        if name not in theirs or theirs[name].ndim != 5:
            raise MisfitError(f"tensor {name} is missing or not of five dimensions")
        return theirs[name].shape

    def count(pattern: str) -> int:
        return next(n for n in itertools.count() if pattern.format(n) not in theirs)

    sizes = {3 * size**3: size for size in (2, 4)}
    channels, bands = shape(ANCHOR)[:2]
    if bands not in sizes:
        raise MisfitError(f"tensor {ANCHOR} has {bands} inputs, expected 24 or 192")
    latent_dim, z_channels = shape("quant_conv.conv3d.weight")[:2]
    widths = []
    for side in ("encoder.down", "decoder.up"):
        first = side + ".{}.block.0.conv1.0.conv3d.weight"
        widths.append(tuple(shape(first.format(n))[0] for n in range(count(first))))
    levels = theirs.get("quantizer._levels", theirs.get("inv_quant.quantizer._levels"))
    discrete = LEVELS if latent_dim == len(LEVELS) else ()
    halved = [count(f"encoder.down.{{}}.downsample.conv{n}.conv3d.weight") for n in (2, 1)]
    if f"decoder.up.{len(widths[1]) - 1}.upsample.conv1.conv3d.weight" in theirs:
        stated = re.fullmatch(r"(\d{1,3})x(\d{1,3})x\2", compression or "")
        if stated is None:
            why = "frames x height x width, such as 8x8x8: the file fits several"
            raise OptionError("compression", compression, why)
        times, pixels = int(stated[1]), int(stated[2])
    else:
        times, pixels = (sizes[bands] << number for number in halved)
    try:
        return CosmosConfig(
            temporal_compression=times,
            spatial_compression=pixels,
            levels=discrete if levels is None else tuple(int(x) for x in levels.flatten()[:16]),
            latent_dim=latent_dim,
            z_channels=z_channels,
            patch_size=sizes[bands],
            channels=channels,
            encoder_widths=widths[0],
            decoder_widths=widths[1],
            num_res_blocks=count("encoder.down.0.block.{}.conv1.0.conv3d.weight"),
            window=window,
        )
    except OptionError as exc:
        if exc.field == "window":
            raise
        raise MisfitError(str(exc)) from exc


def _check_constants(constants: dict[str, Tensor]) -> None:
    for name, tensor in constants.items():
        if name.endswith(".wavelets") and not (tensor.float() - 0.5**0.5).abs().max() < 1e-2:
            raise MisfitError(f"tensor {name} is not of the Haar transform")
