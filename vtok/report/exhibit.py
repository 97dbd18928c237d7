"""exhibit_file: all that a page shows of one clip: figures, pictures, codes, bits over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vtok.codefile import CodeFileReader, Header
from vtok.evaluation.metrics import Frames, psnr
from vtok.evaluation.results import VTOK, ClipResult, Point
from vtok.media.webp import frame_to_webp, webp_to_frame
from vtok.model import Model
from vtok.report.clips import each_frame, open_clip
from vtok.report.compare import Comparison, Delta, Notify, compare_file, deltas
from vtok.report.evaluate import EvalOptions
from vtok.report.sidebyside import coded_frames

ORIGINAL = "original"
PICTURES = "pictures"
"""What `notify` is told while pictures are made."""


@dataclass
class Strip:
    """Frames in a row: the original's, or what one coder makes of them at one rate.

    Attributes:
        coder: `original`, or as `Point` has it.
        bits: as `Point` has it; 0 for the original.
        pictures: WebP files of the first frames.
        psnr: of every measured frame, pictured or not, in dB; empty for the original.
        fidelity: PSNR of each picture to the frame that it shows, in dB.
    """

    coder: str
    bits: int
    pictures: list[bytes] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    fidelity: list[float] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Names it among the strips of a clip."""
        return self.coder if self.coder == ORIGINAL else f"{self.coder}-{self.bits}"


@dataclass(frozen=True)
class ChunkBytes:
    """What one chunk takes.

    Attributes:
        frames: that it shows.
        stages: bytes of each stage.
    """

    frames: int
    stages: tuple[int, ...]


@dataclass(frozen=True)
class Exhibit:
    """One clip as a page shows it.

    Attributes:
        result: the figures.
        deltas: against classic codecs, where there are any.
        strips: the original first, then as `result.points`.
        chunks: of the code file of the highest rate, of which lower ones hold the first stages.
        codes: integers [K, t, h, w] of the pictured frames, stages outermost.
        header: of that code file.
    """

    result: ClipResult
    deltas: tuple[Delta, ...]
    strips: tuple[Strip, ...]
    chunks: tuple[ChunkBytes, ...]
    codes: npt.NDArray[np.int64]
    header: Header

    @property
    def pictured(self) -> int:
        """How many frames have pictures."""
        return len(self.strips[0].pictures)

    @property
    def num_bytes(self) -> int:
        """Of pictures and codes."""
        pictures = sum(len(picture) for strip in self.strips for picture in strip.pictures)
        return pictures + self.codes.size * code_width(self.header.format.codebook_size)


def exhibit_file(
    source: Path,
    *,
    model: Model,
    options: EvalOptions,
    codecs: Sequence[str] = (),
    most_bytes: int,
    notify: Notify | None = None,
) -> Exhibit:
    """Measure a clip, and keep pictures of its first frames.

    Args:
        source: the video, or a picture.
        model: codes it.
        options: part, rates and metrics.
        codecs: to compare with, as `compare_file` takes them.
        most_bytes: of pictures and codes; frames beyond that have figures but no picture. The
            first frame always has one.
        notify: called as it goes.

    Raises:
        VtokError: as `compare_file`.
    """
    with compare_file(
        source, model=model, codecs=codecs, options=options, notify=notify
    ) as comparison:
        path = comparison.folder / f"{_most_bits(comparison.result)}.vtok"
        header, chunks, codes = _read_codes(path)
        strips = _make_strips(
            comparison, source, options, model, _Budget(codes, header, most_bytes), notify
        )
        pictured, temporal = len(strips[0].pictures), header.format.temporal_compression
        return Exhibit(
            result=comparison.result,
            deltas=tuple(deltas(comparison.result.points)),
            strips=tuple(strips),
            chunks=tuple(chunks),
            codes=codes[:, : 1 + -(-(pictured - 1) // temporal)],
            header=header,
        )


class _Budget:
    """Bytes that pictures and codes may take, frame by frame."""

    def __init__(self, codes: npt.NDArray[np.int64], header: Header, most: int) -> None:
        self._each_step = codes[:, 0].size * code_width(header.format.codebook_size)
        self._temporal = header.format.temporal_compression
        self._left, self._frames = most, 0

    def takes(self, pictures: Sequence[bytes]) -> bool:
        """Whether the pictures of the next frame still fit; the first frame's always do."""
        opens_step = not self._frames or (self._frames - 1) % self._temporal == 0
        self._left -= sum(map(len, pictures)) + (self._each_step if opens_step else 0)
        self._frames += 1
        return self._left >= 0 or self._frames == 1


def code_width(codebook_size: int) -> int:
    """Bytes, a power of two, that hold a code."""
    return next(width for width in (1, 2, 4, 8) if codebook_size <= 1 << 8 * width)


def _most_bits(result: ClipResult) -> int:
    return max(point.bits for point in result.of(VTOK))


def _read_codes(path: Path) -> tuple[Header, list[ChunkBytes], npt.NDArray[np.int64]]:
    with path.open("rb") as file:
        reader = CodeFileReader(file)
        chunks = [
            ChunkBytes(chunk.num_frames, tuple(len(part.data) for part in chunk.parts))
            for chunk in reader.stored()
        ]
        codes = np.concatenate([chunk.codes for chunk in reader], axis=2)
    return reader.header, chunks, codes.reshape(-1, *codes.shape[2:])


def _make_strips(
    comparison: Comparison,
    source: Path,
    options: EvalOptions,
    model: Model,
    budget: _Budget,
    notify: Notify | None,
) -> list[Strip]:
    points = comparison.result.points
    strips = [Strip(ORIGINAL, 0), *(Strip(point.coder, point.bits) for point in points)]
    full = False
    for number, frames in enumerate(_in_step(comparison, source, options, model, points)):
        original, *others = (frame[None] for frame in frames)
        for strip, frame in zip(strips[1:], others, strict=True):
            strip.psnr.append(psnr(frame, original))
        if not full:
            pictures = [frame_to_webp(frame) for frame in frames]
            full = not budget.takes(pictures)
        if not full:
            for strip, frame, picture in zip(strips, frames, pictures, strict=True):
                strip.pictures.append(picture)
                strip.fidelity.append(psnr(webp_to_frame(picture)[None], frame[None]))
        if notify is not None:
            notify(PICTURES, number + 1, comparison.result.frames)
    return strips


def _in_step(
    comparison: Comparison,
    source: Path,
    options: EvalOptions,
    model: Model,
    points: Sequence[Point],
) -> Iterator[tuple[Frames, ...]]:
    """The same frame of the original and of every coding, uint8 [H, W, 3] each."""
    with open_clip(source, options.part) as clip:
        coded = (coded_frames(comparison, point, model) for point in points)
        yield from zip(each_frame(clip), *coded, strict=True)
