"""The configuration of a token pipeline: what its checkpoint holds beside the weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from vtok.errors import UsageError

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
        _require(self.learner in kinds, "learner", self.learner, f"one of {', '.join(kinds)}")
        for name, most in _MOST.items():
            value = getattr(self, name)
            valid = type(value) is int and 1 <= value <= most
            _require(valid, name, value, f"a whole number from 1 to {most}")
        _require(self.dim % self.heads == 0, "heads", self.heads, "a divisor of dim")
        _require(self.token_bits % 8 == 0, "token_bits", self.token_bits, "a multiple of 8")

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


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise UsageError(f"{name}={str(value)[:40]}: expected {expected}")
