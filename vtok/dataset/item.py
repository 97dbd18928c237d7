"""One clip of a data set: its id, where it is, and the columns that travel with it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

MAX_NAME_BYTES = 200  # of a file name; file systems take 255, and suffixes come on top
MAX_SECONDS = 10**9  # 31 years, the most that a code file's header holds


class Member(NamedTuple):
    """A file inside a tar shard: its bytes are `size` from `offset` on."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """One clip to encode.

    Attributes:
        id: unique in the data set; valid text, whatever bytes its file is named with.
        source: a path or a URL.
        member: where inside a tar shard; None for a file of its own.
        start: seconds into the source at which the clip begins, exact, such as "2.5"; None for
            the beginning.
        end: seconds at which it ends; None for the end.
        columns: whatever else a list says of it, as JSON types.
    """

    id: str
    source: str
    member: Member | None = None
    start: str | None = None
    end: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The source as a person writes it."""
        return self.source if self.member is None else f"{self.source}!{self.member.name}"

    @property
    def start_seconds(self) -> float:
        """Where the clip begins."""
        return float(Fraction(self.start or 0))

    @property
    def duration_seconds(self) -> float | None:
        """How long the clip is; None up to the end of the source."""
        return None if self.end is None else float(Fraction(self.end) - Fraction(self.start or 0))

    @property
    def place(self) -> list[Any]:
        """Where the clip is: two entries of one place are one clip."""
        return [self.source, self.member and self.member.name, self.start, self.end]

    def to_json(self) -> str:
        """As ASCII JSON, which holds any file name."""
        return json.dumps([self.id, self.source, self.member, self.start, self.end, self.columns])

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """Back from `to_json`."""
        name, source, member, start, end, columns = json.loads(text)
        return cls(name, source, member and Member(*member), start, end, columns)


class Fault(NamedTuple):
    """Something in a list that is no clip: which, where, what is wrong with it, and whose list."""

    id: str
    source: str
    message: str
    origin: str = ""


def valid_text(text: str) -> str:
    """Text that every program can store: bytes that are no UTF-8, and NULs, become %XX."""
    return re.sub("[\ud800-\udfff\0]", lambda match: f"%{ord(match[0]) & 0xFF:02X}", text)


def parse_seconds(value: Any) -> str | None:
    """A time in seconds, or as H:M:S, as an exact decimal; None for nothing.

    Raises:
        ValueError: for anything else, and for times that no video has.
    """
    text = "" if value is None else str(value).strip()
    if text in ("", "nan"):  # what an empty cell of a table of numbers becomes
        return None
    if not re.fullmatch(r"(\d{1,9}:){0,2}\d{1,10}(\.\d*)?(e[-+]?\d)?", text, re.ASCII):
        raise ValueError(f"time {text[:40]!r}: expected seconds such as 2.5, or 1:02:03.5")
    seconds = Fraction(0)
    for part in text.split(":"):
        seconds = 60 * seconds + Fraction(part)
    if seconds > MAX_SECONDS:
        raise ValueError(f"time {text[:40]!r}: no video is so long")
    return str(seconds)


def make_entry(
    id_: str | None,
    source: str,
    *,
    name: str,
    start: Any = None,
    end: Any = None,
    columns: dict[str, Any] | None = None,
) -> Entry:
    """An entry from what a list says.

    Args:
        id_: its id; if None, made from `name` and the times.
        source: path or URL.
        name: what to call it where it has no id, such as a path without suffix.
        start: see `parse_seconds`.
        end: likewise.
        columns: what else is said of it.

    Raises:
        ValueError: for times that make no clip.
    """
    begin, stop = parse_seconds(start), parse_seconds(end)
    if stop is not None and Fraction(stop) <= Fraction(begin or 0):
        raise ValueError(f"from {start} s to {end} s: the clip ends before it begins")
    if id_ is None and (begin is not None or stop is not None):
        name = f"{name}@{_decimal(begin or '0')}-{'' if stop is None else _decimal(stop)}"
    return Entry(valid_text(name if id_ is None else id_), source, None, begin, stop, columns or {})


def _decimal(seconds: str) -> str:
    return f"{float(Fraction(seconds)):.6f}".rstrip("0").rstrip(".")


def file_name(id_: str, *, dots: bool = True) -> str:
    """A relative path that an id stands for, below any folder, different for different ids.

    `/` makes folders. Characters that a file system or a shell may stumble over, and dots that
    begin a name, become %XX; what is too long is cut and told apart by a digest.

    Args:
        id_: any text.
        dots: whether names may have dots in them: webdataset takes a suffix to begin at the first.
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
