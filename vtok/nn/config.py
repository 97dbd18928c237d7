"""The tokenizer's configuration: a frozen dataclass, validated once, and the presets."""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import dataclass
from typing import Any

from vtok.errors import UsageError

LayerSpec = str | tuple[str, int]
PAD_MODES = ("constant", "reflect", "replicate")
COND_KINDS = ("cond_residual", "cond_attend_space", "cond_linear_attend_space", "cond_attend_time")
LAYER_KINDS = (
    "residual", "consecutive_residual", "compress_space", "compress_time", "attend_space",
    "linear_attend_space", "attend_time", "gateloop_time", *COND_KINDS,
    "separable", "separable_memory", "fold",
)  # fmt: skip
KERNELS = ("input_conv_kernel_size", "output_conv_kernel_size")
WEIGHTS = ("lfq_entropy_loss_weight", "lfq_commitment_loss_weight", "lfq_diversity_gamma")
ADDED = {"stage_plan"}  # since checkpoints were first written
# A config comes from a file that nobody vouches for: what it may ask for is bounded.
MAX_WIDTH, MAX_KERNEL, MAX_LAYERS, MAX_WEIGHT = 1 << 16, 63, 1000, 10**6
LARGEST = {
    "num_codebooks": 255, "channels": 64, "init_dim": MAX_WIDTH, "num_stages": 16,
    "patch_size": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything that defines a `VideoTokenizer` but its weights; stored inside checkpoints.

    The arguments of `VideoTokenizer`, by the same names: see there.
    """

    layers: tuple[LayerSpec, ...] = (("residual", 64),) * 3
    residual_conv_kernel_size: int = 3
    num_codebooks: int = 1
    codebook_size: int = 8192
    channels: int = 3
    init_dim: int = 64
    dim_cond: int | None = None
    input_conv_kernel_size: tuple[int, int, int] = (7, 7, 7)
    output_conv_kernel_size: tuple[int, int, int] = (3, 3, 3)
    pad_mode: str = "reflect"
    lfq_entropy_loss_weight: float = 0.1
    lfq_commitment_loss_weight: float = 0.25
    lfq_diversity_gamma: float = 1.0
    num_stages: int = 1
    stage_plan: tuple[int, ...] | None = None
    patch_size: int = 1
    decoder_layers: tuple[LayerSpec, ...] | None = None
    decoder_init_dim: int | None = None

    def __post_init__(self) -> None:
        """Validate every field.

        Raises:
            UsageError: naming the field, the value found and what is expected.
        """
        for name in ("layers", "decoder_layers", "stage_plan", *KERNELS):  # JSON has lists
            object.__setattr__(self, name, _as_tuples(getattr(self, name)))
        self._check_numbers()
        for name in KERNELS:
            kernel = getattr(self, name)
            valid = isinstance(kernel, tuple) and len(kernel) == 3 and all(map(_is_odd, kernel))
            _require(valid, name, kernel, f"three odd numbers from 1 to {MAX_KERNEL}")
        modes = ", ".join(PAD_MODES)
        _require(self.pad_mode in PAD_MODES, "pad_mode", self.pad_mode, f"one of {modes}")
        self._check_plan()
        self._check_layers("layers", self.layers)
        mirrors = self.decoder_layers is None
        if not mirrors:
            self._check_layers("decoder_layers", self.decoder_layers)
        width = self.decoder_init_dim
        _require(not mirrors or width is None, "decoder_init_dim", width, "decoder_layers with it")

    def _check_plan(self) -> None:
        plan = self.stage_plan
        if plan is None:
            return
        expected = f"the group of each of the {self.num_stages} stages, numbered as they appear"
        valid = isinstance(plan, tuple) and len(plan) == self.num_stages
        valid = valid and all(type(group) is int for group in plan)
        valid = valid and all(0 <= g <= len(set(plan[:i])) for i, g in enumerate(plan))
        _require(valid, "stage_plan", plan, expected)

    def _check_numbers(self) -> None:
        for name, most in LARGEST.items():
            value = getattr(self, name)
            _require(_is_integer(value, most), name, value, f"a whole number from 1 to {most}")
        for name in ("dim_cond", "decoder_init_dim"):
            value = getattr(self, name)
            valid = value is None or _is_integer(value, MAX_WIDTH)
            _require(valid, name, value, f"a whole number from 1 to {MAX_WIDTH}")
        size = self.codebook_size
        valid = _is_integer(size, 2**32) and size > 1 and size & (size - 1) == 0
        _require(valid, "codebook_size", size, "a power of two from 2 to 2^32")
        size = self.residual_conv_kernel_size
        expected = f"an odd number from 1 to {MAX_KERNEL}"
        _require(_is_odd(size), "residual_conv_kernel_size", size, expected)
        for name in WEIGHTS:
            value = getattr(self, name)
            valid = type(value) in (int, float) and abs(value) <= MAX_WEIGHT  # no NaN either
            _require(valid, name, value, f"a number of at most {MAX_WEIGHT}")

    def _check_layers(self, name: str, layers: object) -> None:
        _require(isinstance(layers, tuple), name, layers, "a tuple of entries")
        assert isinstance(layers, tuple)
        units = 0
        for spec in layers:
            kind, number = self._check_layer(name, spec)
            units += (number or 1) if kind == "consecutive_residual" else 1
        _require(units <= MAX_LAYERS, name, units, f"at most {MAX_LAYERS} layers")

    def _check_layer(self, name: str, spec: object) -> tuple[str, int | None]:
        entry = (spec, None) if isinstance(spec, str) else spec
        pair = isinstance(entry, tuple) and len(entry) == 2
        _require(pair, name, spec, "entries kind or (kind, number)")
        assert isinstance(entry, tuple)
        kind, number = entry
        _require(kind in LAYER_KINDS, name, kind, f"one of {', '.join(LAYER_KINDS)}")
        valid = number is None or _is_integer(number, MAX_WIDTH)
        _require(valid, name, spec, f"a whole number from 1 to {MAX_WIDTH} beside the kind")
        conditioned = kind in COND_KINDS
        expected = f"a number, for the layer {kind}"
        _require(not conditioned or self.dim_cond is not None, "dim_cond", None, expected)
        return kind, number

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenizerConfig:
        """From plain JSON types.

        Raises:
            UsageError: for unknown or missing keys, each named. (Those that the first release did
                not have may be missing.)
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"unknown config keys: {', '.join(unknown[:5])}")
        if missing := sorted(known - set(data) - ADDED):
            raise UsageError(f"missing config keys: {', '.join(missing)}")
        return cls(**data)


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise UsageError(f"{name}={reprlib.repr(value)}: expected {expected}")


def _is_integer(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most  # a bool is no number here


def _is_odd(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_KERNEL and value % 2 == 1


def _as_tuples(value: Any) -> Any:
    """A list of entries that may be lists themselves, as tuples; anything else as it is."""
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


PRESETS: dict[str, TokenizerConfig] = {
    "vtok-base": TokenizerConfig(
        codebook_size=512,
        num_stages=8,
        stage_plan=(0, 0, 0, 0, 1, 1, 2, 2),
        patch_size=4,
        init_dim=64,
        input_conv_kernel_size=(1, 3, 3),
        output_conv_kernel_size=(1, 3, 3),
        pad_mode="constant",
        layers=(("fold", 256), *(("separable_memory", 256),) * 3),
        decoder_init_dim=48,
        decoder_layers=(("separable", 48), ("fold", 320), *(("separable_memory", 320),) * 4),
        lfq_entropy_loss_weight=0.02,
    ),
}


LEARNERS = ("v10", "v11", "grouped")
"""Learners that have maps of their own; see `vtok.nn.token_maps`."""
BASELINES = ("average", "average_lifted")
"""Fixed cells in place of learned maps, over plain latents and over what the learners see."""
MOST_TOKENS = 64
# a config comes from a file that nobody vouches for: what it may ask for is bounded
_MOST = {
    "latent_dim": 4096, "dim": 4096, "map_dim": 1024, "max_tokens": MOST_TOKENS, "fold": 8,
    "lift_blocks": 64, "fuser_blocks": 64, "heads": 64, "token_bits": 2040,
}  # fmt: skip


@dataclass(frozen=True)
class TokenConfig:
    """Everything that defines a `TokenPipeline` but its weights.

    Attributes:
        latent_dim: D, channels of the tokenizer's latents.
        learner: where the maps come from, one of `LEARNERS` or `BASELINES`.
        dim: numbers in a token, and width of the layers.
        map_dim: channels that the maps are computed from.
        max_tokens: the most tokens of a latent step.
        fold: latents of so many rows and columns go into one position.
        lift_blocks: residual blocks before pooling.
        fuser_blocks: residual blocks, each after an attention to the tokens, behind it.
        heads: of those attentions; divides `dim`.
        token_bits: bits of a quantized token, a multiple of 8.
    """

    latent_dim: int
    learner: str = "v11"
    dim: int = 256
    map_dim: int = 64
    max_tokens: int = MOST_TOKENS
    fold: int = 2
    lift_blocks: int = 2
    fuser_blocks: int = 3
    heads: int = 8
    token_bits: int = 128

    def __post_init__(self) -> None:
        """Validate every field.

        Raises:
            UsageError: naming the field, the value found and what is expected.
        """
        kinds = (*LEARNERS, *BASELINES)
        _require_token(self.learner in kinds, "learner", self.learner, f"one of {', '.join(kinds)}")
        for name, most in _MOST.items():
            value = getattr(self, name)
            valid = type(value) is int and 1 <= value <= most
            _require_token(valid, name, value, f"a whole number from 1 to {most}")
        _require_token(self.dim % self.heads == 0, "heads", self.heads, "a divisor of dim")
        _require_token(self.token_bits % 8 == 0, "token_bits", self.token_bits, "a multiple of 8")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenConfig:
        """From plain JSON types.

        Raises:
            UsageError: for unknown, missing or wrong keys, each named.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if wrong := sorted(known ^ set(data)):
            raise UsageError(f"unknown or missing config keys: {', '.join(wrong[:5])}")
        return cls(**data)


def _require_token(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise UsageError(f"{name}={str(value)[:40]}: expected {expected}")
