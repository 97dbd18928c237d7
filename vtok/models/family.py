"""Shared parts of the families: their configurations, and the check of tensors that were read."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtok.errors import OptionError, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


class MisfitError(UsageError):
    """Tensors that are not those of the family."""


@dataclass(frozen=True)
class FamilyConfig:
    """Base of the configurations of families, whose lists are tuples.

    A subclass defines `check`, which is called when one is made.
    """

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):  # JSON has lists in place of tuples
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        self.check()

    def check(self) -> None:
        """Check all fields.

        Raises:
            OptionError: A field is invalid.
        """

    def require(self, name: str, valid: bool, expected: str) -> None:
        """Raise an `OptionError` about a field unless it is valid."""
        if not valid:
            value = getattr(self, name)
            shown = value[:80] if isinstance(value, str) else reprlib.repr(value)
            raise OptionError(name, shown, expected)

    def require_whole(self, most: Mapping[str, int]) -> None:
        """Require whole numbers from 1 to a number for each name."""
        for name, high in most.items():
            valid = is_whole(getattr(self, name), 1, high)
            self.require(name, valid, f"a whole number from 1 to {high}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        items = dataclasses.asdict(self).items()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in items}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Create a configuration from `to_dict`, with defaults for missing fields.

        Raises:
            UsageError: A field is unknown, missing without a default, or invalid.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        needed = {name for name, one in known.items() if one.default is dataclasses.MISSING}
        if wrong := sorted((set(data) - set(known)) | (needed - set(data))):
            names = ", ".join(wrong[:5])[:200]
            raise UsageError(f"config keys {names}: expected {', '.join(known)}")
        return cls(**data)


def is_whole(value: object, least: int, most: int) -> bool:
    """Return whether a value is an integer in a range; booleans are none."""
    return type(value) is int and least <= value <= most


def are_whole(values: object, least: int, most: int) -> bool:
    """Return whether a value is a tuple of integers in a range."""
    return isinstance(values, tuple) and all(is_whole(value, least, most) for value in values)


def check_tensors(
    found: Mapping[str, Tensor],
    blank: Mapping[str, Tensor],
    names: Mapping[str, str] | None = None,
) -> None:
    """Compare names, shapes and types of tensors with those of a tokenizer.

    Args:
        found: Tensors that were read.
        blank: Tensors of the tokenizer, maybe without memory.
        names: Names for messages, by the names in `found`; default: these.

    Raises:
        MisfitError: They differ; the message names the tensors.
    """
    names = names or {}
    for word, keys in (("missing", blank.keys() - found.keys()), ("unknown", found.keys() - blank)):
        if keys:
            shown = ", ".join(names.get(key, key)[:80] for key in sorted(keys)[:3])
            raise MisfitError(f"{word} tensors: {shown}")
    for key, tensor in found.items():
        if tensor.shape != blank[key].shape or not tensor.is_floating_point():
            has = f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
            expected = f"expected floats {list(blank[key].shape)}"
            raise MisfitError(f"tensor {names.get(key, key)} has shape {has}, {expected}")
