"""From the entries of `layers` to modules: the encoder's stack and the decoder's mirror of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vtok.errors import UsageError
from vtok.nn.attention import AttendSpace, AttendTime, GateLoopTime
from vtok.nn.blocks import FOLD_SPACE, FOLD_TIME, Fold, Separable, SeparableMemory, Unfold
from vtok.nn.config import MAX_WIDTH, LayerSpec, TokenizerConfig
from vtok.nn.layers import (
    CausalConv3d,
    CompressSpace,
    CompressTime,
    CondResidualUnit,
    ExpandSpace,
    ExpandTime,
    ResidualUnit,
)
from vtok.nn.streaming import CausalLayer, Context


@dataclass(frozen=True)
class Rung:
    """One entry of `layers`, resolved.

    Attributes:
        kind: the entry's kind, or `project` where the next one needs another width.
        dim, dim_out: channels on the pixel side and on the latent side.
        time, space: compression from the pixel side to the latent side.
    """

    kind: str
    dim: int
    dim_out: int
    time: int = 1
    space: int = 1


COMPRESSION = {"compress_space": (1, 2), "compress_time": (2, 1), "fold": (FOLD_TIME, FOLD_SPACE)}


def resolve(layers: Sequence[LayerSpec], dim: int) -> list[Rung]:
    """The rungs of `layers` from the pixel side, starting with `dim` channels.

    Raises:
        UsageError: where doubling makes a layer too wide.
    """
    rungs: list[Rung] = []
    for spec in layers:
        kind, value = (spec, None) if isinstance(spec, str) else spec
        if kind in COMPRESSION:
            rungs.append(Rung(kind, dim, value or 2 * dim, *COMPRESSION[kind]))
        elif kind == "consecutive_residual":
            rungs += [Rung("residual", dim, dim)] * (value or 1)
        else:
            if value not in (None, dim):
                rungs.append(Rung("project", dim, value))
            rungs.append(Rung(kind, value or dim, value or dim))
        dim = rungs[-1].dim_out
        if dim > MAX_WIDTH:
            raise UsageError(
                f"layers: {kind} leads to {dim} channels: expected at most {MAX_WIDTH}"
            )
    return rungs


def compression(rungs: Sequence[Rung]) -> tuple[int, int]:
    """(temporal, spatial) compression of all `rungs`."""
    return math.prod(rung.time for rung in rungs), math.prod(rung.space for rung in rungs)


class CausalStack(nn.Module):
    """Causal layers in a row.

    Attributes:
        lookback: how many steps of the latent grid back the output reads; None where unbounded.
    """

    def __init__(self, layers: Sequence[CausalLayer], lookback: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.lookback = lookback

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Apply all layers to one chunk."""
        for layer in self.layers:
            x = layer(x, context)
        # marks the stream as started even where no layer has anything to remember
        context.remember(self, x.new_zeros(()))
        return x


def build_encoder(config: TokenizerConfig, rungs: Sequence[Rung], latent_dim: int) -> CausalStack:
    """Patches [B, C, T, H, W] -> raw latents [B, latent_dim, t, h, w]."""
    patch_dim = config.channels * config.patch_size**2
    kernel, mode = config.input_conv_kernel_size, config.pad_mode
    first = CausalConv3d(patch_dim, config.init_dim, kernel, pad_mode=mode)
    inner = [make_layer(rung, config, up=False) for rung in rungs]
    last = CausalConv3d(_latent_side(rungs, config.init_dim), latent_dim, (1, 1, 1))
    return CausalStack([first, *inner, last], _lookback([first, *inner, last], rungs))


def build_decoder(config: TokenizerConfig, rungs: Sequence[Rung], latent_dim: int) -> CausalStack:
    """Quantized [B, latent_dim, t, h, w] -> patches [B, C, T, H, W]."""
    dim = config.decoder_init_dim or config.init_dim
    patch_dim = config.channels * config.patch_size**2
    kernel, mode = config.output_conv_kernel_size, config.pad_mode
    first = CausalConv3d(latent_dim, _latent_side(rungs, dim), (1, 1, 1))
    inner = [make_layer(rung, config, up=True) for rung in reversed(rungs)]
    last = CausalConv3d(dim, patch_dim, kernel, pad_mode=mode)
    return CausalStack([first, *inner, last], _lookback([last, *reversed(inner), first], rungs))


def make_layer(rung: Rung, config: TokenizerConfig, *, up: bool) -> CausalLayer:
    """The module of one rung; `up` for the decoder's direction, from the latent side."""
    if rung.kind in COMPRESSION:
        smaller, larger = COMPRESSING_LAYERS[rung.kind]
        return larger(rung.dim_out, rung.dim) if up else smaller(rung.dim, rung.dim_out)
    if rung.kind == "project":
        return CausalConv3d(
            *((rung.dim_out, rung.dim) if up else (rung.dim, rung.dim_out)), (1, 1, 1)
        )
    return MAKERS[rung.kind](rung.dim, config)


COMPRESSING_LAYERS: dict[str, tuple[type[CausalLayer], type[CausalLayer]]] = {
    "compress_space": (CompressSpace, ExpandSpace),
    "compress_time": (CompressTime, ExpandTime),
    "fold": (Fold, Unfold),
}

MAKERS: dict[str, Callable[[int, TokenizerConfig], CausalLayer]] = {
    "residual": lambda dim, c: ResidualUnit(dim, c.residual_conv_kernel_size, c.pad_mode),
    "cond_residual": lambda dim, c: CondResidualUnit(
        dim, c.residual_conv_kernel_size, c.pad_mode, _dim_cond(c)
    ),
    "attend_space": lambda dim, c: AttendSpace(dim),
    "cond_attend_space": lambda dim, c: AttendSpace(dim, dim_cond=_dim_cond(c)),
    "linear_attend_space": lambda dim, c: AttendSpace(dim, linear=True),
    "cond_linear_attend_space": lambda dim, c: AttendSpace(dim, dim_cond=_dim_cond(c), linear=True),
    "attend_time": lambda dim, c: AttendTime(dim),
    "cond_attend_time": lambda dim, c: AttendTime(dim, dim_cond=_dim_cond(c)),
    "gateloop_time": lambda dim, c: GateLoopTime(dim),
    "separable": lambda dim, c: Separable(dim, kernel_size=3, expansion=2),
    "separable_memory": lambda dim, c: SeparableMemory(dim),
}


def _dim_cond(config: TokenizerConfig) -> int:
    assert config.dim_cond is not None  # the config is refused otherwise
    return config.dim_cond


def _latent_side(rungs: Sequence[Rung], default: int) -> int:
    return rungs[-1].dim_out if rungs else default


def _lookback(layers: Sequence[CausalLayer], rungs: Sequence[Rung]) -> int | None:
    """Steps of the latent grid that `layers`, listed from the pixel side, read back."""
    steps = [math.prod(rung.time for rung in rungs[i:]) for i in range(len(rungs) + 1)]
    total = 0.0
    # the layer of rung i reads grid i in the encoder, whose steps are the finer: a safe bound
    for layer, steps_per_latent in zip(layers, [steps[0], *steps], strict=True):
        if layer.lookback is None:
            return None
        total += layer.lookback / steps_per_latent
    return math.ceil(total)
