"""One item of a data set: its id, its source, and the columns that travel with it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

MAX_NAME_BYTES = 200  # of a file name; file systems take 255, and suffixes are appended
MAX_SECONDS = 10**9  # 31 years, the most that a code file's header holds


class Member(NamedTuple):
    """A file inside a tar shard: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Item:
    """One video, or part of a video, to encode.

    Attributes:
        id: unique in the data set; valid text even where the file name is not.
        source: path or URL.
        member: position inside a tar shard; None for a plain file.
        start: start in seconds, as an exact decimal or fraction; None for the beginning.
        end: end in seconds; None for the end of the source.
        columns: other columns of the table that lists the item, as JSON types.
    """

    id: str
    source: str
    member: Member | None = None
    start: str | None = None
    end: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The source as shown to a person."""
        return self.source if self.member is None else f"{self.source}!{self.member.name}"

    @property
    def start_seconds(self) -> float:
        """Start in seconds."""
        return float(Fraction(self.start or 0))

    @property
    def duration_seconds(self) -> float | None:
        """Duration in seconds; None up to the end of the source."""
        return None if self.end is None else float(Fraction(self.end) - Fraction(self.start or 0))

    @property
    def place(self) -> list[Any]:
        """Source, member and times; two entries with the same place are the same item."""
        return [self.source, self.member and self.member.name, self.start, self.end]

    def to_json(self) -> str:
        """Return ASCII JSON, which can hold any file name."""
        return json.dumps([self.id, self.source, self.member, self.start, self.end, self.columns])

    @classmethod
    def from_json(cls, text: str) -> Item:
        """Parse the output of `to_json`."""
        name, source, member, start, end, columns = json.loads(text)
        return cls(name, source, member and Member(*member), start, end, columns)


class Fault(NamedTuple):
    """An unusable row or duplicate id: its id, location, error message and the list it is in."""

    id: str
    source: str
    message: str
    origin: str = ""


def valid_text(text: str) -> str:
    """Replace bytes that are not UTF-8, and NULs, by %XX."""
    return re.sub("[\ud800-\udfff\0]", lambda match: f"%{ord(match[0]) & 0xFF:02X}", text)


def parse_seconds(value: Any) -> str | None:
    """Parse a time in seconds or H:M:S to an exact number; None if the value is empty.

    Raises:
        ValueError: not a time, or longer than any video.
    """
    text = "" if value is None else str(value).strip()
    if text in ("", "nan"):  # an empty cell in a column of numbers
        return None
    if not re.fullmatch(r"(\d{1,9}:){0,2}\d{1,10}(\.\d*)?(e[-+]?\d)?", text, re.ASCII):
        raise ValueError(f"time {text[:40]!r}: expected seconds such as 2.5, or 1:02:03.5")
    seconds = Fraction(0)
    for part in text.split(":"):
        seconds = 60 * seconds + Fraction(part)
    if seconds > MAX_SECONDS:
        raise ValueError(f"time {text[:40]!r}: longer than any video")
    return str(seconds)


def make_item(
    id_: str | None,
    source: str,
    *,
    name: str,
    start: Any = None,
    end: Any = None,
    columns: dict[str, Any] | None = None,
) -> Item:
    """Make an item from the values in a list or table.

    Args:
        id_: its id; if None, made from `name` and the times.
        source: path or URL.
        name: basis of the id if there is none, such as a path without its suffix.
        start: see `parse_seconds`.
        end: likewise.
        columns: other columns.

    Raises:
        ValueError: invalid times.
    """
    begin, stop = parse_seconds(start), parse_seconds(end)
    if stop is not None and Fraction(stop) <= Fraction(begin or 0):
        raise ValueError(f"from {start} s to {end} s: the clip ends before it begins")
    if id_ is None and (begin is not None or stop is not None):
        name = f"{name}@{_decimal(begin or '0')}-{'' if stop is None else _decimal(stop)}"
    return Item(valid_text(name if id_ is None else id_), source, None, begin, stop, columns or {})


def _decimal(seconds: str) -> str:
    return f"{float(Fraction(seconds)):.6f}".rstrip("0").rstrip(".")


def file_name(id_: str, *, dots: bool = True) -> str:
    """Map an id to a relative path, unique per id and always inside the folder it is joined to.

    `/` separates folders. Control characters, `%`, `\\` and leading dots become %XX; a component
    that is too long is cut and a digest appended.

    Args:
        id_: any text.
        dots: allow dots inside names; webdataset starts the suffix at the first dot.
    """
    return "/".join(_component(part, dots) for part in id_.split("/"))


def _component(part: str, dots: bool) -> str:
    unsafe = r"[\x00-\x1f\x7f%\\]|^\." if dots else r"[\x00-\x1f\x7f%\\.]"
    safe = re.sub(unsafe, lambda match: f"%{ord(match[0]):02X}", part) or "%"
    data = safe.encode()
    if len(data) <= MAX_NAME_BYTES:
        return safe
    digest = hashlib.sha256(part.encode()).hexdigest()[:16]
    return data[: MAX_NAME_BYTES - 17].decode(errors="ignore") + "~" + digest
