"""What a magvit2-pytorch checkpoint was built with, as its user states it, and what we make of it.

magvit2-pytorch stores the arguments of its `VideoTokenizer` as a pickle, which vtok never opens.
The user writes them down again, by the same names.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtok.config import MAX_KERNEL, MAX_WIDTH, LayerSpec, TokenizerConfig
from vtok.errors import UsageError
from vtok.nn.attention import DIM_HEAD, HEADS, LINEAR_DIM_HEAD, LINEAR_HEADS

PLAIN_KINDS = (
    "residual", "consecutive_residual", "compress_space", "compress_time", "attend_space",
    "linear_attend_space", "attend_time", "gateloop_time",
)  # fmt: skip
CONDITIONED_KIND = "cond_residual"  # the only conditioned one that magvit2-pytorch can run
BROKEN_KINDS = ("cond_attend_space", "cond_linear_attend_space", "cond_attend_time")
COMPRESSING = {"compress_space": (1, 2), "compress_time": (2, 1)}
IGNORED = (
    "image_size", "quantizer_aux_loss_weight", "lfq_soft_clamp_input_value", "lfq_activation",
    "attn_dropout", "vgg", "vgg_weights", "perceptual_loss_weight", "discr_kwargs",
    "multiscale_discrs", "use_gan", "adversarial_loss_weight", "grad_penalty_loss_weight",
    "multiscale_adversarial_loss_weight", "flash_attn",
)  # fmt: skip
"""Arguments that change neither codes nor frames."""


@dataclass(frozen=True)
class Layer:
    """One entry of `layers`.

    Attributes:
        kind: as magvit2-pytorch spells it.
        dim, dim_out: channels on the pixel side and on the latent side.
        count: residual units of `consecutive_residual`, else 1.
    """

    kind: str
    dim: int
    dim_out: int
    count: int = 1


@dataclass(frozen=True)
class Magvit2Config:
    """The arguments of magvit2-pytorch's `VideoTokenizer` that matter, with its defaults.

    Raises:
        UsageError: for values that it, or vtok, cannot have; the message names the argument.
    """

    codebook_size: int
    layers: tuple[LayerSpec, ...] = ("residual",) * 3
    residual_conv_kernel_size: int = 3
    num_codebooks: int = 1
    channels: int = 3
    init_dim: int = 64
    max_dim: float = math.inf
    dim_cond: int | None = None
    dim_cond_expansion_factor: float = 4.0
    input_conv_kernel_size: tuple[int, int, int] = (7, 7, 7)
    output_conv_kernel_size: tuple[int, int, int] = (3, 3, 3)
    pad_mode: str = "constant"
    lfq_entropy_loss_weight: float = 0.1
    lfq_commitment_loss_weight: float = 1.0
    lfq_diversity_gamma: float = 2.5
    lfq_spherical: bool = False
    use_fsq: bool = False
    fsq_levels: tuple[int, ...] | None = None
    attn_dim_head: int = DIM_HEAD
    attn_heads: int = HEADS
    linear_attn_dim_head: int = LINEAR_DIM_HEAD
    linear_attn_heads: int = LINEAR_HEADS
    separate_first_frame_encoding: bool = False

    def __post_init__(self) -> None:
        _refuse(self.use_fsq or self.fsq_levels is not None, "use_fsq", "FSQ is not LFQ")
        _refuse(
            self.separate_first_frame_encoding,
            "separate_first_frame_encoding=true",
            "vtok has no convolutions of the first frame alone",
        )
        reflects = "padding in time by other frames than zeros looks ahead in magvit2-pytorch"
        _refuse(self.pad_mode != "constant", f"pad_mode={self.pad_mode!r}", reflects)
        heads = {
            "attn_dim_head": DIM_HEAD, "attn_heads": HEADS,
            "linear_attn_dim_head": LINEAR_DIM_HEAD, "linear_attn_heads": LINEAR_HEADS,
        }  # fmt: skip
        for name, ours in heads.items():
            theirs = getattr(self, name)
            _refuse(theirs != ours, f"{name}={theirs!r}", f"attention of vtok has {ours}")
        _refuse(not isinstance(self.lfq_spherical, bool), "lfq_spherical", "expected true or false")
        for name in ("max_dim", "dim_cond_expansion_factor"):
            value = getattr(self, name)
            valid = type(value) in (int, float) and value > 0
            _refuse(not valid, f"{name}={value!r}", "expected a number above 0")
        factor = self.dim_cond_expansion_factor
        _refuse(factor > MAX_WIDTH, f"dim_cond_expansion_factor={factor!r}", "too wide")
        self.tokenizer_config()  # checks all that is left

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Magvit2Config:
        """From the keys of a TOML file; those that change neither codes nor frames are ignored.

        Raises:
            UsageError: for unknown keys, no `codebook_size`, and wrong values, by name.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known - set(IGNORED)):
            raise UsageError(f"magvit2-pytorch has no argument {', '.join(unknown[:5])}")
        given = {key: _as_tuples(value) for key, value in data.items() if key in known}
        if "codebook_size" not in given and not (given.get("use_fsq") or given.get("fsq_levels")):
            raise UsageError("codebook_size is missing: state what VideoTokenizer was built with")
        return cls(**{"codebook_size": 2, **given})

    @property
    def stack(self) -> tuple[Layer, ...]:
        """The layers from the pixel side, with their widths.

        Raises:
            UsageError: for an entry that magvit2-pytorch does not know, or cannot run.
        """
        _refuse(not isinstance(self.layers, tuple), f"layers={self.layers!r}", "expected a list")
        _refuse(not _is_width(self.init_dim), f"init_dim={self.init_dim!r}", "expected a width")
        layers, dim = [], self.init_dim
        for spec in self.layers:
            kind, number = _entry(spec)
            if kind in COMPRESSING:
                out = int(min(number or 2 * dim, self.max_dim))
                _refuse(not _is_width(out), f"layers: {kind} to {out} channels", "too wide")
                layers.append(Layer(kind, dim, out))
                dim = out
            else:
                several = kind == "consecutive_residual"
                _refuse(several and not number, f"layers: {kind}", "expected (kind, units)")
                layers.append(Layer(kind, dim, dim, (number or 1) if several else 1))
        return tuple(layers)

    @property
    def delay(self) -> int:
        """Frames of zeros that magvit2-pytorch puts before a video."""
        return math.prod(COMPRESSING[x.kind][0] for x in self.stack if x.kind in COMPRESSING) - 1

    @property
    def stem_dim(self) -> int | None:
        """Width of the condition behind its stem; None where no layer is conditioned."""
        if not any(layer.kind == CONDITIONED_KIND for layer in self.stack):
            return None
        valid = _is_width(self.dim_cond)
        _refuse(not valid, f"dim_cond={self.dim_cond!r}", f"{CONDITIONED_KIND} needs a width")
        assert self.dim_cond is not None
        return int(self.dim_cond * self.dim_cond_expansion_factor)

    def tokenizer_config(self) -> TokenizerConfig:
        """The same tokenizer as ours.

        Raises:
            UsageError: for values that vtok cannot have.
        """
        layers: list[LayerSpec] = []
        for layer in self.stack:
            if layer.kind == "consecutive_residual":
                layers.append((layer.kind, layer.count))
            else:
                layers.append((layer.kind, layer.dim_out))
        _check_kernel("input_conv_kernel_size", self.input_conv_kernel_size)
        _check_kernel("output_conv_kernel_size", self.output_conv_kernel_size)
        time, *space = self.input_conv_kernel_size
        most = f"with {self.delay} frames of delay a kernel of more than {MAX_KERNEL} frames"
        _refuse(_odd(time + self.delay) > MAX_KERNEL, "layers", most)
        out_time, *out_space = self.output_conv_kernel_size
        return TokenizerConfig(
            layers=tuple(layers),
            residual_conv_kernel_size=self.residual_conv_kernel_size,
            num_codebooks=self.num_codebooks,
            codebook_size=self.codebook_size,
            channels=self.channels,
            init_dim=self.init_dim,
            dim_cond=self.stem_dim,
            input_conv_kernel_size=(_odd(time + self.delay), space[0], space[1]),
            output_conv_kernel_size=(_odd(out_time), out_space[0], out_space[1]),
            pad_mode="constant",
            lfq_entropy_loss_weight=self.lfq_entropy_loss_weight,
            lfq_commitment_loss_weight=self.lfq_commitment_loss_weight,
            lfq_diversity_gamma=self.lfq_diversity_gamma,
        )


def _entry(spec: object) -> tuple[str, int | None]:
    """Kind and number of an entry of `layers`."""
    entry = (spec,) if isinstance(spec, str) else spec
    if not (isinstance(entry, tuple) and len(entry) in (1, 2) and isinstance(entry[0], str)):
        raise UsageError(f"layers: {reprlib.repr(spec)}: expected a kind, or [kind, number]")
    kind, number = entry[0], entry[1] if len(entry) == 2 else None
    _refuse(kind in BROKEN_KINDS, f"layers: {kind}", "magvit2-pytorch 0.5.1 fails on it itself")
    known = (*PLAIN_KINDS, CONDITIONED_KIND)
    _refuse(kind not in known, f"layers: {kind!r}", f"expected one of {', '.join(known)}")
    valid = number is None or _is_width(number)
    _refuse(not valid, f"layers: {reprlib.repr(spec)}", f"expected a number up to {MAX_WIDTH}")
    return kind, number


def _check_kernel(name: str, kernel: object) -> None:
    valid = isinstance(kernel, tuple) and len(kernel) == 3
    valid = valid and all(type(n) is int and 1 <= n <= MAX_KERNEL for n in kernel)  # type: ignore[attr-defined]
    _refuse(not valid, f"{name}={reprlib.repr(kernel)}", f"expected 3 numbers to {MAX_KERNEL}")


def _odd(size: int) -> int:
    """The next odd number: a kernel of vtok is odd, and a tap of zeros changes nothing."""
    return size + 1 - size % 2


def _is_width(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_WIDTH


def _as_tuples(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _refuse(wrong: bool, what: str, why: str) -> None:
    if wrong:
        raise UsageError(f"{what}: {why}")
