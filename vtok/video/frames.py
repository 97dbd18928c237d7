"""Frame arrays, rates and sizes of videos; resizing and resampling."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from vtok.errors import OptionError

DEFAULT_FPS = Fraction(25)  # rate of a picture, or of a video without one

Frames = npt.NDArray[np.uint8]
"""Decoded pixels, uint8 [T, H, W, 3] RGB; a single frame is [H, W, 3]."""

DepthRange = tuple[float, float] | None
"""Values that become 0 and 255 in frames of 8 bits."""

ON_DAMAGE = ("fail", "skip", "stop")
"""Choices for damaged frames: an error, leave them out, or end before the first one."""

MAX_PIXELS = 2**26  # largest picture read or written, 8192 x 8192

NUM_SLOTS = 4  # batches that a decoding process may be ahead
BATCH_FRAMES = 16  # largest number of frames in a batch
BATCH_BYTES = 8 * 2**20  # largest size of a batch, unless a single frame is larger

T = TypeVar("T")


@dataclass(frozen=True)
class ReadOptions:
    """Choices of what is read from a source, and how its pixels become SDR RGB.

    Attributes:
        depth_range: values that become black and white, for gray sources of 16 bits or floats.
        on_damage: choice for damaged frames, and those up to the next key frame, which are
            predicted from them: fail raises an error, skip leaves them out, stop ends before them.
        video_stream: number of the video stream, from 0.
        tone_map: map HDR (PQ, HLG) to SDR; without it, HDR is an error.
        deinterlace: make whole frames of interlaced ones.
        background: color behind transparent pixels: a CSS name such as white, or #rrggbb.

    Raises:
        OptionError: A value that no source allows.
    """

    depth_range: DepthRange = None
    on_damage: str = "fail"
    video_stream: int = 0
    tone_map: bool = True
    deinterlace: bool = False
    background: str = "black"

    def __post_init__(self) -> None:
        depth = self.depth_range
        if depth is not None and not -math.inf < depth[0] < depth[1] < math.inf:
            raise OptionError("depth_range", depth_text(depth), "a range such as 0,65535")
        if self.on_damage not in ON_DAMAGE:
            raise OptionError("on_damage", self.on_damage, f"one of {', '.join(ON_DAMAGE)}")
        if self.video_stream < 0:
            raise OptionError("video_stream", self.video_stream, "a number from 0")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as exc:
            expected = "a color such as white or #ff8000"
            raise OptionError("background", self.background, expected) from exc

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> ReadOptions:
        """Convert from a result of `changed_values` that was stored as JSON."""
        depth = fields.get("depth_range")
        return cls(**{**fields, "depth_range": None if depth is None else tuple(depth)})

    def changed_values(self) -> dict[str, Any]:
        """Return the values that are not the defaults."""
        return {
            key: value for key, value in vars(self).items() if value != getattr(type(self), key)
        }

    def metadata(self) -> dict[str, str]:
        """Return the values that are not the defaults, as text for a header."""
        changed = {key: str(value) for key, value in self.changed_values().items()}
        if self.depth_range is not None:
            changed["depth_range"] = depth_text(self.depth_range)
        return changed


def depth_text(depth_range: tuple[float, float]) -> str:
    """Write a depth range as it is given on the command line."""
    return f"{depth_range[0]:g},{depth_range[1]:g}"


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file."""

    width: int  # width in square pixels after rotation
    height: int  # height in square pixels after rotation
    fps: Fraction  # frames per second, exact; the mean if the rate varies
    num_frames: int | None  # shown frames; None if unknown before reading
    duration_seconds: float | None
    """Length from the first frame to the end of the last one; None if unknown."""
    rotation: int
    """Degrees clockwise (0, 90, 180, 270) by which the reader rotated the stored picture."""
    variable_frame_rate: bool  # frames are at uneven times
    reader: Literal["av", "pillow"]  # library that reads the pixels
    codec: str | None  # name of the codec, such as "h264"
    missing_frames: int = 0  # frames that the time stamps lack, without those that do not decode
    damage: str | None = None  # why the file is known to be cut or damaged
    notes: tuple[str, ...] = ()  # remarks about the file, one line each
    pixel_aspect: str = "1:1"  # width to height of the stored pixels; the reader makes them square
    has_sound: bool = False  # the file has a stream of sound


DEFAULT_READING = ReadOptions()


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


def frames_per_batch(width: int, height: int) -> int:
    """Choose the number of frames of this size in a batch."""
    return min(BATCH_FRAMES, max(1, BATCH_BYTES // (width * height * 3)))


def ring_bytes(batch_frames: int, height: int, width: int) -> int:
    """Return the size of a ring of batches."""
    return NUM_SLOTS * batch_frames * height * width * 3


def map_ring(buffer: memoryview | None, batch_frames: int, height: int, width: int) -> Frames:
    """Return a ring of batches in a buffer, or in new memory.

    Returns:
        uint8 [NUM_SLOTS, batch_frames, height, width, 3].
    """
    ring: Frames = np.ndarray((NUM_SLOTS, batch_frames, height, width, 3), np.uint8, buffer)
    return ring
