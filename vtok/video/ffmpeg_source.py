"""Frames of a video through a pipe from ffmpeg, for what decord cannot read or hold."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from vtok.errors import VideoError
from vtok.video.ffmpeg import QUIET, LogLine, ffmpeg_path, input_arguments, parse_log_line
from vtok.video.frames import Frames
from vtok.video.probe import VideoIndex

SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers whose time stamps and key frames can be trusted after a seek."""
SEEK_MARGIN = Fraction(3)
"""Seconds before the wanted time at which to land."""


@dataclass(frozen=True)
class _Event:
    """What the log of ffmpeg says next."""

    seconds: Fraction | None = None
    """Time stamp of the next frame in the pipe."""
    fault: str | None = None
    """Why a packet could not be decoded."""


def read_ffmpeg(
    path: Path, index: VideoIndex, width: int, height: int, start: Fraction = Fraction(0)
) -> Iterator[tuple[Fraction, Frames]]:
    """Read the frames of a video, scaled by ffmpeg.

    Args:
        path: The video file.
        index: Its index.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        start: Seconds before which no frame is needed; earlier ones may be left out.

    Yields:
        Seconds from the first frame, and the frame, uint8 [height, width, 3].

    Raises:
        VideoError: The file is damaged or cut; the message says how many frames could be read.
    """
    seek = round(start - SEEK_MARGIN, 6)
    if seek <= 0 or index.container not in SEEKABLE or index.timeline.ticks is None:
        yield from _read(path, index, width, height, Fraction(0))
        return
    frames = _read(path, index, width, height, seek)
    first = next(frames, None)
    if first is None or first[0] > start:  # landed too late: read from the beginning
        frames.close()
        frames = _read(path, index, width, height, Fraction(0))
    else:
        yield first
    yield from frames


def _read(
    path: Path, index: VideoIndex, width: int, height: int, seek: Fraction
) -> Generator[tuple[Fraction, Frames], None, None]:
    """Read from a time on; the log tells the time of each frame before the pipe gives it."""
    process = _start(path, width, height, seek)
    assert process.stdout is not None
    assert process.stderr is not None
    events: SimpleQueue[_Event | None] = SimpleQueue()
    errors: list[str] = []
    log = threading.Thread(target=_follow_log, args=(process.stderr, events, errors), daemon=True)
    log.start()
    count = 0
    try:
        while (event := events.get()) is not None:
            if event.fault is not None:
                if count and index.damage is None:
                    raise VideoError(f"{path}: {describe_damage(count, event.fault)}")
                continue  # broadcasts begin anywhere; a cut file is read to its end
            frame = np.empty((height, width, 3), np.uint8)
            if not _fill(process.stdout, frame):
                break
            yield _frame_time(index, event.seconds, seek, count), frame
            count += 1
        log.join()
        if process.wait() != 0 or (count == 0 and seek == 0):
            reason = errors[-1] if errors else f"exit status {process.returncode}"
            raise VideoError(f"{path}: {describe_damage(count, reason)}")
    finally:
        process.kill()
        process.wait()
        log.join()
        process.stdout.close()
        process.stderr.close()


def describe_damage(count: int, reason: str) -> str:
    """Say how much of a damaged file could be read, and why no more."""
    frames = "no frame" if count == 0 else "1 frame" if count == 1 else f"{count} frames"
    return f"damaged or cut short: {frames} could be read ({reason})"


def _start(path: Path, width: int, height: int, seek: Fraction) -> subprocess.Popen[bytes]:
    """Start ffmpeg on the first video stream; every decoded frame comes out once."""
    filters = f"scale={width}:{height},format=rgb24,showinfo=checksum=0"
    command = [ffmpeg_path(), *QUIET, "-threads", "2"]
    if seek > 0:
        command += ["-ss", f"{float(seek):.6f}"]
    command += [*input_arguments(path), "-map", "0:V:0", "-fps_mode", "passthrough"]
    command += ["-vf", filters, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _follow_log(log: IO[bytes], events: SimpleQueue[_Event | None], errors: list[str]) -> None:
    """Turn the log into events, in order; None at its end."""
    time_base = Fraction(1)
    for raw in log:
        line = parse_log_line(raw.decode(errors="replace").rstrip())
        if line.level in ("error", "fatal"):
            errors.append(line.text)
        if _is_fault(line):
            events.put(_Event(fault=line.text))
        if not line.source.startswith("Parsed_showinfo"):
            continue
        if match := re.match(r"config in time_base: ([0-9]+/[0-9]+)", line.text):
            time_base = Fraction(match[1])
        elif match := re.match(r"n: *[0-9]+ pts: *(-?[0-9]+|NOPTS)", line.text):
            known = match[1] != "NOPTS"
            events.put(_Event(seconds=int(match[1]) * time_base if known else None))
    events.put(None)


def _is_fault(line: LogLine) -> bool:
    """Tell whether a packet was refused by its decoder (decoders also log what they mend)."""
    return line.level in ("error", "fatal") and line.source.startswith("vist#")


def _fill(pipe: IO[bytes], frame: Frames) -> bool:
    """Read one whole frame from a pipe; False where it ends before."""
    view = frame.reshape(-1).data
    while view:
        count = pipe.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return False
        view = view[count:]
    return True


def _frame_time(
    index: VideoIndex, seconds: Fraction | None, seek: Fraction, count: int
) -> Fraction:
    """Time of a frame from the first one on, from its time stamp or else from its place."""
    timeline = index.timeline
    if seconds is None or timeline.ticks is None:
        return count / timeline.fps
    return timeline.time_of(seek + seconds - int(timeline.ticks[0]) * timeline.time_base)
