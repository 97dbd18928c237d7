"""The exact frame rate of a video, found from the time stamps of its frames."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from vtok.media.frames import snap_fps

Ticks = npt.NDArray[np.int64]
"""Time stamps in units of the time base, rising."""

DEFAULT_FPS = Fraction(25)
"""Rate of what has none, such as a single picture."""


@dataclass(frozen=True)
class Timeline:
    """When each frame of a video is shown."""

    ticks: Ticks | None
    """Time stamp of each shown frame, rising; None where the file has none."""
    time_base: Fraction
    """Seconds in one tick."""
    num_frames: int
    """Number of frames shown."""
    fps: Fraction
    """Exact rate; the mean where the rate varies."""
    variable: bool
    """Whether some frame stands over half a frame away from an even rate."""
    duration_seconds: Fraction
    """From the first frame to the end of the last one."""

    def time(self, position: int) -> Fraction:
        """Seconds from the first frame to the frame at this position in the file."""
        if self.ticks is None or position >= self.num_frames:
            return position / self.fps
        return self.time_of(int(self.ticks[position] - self.ticks[0]) * self.time_base)

    def time_of(self, seconds: Fraction) -> Fraction:
        """Put a measured time, in seconds from the first frame, on the even grid if there is one.

        Time stamps are rounded, often to milliseconds; the exact rate is not.
        """
        return seconds if self.variable else round(seconds * self.fps) / self.fps


def find_timeline(
    ticks: Ticks, durations: Ticks, time_base: Fraction, stated_fps: Fraction | None
) -> Timeline:
    """Find rate and length from the time stamps of the frames that a file shows.

    Args:
        ticks: Time stamp of each frame in any order; the least int64 means none.
        durations: How long each frame says to be shown, in ticks, in the same order; 0 if unsaid.
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
    """Return the constant rate at which the frames stand, or None where they stand unevenly."""
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
    """Largest distance of a frame from its place at an even rate, in frames."""
    places = (ticks - ticks[0]) * float(time_base * fps)
    farthest = float(np.abs(places - np.arange(len(ticks))).max())
    return Fraction(round(farthest * 1_000_000), 1_000_000)


def _is_grid_with_gaps(ticks: Ticks, time_base: Fraction, fps: Fraction) -> bool:
    """Tell whether the frames stand on the grid of a rate with at most one place in 50 empty.

    Clips cut without re-encoding lose a frame or two at their end; their rate is still the rate.
    """
    exact = (ticks - ticks[0]) * float(time_base * fps)
    places = np.round(exact)
    empty = int(places[-1]) - (len(ticks) - 1)
    on_grid = bool((np.abs(exact - places) <= 0.25).all() and (np.diff(places) >= 1).all())
    return on_grid and empty <= max(1, len(ticks) // 50)
