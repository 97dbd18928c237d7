"""Checks of header fields: each names the field in its error."""

import re
from fractions import Fraction
from math import gcd
from typing import NoReturn

from vtok.codefile.canonical import MAX_INTEGER
from vtok.errors import CodeFileError

_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: cannot be printed or encoded
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def refuse(key: str, value: object, expected: str) -> NoReturn:
    """Raise the `CodeFileError` of a header field that is wrong."""
    raise CodeFileError(f"header: {key} is {repr(value)[:80]}, it must be {expected}")


def check_integer(key: str, value: object, low: int, high: int) -> None:
    """Refuse all but an integer low..high."""
    if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance
        refuse(key, value, f"an integer {low}..{high}")


def check_rational(key: str, value: object) -> None:
    """Refuse all but a `Fraction` of at least 0 that JSON can hold."""
    if not isinstance(value, Fraction):
        refuse(key, value, "a Fraction")
    check_integer(f"{key} numerator", value.numerator, 0, MAX_INTEGER)
    check_integer(f"{key} denominator", value.denominator, 1, MAX_INTEGER)


def check_rate(key: str, value: object) -> None:
    """Refuse all but a `Fraction` above 0 that JSON can hold."""
    check_rational(key, value)
    if not value:
        refuse(key, value, "above 0")


def read_rational(key: str, value: object) -> Fraction:
    """The Fraction of a JSON `[numerator, denominator]` in lowest terms; refuse all else."""
    if not isinstance(value, list) or len(value) != 2:
        refuse(key, value, "[numerator, denominator]")
    top, bottom = value
    check_integer(key, top, 0, MAX_INTEGER)
    check_integer(key, bottom, 1, MAX_INTEGER)
    if gcd(top, bottom) != 1:
        refuse(key, value, "in lowest terms")
    return Fraction(top, bottom)


def check_name(key: str, value: object) -> None:
    """Refuse all but text of one line and 1 to 255 characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 255 or _CONTROL.search(value):
        refuse(key, value, "1 to 255 characters without control characters")


def check_text(key: str, value: object) -> None:
    """Refuse all but text that can be encoded."""
    if not isinstance(value, str) or _SURROGATE.search(value):
        refuse(key, value, "text")


def source_name(path: str) -> str:
    """The file name of a path as a header may hold it: no folder, no control characters."""
    name = re.split(r"[/\\]", path)[-1]
    name = _CONTROL.sub("_", name)[-255:]
    return name if name not in ("", ".", "..") else "_"
