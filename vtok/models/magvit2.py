"""Importer of magvit2-pytorch checkpoints, with the same codes and frames.

Two differences of magvit2-pytorch are absorbed by the weights:

- It puts temporal_compression - 1 frames of zeros before a video, so each latent step ends that
  many frames earlier than here. The delay becomes zeros for the newest frames in the first kernel.
- Its quantizer projects to the bits and back, with codes -1 and 1. The projections become the last
  convolution of the encoder and the first of the decoder, scaled by the code values here, 0.8.

Its checkpoints also contain a layer norm before the quantizer, which it never applies.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtok.errors import CheckpointError, UsageError
from vtok.models.torch_file import float_tensors, read_tensors
from vtok.nn.attention import DIM_HEAD, HEADS, LINEAR_DIM_HEAD, LINEAR_HEADS
from vtok.nn.config import MAX_KERNEL, MAX_WIDTH, LayerSpec, TokenizerConfig
from vtok.nn.quantize import FIRST_SCALE
from vtok.nn.tokenizer import VideoTokenizer

PLAIN_KINDS = (
    "residual", "consecutive_residual", "compress_space", "compress_time", "attend_space",
    "linear_attend_space", "attend_time", "gateloop_time",
)  # fmt: skip
CONDITIONED_KIND = "cond_residual"  # the only conditioned kind that magvit2-pytorch can run
BROKEN_KINDS = ("cond_attend_space", "cond_linear_attend_space", "cond_attend_time")
COMPRESSING = {"compress_space": (1, 2), "compress_time": (2, 1)}
IGNORED = (  # arguments that change neither codes nor frames
    "image_size", "quantizer_aux_loss_weight", "lfq_soft_clamp_input_value", "lfq_activation",
    "attn_dropout", "vgg", "vgg_weights", "perceptual_loss_weight", "discr_kwargs",
    "multiscale_discrs", "use_gan", "adversarial_loss_weight", "grad_penalty_loss_weight",
    "multiscale_adversarial_loss_weight", "flash_attn",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One entry of `layers` with its widths.

    Attributes:
        kind: Name in magvit2-pytorch.
        dim, dim_out: Channels on the pixel side and on the latent side.
        units: Residual units of `consecutive_residual`; None for other kinds.
    """

    kind: str
    dim: int
    dim_out: int
    units: int | None = None


@dataclass(frozen=True)
class Magvit2Config:
    """Relevant arguments of magvit2-pytorch's `VideoTokenizer`, with its defaults.

    Raises:
        UsageError: magvit2-pytorch or vtok does not support a value; the message names it.
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
        fsq = self.use_fsq or self.fsq_levels is not None
        _refuse(fsq, "use_fsq", "vtok supports LFQ only, not FSQ")
        separate = "vtok has no separate convolutions for the first frame"
        wanted = self.separate_first_frame_encoding
        _refuse(wanted, "separate_first_frame_encoding=true", separate)
        reflects = "magvit2-pytorch looks ahead in time unless it pads with zeros"
        _refuse(self.pad_mode != "constant", f"pad_mode={self.pad_mode!r}", reflects)
        heads = {
            "attn_dim_head": DIM_HEAD, "attn_heads": HEADS,
            "linear_attn_dim_head": LINEAR_DIM_HEAD, "linear_attn_heads": LINEAR_HEADS,
        }  # fmt: skip
        for name, ours in heads.items():
            theirs = getattr(self, name)
            _refuse(theirs != ours, f"{name}={theirs!r}", f"vtok supports {ours} only")
        _refuse(not isinstance(self.lfq_spherical, bool), "lfq_spherical", "expected true or false")
        for name in ("max_dim", "dim_cond_expansion_factor"):
            value = getattr(self, name)
            valid = type(value) in (int, float) and value > 0
            _refuse(not valid, f"{name}={value!r}", "expected a number above 0")
        factor = self.dim_cond_expansion_factor
        _refuse(factor > MAX_WIDTH, f"dim_cond_expansion_factor={factor!r}", "too wide")
        self.tokenizer_config()  # checks the other fields

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Magvit2Config:
        """Convert the keys of a TOML file; keys in `IGNORED` are dropped.

        Raises:
            UsageError: A key is unknown, `codebook_size` is missing, or a value is invalid.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known - set(IGNORED)):
            raise UsageError(f"magvit2-pytorch has no argument {', '.join(unknown[:5])}")
        given = {key: _as_tuples(value) for key, value in data.items() if key in known}
        if "codebook_size" not in given and not (given.get("use_fsq") or given.get("fsq_levels")):
            raise UsageError("codebook_size is missing: give the value of the model")
        return cls(**{"codebook_size": 2, **given})

    @property
    def stack(self) -> tuple[Layer, ...]:
        """Layers from the pixel side, with their widths.

        Raises:
            UsageError: magvit2-pytorch does not know an entry, or cannot run it.
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
                layers.append(Layer(kind, dim, dim, number if several else None))
        return tuple(layers)

    @property
    def delay(self) -> int:
        """Number of frames of zeros that magvit2-pytorch puts before a video."""
        return math.prod(COMPRESSING[x.kind][0] for x in self.stack if x.kind in COMPRESSING) - 1

    @property
    def stem_dim(self) -> int | None:
        """Width of the condition after its stem; None if no layer is conditioned."""
        if not any(layer.kind == CONDITIONED_KIND for layer in self.stack):
            return None
        valid = _is_width(self.dim_cond)
        _refuse(not valid, f"dim_cond={self.dim_cond!r}", f"{CONDITIONED_KIND} needs a width")
        assert self.dim_cond is not None
        return int(self.dim_cond * self.dim_cond_expansion_factor)

    def check_unconditioned(self) -> None:
        """Check that a checkpoint can hold the model.

        Raises:
            UsageError: The model has conditioned layers.
        """
        reason = (
            "a vtok checkpoint cannot hold their stem; in Python, "
            "vtok.models.magvit2.read_magvit2 returns it with the tokenizer"
        )
        _refuse(self.stem_dim is not None, "conditioned layers", reason)

    def tokenizer_config(self) -> TokenizerConfig:
        """Convert to the configuration of an equal `VideoTokenizer`.

        Raises:
            UsageError: vtok does not support a value.
        """
        _check_kernel("input_conv_kernel_size", self.input_conv_kernel_size)
        _check_kernel("output_conv_kernel_size", self.output_conv_kernel_size)
        time, *space = self.input_conv_kernel_size
        most = f"with {self.delay} frames of delay a kernel of more than {MAX_KERNEL} frames"
        _refuse(_odd(time + self.delay) > MAX_KERNEL, "layers", most)
        out_time, *out_space = self.output_conv_kernel_size
        return TokenizerConfig(
            layers=tuple((layer.kind, layer.units or layer.dim_out) for layer in self.stack),
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
    """Parse kind and number of an entry of `layers`."""
    entry = (spec,) if isinstance(spec, str) else spec
    if not (isinstance(entry, tuple) and len(entry) in (1, 2) and isinstance(entry[0], str)):
        raise UsageError(f"layers: {reprlib.repr(spec)}: expected a kind, or [kind, number]")
    kind, number = entry[0], entry[1] if len(entry) == 2 else None
    _refuse(kind in BROKEN_KINDS, f"layers: {kind}", "magvit2-pytorch 0.5.1 cannot run it either")
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
    """Round up to an odd number: kernels here are odd, and a tap of zeros changes nothing."""
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


STATE = "model_state_dict"
UNUSED = ("discr.", "multiscale_discrs.", "vgg.")
Names = dict[str, tuple[str, ...]]  # ours to theirs, joined on the first axis; none for zeros


@dataclass(frozen=True)
class Imported:
    """An imported tokenizer.

    Attributes:
        tokenizer: The tokenizer, in eval mode.
        encoder_stem, decoder_stem: Modules to apply to condition vectors [B, dim_cond] before
            `encode` and `decode`; None if no layer is conditioned.
        left_out: Number of unused tensors in the checkpoint.
    """

    tokenizer: VideoTokenizer
    encoder_stem: nn.Module | None
    decoder_stem: nn.Module | None
    left_out: int


def read_magvit2(path: Path, config: Magvit2Config) -> Imported:
    """Read a checkpoint of magvit2-pytorch 0.5.1.

    Raises:
        InputError: The file is missing or cannot be read.
        CheckpointError: The file is damaged, or has unknown, missing or wrongly shaped tensors;
            the message names them.
    """
    tensors = float_tensors(str(path), read_tensors(path, STATE))
    try:
        return convert(tensors, config)
    except _MisfitError as exc:
        raise CheckpointError(f"{path}: {exc}: wrong file, or the config of another model") from exc


def import_magvit2(path: Path, config: Magvit2Config) -> tuple[VideoTokenizer, list[str]]:
    """Read a checkpoint; return the tokenizer without stems, and remarks for the user.

    Raises:
        InputError, CheckpointError: See `read_magvit2`.
    """
    made = read_magvit2(path, config)
    return made.tokenizer, [f"left out {made.left_out} tensors that no code depends on"]


def convert(theirs: Mapping[str, Tensor], config: Magvit2Config) -> Imported:
    """Convert a state dict.

    Raises:
        CheckpointError: A tensor is unknown, missing or wrongly shaped; the message names it.
    """
    chosen, taken = config.tokenizer_config(), _Taken(theirs)
    with torch.device("meta"):  # shapes without memory, until all are known to fit
        blank = VideoTokenizer.from_config(chosen)
    ours = {
        key: taken.get(names, blank.get_parameter(key).shape)
        for key, names in _layer_names(config).items()
    }
    ours |= _ends(config, blank, taken)
    stems = _stems(config, taken)
    left_out = taken.check_rest(f"encoder_layers.{len(config.stack)}.1.")
    tokenizer = VideoTokenizer.from_config(chosen)
    tokenizer.load_state_dict(ours, strict=True)
    return Imported(tokenizer.eval(), *stems, left_out)


class _MisfitError(CheckpointError):
    """Tensors that do not fit the config."""


class _Taken:
    """State dict that tracks which tensors were used."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._left = dict(tensors)

    def get(self, names: str | tuple[str, ...], shape: torch.Size | tuple[int, ...]) -> Tensor:
        """Return a tensor, or several joined, in this shape; only axes of length 1 may differ."""
        names = (names,) if isinstance(names, str) else names
        if not names:
            return torch.zeros(shape)
        if missing := [name for name in names if name not in self._left]:
            raise _MisfitError(f"tensor {missing[0]} is missing")
        parts = [self._left.pop(name) for name in names]
        if any(_wide(part.shape[1:]) != _wide(parts[0].shape[1:]) for part in parts):
            raise _MisfitError(f"tensors {' and '.join(names)} do not fit together")
        joined = torch.cat(parts)
        if _wide(joined.shape) != _wide(shape) or not joined.is_floating_point():
            found = f"{' and '.join(names)} has shape {list(joined.shape)}"
            raise _MisfitError(f"tensor {found}, expected {list(shape)} up to ones")
        return joined.reshape(shape).clone()

    def check_rest(self, unused_norm: str) -> int:
        """Refuse unused tensors, except those that inference never uses; return their number."""
        unused = (*UNUSED, unused_norm, "quantizers.mask")
        if unknown := sorted(name for name in self._left if not name.startswith(unused)):
            raise _MisfitError(f"unknown tensors: {', '.join(unknown[:5])}")
        return len(self._left)


def _wide(shape: torch.Size | tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def _ends(config: Magvit2Config, tokenizer: VideoTokenizer, taken: _Taken) -> dict[str, Tensor]:
    """Convert the first and last convolutions of encoder and decoder."""
    last_in, last_out = (len(x.layers) - 1 for x in (tokenizer.encoder, tokenizer.decoder))
    bits = config.num_codebooks * (config.codebook_size.bit_length() - 1)
    dim = config.stack[-1].dim_out if config.stack else config.init_dim
    code_size = FIRST_SCALE
    if config.lfq_spherical:  # codes on the unit sphere of each codebook
        code_size *= math.sqrt(bits // config.num_codebooks)
    tensors = {}
    ends = (
        ("encoder.layers.0", "conv_in", config.input_conv_kernel_size, config.delay),
        (f"decoder.layers.{last_out}", "conv_out", config.output_conv_kernel_size, 0),
    )
    for ours, theirs, kernel, delay in ends:
        shape = tokenizer.get_parameter(f"{ours}.conv.weight").shape
        weight = taken.get(f"{theirs}.conv.weight", (*shape[:2], *kernel))
        newest = (0, 0, 0, 0, shape[2] - kernel[0] - delay, delay)
        tensors[f"{ours}.conv.weight"] = F.pad(weight, newest)
        tensors[f"{ours}.conv.bias"] = taken.get(f"{theirs}.conv.bias", (shape[0],))
    into, out = torch.eye(bits), torch.eye(bits)
    into_bias, out_bias = torch.zeros(bits), torch.zeros(bits)
    if dim != bits:
        into = taken.get("quantizers.project_in.weight", (bits, dim))
        into_bias = taken.get("quantizers.project_in.bias", (bits,))
        out = taken.get("quantizers.project_out.weight", (dim, bits))
        out_bias = taken.get("quantizers.project_out.bias", (dim,))
    tensors[f"encoder.layers.{last_in}.conv.weight"] = into[..., None, None, None]
    tensors[f"encoder.layers.{last_in}.conv.bias"] = into_bias
    tensors["decoder.layers.0.conv.weight"] = out[..., None, None, None] / code_size
    tensors["decoder.layers.0.conv.bias"] = out_bias
    return tensors


def _stems(config: Magvit2Config, taken: _Taken) -> tuple[nn.Module | None, nn.Module | None]:
    """Convert the stems of encoder and decoder: a linear layer and SiLU for conditions."""
    width = config.stem_dim
    if width is None or config.dim_cond is None:
        return None, None
    stems = []
    for side in ("encoder", "decoder"):
        linear = nn.Linear(config.dim_cond, width)
        weight = taken.get(f"{side}_cond_in.0.weight", (width, config.dim_cond))
        bias = taken.get(f"{side}_cond_in.0.bias", (width,))
        linear.load_state_dict({"weight": weight, "bias": bias})
        stems.append(nn.Sequential(linear, nn.SiLU()).eval())
    return stems[0], stems[1]


def _both(ours: str, theirs: str) -> Names:
    return {f"{ours}.{name}": (f"{theirs}.{name}",) for name in ("weight", "bias")}


def _feed_forward(prefix: str) -> Names:
    return {
        "feed_forward.norm.gain": (f"{prefix}.norm.gamma",),
        **_both("feed_forward.expand", f"{prefix}.net.0"),
        **_both("feed_forward.project", f"{prefix}.net.2"),
    }


def _attention(first: str, second: str) -> Names:
    return {
        "norm.gain": (f"{first}.norm.gamma",),
        "attention.to_qkv.weight": (f"{first}.to_qkv.0.weight",),
        "attention.null_kv": (f"{first}.mem_kv",),
        "attention.to_out.weight": (f"{first}.to_out.1.weight",),
        **_feed_forward(second),
    }


RESIDUAL: Names = {
    **_both("conv.conv", "fn.0.conv"),
    **_both("pointwise.conv", "fn.2"),
    **_both("gate.to_k", "fn.4.to_k"),
    **_both("gate.net.0", "fn.4.net.0"),
    **_both("gate.net.2", "fn.4.net.2"),
}
KINDS: dict[str, Names] = {
    "residual": RESIDUAL,
    "consecutive_residual": RESIDUAL,
    CONDITIONED_KIND: {
        **_both("to_scale", "to_cond"),
        "conv.conv.weight": ("conv.weights",),
        "conv.conv.bias": (),
        **_both("pointwise.conv", "conv_out"),
    },
    "attend_space": _attention("0.fn", "1.fn"),
    "attend_time": _attention("0.fn.fn", "1.fn.fn"),
    "linear_attend_space": {
        "norm.gain": ("0.fn.norm.gamma",),
        "attention.to_qkv.weight": ("0.fn.attn.to_q.0.weight", "0.fn.attn.to_kv.0.weight"),
        "attention.to_out.weight": ("0.fn.attn.to_out.0.weight",),
        **_feed_forward("1.fn"),
    },
    "gateloop_time": {
        "norm.gain": ("fn.fn.norm.gamma",),
        "to_qka.weight": ("fn.fn.to_qkva.0.weight",),
    },
}
SMALLER, LARGER = _both("conv", "conv"), _both("conv.conv", "net.0")  # compress_space and _time


def _layer_names(config: Magvit2Config) -> Names:
    """Map names of all tensors of the inner layers from ours to theirs."""
    stack, names = config.stack, {}
    for side, layers in (("encoder", stack), ("decoder", stack[::-1])):
        place = 1  # after the first convolution
        for number, layer in enumerate(layers):
            prefixes = [f"{side}_layers.{number}."]
            if layer.units:
                prefixes = [f"{prefixes[0]}{unit}." for unit in range(layer.units)]
            for prefix in prefixes:
                known = SMALLER if side == "encoder" else LARGER
                for ours, theirs in KINDS.get(layer.kind, known).items():
                    names[f"{side}.layers.{place}.{ours}"] = tuple(prefix + x for x in theirs)
                place += 1
    return names
