"""Shapes of the networks that a configuration describes: widths, compression, look-back.

Imports no torch, so that checkpoints can be described quickly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vtok.errors import OptionError, UsageError
from vtok.nn.config import MAX_WIDTH, LayerSpec, TokenizerConfig
from vtok.nn.geometry import Geometry, Stream

PATCH_TIME, PATCH_SPACE = 4, 2
COMPRESSION = {
    "compress_space": (1, 2),
    "compress_time": (2, 1),
    "space_time_patch": (PATCH_TIME, PATCH_SPACE),
}
UNBOUNDED = {"attend_time", "cond_attend_time", "gateloop_time"}


@dataclass(frozen=True)
class ResolvedLayer:
    """One entry of `layers` with its widths.

    Attributes:
        kind: Kind of the entry, or `project` before an entry of another width.
        dim, dim_out: Channels on the pixel side and on the latent side.
        time, space: Compression from the pixel side to the latent side.
    """

    kind: str
    dim: int
    dim_out: int
    time: int = 1
    space: int = 1


def resolve_layers(layers: Sequence[LayerSpec], dim: int) -> list[ResolvedLayer]:
    """Work out the widths of `layers`, listed from the pixel side, which has `dim` channels.

    Raises:
        OptionError: Doubling makes a layer too wide.
    """
    resolved: list[ResolvedLayer] = []
    for spec in layers:
        kind, value = (spec, None) if isinstance(spec, str) else spec
        if kind in COMPRESSION:
            resolved.append(ResolvedLayer(kind, dim, value or 2 * dim, *COMPRESSION[kind]))
        elif kind == "consecutive_residual":
            resolved += [ResolvedLayer("residual", dim, dim)] * (value or 1)
        else:
            if value not in (None, dim):
                resolved.append(ResolvedLayer("project", dim, value))
            resolved.append(ResolvedLayer(kind, value or dim, value or dim))
        dim = resolved[-1].dim_out
        if dim > MAX_WIDTH:
            raise OptionError(
                "layers", f"{kind} leads to {dim} channels", f"at most {MAX_WIDTH} channels"
            )
    return resolved


def compression(layers: Sequence[ResolvedLayer]) -> tuple[int, int]:
    """Compute the (temporal, spatial) compression of all `layers`."""
    return math.prod(layer.time for layer in layers), math.prod(layer.space for layer in layers)


def resolve_stacks(config: TokenizerConfig) -> tuple[list[ResolvedLayer], list[ResolvedLayer]]:
    """Work out the layers of the encoder and of the decoder, both listed from the pixel side.

    Raises:
        OptionError: A layer is too wide.
        UsageError: Encoder and decoder have different compression.
    """
    down = up = resolve_layers(config.layers, config.init_dim)
    if config.decoder_layers is not None:
        up = resolve_layers(config.decoder_layers, config.decoder_init_dim or config.init_dim)
    if compression(down) != compression(up):
        raise UsageError("layers and decoder_layers: expected the same compression")
    return down, up


def geometry_of(config: TokenizerConfig) -> Geometry:
    """Compute the geometry of the tokenizer of a configuration.

    Raises:
        OptionError, UsageError: As `resolve_stacks`.
    """
    down, up = resolve_stacks(config)
    time, space = compression(down)
    dims = config.num_codebooks * (config.codebook_size.bit_length() - 1)
    if config.bit_plan is None:
        dims *= 1 + max(config.stage_plan or (0,))
    else:
        dims = 1 + max(config.bit_plan)
    return Geometry(
        temporal_compression=time,
        spatial_compression=space * config.patch_size,
        latent_dim=dims,
        entries=config.codebook_size,
        num_codebooks=config.num_codebooks,
        num_stages=config.num_stages,
        plan=Stream(_lookback(config, up)),
    )


def _lookback(config: TokenizerConfig, layers: Sequence[ResolvedLayer]) -> int | None:
    """Count the latent steps that the frames of a decoder read back; None if unbounded."""
    if any(layer.kind in UNBOUNDED for layer in layers):
        return None
    kernel = config.residual_conv_kernel_size - 1
    of_kind = {"residual": kernel, "cond_residual": kernel, "causal_depthwise": 1}
    # steps of the finer grid of each layer to a latent step: a safe upper bound
    steps = [math.prod(layer.time for layer in layers[i:]) for i in range(len(layers))]
    total = (config.output_conv_kernel_size[0] - 1) / math.prod(layer.time for layer in layers)
    for layer, steps_per_latent in zip(layers, steps, strict=True):
        total += of_kind.get(layer.kind, 0) / steps_per_latent
    return math.ceil(total)
