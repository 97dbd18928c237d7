"""`exhibit_file`: content of a report for one clip: figures, pictures, codes, chunk sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vtok.codefile.header import Header
from vtok.codefile.reader import CodeFileReader
from vtok.evaluation.clips import each_frame, open_clip
from vtok.evaluation.compare import Comparison, Delta, Notify, coded_frames, compare_file, deltas
from vtok.evaluation.evaluate import EvalOptions
from vtok.evaluation.metrics import Frames, psnr
from vtok.evaluation.results import VTOK, ClipResult
from vtok.models.load import LoadedTokenizer
from vtok.video.images import frame_to_webp, webp_to_frame

ORIGINAL = "original"
PICTURES = "pictures"
"""Phase name that `notify` receives while pictures are made."""


@dataclass
class Strip:
    """Frames of one video: the original, or a reconstruction by one coder at one rate.

    Attributes:
        coder: `original`, or `Point.coder`.
        bits: `Point.bits`; 0 for the original.
        pictures: WebP files of the first frames.
        psnr: PSNR of every measured frame, in dB; empty for the original.
        fidelity: PSNR of each picture against the frame it was made from, in dB.
    """

    coder: str
    bits: int
    pictures: list[bytes] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    fidelity: list[float] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Identifier among the strips of a clip."""
        return self.coder if self.coder == ORIGINAL else f"{self.coder}-{self.bits}"


@dataclass(frozen=True)
class ChunkBytes:
    """Size of one chunk of a code file.

    Attributes:
        frames: number of its frames.
        stages: bytes of each stage.
    """

    frames: int
    stages: tuple[int, ...]


@dataclass(frozen=True)
class Exhibit:
    """One clip of a report.

    Attributes:
        result: measurements.
        deltas: Bjontegaard deltas against classic codecs.
        strips: the original, then one for each of `result.points`.
        chunks: chunks of the code file at the highest rate; lower rates hold their first stages.
        codes: int64 [K, t, h, w] of the pictured frames, stages outermost.
        header: header of that code file.
    """

    result: ClipResult
    deltas: tuple[Delta, ...]
    strips: tuple[Strip, ...]
    chunks: tuple[ChunkBytes, ...]
    codes: npt.NDArray[np.int64]
    header: Header

    @property
    def pictured(self) -> int:
        """Number of frames with pictures."""
        return len(self.strips[0].pictures)

    @property
    def num_bytes(self) -> int:
        """Bytes of pictures and codes."""
        pictures = sum(len(picture) for strip in self.strips for picture in strip.pictures)
        return pictures + self.codes.size * code_width(self.header.format.codebook_size)


def exhibit_file(
    source: Path,
    *,
    model: LoadedTokenizer,
    options: EvalOptions,
    codecs: Sequence[str] = (),
    most_bytes: int,
    notify: Notify | None = None,
) -> Exhibit:
    """Measure a clip and make pictures of its first frames.

    Args:
        source: video or image file.
        model: model to measure.
        options: part, rates and metrics.
        codecs: classic codecs to compare with, see `compare_file`.
        most_bytes: limit of pictures and codes; further frames are measured but not pictured. The
            first frame always has a picture.
        notify: called with the progress.

    Raises:
        VtokError: see `compare_file`.
    """
    made = _Strips(most_bytes)
    with compare_file(
        source, model=model, codecs=codecs, options=options, notify=notify, watch=made.watch
    ) as comparison:
        path = comparison.folder / f"{_most_bits(comparison.result)}.vtok"
        header, chunks, codes = _read_codes(path)
        classic = _add_classic(made, comparison, source, options, model, notify)
    strips = (made.original, *made.coded.values(), *classic)
    made.trim(strips, _Budget(codes, header, most_bytes))
    pictured, temporal = len(strips[0].pictures), header.format.temporal_compression
    return Exhibit(
        result=comparison.result,
        deltas=tuple(deltas(comparison.result.points)),
        strips=strips,
        chunks=tuple(chunks),
        codes=codes[:, : 1 + -(-(pictured - 1) // temporal)],
        header=header,
    )


class _Budget:
    """Remaining bytes for pictures and codes."""

    def __init__(self, codes: npt.NDArray[np.int64], header: Header, most: int) -> None:
        self._step_bytes = codes[:, 0].size * code_width(header.format.codebook_size)
        self._temporal = header.format.temporal_compression
        self._left, self._frames = most, 0

    def take(self, pictures: Sequence[bytes]) -> bool:
        """Subtract the pictures of the next frame; True if they fit or it is the first frame."""
        opens_step = not self._frames or (self._frames - 1) % self._temporal == 0
        self._left -= sum(map(len, pictures)) + (self._step_bytes if opens_step else 0)
        self._frames += 1
        return self._left >= 0 or self._frames == 1


def code_width(codebook_size: int) -> int:
    """Bytes per code on the page, a power of two."""
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


class _Strips:
    """Strips of a clip, filled while the clip is measured, so that nothing is decoded twice.

    Attributes:
        original: strip of the original frames.
        coded: strips of the model's reconstructions, by bits.
    """

    def __init__(self, most_bytes: int) -> None:
        self.original = Strip(ORIGINAL, 0)
        self.coded: dict[int, Strip] = {}
        self._most = most_bytes
        self._sizes: list[int] = []  # bytes of the pictures of each frame

    def watch(self, bits: int, frames: Frames, originals: Frames) -> None:
        """Add frames of one rate; the `watch` callback of `evaluate_file`."""
        strip = self.coded.setdefault(bits, Strip(VTOK, bits))
        if bits == next(iter(self.coded)):
            self._picture(self.original, originals)
        self.add(strip, frames, originals)

    def add(self, strip: Strip, frames: Frames, originals: Frames) -> None:
        """Measure the next frames of a strip, uint8 [n, H, W, 3], and make pictures of them."""
        for frame, original in zip(frames, originals, strict=True):
            strip.psnr.append(psnr(frame[None], original[None]))
        self._picture(strip, frames)

    def trim(self, strips: Sequence[Strip], budget: _Budget) -> None:
        """Drop the pictures of frames that exceed the budget."""
        in_step = zip(*(strip.pictures for strip in strips), strict=False)
        fitting = sum(1 for _ in takewhile(budget.take, in_step))
        for strip in strips:
            del strip.pictures[fitting:], strip.fidelity[fitting:]

    def _picture(self, strip: Strip, frames: Frames) -> None:
        for frame in frames:
            number = len(strip.pictures)
            if number and sum(self._sizes[:number]) > self._most:
                return  # later frames will not fit either
            picture = frame_to_webp(frame)
            strip.pictures.append(picture)
            strip.fidelity.append(psnr(webp_to_frame(picture)[None], frame[None]))
            if number == len(self._sizes):
                self._sizes.append(0)
            self._sizes[number] += len(picture)


def _add_classic(
    strips: _Strips,
    comparison: Comparison,
    source: Path,
    options: EvalOptions,
    model: LoadedTokenizer,
    notify: Notify | None,
) -> list[Strip]:
    """Strips of the classic codecs, decoded in step with the clip."""
    points = [point for point in comparison.result.points if point.coder != VTOK]
    made = [Strip(point.coder, point.bits) for point in points]
    if not points:
        return made
    with open_clip(source, options.part) as clip:
        coded = (coded_frames(comparison, point, model) for point in points)
        for number, frames in enumerate(zip(each_frame(clip), *coded, strict=True)):
            for strip, frame in zip(made, frames[1:], strict=True):
                strips.add(strip, frame[None], frames[0][None])
            if notify is not None:
                notify(PICTURES, number + 1, comparison.result.frames)
    return made
