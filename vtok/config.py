"""The tokenizer's configuration: a frozen dataclass, validated once, and the presets."""

from __future__ import annotations

import dataclasses
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
    patch_size: int = 1
    decoder_layers: tuple[LayerSpec, ...] | None = None
    decoder_init_dim: int | None = None

    def __post_init__(self) -> None:
        """Validate every field.

        Raises:
            UsageError: naming the field, the value found and what is expected.
        """
        size = self.codebook_size
        _require(
            1 < size <= 2**32 and size & (size - 1) == 0,
            "codebook_size",
            size,
            "a power of two from 2 to 2^32",
        )
        for name in ("num_codebooks", "channels", "init_dim", "num_stages", "patch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.num_stages <= 16, "num_stages", self.num_stages, "at most 16")
        _require(
            self.pad_mode in PAD_MODES, "pad_mode", self.pad_mode, f"one of {', '.join(PAD_MODES)}"
        )
        for name in ("input_conv_kernel_size", "output_conv_kernel_size"):
            kernel = getattr(self, name)
            _require(
                len(kernel) == 3 and all(k % 2 == 1 for k in kernel),
                name,
                kernel,
                "three odd numbers",
            )
        _require(
            self.residual_conv_kernel_size % 2 == 1,
            "residual_conv_kernel_size",
            self.residual_conv_kernel_size,
            "an odd number",
        )
        for spec in (*self.layers, *(self.decoder_layers or ())):
            self._check_layer(spec)

    def _check_layer(self, spec: LayerSpec) -> None:
        kind = spec if isinstance(spec, str) else spec[0]
        _require(kind in LAYER_KINDS, "layers", kind, f"one of {', '.join(LAYER_KINDS)}")
        if kind in COND_KINDS:
            _require(
                self.dim_cond is not None,
                "dim_cond",
                self.dim_cond,
                f"a number, for the layer {kind}",
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TokenizerConfig:
        """From plain JSON types.

        Raises:
            UsageError: for unknown or missing keys, each named.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"unknown config keys: {', '.join(unknown)}")
        if missing := sorted(known - set(data)):
            raise UsageError(f"missing config keys: {', '.join(missing)}")
        return cls(**{key: _as_tuples(value) for key, value in data.items()})


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise UsageError(f"{name}={value!r}: expected {expected}")


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


PRESETS: dict[str, TokenizerConfig] = {
    "vtok-base": TokenizerConfig(
        codebook_size=512,
        num_stages=8,
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
