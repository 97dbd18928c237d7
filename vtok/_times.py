"""Parts of a video, and the rule by which times in seconds select frames.

A time within a quarter of a frame's duration of the start of a frame means that frame; any other
time stays as it is. A part has the frames from its start up to, not including, its end. Rounded
times therefore select the frames that were meant: 17/30 s printed with 17, 6 or 3 digits is frame
17 of a video with 30 frames/s.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from vtok.errors import OptionError, UsageError

MAX_SECONDS = 10**9  # 31 years, the most that a header holds
MAX_FRAMES = 2**53 - 1
SLACK = Fraction(1, 4)  # of a frame's duration


@dataclass(frozen=True)
class Part:
    """Part of a video, in seconds or in frames of the source.

    Attributes:
        start_seconds: start, if `start_frame` is None.
        duration_seconds: length, if `num_frames` is None; to the end if None as well.
        start_frame: number of the first frame, from 0.
        num_frames: number of frames.

    Raises:
        OptionError: a number out of range.
        UsageError: the start or the length is given twice.
    """

    start_seconds: float | Fraction = 0
    duration_seconds: float | Fraction | None = None
    start_frame: int | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        start, duration = self.start_seconds, self.duration_seconds
        if not 0 <= start <= MAX_SECONDS:
            raise OptionError("start_seconds", f"{float(start):g}", "0 or more seconds")
        if duration is not None and not 0 < duration <= MAX_SECONDS:
            raise OptionError("duration_seconds", f"{float(duration):g}", "more than 0 seconds")
        if self.start_frame is not None and not 0 <= self.start_frame <= MAX_FRAMES:
            raise OptionError("start_frame", self.start_frame, "0 or more")
        if self.num_frames is not None and not 1 <= self.num_frames <= MAX_FRAMES:
            raise OptionError("num_frames", self.num_frames, "1 or more")
        if start and self.start_frame is not None:
            raise UsageError("`start_seconds` and `start_frame` both set the start: give one")
        if duration is not None and self.num_frames is not None:
            raise UsageError("`duration_seconds` and `num_frames` both set the length: give one")

    @property
    def is_whole(self) -> bool:
        """True if nothing is left out."""
        return self == Part() or self == Part(start_frame=0)

    def frames(self, total: int, fps: Fraction) -> tuple[int, int]:
        """Return the first frame and the one after the last, at a constant rate; at least one.

        Args:
            total: frames of the video.
            fps: frames per second.

        Raises:
            OptionError: the part starts after the end.
        """
        first = self.start_frame
        if first is None:
            first = frame_at(self.start_seconds, fps)
        if first >= total:
            field = "start_seconds" if self.start_frame is None else "start_frame"
            value = self.start_seconds if self.start_frame is None else first
            length = f"{total} frames, {float(total / fps):g} s"
            raise OptionError(field, f"{float(value):g}", f"a time in the file ({length})")
        end = total
        if self.num_frames is not None:
            end = first + self.num_frames
        elif self.duration_seconds is not None:
            begin = first / fps if self.start_frame is not None else exact(self.start_seconds)
            end = frame_at(begin + exact(self.duration_seconds), fps)
        return first, min(total, max(first + 1, end))


def exact(seconds: float | Fraction) -> Fraction:
    """Convert a printed number of seconds to a fraction: 0.1 is 1/10."""
    return Fraction(str(seconds))


def snap(seconds: Fraction, fps: Fraction) -> Fraction:
    """Return the time of the frame that a time means, at a constant rate; else the time itself."""
    place = round(seconds * fps)
    return place / fps if abs(seconds * fps - place) < SLACK else seconds


def frame_at(seconds: float | Fraction, fps: Fraction) -> int:
    """Return the number of the first frame at or after a time, at a constant rate."""
    return ceil(snap(exact(seconds), fps) * fps)
