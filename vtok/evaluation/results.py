"""Results of an evaluation: `ClipResult`, its rate points and code usage, and means over clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from vtok.evaluation.metrics import Quality

Counts = npt.NDArray[np.int64]

VTOK = "vtok"
"""Name of the tokenizer among the coders; all others are classic codecs."""


@dataclass
class CodeUsage:
    """Counts of the codebook entries that occurred in one codebook of one stage.

    Only entries that occurred are stored, since a codebook may have 2^32 of them.

    Attributes:
        codebook_size: number of entries of the codebook.
        entries: entries that occurred, in ascending order.
        counts: occurrences of each of `entries`.
    """

    codebook_size: int
    entries: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, codes: npt.NDArray[np.integer]) -> None:
        """Count codes, an array of any shape."""
        total = self + CodeUsage(self.codebook_size, *np.unique(codes, return_counts=True))
        self.entries, self.counts = total.entries, total.counts

    def __add__(self, other: CodeUsage) -> CodeUsage:
        both = np.concatenate((self.entries, other.entries))
        entries, places = np.unique(both, return_inverse=True)
        counts = np.bincount(places, np.concatenate((self.counts, other.counts)), len(entries))
        return CodeUsage(self.codebook_size, entries, counts.astype(np.int64))

    @property
    def codes(self) -> int:
        """Number of codes counted."""
        return int(self.counts.sum())

    @property
    def used(self) -> float:
        """Fraction of the codebook's entries that occurred, 0..1."""
        return len(self.entries) / self.codebook_size

    @property
    def perplexity(self) -> float:
        """2 to the power of the entropy of the counts, in entries; at most the number of codes."""
        if not self.codes:
            return 0.0
        share = self.counts / self.codes
        return float(2 ** -(share * np.log2(share)).sum())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "size": self.codebook_size,
            "codes": self.codes,
            "used": round(self.used, 6),
            "perplexity": round(self.perplexity, 3),
        }


@dataclass(frozen=True)
class Point:
    """Size and quality of one clip (or a mean over clips) from one coder at one rate.

    Attributes:
        coder: `vtok` or a classic codec such as `x264`.
        setting: the coder's setting, such as `18 bits` or `crf 31.5`.
        bits: bits per latent position; for a codec, of the tokenizer's point that it matches.
        bytes: bytes of the code file (header and index included), or of the codec's stream.
        bpp: bits of `bytes` per pixel.
        raw_bpp: bits of the codes per pixel, without header and entropy coding; None for a codec.
        kbps: kilobits of `bytes` per second of video.
        quality: value of each measured metric.
        decode_fps: frames per second of the decoder alone; None if not measured.
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
        """Plain JSON types."""
        return {
            "coder": self.coder,
            "setting": self.setting,
            "bits": self.bits,
            "bytes": round(self.bytes),
            "bpp": round(self.bpp, 6),
            "raw_bpp": _rounded(self.raw_bpp, 6),
            "kbps": round(self.kbps, 2),
            **{name: _rounded(value, 5) for name, value in self.quality.items()},
            "decode_fps": _rounded(self.decode_fps, 2),
        }


@dataclass(frozen=True)
class ClipResult:
    """All measurements of one clip.

    Attributes:
        name: path of the video.
        width, height, frames, fps: of the part that was measured.
        points: by coder, then in ascending order of bits.
        usage: one entry for each stage and codebook, stages outermost.
        encode_fps: frames per second of the model's encoder alone, with all stages.
    """

    name: str
    width: int
    height: int
    frames: int
    fps: Fraction
    points: tuple[Point, ...]
    usage: tuple[CodeUsage, ...] = ()
    encode_fps: float | None = None

    def of(self, coder: str) -> list[Point]:
        """Points of one coder."""
        return [point for point in self.points if point.coder == coder]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "input": self.name,
            "width": self.width,
            "height": self.height,
            "frames": self.frames,
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "encode_fps": _rounded(self.encode_fps, 2),
            "rates": [point.to_json() for point in self.points],
            "codebooks": [usage.to_json() for usage in self.usage],
        }


def mean_points(clips: Sequence[ClipResult]) -> tuple[Point, ...]:
    """Mean over clips of each coder and rate that all clips have, each clip weighted equally.

    A metric that is missing for one clip (too small or too short) has no mean.
    """
    by_key = [{(p.coder, p.bits): p for p in clip.points} for clip in clips]
    shared = [key for key in by_key[0] if all(key in points for points in by_key)]
    return tuple(_mean([points[key] for points in by_key]) for key in shared)


def total_usage(clips: Sequence[ClipResult]) -> tuple[CodeUsage, ...]:
    """Code usage of all clips together."""
    columns = zip(*(clip.usage for clip in clips), strict=True)
    return tuple(sum(rest, first) for first, *rest in columns)


def _mean(points: Sequence[Point]) -> Point:
    first = points[0]
    return replace(
        first,
        setting=first.setting if len({point.setting for point in points}) == 1 else "",
        bytes=float(np.mean([point.bytes for point in points])),
        bpp=float(np.mean([point.bpp for point in points])),
        raw_bpp=_mean_of([point.raw_bpp for point in points]),
        kbps=float(np.mean([point.kbps for point in points])),
        quality={name: _mean_of([p.quality[name] for p in points]) for name in first.quality},
        decode_fps=_mean_of([point.decode_fps for point in points]),
    )


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
