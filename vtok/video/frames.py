"""Frame arrays, timelines and sizes of videos; resizing and resampling."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from vtok._times import SLACK, Part, exact, snap
from vtok.errors import OptionError

Ticks = npt.NDArray[np.int64]  # time stamps in units of the time base, rising

DEFAULT_FPS = Fraction(25)  # rate of a picture, or of a video without one


@dataclass(frozen=True)
class Timeline:
    """Times at which the frames of a video are shown."""

    ticks: Ticks | None  # time stamp of each shown frame, rising; None if the file has none
    time_base: Fraction  # seconds in one tick
    num_frames: int  # number of frames shown
    fps: Fraction  # exact rate; the mean if the rate varies
    variable: bool  # a frame is more than half a frame off an even rate
    duration_seconds: Fraction  # first frame to end of last frame

    def time(self, position: int) -> Fraction:
        """Return the seconds from the first frame to the frame at this position in the file."""
        if self.ticks is None or position >= self.num_frames:
            return position / self.fps
        return self.time_of(int(self.ticks[position] - self.ticks[0]) * self.time_base)

    def time_of(self, seconds: Fraction) -> Fraction:
        """Snap a measured time, in seconds from the first frame, to the even grid if there is one.

        Time stamps are rounded, often to milliseconds; the exact rate is not.
        """
        return seconds if self.variable else round(seconds * self.fps) / self.fps

    def bounds(self, part: Part) -> tuple[Fraction, Fraction | None]:
        """Return the seconds at which a part starts and ends; None for the end of the video."""
        if part.start_frame is not None:
            start, begin = (self._edge(part.start_frame),) * 2
        else:
            begin = exact(part.start_seconds)
            start = self._snap(begin)
        if part.num_frames is not None:
            return start, self._edge(self._position(start) + part.num_frames)
        if part.duration_seconds is None:
            return start, None
        return start, self._snap(begin + exact(part.duration_seconds))

    def _edge(self, position: int) -> Fraction:
        """Return the time of a frame, or the end of the video."""
        return self.duration_seconds if position >= self.num_frames else self.time(position)

    def _position(self, seconds: Fraction) -> int:
        """Return the number of the first frame at or after a time."""
        return bisect_left(range(self.num_frames), seconds, key=self.time)

    def _snap(self, seconds: Fraction) -> Fraction:
        """Return the time of the frame that a time means; see `vtok._times`."""
        if not self.variable:
            return snap(seconds, self.fps)
        after = self._position(seconds)
        near, far = self._edge(max(0, after - 1)), self._edge(after)
        slack = min(far - near, 1 / self.fps) * SLACK
        return next((edge for edge in (near, far) if abs(edge - seconds) < slack), seconds)


def find_timeline(
    ticks: Ticks, durations: Ticks, time_base: Fraction, stated_fps: Fraction | None
) -> Timeline:
    """Compute rate and length from the time stamps of the shown frames.

    Args:
        ticks: Time stamp of each frame in any order; the least int64 means none.
        durations: Stated duration of each frame in ticks, in the same order; 0 if not stated.
        time_base: Seconds in one tick.
        stated_fps: Rate that the file states, rounded to 0.01; None if it states none.
    """
    stated = snap_fps(stated_fps, Fraction(6, 1000)) if stated_fps else None
    num_frames = len(ticks)
    if (ticks == np.iinfo(np.int64).min).any():
        fps = stated or DEFAULT_FPS
        return Timeline(None, time_base, num_frames, fps, False, num_frames / fps)
    order = np.argsort(ticks, kind="stable")
    ticks, last = ticks[order], int(durations[order[-1]])
    span = int(ticks[-1] - ticks[0])
    even = _find_even_rate(ticks, span, last, time_base, stated)
    if even is None:
        seconds = (span + last) * time_base
        mean = (num_frames / seconds).limit_denominator(1001)
        return Timeline(ticks, time_base, num_frames, mean, True, seconds)
    seconds = (round(span * time_base * even) + 1) / even
    return Timeline(ticks, time_base, num_frames, even, False, seconds)


def _find_even_rate(
    ticks: Ticks, span: int, last: int, time_base: Fraction, stated: Fraction | None
) -> Fraction | None:
    """Return the constant rate of the frames, or None if they are uneven."""
    steps = len(ticks) - 1
    if span == 0:
        single = 1 / (last * time_base) if last and steps == 0 else DEFAULT_FPS
        return stated or single
    if stated and _farthest(ticks, time_base, stated) <= min(time_base * stated, Fraction(1, 2)):
        return stated
    mean = steps / (span * time_base)
    if (np.diff(ticks) * steps == span).all():
        return snap_fps(mean, mean * min(Fraction(steps, 2 * span), Fraction(1, 500)))
    with_last = (steps + 1) / ((span + last) * time_base)
    measured = [snap_fps(rate, rate * Fraction(2, span)) for rate in (with_last, mean)]
    for rate in [stated, *measured] if stated else measured:
        near = _farthest(ticks, time_base, rate) <= Fraction(1, 2)
        if near or _is_grid_with_gaps(ticks, time_base, rate):
            return rate
    return None


def _farthest(ticks: Ticks, time_base: Fraction, fps: Fraction) -> Fraction:
    """Return the largest distance of a frame from its time at an even rate, in frames."""
    places = (ticks - ticks[0]) * float(time_base * fps)
    farthest = float(np.abs(places - np.arange(len(ticks))).max())
    return Fraction(round(farthest * 1_000_000), 1_000_000)


def _is_grid_with_gaps(ticks: Ticks, time_base: Fraction, fps: Fraction) -> bool:
    """Check that the frames are on the grid of a rate with at most one in 50 missing.

    Clips cut without re-encoding lose a frame or two at their end; their rate is still the rate.
    """
    exact = (ticks - ticks[0]) * float(time_base * fps)
    places = np.round(exact)
    empty = int(places[-1]) - (len(ticks) - 1)
    on_grid = bool((np.abs(exact - places) <= 0.25).all() and (np.diff(places) >= 1).all())
    return on_grid and empty <= max(1, len(ticks) // 50)


Frames = npt.NDArray[np.uint8]
"""Decoded pixels, uint8 [T, H, W, 3] RGB; a single frame is [H, W, 3]."""

MAX_PIXELS = 2**26  # largest picture read or written, 8192 x 8192

T = TypeVar("T")


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file."""

    width: int  # width in pixels after rotation; pixels count as square
    height: int  # height in pixels after rotation
    fps: Fraction  # frames per second, exact; the mean if the rate varies
    num_frames: int | None  # shown frames; None if unknown before reading
    duration_seconds: float | None
    """Length from the first frame to the end of the last one; None if unknown."""
    rotation: int
    """Degrees clockwise (0, 90, 180, 270) by which the reader rotated the stored picture."""
    variable_frame_rate: bool  # frames are at uneven times
    reader: Literal["decord", "ffmpeg", "imageio"]  # library that reads the pixels
    codec: str | None  # name of the codec, such as "h264"


def parse_size(text: str, source_width: int, source_height: int) -> tuple[int, int]:
    """Parse a size into width and height in pixels.

    Args:
        text: "256" sets the short side and keeps the aspect, the long side rounded to an even
            number (a source with that short side keeps its size); "640x360" sets both sides.
        source_width: Width of the source in pixels.
        source_height: Height of the source in pixels.

    Raises:
        OptionError: The text is invalid, or the picture is empty or larger than `MAX_PIXELS`.
    """
    match = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text.strip())
    if match is None:
        raise OptionError("size", text, "a short side such as 256, or WIDTHxHEIGHT such as 640x360")
    width, height = int(match[1]), int(match[2] or 0)
    if match[2] is None:
        width, height = _fit_short_side(int(match[1]), source_width, source_height)
    if not 0 < width * height <= MAX_PIXELS:
        raise OptionError("size", text, f"1 to {MAX_PIXELS} pixels in all")
    return width, height


def _fit_short_side(short: int, width: int, height: int) -> tuple[int, int]:
    """Scale a width and a height to a short side; an even long side suits 4:2:0 video."""
    if short == min(width, height):
        return width, height
    if width == height:
        return short, short
    exact = Fraction(short * max(width, height), min(width, height))
    long = max(short, 2 * math.floor(exact / 2 + Fraction(1, 2)))
    return (long, short) if width > height else (short, long)


def parse_fps(text: str) -> Fraction:
    """Parse a frame rate ("25", "29.97", "30000/1001") into an exact rational.

    Rounded broadcast rates mean the exact ones: "29.97" is 30000/1001.

    Raises:
        OptionError: The text is not a number above 0 and at most 1000.
    """
    match = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?|[0-9]{1,9}/[0-9]{1,9}", text.strip())
    try:
        fps = Fraction(text.strip()) if match else Fraction(0)
    except ZeroDivisionError:
        fps = Fraction(0)
    if not 0 < fps <= 1000:
        raise OptionError("fps", text, "a rate such as 25, 29.97 or 30000/1001")
    return snap_fps(fps, Fraction(6, 1000)) if "." in text else fps


def snap_fps(value: Fraction, tolerance: Fraction) -> Fraction:
    """Find the exact rate behind a rounded one.

    Args:
        value: Rounded rate in frames per second.
        tolerance: Largest error of `value`, in frames per second.

    Returns:
        The nearest rate of the form n or 1000 n / 1001 if it is within `tolerance`, otherwise a
        close fraction with a small denominator.
    """
    whole = Fraction(max(1, round(value)))
    broadcast = Fraction(1000 * max(1, round(value * Fraction(1001, 1000))), 1001)
    nearest = min(whole, broadcast, key=lambda rate: abs(rate - value))
    if abs(nearest - value) <= tolerance:
        return nearest
    return value.limit_denominator(1001)


def resize_frames(frames: Frames, width: int, height: int) -> Frames:
    """Resize frames with an antialiased bicubic filter.

    Args:
        frames: uint8 [T, H, W, 3].
        width: New width in pixels.
        height: New height in pixels.

    Returns:
        uint8 [T, height, width, 3]; the same array if the size is the same.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for target, frame in zip(resized, frames, strict=True):
        image = Image.fromarray(np.ascontiguousarray(frame))
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        target[:] = np.asarray(image)
    return resized


def resample(timed: Iterable[tuple[Fraction, T]], fps: Fraction, end: Fraction) -> Iterator[T]:
    """Drop and repeat frames to get a constant rate.

    Output k, at k / fps after the first frame, is the frame nearest in time, the earlier of two
    equally near ones. Outputs start before the end. Times are rationals, so long
    videos do not drift.

    Args:
        timed: Pairs of a time in seconds, rising, and a frame.
        fps: Rate of the output in frames per second.
        end: Time at which the last frame ends.

    Yields:
        Frames at the new rate; a repeated frame is the same object again.
    """
    pairs = iter(timed)
    first = next(pairs, None)
    if first is None:
        return
    origin, held = first
    held_time, count = origin, 0
    for time, frame in pairs:
        while origin + count / fps <= (held_time + time) / 2:
            yield held
            count += 1
        held_time, held = time, frame
    while origin + count / fps < end or not count:
        yield held
        count += 1
