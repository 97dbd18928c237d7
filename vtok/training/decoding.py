"""Decoding for training: size and length of a video, stretches of it, and photos, all shrunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vtok.media.frames import Frames, parse_size, resize_frames
from vtok.media.reader import VideoReader, probe

TIMEOUT_SECONDS = 30.0
"""Longest time that a decoder may do nothing."""


@dataclass(frozen=True)
class Outline:
    """What must be known of a video before a part of it can be chosen.

    Attributes:
        width, height: in pixels.
        num_frames: frames that it shows; 0 where only reading it would tell.
        fps: frames per second; the mean where the rate varies.
    """

    width: int
    height: int
    num_frames: int
    fps: Fraction

    def to_note(self) -> list[int]:
        """Turn into what JSON can hold."""
        return [self.width, self.height, self.num_frames, *self.fps.as_integer_ratio()]

    @classmethod
    def from_note(cls, note: Any) -> Outline | None:
        """Turn back; None where the note is not one of ours."""
        if not isinstance(note, list) or len(note) != 5:
            return None
        if not all(type(value) is int and 0 <= value < 2**63 for value in note) or 0 in note[3:]:
            return None
        width, height, num_frames, numerator, denominator = note
        return cls(width, height, num_frames, Fraction(numerator, denominator))


def read_outline(path: Path) -> Outline:
    """Size and length of a video file.

    Raises:
        InputError: it is missing or no readable video.
    """
    info = probe(path, TIMEOUT_SECONDS)
    return Outline(info.width, info.height, info.num_frames or 0, info.fps)


def read_photo(path: Path, side: int) -> Frames:
    """The pixels of a photo, its short side shrunk to `side` pixels if it is longer.

    Returns:
        uint8 [1, H, W, 3].

    Raises:
        InputError: it is missing or cannot be read.
    """
    with VideoReader(path, timeout_seconds=TIMEOUT_SECONDS) as reader:
        frame = next(reader)[:1]
    height, width = frame.shape[1:3]
    if min(height, width) <= side:
        return frame
    return resize_frames(frame, *parse_size(str(side), width, height))


def read_stretches(
    path: Path, outline: Outline, starts: Sequence[int], length: int, side: int, *, seek: bool
) -> Iterator[tuple[int, Frames]]:
    """Stretches of a video in one pass, its short side shrunk to `side` pixels if it is longer.

    Args:
        path: the video file.
        outline: what is known of it.
        starts: first frames of the stretches, rising; they may overlap.
        length: frames in a stretch; there are fewer where the video ends before.
        side: in pixels.
        seek: go straight to the first stretch, which pays in a long video. Other software may then
            decode it, so the same stretch must be read in the same way each time.

    Yields:
        Each start, and its frames, uint8 [T, H, W, 3]; nothing for one that no frame was found of.

    Raises:
        InputError: the video cannot be read on.
    """
    wanted, held = list(starts), list[Frames]()
    first = wanted[0] if seek else 0  # number of the first frame that is held
    # half a frame early, so that no rounding can lose the first one
    seconds = max(Fraction(0), (first - Fraction(1, 2)) / outline.fps)
    shrunk = min(outline.width, outline.height) > side
    with VideoReader(
        path,
        start_seconds=seconds,
        size=str(side) if shrunk else None,
        timeout_seconds=TIMEOUT_SECONDS,
    ) as reader:
        for batch in reader:
            held.extend(batch)
            while wanted and first + len(held) >= wanted[0] + length:
                start = wanted.pop(0)
                yield start, np.stack(held[start - first : start - first + length])
            if not wanted:
                return
            passed = min(len(held), max(0, wanted[0] - first))
            del held[:passed]
            first += passed
    for start in wanted:
        if start - first < len(held):
            yield start, np.stack(held[start - first :])
