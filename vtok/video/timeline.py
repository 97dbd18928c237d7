"""Times of the frames of a video, from the time stamps of its packets."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vtok._times import SLACK, Part, exact, snap
from vtok.video.frames import DEFAULT_FPS, snap_fps

Ticks = npt.NDArray[np.int64]
"""Time stamps in units of the time base."""
UNSET = np.iinfo(np.int64).min
"""No time stamp."""
MAX_GAP = 60
"""Seconds: a longer interval between frames, also of ten usual ones, is a jump of the clock."""
MAX_OFF_GRID = 0.25
"""Frames: the largest distance from the grid of a rate at which frames are on it."""


class Jump(NamedTuple):
    """A jump of the time stamps, which the timeline closes to one usual interval."""

    position: int  # number of the frame after it
    seconds: float  # length that the time stamps state, negative if they go back


@dataclass(frozen=True)
class Timeline:
    """Times at which the frames of a video are shown."""

    ticks: Ticks | None  # time stamp of each shown frame, rising; None if the file has none
    time_base: Fraction  # seconds in one tick
    num_frames: int  # number of frames shown
    fps: Fraction  # exact rate; the mean if the rate varies
    variable: bool  # a frame is more than half a frame off an even rate
    duration_seconds: Fraction  # first frame to end of last frame
    jumps: tuple[Jump, ...] = ()
    stated: Ticks | None = None  # rising time stamps of the file, if there are jumps
    places: Ticks | None = None  # number of the frame with each of them

    @property
    def missing(self) -> int:
        """Frames that an even rate has and the file lacks."""
        if self.variable or self.ticks is None:
            return 0
        return max(0, round(self.duration_seconds * self.fps) - self.num_frames)

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

    def position_of(self, tick: int, expected: int) -> int:
        """Return the number of the frame with a time stamp of the file, or the next greater one.

        Args:
            tick: Time stamp.
            expected: Number to prefer if time stamps occur twice or are out of order by a jump.
        """
        assert self.ticks is not None
        if self.stated is None or self.places is None:
            return int(np.searchsorted(self.ticks, tick))
        first = min(int(np.searchsorted(self.stated, tick)), self.num_frames - 1)
        last = int(np.searchsorted(self.stated, tick, side="right"))
        found = self.places[first : max(last, first + 1)]
        nearest = int(found[np.abs(found - expected).argmin()])
        return expected if abs(nearest - expected) <= 2 else nearest

    def without_first(self, count: int) -> Timeline:
        """Leave out frames at the start, which cannot be decoded."""
        if self.ticks is None or self.jumps or not 0 < count < self.num_frames:
            return self
        return replace(
            self,
            ticks=self.ticks[count:],
            num_frames=self.num_frames - count,
            duration_seconds=self.duration_seconds - self.time(count),
        )

    def count_before(self, seconds: Fraction) -> int:
        """Return the number of frames before a time: the number of the first one at or after it."""
        return bisect_left(range(self.num_frames), seconds, key=self.time)

    def bounds(self, part: Part) -> tuple[Fraction, Fraction | None]:
        """Return the seconds at which a part starts and ends; None for the end of the video."""
        if part.start_frame is not None:
            start, begin = (self._edge(part.start_frame),) * 2
        else:
            begin = exact(part.start_seconds)
            start = self._snap(begin)
        if part.num_frames is not None:
            return start, self._edge(self.count_before(start) + part.num_frames)
        if part.duration_seconds is None:
            return start, None
        return start, self._snap(begin + exact(part.duration_seconds))

    def durations(self, times: Sequence[Fraction], end: Fraction) -> tuple[Fraction, list[int]]:
        """Compute the durations of frames.

        Args:
            times: Seconds from the first frame of the video to each of them, rising.
            end: Seconds at which the last one ends.

        Returns:
            Seconds in one tick, and the ticks of each frame, at least 1.
        """
        base = self.time_base if self.variable and self.ticks is not None else 1 / self.fps
        ticks = [round(time / base) for time in (*times, end)]
        return base, [max(1, after - before) for before, after in pairwise(ticks)]

    def _edge(self, position: int) -> Fraction:
        """Return the time of a frame, or the end of the video."""
        return self.duration_seconds if position >= self.num_frames else self.time(position)

    def _snap(self, seconds: Fraction) -> Fraction:
        """Return the time of the frame that a time means; see `vtok._times`."""
        if not self.variable:
            return snap(seconds, self.fps)
        after = self.count_before(seconds)
        near, far = self._edge(max(0, after - 1)), self._edge(after)
        slack = min(far - near, 1 / self.fps) * SLACK
        return next((edge for edge in (near, far) if abs(edge - seconds) < slack), seconds)


def find_timeline(
    ticks: Ticks,
    durations: Ticks,
    time_base: Fraction,
    stated_fps: Fraction | None,
    base_fps: Fraction | None = None,
    breaks: Sequence[int] = (),
) -> Timeline:
    """Compute rate and length from the time stamps of the shown frames.

    Args:
        ticks: Time stamp of each frame in decoding order; `UNSET` means none.
        durations: Stated duration of each frame in ticks, in the same order; 0 if not stated.
        time_base: Seconds in one tick.
        stated_fps: Rate that the file states, perhaps rounded to 0.01; None if it states none.
        base_fps: Least rate at which all time stamps would be possible; None if unknown.
        breaks: Numbers of the frames at which the time of decoding goes back.
    """
    stated = snap_fps(stated_fps, Fraction(6, 1000)) if stated_fps else None
    num_frames = len(ticks)
    if (ticks == UNSET).any():
        fps = stated or DEFAULT_FPS
        return Timeline(None, time_base, num_frames, fps, False, num_frames / fps)
    raw, order, jumps = ticks, *_order(ticks, time_base, breaks)
    last = int(durations[order[-1]])
    ticks = _close_jumps(raw[order], jumps)
    span = int(ticks[-1] - ticks[0])
    even = _find_even_rate(ticks, span, last, time_base, stated, base_fps)
    fps, seconds = even or Fraction(0), Fraction(0)
    if even is None:
        seconds = (span + (last or _usual_step(ticks))) * time_base
        fps = _round_rate(num_frames / seconds)
    else:
        seconds = (round(span * time_base * even) + 1) / even
    shape = (num_frames, fps, even is None, seconds)
    if not jumps:
        return Timeline(ticks, time_base, *shape)
    rising = np.argsort(raw[order], kind="stable")
    return Timeline(ticks, time_base, *shape, jumps, raw[order][rising], rising)


def _usual_step(ticks: Ticks) -> int:
    """Return the median interval of sorted time stamps in ticks; 1 if there is none."""
    steps = np.diff(ticks)
    steps = steps[steps > 0]
    return int(np.median(steps)) if len(steps) else 1


def _order(
    ticks: Ticks, time_base: Fraction, breaks: Sequence[int]
) -> tuple[Ticks, tuple[Jump, ...]]:
    """Return the order in which frames are shown, and the jumps of their time stamps.

    Frames between two jumps are shown by time; such parts are shown in the order of the file.
    """
    limit = max(float(MAX_GAP / time_base), 10.0 * _usual_step(np.sort(ticks)))
    parts: list[Ticks] = []
    for run in np.split(np.arange(len(ticks)), breaks):
        rising = run[np.argsort(ticks[run], kind="stable")]
        cuts = np.flatnonzero(np.diff(ticks[rising]) > limit) + 1
        some = [places for places in np.split(rising, cuts) if len(places)]
        parts += sorted(some, key=lambda places: float(np.median(places)))
    order = np.concatenate(parts)
    starts = np.cumsum([len(part) for part in parts])[:-1].tolist()
    steps = {start: int(ticks[order[start]] - ticks[order[start - 1]]) for start in starts}
    return order, tuple(Jump(start, float(step * time_base)) for start, step in steps.items())


def _close_jumps(ticks: Ticks, jumps: tuple[Jump, ...]) -> Ticks:
    """Replace each jump, and long or negative intervals next to it, by the usual interval.

    Time stamps are often set in decoding order, so that frames near a jump are on both sides.
    """
    if not jumps:
        return ticks
    steps, usual = np.diff(ticks), _usual_step(np.sort(ticks))
    for jump in jumps:
        near = slice(max(0, jump.position - 3), jump.position + 2)
        steps[near] = np.where((steps[near] > 1.5 * usual) | (steps[near] < 0), usual, steps[near])
    return np.concatenate([ticks[:1], ticks[0] + np.cumsum(steps)])


def _round_rate(rate: Fraction) -> Fraction:
    """Return a close rate with a small numerator and denominator, above 0."""
    return rate.limit_denominator(1001) if rate >= 1 else 1 / (1 / rate).limit_denominator(1001)


def _find_even_rate(
    ticks: Ticks,
    span: int,
    last: int,
    time_base: Fraction,
    stated: Fraction | None,
    base: Fraction | None,
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
        return _snap(mean, mean * min(Fraction(steps, 2 * span), Fraction(1, 500)))
    with_last = (steps + 1) / ((span + last) * time_base)
    measured = [_snap(rate, rate * Fraction(2, span)) for rate in (with_last, mean)]
    known = [stated] if stated else []
    likely = (*known, *measured, *_likely(ticks, time_base, base))
    off = {rate: _off_grid(ticks, time_base, rate) for rate in likely}
    # the mean, which may be stated, is less than the rate where a frame is missing
    best = min(likely, key=lambda rate: off[rate] * (1 if rate == stated else 2))
    if off[best] <= MAX_OFF_GRID:
        return best
    for rate in (*known, *measured):
        if _farthest(ticks, time_base, rate) <= Fraction(1, 2):
            return rate
    return None


def _snap(rate: Fraction, tolerance: Fraction) -> Fraction:
    """Find the exact rate behind a measured one; slow rates are exact intervals."""
    return snap_fps(rate, tolerance) if rate >= 1 else _round_rate(rate)


def _likely(ticks: Ticks, time_base: Fraction, base: Fraction | None) -> list[Fraction]:
    """Return possible even rates of frames some of which are missing."""
    usual = _usual_step(ticks)
    steps = np.diff(ticks)
    steps = steps[steps <= 1.5 * usual]
    found = [base] if base else []
    if span := int(steps.sum()):
        rate = len(steps) / (span * time_base)
        found.append(_snap(rate, rate * Fraction(1, 500)))
    return found


def _farthest(ticks: Ticks, time_base: Fraction, fps: Fraction) -> Fraction:
    """Return the largest distance of a frame from its time at an even rate, in frames."""
    places = (ticks - ticks[0]) * float(time_base * fps)
    farthest = float(np.abs(places - np.arange(len(ticks))).max())
    return Fraction(round(farthest * 1_000_000), 1_000_000)


def _off_grid(ticks: Ticks, time_base: Fraction, fps: Fraction) -> float:
    """Return the largest distance of a frame from the grid of a rate, in frames.

    It is infinite if frames share a place, or more than one in 20 is missing. Clips cut without
    re-encoding lose a frame or two at their end; their rate is still the rate.
    """
    places = (ticks - ticks[0]) * float(time_base * fps)
    whole = np.round(places)
    empty = int(whole[-1]) - (len(ticks) - 1)
    if (np.diff(whole) < 1).any() or empty > max(1, len(ticks) // 20):
        return math.inf
    return float(np.abs(places - whole).max())
