"""Encoder and decoder stacks, built from the entries of `layers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from vtok.errors import OptionError
from vtok.nn.attention import AttendSpace, AttendTime, GateLoopTime
from vtok.nn.blocks import CausalDepthwiseBlock, CondResidualUnit, DepthwiseBlock, ResidualUnit
from vtok.nn.config import MAX_WIDTH, TokenizerConfig
from vtok.nn.layers import (
    CausalConv3d,
    CausalLayer,
    Context,
    Expand,
    SpaceTimePatchEmbed,
    SpaceTimePatchUnembed,
)
from vtok.nn.quantize import LATENT_BOUND
from vtok.nn.shapes import COMPRESSION, ResolvedLayer, compression

MAX_TANH = 0.995  # bound of normalized latents before the inverse of tanh


COMPRESS: dict[str, Callable[[int, int], CausalLayer]] = {
    "compress_space": lambda dim, out: CausalConv3d(dim, out, (1, 3, 3), stride=(1, 2, 2)),
    "compress_time": lambda dim, out: CausalConv3d(dim, out, (3, 1, 1), stride=(2, 1, 1)),
    "space_time_patch": SpaceTimePatchEmbed,
}
EXPAND: dict[str, Callable[[int, int], CausalLayer]] = {
    "compress_space": partial(Expand, space=2),
    "compress_time": partial(Expand, time=2),
    "space_time_patch": SpaceTimePatchUnembed,
}
MAKERS: dict[str, Callable[[int, TokenizerConfig], CausalLayer]] = {
    "residual": lambda dim, c: ResidualUnit(dim, c.residual_conv_kernel_size, c.pad_mode),
    "cond_residual": lambda dim, c: CondResidualUnit(
        dim, c.residual_conv_kernel_size, c.pad_mode, c.dim_cond or 0
    ),
    "attend_space": lambda dim, c: AttendSpace(dim),
    "cond_attend_space": lambda dim, c: AttendSpace(dim, dim_cond=c.dim_cond),
    "linear_attend_space": lambda dim, c: AttendSpace(dim, linear=True),
    "cond_linear_attend_space": lambda dim, c: AttendSpace(dim, dim_cond=c.dim_cond, linear=True),
    "attend_time": lambda dim, c: AttendTime(dim),
    "cond_attend_time": lambda dim, c: AttendTime(dim, dim_cond=c.dim_cond),
    "gateloop_time": lambda dim, c: GateLoopTime(dim),
    "depthwise": lambda dim, c: DepthwiseBlock(dim, kernel_size=3, expansion=2),
    "causal_depthwise": lambda dim, c: CausalDepthwiseBlock(dim),
}


def _autocast_device(x: Tensor) -> str:
    """Return the device type for autocast, which `meta` lacks."""
    return "cpu" if x.is_meta else x.device.type


class LinearEncoder(SpaceTimePatchEmbed):
    """Linear map of each block of pixels, never computed in a lower precision than its weights."""

    def embed(self, patches: Tensor, batch: int) -> Tensor:
        """Map patches; see `SpaceTimePatchEmbed`."""
        with torch.autocast(_autocast_device(patches), enabled=False):
            return super().embed(patches.to(self.project.weight.dtype), batch)


class LinearDecoder(SpaceTimePatchUnembed):
    """Linear map of expanded latents to blocks of pixels, the mirror of `LinearEncoder`.

    `LFQ.normalize` is undone first, so that without quantization and network the frames are those
    that went in.
    """

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, t, h, w] -> [B, dim_out, T, H, W]."""
        with torch.autocast(_autocast_device(x), enabled=False):
            expanded = torch.atanh((x.float() / LATENT_BOUND).clamp(-MAX_TANH, MAX_TANH))
            return super().forward(expanded.to(self.project.weight.dtype), context)


class CausalStack(nn.Module):
    """Causal layers applied one after another, and optionally a linear map added to their result.

    With a linear map, the last layer starts as zero, so that training starts from the map alone.
    """

    def __init__(
        self,
        layers: Sequence[CausalLayer],
        linear: CausalLayer | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.linear = linear
        if linear is not None:
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply all layers to one chunk."""
        return self.with_features(x, context)[0]

    def with_features(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Apply all layers to one chunk; return the result and the input of the last layer."""
        straight = None if self.linear is None else self.linear(x, context)
        features = x.to(next(self.parameters()).dtype)
        *inner, last = self.layers
        for layer in inner:
            features = layer(features, context)
        x = last(features, context)
        return (x if straight is None else x + straight), features


class SecondPass(nn.Module):
    """Correction of raw latents from the features of the encoder and the reconstruction error.

    The error is that of the frames decoded from the latents of the first pass. The result starts
    as zero, so that training starts from the first pass alone.

    Args:
        width: Channels of the encoder's features.
        latent_dim: Dimensions of the latents.
        num_blocks: Residual blocks.
        patch_dim: Channels of the merged pixels.
        block: Their `time` and `space` in a latent position.
    """

    def __init__(
        self, width: int, latent_dim: int, num_blocks: int, patch_dim: int, block: dict[str, int]
    ) -> None:
        super().__init__()
        self.error = SpaceTimePatchEmbed(patch_dim, width, **block)
        self.blocks = nn.ModuleList([CausalDepthwiseBlock(width) for _ in range(num_blocks)])
        self.last = CausalConv3d(width, latent_dim, (1, 1, 1))
        self.linear = LinearEncoder(patch_dim, latent_dim, **block)
        for parameter in (*self.last.parameters(), *self.linear.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, error: Tensor, context: Context) -> Tensor:
        """Compute what to add to the raw latents.

        Args:
            features: [B, width, t, h, w].
            error: Patches of original minus decoded frames [B, patch_dim, T, H, W].
            context: Inputs that every layer shares.
        """
        patches = self.error.patches(error, context)
        x = features + self.error.embed(patches, error.shape[0])
        for layer in self.blocks:
            x = layer(x, context)
        correction: Tensor = self.last(x, context) + self.linear.embed(patches, error.shape[0])
        return correction


def build_encoder(
    config: TokenizerConfig, layers: Sequence[ResolvedLayer], latent_dim: int
) -> CausalStack:
    """Build the encoder: patches [B, C, T, H, W] -> raw latents [B, latent_dim, t, h, w]."""
    patch_dim = config.channels * config.patch_size**2
    kernel, mode = config.input_conv_kernel_size, config.pad_mode
    first = CausalConv3d(patch_dim, config.init_dim, kernel, pad_mode=mode)
    inner = [_make_layer(layer, config, up=False) for layer in layers]
    width = layers[-1].dim_out if layers else config.init_dim
    last = CausalConv3d(width, latent_dim, (1, 1, 1))
    linear = None
    if config.linear_path:
        linear = LinearEncoder(patch_dim, latent_dim, **_block(layers, patch_dim))
    return CausalStack([first, *inner, last], linear)


def build_second_pass(
    config: TokenizerConfig, layers: Sequence[ResolvedLayer], latent_dim: int
) -> SecondPass | None:
    """Build the second pass of the encoder, if it has one; the layers are those of the encoder."""
    if config.second_pass is None:
        return None
    patch_dim = config.channels * config.patch_size**2
    width = layers[-1].dim_out if layers else config.init_dim
    block = _block(layers, patch_dim, "second_pass")
    return SecondPass(width, latent_dim, config.second_pass[0], patch_dim, block)


def build_decoder(
    config: TokenizerConfig, layers: Sequence[ResolvedLayer], latent_dim: int
) -> CausalStack:
    """Build the decoder: quantized [B, latent_dim, t, h, w] -> patches [B, C, T, H, W]."""
    dim = config.decoder_init_dim or config.init_dim
    patch_dim = config.channels * config.patch_size**2
    kernel, mode = config.output_conv_kernel_size, config.pad_mode
    width = layers[-1].dim_out if layers else dim
    first = CausalConv3d(latent_dim, width, (1, 1, 1))
    inner = [_make_layer(layer, config, up=True) for layer in reversed(layers)]
    last = CausalConv3d(dim, patch_dim, kernel, pad_mode=mode)
    linear = None
    if config.linear_path:
        linear = LinearDecoder(latent_dim, patch_dim, **_block(layers, patch_dim))
    return CausalStack([first, *inner, last], linear)


def _block(
    layers: Sequence[ResolvedLayer], patch_dim: int, option: str = "linear_path"
) -> dict[str, int]:
    """Return the size of the block of patches that a latent position covers."""
    time, space = compression(layers)
    if (numbers := patch_dim * time * space**2) > MAX_WIDTH:
        raise OptionError(option, f"blocks of {numbers} numbers", f"at most {MAX_WIDTH} numbers")
    return {"time": time, "space": space}


def _make_layer(layer: ResolvedLayer, config: TokenizerConfig, *, up: bool) -> CausalLayer:
    """Make the module of one entry; `up` for the decoder's direction."""
    if layer.kind in COMPRESSION:
        if up:
            return EXPAND[layer.kind](layer.dim_out, layer.dim)
        return COMPRESS[layer.kind](layer.dim, layer.dim_out)
    if layer.kind == "project":
        widths = (layer.dim_out, layer.dim) if up else (layer.dim, layer.dim_out)
        return CausalConv3d(*widths, (1, 1, 1))
    return MAKERS[layer.kind](layer.dim, config)
