"""Selection of the frames and pixels of a video to measure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vtok.errors import OptionError, VideoError
from vtok.evaluation.metrics import Frames
from vtok.video.frames import parse_size
from vtok.video.reader import VideoReader, probe

CROP_STEP = 16
"""Crops have sides that are multiples of this, in pixels."""


@dataclass(frozen=True)
class Part:
    """Frames of a video to measure, and their size.

    Attributes:
        frames: number of frames from the start; all if None.
        size: short side "256" or "WIDTHxHEIGHT"; the source size if None.
        only_shrink: keep the size of sources whose short side is at most `size`, which must be a
            short side.
        crop: width and height in pixels of a centre crop, reduced to the largest multiple of 16
            that fits; no crop if None.
        start_seconds: start time in the source.
        timeout_seconds: longest wait for the next frames.

    Raises:
        OptionError: for numbers out of range.
    """

    frames: int | None = None
    size: str | None = None
    only_shrink: bool = False
    crop: int | None = None
    start_seconds: float = 0.0
    timeout_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise OptionError("frames", self.frames, "1 or more")
        if not 0 <= self.start_seconds < 1e9:
            raise OptionError("start_seconds", f"{self.start_seconds:g}", "0 or more seconds")
        if not 0 < self.timeout_seconds < 1e9:
            raise OptionError("timeout_seconds", f"{self.timeout_seconds:g}", "more than 0 seconds")
        if self.size is not None:
            parse_size(self.size, 16, 9)  # checks the syntax


WHOLE = Part()
CARD = Part(frames=33, size="384", only_shrink=True, crop=256)
"""Selection that the figures of the model cards are measured on."""


class Clip:
    """Iterate once over the selected frames of a video.

    Attributes:
        width, height: frame size in pixels.
        fps: exact frame rate; the mean of a variable one.
        expected: approximate number of frames; None if unknown.
    """

    def __init__(self, reader: VideoReader, path: Path, part: Part) -> None:
        self.reader, self._part = reader, part
        self.width, self.height = reader.output_size
        self.fps: Fraction = reader.output_fps
        if part.crop is not None:
            self.width, self.height = (
                min(part.crop, side // CROP_STEP * CROP_STEP) for side in reader.output_size
            )
        if not self.width * self.height:
            raise VideoError(f"{path}: smaller than {CROP_STEP} pixels, too small to crop")

    @property
    def expected(self) -> int | None:
        """Approximate number of frames; None if unknown."""
        info, part = self.reader.info, self._part
        known = None
        if info.num_frames is not None:
            known = max(1, info.num_frames - round(part.start_seconds * info.fps))
        return min((n for n in (known, part.frames) if n is not None), default=None)

    def __iter__(self) -> Iterator[Frames]:
        """Yield batches uint8 [n, H, W, 3]."""
        left = self._part.frames
        for batch in self.reader:
            shown = batch if left is None else batch[:left]
            yield self._cropped(shown)
            if left is not None:
                left -= len(shown)
                if not left:
                    return

    def _cropped(self, frames: Frames) -> Frames:
        top, left = ((a - b) // 2 for a, b in zip(frames.shape[1:3], self._size, strict=True))
        return np.ascontiguousarray(frames[:, top : top + self.height, left : left + self.width])

    @property
    def _size(self) -> tuple[int, int]:
        return self.height, self.width


@contextmanager
def open_clip(path: Path, part: Part) -> Iterator[Clip]:
    """Open the selected frames of a video.

    Raises:
        InputError: if the file is missing or is not a readable video.
    """
    size = part.size
    if size is not None and part.only_shrink:
        info = probe(path, timeout_seconds=part.timeout_seconds)
        size = size if min(info.width, info.height) > int(size) else None
    with VideoReader(
        path,
        start_seconds=part.start_seconds,
        size=size,
        timeout_seconds=part.timeout_seconds,
    ) as reader:
        yield Clip(reader, path, part)


def each_frame(batches: Iterable[Frames]) -> Iterator[Frames]:
    """Split batches uint8 [n, H, W, 3] into frames [H, W, 3]."""
    for batch in batches:
        yield from batch
