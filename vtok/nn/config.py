"""Configurations of the networks: frozen dataclasses, validated when made; and the presets.

Configurations come from files that may be hostile, so every size is bounded.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from vtok.errors import OptionError, UsageError

LayerSpec = str | tuple[str, int]
PAD_MODES = ("constant", "reflect", "replicate")
COND_KINDS = ("cond_residual", "cond_attend_space", "cond_linear_attend_space", "cond_attend_time")
LAYER_KINDS = (
    "residual", "consecutive_residual", "compress_space", "compress_time", "attend_space",
    "linear_attend_space", "attend_time", "gateloop_time", *COND_KINDS,
    "depthwise", "causal_depthwise", "space_time_patch",
)  # fmt: skip
STORED_KINDS = {  # checkpoints spell these kinds differently
    "depthwise": "separable",
    "causal_depthwise": "separable_memory",
    "space_time_patch": "fold",
}
LAYER_LISTS = ("layers", "decoder_layers")
KERNELS = ("input_conv_kernel_size", "output_conv_kernel_size")
WEIGHTS = ("lfq_entropy_loss_weight", "lfq_commitment_loss_weight", "lfq_diversity_gamma")
ADDED = {"stage_plan"}  # keys that the oldest checkpoints lack
LATER = {"bit_plan", "linear_path", "second_pass"}  # the same, and not stored at their default
MAX_WIDTH, MAX_KERNEL, MAX_LAYERS, MAX_WEIGHT, MAX_PLANES = 1 << 16, 63, 1000, 10**6, 16
LARGEST = {
    "num_codebooks": 255, "channels": 64, "init_dim": MAX_WIDTH, "num_stages": 16,
    "patch_size": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TokenizerConfig:
    """Arguments of `VideoTokenizer`, which documents them; stored inside checkpoints.

    Raises:
        OptionError: A field is invalid.
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
    bit_plan: tuple[int, ...] | None = None
    linear_path: bool = False
    second_pass: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in (
            *LAYER_LISTS,
            "stage_plan",
            "bit_plan",
            "second_pass",
            *KERNELS,
        ):  # JSON has lists in place of tuples
            object.__setattr__(self, name, _as_tuples(getattr(self, name)))
        self._check_numbers()
        for name in KERNELS:
            kernel = getattr(self, name)
            valid = isinstance(kernel, tuple) and len(kernel) == 3 and all(map(_is_odd, kernel))
            _require(valid, name, kernel, f"three odd numbers from 1 to {MAX_KERNEL}")
        modes = ", ".join(PAD_MODES)
        _require(self.pad_mode in PAD_MODES, "pad_mode", self.pad_mode, f"one of {modes}")
        self._check_plans()
        self._set_layers("layers")
        mirrored = self.decoder_layers is None
        if not mirrored:
            self._set_layers("decoder_layers")
        width = self.decoder_init_dim
        _require(not mirrored or width is None, "decoder_init_dim", width, "decoder_layers with it")
        linear = self.linear_path
        _require(isinstance(linear, bool), "linear_path", linear, "true or false")
        second = self.second_pass or None  # a list without numbers, as TOML has no other "none"
        object.__setattr__(self, "second_pass", second)
        if second is not None:
            valid = isinstance(second, tuple) and len(second) == 2
            valid = valid and _is_integer(second[0], MAX_LAYERS)
            valid = valid and _is_integer(second[1], self.num_stages)
            expected = f"blocks, 1 to {MAX_LAYERS}, and stages, 1 to {self.num_stages}"
            _require(valid, "second_pass", second, expected)

    def _check_plans(self) -> None:
        plan = self.stage_plan
        if plan is not None:
            expected = f"the group of each of the {self.num_stages} stages, numbered as they appear"
            valid = isinstance(plan, tuple) and len(plan) == self.num_stages
            valid = valid and all(type(group) is int for group in plan)
            valid = valid and all(0 <= g <= len(set(plan[:i])) for i, g in enumerate(plan))
            _require(valid, "stage_plan", plan, expected)
        bits = self.bit_plan
        if bits is not None:
            _require(plan is None, "stage_plan", plan, "none with bit_plan")
            count = self.num_stages * self.num_codebooks * (self.codebook_size.bit_length() - 1)
            valid = isinstance(bits, tuple) and len(bits) == count
            valid = valid and all(type(dim) is int for dim in bits)
            valid = valid and set(bits) == set(range(len(set(bits))))
            valid = valid and max(Counter(bits).values()) <= MAX_PLANES
            expected = f"the dimension of each of {count} bits, all from 0 up, {MAX_PLANES} each"
            _require(valid, "bit_plan", bits, f"{expected} at most")

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
            valid = type(value) in (int, float) and abs(value) <= MAX_WEIGHT  # excludes NaN
            _require(valid, name, value, f"a number of at most {MAX_WEIGHT}")

    def _set_layers(self, name: str) -> None:
        """Check a list of layers and replace kinds in the spelling of checkpoints."""
        layers = getattr(self, name)
        _require(isinstance(layers, tuple), name, layers, "a tuple of entries")
        renamed = tuple(_rename(spec, {old: new for new, old in STORED_KINDS.items()})
                        for spec in layers)  # fmt: skip
        units = 0
        for spec in renamed:
            kind, number = self._check_layer(name, spec)
            units += (number or 1) if kind == "consecutive_residual" else 1
        _require(units <= MAX_LAYERS, name, units, f"at most {MAX_LAYERS} layers")
        object.__setattr__(self, name, renamed)

    def _check_layer(self, name: str, spec: object) -> tuple[str, int | None]:
        entry = (spec, None) if isinstance(spec, str) else spec
        pair = isinstance(entry, tuple) and len(entry) == 2
        _require(pair, name, spec, "entries kind or (kind, number)")
        assert isinstance(entry, tuple)
        kind, number = entry
        _require(kind in LAYER_KINDS, name, kind, f"one of {', '.join(LAYER_KINDS)}")
        valid = number is None or _is_integer(number, MAX_WIDTH)
        _require(valid, name, spec, f"(kind, a whole number from 1 to {MAX_WIDTH})")
        expected = f"a number, for the layer {kind}"
        _require(kind not in COND_KINDS or self.dim_cond is not None, "dim_cond", None, expected)
        return kind, number

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types, with layer kinds in the spelling of checkpoints."""
        data = dataclasses.asdict(self)
        for name in LAYER_LISTS:
            if data[name] is not None:
                data[name] = tuple(_rename(spec, STORED_KINDS) for spec in data[name])
        return {key: value for key, value in data.items() if value or key not in LATER}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenizerConfig:
        """Convert from plain JSON types.

        Raises:
            UsageError: A key is unknown or missing, or a value is invalid.
        """
        _check_keys(cls, data, ADDED | LATER)
        return cls(**data)


def _check_keys(cls: type, data: dict[str, Any], optional: set[str]) -> None:
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - known):
        raise UsageError(f"unknown config keys: {', '.join(unknown[:5])}")
    if missing := sorted(known - set(data) - optional):
        raise UsageError(f"missing config keys: {', '.join(missing)}")


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise OptionError(name, reprlib.repr(value), expected)


def _is_integer(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most  # excludes booleans


def _is_odd(value: object) -> bool:
    return _is_integer(value, MAX_KERNEL) and value % 2 == 1  # type: ignore[operator]


def _as_tuples(value: Any) -> Any:
    """Convert a list, and the lists in it, to tuples; leave anything else as it is."""
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _rename(spec: Any, names: dict[str, str]) -> Any:
    """Replace the kind in one entry of `layers`; leave an invalid entry as it is."""
    if isinstance(spec, str):
        return names.get(spec, spec)
    if isinstance(spec, tuple) and spec and isinstance(spec[0], str):
        return (names.get(spec[0], spec[0]), *spec[1:])
    return spec


PRESETS: dict[str, TokenizerConfig] = {
    "vtok-base": TokenizerConfig(
        codebook_size=512,
        num_stages=8,
        patch_size=4,
        init_dim=64,
        input_conv_kernel_size=(1, 3, 3),
        output_conv_kernel_size=(1, 3, 3),
        pad_mode="constant",
        layers=(("space_time_patch", 256), *(("causal_depthwise", 256),) * 5),
        decoder_init_dim=48,
        decoder_layers=(
            ("depthwise", 48), ("space_time_patch", 320), *(("causal_depthwise", 320),) * 4,
        ),
        lfq_entropy_loss_weight=0.0,
        lfq_commitment_loss_weight=0.0,
        linear_path=True,
        # principal components by gain per bit, a line for each stage; within a stage the order that
        # suits the entropy coder: first planes first, then where the stage before has the dimension
        bit_plan=(
            0, 1, 2, 0, 1, 2, 0, 1, 0,
            3, 4, 2, 0, 6, 3, 4, 6, 3,
            5, 4, 7, 8, 1, 0, 5, 7, 8,
            5, 9, 7, 10, 6, 2, 3, 9, 10,
            11, 12, 13, 14, 8, 1, 11, 12, 13,
            15, 17, 9, 14, 10, 4, 11, 15, 17,
            16, 18, 19, 20, 1, 16, 18, 19, 20,
            21, 22, 23, 14, 15, 5, 0, 21, 22,
        ),
    ),
}  # fmt: skip


LEARNERS = ("v10", "v11", "grouped")
"""Token learners with learned attention maps; see `vtok.nn.token_pipeline`."""
BASELINES = ("average", "average_lifted")
"""Average pooling over fixed cells: of the latents, and of the features that learners pool."""
MOST_TOKENS = 64
_MOST = {
    "latent_dim": 4096, "dim": 4096, "map_dim": 1024, "max_tokens": MOST_TOKENS, "fold": 8,
    "lift_blocks": 64, "fuser_blocks": 64, "heads": 64, "token_bits": 2040,
}  # fmt: skip


@dataclass(frozen=True)
class TokenConfig:
    """Configuration of a `TokenPipeline`.

    Attributes:
        latent_dim: D, channels of the tokenizer's latents.
        learner: Source of the attention maps, one of `LEARNERS` or `BASELINES`.
        dim: Channels of a token, and width of the layers.
        map_dim: Channels that the maps are computed from.
        max_tokens: Largest number of tokens per latent step.
        fold: Side of the square of latents that is merged into one position.
        lift_blocks: Residual blocks before pooling.
        fuser_blocks: Pairs of cross-attention and residual block that turn tokens into latents.
        heads: Heads of the cross-attention; divides `dim`.
        token_bits: Bits of a quantized token, a multiple of 8.

    Raises:
        OptionError: A field is invalid.
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
        kinds = (*LEARNERS, *BASELINES)
        _require(self.learner in kinds, "learner", self.learner, f"one of {', '.join(kinds)}")
        for name, most in _MOST.items():
            value = getattr(self, name)
            _require(_is_integer(value, most), name, value, f"a whole number from 1 to {most}")
        _require(self.dim % self.heads == 0, "heads", self.heads, "a divisor of dim")
        _require(self.token_bits % 8 == 0, "token_bits", self.token_bits, "a multiple of 8")

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenConfig:
        """Convert from plain JSON types.

        Raises:
            UsageError: A key is unknown or missing, or a value is invalid.
        """
        _check_keys(cls, data, set())
        return cls(**data)
