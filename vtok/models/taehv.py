"""Native taehv (github.com/madebyollin/taehv): tiny autoencoders with the latents of other models.

One file of weights per model: `taew2_1` and `taew2_2` for Wan, `taehv` and `taehv1_5` for Hunyuan
Video, `taecvx` for CogVideoX, `taeltx_2` and `taeltx2_3` for LTX-2, `taeos1_3` for Open-Sora, and
`_super` variants with a larger decoder. Latents are those that the diffusion model sees: those of
the large autoencoder after its mean and deviation (or scaling factor) are applied.

Frames are computed one by one in 2-D; each memory block also reads its input at the frame before,
zeros at the start. So the model is causal and streams with one frame of memory per block.

Differences of conventions to the original, for a clip of 1 + n * temporal_compression frames in
-1..1, which gives 1 + n steps here:

- Latents equal `TAEHV.encode_video` of the clip in 0..1 with temporal_compression - 1 copies of its
  first frame in front. Without them the original fills the clip at its end, and all of its steps
  but the first cover later frames than those of the model that it mimics.
- Frames equal `TAEHV.decode_video`, which drops the first temporal_compression - 1 frames, before
  it clamps them. It keeps these frames for `taecvx` and an even number of steps; vtok does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.errors import CheckpointError, UsageError
from vtok.models.family import FamilyConfig, MisfitError, are_whole, check_tensors
from vtok.models.torch_file import float_tensors, read_tensors
from vtok.nn.interface import Geometry, Stream, StreamState, Tokenizer
from vtok.nn.layers import Context, channels_first, pointwise

BLOCKS = 3  # memory blocks of a stage
MOST = {"latent_dim": 4096, "patch_size": 16, "encoder_dim": 4096}
H3_SHAPE = (24, 2)  # latent channels and patch size of taeh3


@dataclass(frozen=True)
class TaehvConfig(FamilyConfig):
    """Configuration of a `TaehvTokenizer`.

    Attributes:
        latent_dim: Channels of the latents.
        patch_size: Side of the squares of pixels that the first convolution sees as one.
        encoder_strides: Frames that each of three encoder stages merges into one, 1 or 2.
        decoder_strides: Frames that each of three decoder stages makes of one, 1 or 2.
        encoder_dim: Channels of the encoder.
        decoder_dims: Channels of the three decoder stages and of the last convolution.
        large: Whether the decoder is the one of the `_super` files.

    Raises:
        OptionError: A field is invalid.
    """

    latent_dim: int
    patch_size: int = 1
    encoder_strides: tuple[int, ...] = (2, 2, 1)
    decoder_strides: tuple[int, ...] = (1, 2, 2)
    encoder_dim: int = 64
    decoder_dims: tuple[int, ...] = (256, 128, 64, 64)
    large: bool = False

    def check(self) -> None:
        """Check all fields."""
        self.require_whole(MOST)
        for name, length, most in (
            ("encoder_strides", 3, 2), ("decoder_strides", 3, 2), ("decoder_dims", 4, 4096),
        ):  # fmt: skip
            value = getattr(self, name)
            valid = are_whole(value, 1, most) and len(value) == length
            self.require(name, valid, f"{length} numbers from 1 to {most}")
        same = math.prod(self.encoder_strides) == math.prod(self.decoder_strides)
        self.require("decoder_strides", same, "the same product as encoder_strides")
        self.require("large", isinstance(self.large, bool), "true or false")


class MemoryBlock(nn.Module):
    """Residual block on a frame and the frame before it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * dim, dim, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, 3, padding=1),
        )

    def forward(self, frames: Tensor, batch: int, context: Context) -> Tensor:
        """[B*T, dim, H, W] -> [B*T, dim, H, W]."""
        return F.relu_(self.conv(with_past(self, frames, batch, context)) + frames)


class LargeMemoryBlock(nn.Module):
    """Residual block of the `_super` decoders: a wide depthwise and two pointwise convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * dim, 2 * dim, 7, padding=3, groups=2 * dim, bias=False),
            nn.Conv2d(2 * dim, 4 * dim, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * dim, dim, 1, bias=False),
        )

    def forward(self, frames: Tensor, batch: int, context: Context) -> Tensor:
        """[B*T, dim, H, W] -> [B*T, dim, H, W]."""
        depthwise, widen, _, narrow = self.conv
        assert isinstance(widen, nn.Conv2d)
        assert isinstance(narrow, nn.Conv2d)
        hidden = depthwise(with_past(self, frames, batch, context))
        hidden = F.relu_(pointwise(hidden, widen.weight, widen.bias))
        return frames + pointwise(hidden, narrow.weight, None)


class MergeFrames(nn.Module):
    """Pointwise convolution of `stride` consecutive frames to one."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(dim * stride, dim, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """[N * stride, dim, H, W] -> [N, dim, H, W]."""
        if self.stride == 1:
            return pointwise(frames, self.conv.weight, None)
        kernel = rearrange(self.conv.weight, "o (s c) 1 1 -> o c s 1 1", s=self.stride)
        clip = frames.movedim(0, 1)[None]  # no copy if the channels are innermost in memory
        return F.conv3d(clip, kernel, stride=(self.stride, 1, 1))[0].movedim(1, 0)


class SplitFrames(nn.Module):
    """Pointwise convolution of a frame to `stride` consecutive ones."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(dim, dim * stride, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """[N, dim, H, W] -> [N * stride, dim, H, W]."""
        frames = pointwise(frames, self.conv.weight, None)
        if self.stride == 1:
            return frames
        return channels_first(rearrange(frames, "n (s c) h w -> (n s) h w c", s=self.stride))


class EnlargeConv(nn.Conv2d):
    """Enlargement by repeating each pixel 2x2, then a 3x3 convolution.

    Each pixel of a 2x2 square depends on 2x2 pixels of the input, so that four kernels of this
    size, sums of the 3x3 kernel's entries, give the same result with 4/9 of the products.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(dim, dim_out, 3, padding=1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """[N, dim, H, W] -> [N, dim_out, 2H, 2W]."""
        sums = self.weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        kernels = torch.einsum("pim,qjn,ocmn->pqocij", sums, sums, self.weight).flatten(0, 2)
        kernels = kernels.contiguous(memory_format=torch.channels_last)
        values = F.conv2d(frames, kernels, padding=1)  # of squares, each starting a pixel early
        values = rearrange(values, "n (p q c) h w -> n h w p q c", p=2, q=2)
        count, (height, width) = len(frames), frames.shape[-2:]
        out = values.new_empty(count, height, 2, width, 2, self.out_channels)
        for p, q in ((0, 0), (0, 1), (1, 0), (1, 1)):
            out[:, :, p, :, q] = values[:, p : p + height, q : q + width, p, q]
        return channels_first(out.flatten(3, 4).flatten(1, 2))


class TaehvTokenizer(Tokenizer):
    """Continuous tokenizer of taehv, with the names of its published tensors.

    The indices of layers in `encoder` and `decoder` count the layers without weights too.
    """

    arch = "taehv"

    def __init__(self, config: TaehvConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _large_decoder(config) if config.large else _decoder(config)
        self.geometry = Geometry(
            temporal_compression=math.prod(config.encoder_strides),
            spatial_compression=8 * config.patch_size,
            latent_dim=config.latent_dim,
            entries=None,
            plan=Stream(decoder_lookback(config.decoder_strides)),
        )
        # convolutions would rearrange the weights at each call
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: TaehvConfig) -> TaehvTokenizer:
        """Create a tokenizer with random weights."""
        return cls(config)

    def encode_clip(self, clip: Tensor, state: StreamState | None) -> Tensor:
        """Encode a padded clip [B, 3, T, H, W] in -1..1 to latents [B, D, t, h, w]."""
        batch, patch = clip.shape[0], self.config.patch_size
        if state is None or not state.started:
            ahead = self.geometry.temporal_compression - 1
            clip = F.pad(clip, (0, 0, 0, 0, ahead, 0), mode="replicate")
        pattern = "b c t (h p) (w q) -> (b t) h w (c p q)"
        frames = channels_first(rearrange(clip * 0.5 + 0.5, pattern, p=patch, q=patch))
        latents = _run(self.encoder, frames, batch, Context(state))
        return rearrange(latents, "(b t) c h w -> b c t h w", b=batch)

    def decode_latents(self, latents: Tensor, state: StreamState | None, ahead: int) -> Tensor:
        """Decode latents [B, D, t, h, w] to frames [B, 3, T, H, W], about -1..1."""
        batch, patch = latents.shape[0], self.config.patch_size
        first = state is None or not state.started
        frames = channels_first(rearrange(latents, "b c t h w -> (b t) h w c"))
        frames = _run(self.decoder, frames, batch, Context(state)) * 2 - 1
        pattern = "(b t) (c p q) h w -> b c t (h p) (w q)"
        clip = rearrange(frames, pattern, b=batch, p=patch, q=patch)
        return clip[:, :, self.geometry.temporal_compression - 1 :] if first else clip


def with_past(layer: nn.Module, frames: Tensor, batch: int, context: Context) -> Tensor:
    """Append to each frame of [B*T, C, H, W] the frame before it: [B*T, 2C, H, W].

    The frame before the first is zeros, or what `layer` stored at the previous chunk.
    """
    count, dim, height, width = frames.shape
    both = frames.new_empty(count, height, width, 2 * dim).movedim(-1, 1)
    both[:, :dim] = frames
    clip, before = (part.view(batch, -1, *part.shape[1:]) for part in (frames, both[:, dim:]))
    before[:, 1:] = clip[:, :-1]
    past = context.past(layer)
    before[:, 0] = 0.0 if past is None else past
    context.remember(layer, clip[:, -1])
    return both


def read_taehv(path: Path) -> tuple[TaehvTokenizer, list[str]]:
    """Read a published file of taehv, `.pth` or `.safetensors`.

    The architecture is told by the shapes of the tensors, so the file may have any name.

    Args:
        path: The file.

    Returns:
        The tokenizer, and remarks for the user, one line each.

    Raises:
        InputError: There is no such file.
        CheckpointError: The file is damaged, not one of taehv, or of an unsupported variant.
    """
    tensors = float_tensors(str(path), read_tensors(path))
    try:
        config = config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    except KeyError as exc:
        name = exc.args[0]
        raise CheckpointError(f"{path}: not a file of taehv (no usable tensor {name})") from exc
    except UsageError as exc:
        raise CheckpointError(f"{path}: not a supported variant of taehv ({exc})") from exc
    if (config.latent_dim, config.patch_size) == H3_SHAPE:
        raise CheckpointError(
            f"{path}: taeh3 works in windows of 17 frames with another time grid, which vtok does "
            "not support"
        )
    notes = _cut_splits(tensors, config)
    with torch.device("meta"):  # shapes without memory, until all are known to fit
        blank = TaehvTokenizer(config).state_dict()
    try:
        check_tensors(tensors, blank)
    except MisfitError as exc:
        raise CheckpointError(f"{path}: not a file of taehv, or damaged: {exc}") from exc
    tokenizer = TaehvTokenizer(config).eval()
    tokenizer.load_state_dict(tensors)
    return tokenizer, notes


def config_of(shapes: dict[str, tuple[int, ...]]) -> TaehvConfig:
    """Tell the configuration from the shapes of the tensors of a published file.

    Raises:
        KeyError: A tensor that is needed is missing or has no four dimensions.
        UsageError: The configuration is invalid.
    """

    def four(name: str) -> tuple[int, ...]:
        shape = shapes.get(name, ())
        if len(shape) != 4 or 0 in shape:
            raise KeyError(name)
        return shape

    large = "decoder.0.weight" in shapes
    starts, splits = ((1, 8, 15), (7, 14, 21)) if large else ((3, 9, 15), (7, 13, 19))
    dims = [four(f"decoder.{index}.conv.0.weight")[0] // (1 + large) for index in starts]
    merged = [four(f"encoder.{index}.conv.weight") for index in (2, 7, 12)]
    grown = [four(f"decoder.{index}.conv.weight") for index in splits]
    encoder_strides = [shape[1] // shape[0] for shape in merged]
    decoder_strides = [shape[0] // shape[1] for shape in grown]
    if math.prod(encoder_strides) * 2 == math.prod(decoder_strides):
        decoder_strides[0] = 1  # as the original does
    return TaehvConfig(
        latent_dim=four("encoder.17.weight")[0],
        patch_size=round((four("encoder.0.weight")[1] / 3) ** 0.5),
        encoder_strides=tuple(encoder_strides),
        decoder_strides=tuple(decoder_strides),
        encoder_dim=four("encoder.0.weight")[0],
        decoder_dims=(*dims, four("decoder.22.weight")[1]),
        large=large,
    )


def _cut_splits(tensors: dict[str, Tensor], config: TaehvConfig) -> list[str]:
    """Keep the output channels of the last frame where a file has an unused doubling of time."""
    name = "decoder.7.conv.weight"
    weight = tensors[name]
    outputs = weight.shape[1] * config.decoder_strides[0]
    if len(weight) <= outputs:
        return []
    tensors[name] = weight[-outputs:]
    return [f"{name}: the first {len(weight) - outputs} channels are not used"]


def _run(layers: nn.ModuleList, frames: Tensor, batch: int, context: Context) -> Tensor:
    for layer in layers:
        remembers = isinstance(layer, (MemoryBlock, LargeMemoryBlock))
        frames = layer(frames, batch, context) if remembers else layer(frames)
    return frames


def _conv(dim: int, dim_out: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim_out, 3, padding=1)


def decoder_lookback(strides: tuple[int, ...]) -> int:
    """Latent steps before a step that its frames depend on."""
    steps = 0
    for stride in reversed(strides):  # from the frames to the latents
        steps = -(-steps // stride) + BLOCKS
    return steps


class _Clamp(nn.Module):
    def forward(self, frames: Tensor) -> Tensor:
        return torch.tanh(frames / 3) * 3


def _encoder(config: TaehvConfig) -> nn.ModuleList:
    dim = config.encoder_dim
    layers: list[nn.Module] = [_conv(3 * config.patch_size**2, dim), nn.ReLU(inplace=True)]
    for stride in config.encoder_strides:
        layers += [MergeFrames(dim, stride), nn.Conv2d(dim, dim, 3, 2, padding=1, bias=False)]
        layers += [MemoryBlock(dim) for _ in range(BLOCKS)]
    return nn.ModuleList([*layers, _conv(dim, config.latent_dim)])


def _decoder(config: TaehvConfig) -> nn.ModuleList:
    dims = config.decoder_dims
    layers: list[nn.Module] = [_Clamp(), _conv(config.latent_dim, dims[0]), nn.ReLU(inplace=True)]
    for stride, dim, dim_out in zip(config.decoder_strides, dims, dims[1:], strict=False):
        layers += [MemoryBlock(dim) for _ in range(BLOCKS)]
        layers += [nn.Identity(), SplitFrames(dim, stride), EnlargeConv(dim, dim_out)]
    return nn.ModuleList([*layers, nn.ReLU(inplace=True), _conv(dims[3], 3 * config.patch_size**2)])


def _large_decoder(config: TaehvConfig) -> nn.ModuleList:
    dims = config.decoder_dims
    layers: list[nn.Module] = [nn.Conv2d(config.latent_dim, dims[0], 1, bias=False)]
    for stride, dim, dim_out in zip(config.decoder_strides, dims, dims[1:], strict=False):
        layers += [LargeMemoryBlock(dim) for _ in range(BLOCKS)]
        layers += [_conv(dim, dim_out * 4), nn.ReLU(inplace=True), nn.PixelShuffle(2)]
        layers += [SplitFrames(dim_out, stride)]
    return nn.ModuleList([*layers, _conv(dims[3], 3 * config.patch_size**2)])
