"""Canonical JSON: equal values are equal bytes, so files can be compared and signed.

ASCII, keys sorted, no spaces, integers of at most 2**53 - 1 and no floats: a rational is
`[numerator, denominator]` in lowest terms.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any, NoReturn

MAX_INTEGER = 2**53 - 1  # the largest that every JSON reader keeps exactly


def dumps(value: object) -> bytes:
    """Canonical JSON of nested dicts, lists, strings, integers, booleans, None and Fractions."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return text.encode("ascii")


def loads(data: bytes) -> Any:
    """Read canonical JSON, and only that: no key twice, no float, no space, no long integer.

    Raises:
        ValueError: for all other bytes.
    """
    try:
        value = json.loads(
            data.decode("ascii"),
            parse_int=_integer,
            parse_float=_refuse,
            parse_constant=_refuse,
        )
        if dumps(value) != data:
            raise ValueError("not in canonical form")
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    return value


def _plain(value: object) -> list[int]:
    if isinstance(value, Fraction):
        return [value.numerator, value.denominator]
    raise TypeError(f"no JSON for {type(value)}")


def _integer(digits: str) -> int:
    # The length first: converting a million digits takes minutes.
    if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
        _refuse(digits)
    return int(digits)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no integer of 53 bits")
