"""What an evaluation found: one clip coded at several rates by one or more coders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from vtok.evaluation.quality import METRICS, Quality

Counts = npt.NDArray[np.int64]


@dataclass
class CodeUsage:
    """How often each entry of one stage's codebooks was seen, parallel codebooks taken together.

    Attributes:
        codebook_size: entries of a codebook.
        entries: those that were seen, rising.
        counts: how often each.
    """

    codebook_size: int
    entries: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, codes: npt.NDArray[np.integer]) -> None:
        """Count codes, of any shape."""
        self._merge(*np.unique(codes, return_counts=True))

    def __add__(self, other: CodeUsage) -> CodeUsage:
        total = CodeUsage(self.codebook_size, self.entries, self.counts)
        total._merge(other.entries, other.counts)
        return total

    @property
    def codes(self) -> int:
        """How many were counted."""
        return int(self.counts.sum())

    @property
    def used(self) -> float:
        """Share of the codebook's entries that were seen, 0..1."""
        return len(self.entries) / self.codebook_size

    @property
    def perplexity(self) -> float:
        """2 to the entropy of the entries as they were seen: as many, used alike, say as much.

        At most the number of entries, and of codes: a short clip cannot show more.
        """
        if not self.codes:
            return 0.0
        share = self.counts / self.codes
        return float(2 ** -(share * np.log2(share)).sum())

    def _merge(self, entries: npt.NDArray[np.integer], counts: npt.NDArray[np.integer]) -> None:
        # only what was seen is kept: a codebook may have 2^32 entries
        self.entries, places = np.unique(
            np.concatenate((self.entries, entries)), return_inverse=True
        )
        self.counts = np.bincount(
            places, np.concatenate((self.counts, counts)), len(self.entries)
        ).astype(np.int64)


VTOK = "vtok"
"""The coder that is no classic codec."""


@dataclass(frozen=True)
class Point:
    """One clip coded once.

    Attributes:
        coder: `vtok`, or a classic codec such as `x264`.
        setting: how, such as `18 bits` or `crf 31.5`.
        bits: bits a position of the codes, or of those whose bytes a codec was to match.
        bytes: of the real file (vtok: header and index included) or stream.
        bpp: bits of these bytes per pixel.
        raw_bpp: bits of the codes per pixel, uncoded and without header; None for a codec.
        kbps: thousands of bits of these bytes per second of video.
        quality: each metric that was measured.
        decode_fps: frames a second that the decoder alone gave; None where it was not measured.
    """

    coder: str
    setting: str
    bits: int
    bytes: float
    bpp: float
    raw_bpp: float | None
    kbps: float
    quality: Quality
    decode_fps: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        facts = {
            "coder": self.coder,
            "setting": self.setting,
            "bits": self.bits,
            "bytes": round(self.bytes),
            "bpp": round(self.bpp, 6),
            "raw_bpp": None if self.raw_bpp is None else round(self.raw_bpp, 6),
            "kbps": round(self.kbps, 2),
        }
        measured = {name: _rounded(value, 5) for name, value in self.quality.items()}
        return {**facts, **measured, "decode_fps": _rounded(self.decode_fps, 2)}


@dataclass(frozen=True)
class ClipResult:
    """Everything about one clip.

    Attributes:
        name: of its file.
        width, height, frames, fps: of the part that was measured.
        points: by coder, then by rising bits.
        usage: of each of the codes' K = stages * codebooks, stages outermost.
        encode_fps: frames a second that the encoder of the model alone gave, all stages at once.
    """

    name: str
    width: int
    height: int
    frames: int
    fps: Fraction
    points: tuple[Point, ...]
    usage: tuple[CodeUsage, ...] = ()
    encode_fps: float | None = None

    @property
    def coders(self) -> list[str]:
        """In the order of the points."""
        return list(dict.fromkeys(point.coder for point in self.points))

    def of(self, coder: str) -> list[Point]:
        """The points of one coder."""
        return [point for point in self.points if point.coder == coder]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "input": self.name,
            "width": self.width,
            "height": self.height,
            "frames": self.frames,
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "encode_fps": _rounded(self.encode_fps, 2),
            "rates": [point.to_json() for point in self.points],
            "codebooks": usage_to_json(self.usage),
        }


def usage_to_json(usage: Sequence[CodeUsage]) -> list[dict[str, Any]]:
    """Of each codebook of each stage, in order, as plain JSON types."""
    return [
        {
            "size": one.codebook_size,
            "codes": one.codes,
            "used": round(one.used, 6),
            "perplexity": round(one.perplexity, 3),
        }
        for one in usage
    ]


def mean_points(clips: Sequence[ClipResult]) -> tuple[Point, ...]:
    """The mean over clips, each counting alike, of every coder and rate that all of them have.

    A metric that one clip lacks (too small, too short) has no mean.
    """
    by_key = [{(p.coder, p.bits): p for p in clip.points} for clip in clips]
    shared = [key for key in by_key[0] if all(key in points for points in by_key)]
    return tuple(_mean([points[key] for points in by_key]) for key in shared)


def total_usage(clips: Sequence[ClipResult]) -> tuple[CodeUsage, ...]:
    """Of all clips together: what one of them leaves unused, another may use."""
    first, *others = (clip.usage for clip in clips)
    for usage in others:
        first = tuple(a + b for a, b in zip(first, usage, strict=True))
    return first


def _mean(points: Sequence[Point]) -> Point:
    names = [name for name in METRICS if name in points[0].quality]
    alike = len({point.setting for point in points}) == 1
    return Point(
        coder=points[0].coder,
        setting=points[0].setting if alike else "",
        bits=points[0].bits,
        bytes=float(np.mean([point.bytes for point in points])),
        bpp=float(np.mean([point.bpp for point in points])),
        raw_bpp=_mean_of([point.raw_bpp for point in points]),
        kbps=float(np.mean([point.kbps for point in points])),
        quality={name: _mean_of([point.quality[name] for point in points]) for name in names},
        decode_fps=_mean_of([point.decode_fps for point in points]),
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
