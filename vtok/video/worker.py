"""Child side of the decoding process: a damaged file may crash or hang it, and nothing else.

Standard input carries lines of JSON: how to run, then one request after another, each followed by
a byte for each batch that the parent has copied. Standard output carries lines of JSON for each
request: `info` once, `frames` for each batch in the shared ring, `alive` while it is busy without
one, and finally `end` or `error`.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import mmap
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vtok.errors import OptionError, VideoError, VtokError
from vtok.video.container import Damaged, TimedFrames, describe_damage
from vtok.video.frames import Frames, resample
from vtok.video.source import MAX_NOTES, Request, Source, open_source

NUM_SLOTS = 4  # batches that the child may be ahead
BATCH_FRAMES = 16  # largest number of frames in a batch
BATCH_BYTES = 8 * 2**20  # largest size of a batch, unless a single frame is larger
ALIVE_SECONDS = 1.0


def frames_per_batch(width: int, height: int) -> int:
    """Choose the number of frames of this size in a batch."""
    return min(BATCH_FRAMES, max(1, BATCH_BYTES // (width * height * 3)))


def create_memory() -> int:
    """Create empty anonymous shared memory and return its file descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vtok-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def map_ring(descriptor: int, batch_frames: int, height: int, width: int) -> Frames:
    """Map a ring of batches into this process, growing the memory if needed.

    Returns:
        Shared uint8 [NUM_SLOTS, batch_frames, height, width, 3].
    """
    shape = NUM_SLOTS, batch_frames, height, width, 3
    num_bytes = math.prod(shape)
    if os.fstat(descriptor).st_size < num_bytes:
        os.ftruncate(descriptor, num_bytes)
    return np.frombuffer(mmap.mmap(descriptor, num_bytes), np.uint8).reshape(shape)


class Channel:
    """Messages to the parent, and its answers."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)  # output of libraries must not be read as messages
        self._last_sent = time.monotonic()

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message; ends this process if the parent has ended."""
        line = json.dumps({"kind": kind, **fields}) + "\n"
        os.write(self._out, line.encode())
        self._last_sent = time.monotonic()

    def alive(self) -> None:
        """Send a heartbeat, at most once a second."""
        if time.monotonic() - self._last_sent > ALIVE_SECONDS:
            self.send("alive")

    def wait_for_slot(self) -> None:
        """Wait until the parent has copied a batch; ends this process if the parent has ended."""
        if not os.read(0, 1):
            os._exit(0)


def die_with_parent(lifeline: int) -> None:
    """Make the system end this process and its children when the parent ends.

    The kernel sends SIGIO to the process group when the pipe closes, and the default action ends
    it, even while a decoder hangs with the interpreter lock held and no Python code can run.

    Args:
        lifeline: Read end of a pipe whose write end only the parent holds.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    try:
        if os.read(lifeline, 1) == b"":  # closed before the above took effect
            os._exit(0)
    except BlockingIOError:
        pass


class Selection:
    """Intact frames of the requested part of a video.

    Attributes:
        count: frames so far.
        notes: remarks about damage.

    Raises:
        VideoError: The part is damaged and the request allows no damage.
    """

    def __init__(self, source: Source, request: Request, channel: Channel) -> None:
        self._source, self._request, self._channel = source, request, channel
        self.count = 0
        self.notes: list[str] = []

    def __iter__(self) -> TimedFrames:
        start, end = self._source.start, self._source.end
        for seconds, picture in self._source.frames:
            self._channel.alive()
            is_damaged = isinstance(picture, Damaged)
            if end is not None and seconds >= end:
                if is_damaged:  # a packet may come before that of an earlier frame
                    continue
                return
            if seconds < start:
                continue
            if isinstance(picture, Damaged):
                if not self._accepts(picture):
                    return
                continue
            self.count += 1
            yield seconds, picture

    def _accepts(self, damage: Damaged) -> bool:
        """Return False to end the video; raises a VideoError if no damage is allowed."""
        text, choice = describe_damage(self.count, damage.reason), self._request.on_damage
        if choice == "fail":
            raise VideoError(
                f"{self._request.path}: {text}; `on_damage` skip leaves out what is damaged, "
                "`on_damage` stop ends before it"
            )
        if choice == "stop":
            self.notes.append(f"ends early: {text}")
        elif not self.notes:
            self.notes.append(
                f"damaged frames are left out, the first after {self.count} ({damage.reason})"
            )
        return choice == "skip"


def _send_frames(frames: Iterable[Callable[[], Frames]], ring: Frames, channel: Channel) -> None:
    """Send frames through the ring, batch by batch, including those before an error."""
    batches = filled = 0
    last: tuple[object, Frames] = (None, ring[0, 0])
    try:
        for picture in frames:
            if picture is not last[0]:  # frames that are repeated are converted once
                last = (picture, picture())
            if filled == 0 and batches >= NUM_SLOTS:
                channel.wait_for_slot()
            ring[batches % NUM_SLOTS, filled] = last[1]
            filled += 1
            if filled == ring.shape[1]:
                channel.send("frames", slot=batches % NUM_SLOTS, count=filled)
                batches, filled = batches + 1, 0
    finally:
        if filled:
            channel.send("frames", slot=batches % NUM_SLOTS, count=filled)


def _serve(request: Request, memory: int, channel: Channel) -> None:
    """Open the video and send it."""
    source = open_source(request, channel.alive)
    batch_frames = frames_per_batch(source.width, source.height)
    # the memory must have its size before the parent maps it
    ring = map_ring(memory, batch_frames, source.height, source.width)
    fps = request.fps or source.info.fps
    channel.send(
        "info",
        info={**vars(source.info), "fps": str(source.info.fps)},
        fps=str(fps),
        start=str(source.start),
        width=source.width,
        height=source.height,
        batch_frames=batch_frames,
    )
    timed = Selection(source, request, channel)
    frames: Iterable[Callable[[], Frames]] = (picture for _, picture in timed)
    if request.fps is not None:
        length = source.timeline.duration_seconds
        frames = resample(timed, request.fps, min(source.end or length, length))
    _send_frames(frames, ring, channel)
    changes = [f"the size changes to {size} at frame {at}" for at, size in source.changes]
    missing = max(0, source.expected() - timed.count)
    channel.send("end", missing=missing, notes=timed.notes + changes[:MAX_NOTES])


def _answer(fields: dict[str, Any], memory: int, channel: Channel) -> None:
    """Serve one request; every failure becomes a message."""
    os.ftruncate(memory, 0)  # frames of the previous video may have been larger
    try:
        _serve(Request.from_fields(fields), memory, channel)
    except OptionError as exc:
        arguments = [exc.field, str(exc.value), exc.expected]
        channel.send("error", type="OptionError", arguments=arguments)
    except VtokError as exc:
        channel.send("error", type=type(exc).__name__, arguments=[str(exc)])
    except Exception as exc:  # a bug, or out of memory: the parent must know
        reason = f"{type(exc).__name__}: {exc}".partition("\n")[0]
        message = f"{fields['path']}: reading failed ({reason})"
        channel.send("error", type="VideoError", arguments=[message])


def main() -> None:
    """Serve requests until the parent ends."""
    channel = Channel()
    lines = io.FileIO(0, closefd=False)  # unbuffered: `wait_for_slot` reads the same pipe
    first = lines.readline()
    if not first:
        return
    start = json.loads(first)
    die_with_parent(start["lifeline"])
    if start["limit"] is not None:
        with contextlib.suppress(OSError, ValueError):  # not all systems can limit private memory
            resource.setrlimit(resource.RLIMIT_DATA, (start["limit"], start["limit"]))
    for line in lines:
        if line.strip():  # skip what is left of the bytes for batches of the last request
            _answer(json.loads(line), start["memory"], channel)


if __name__ == "__main__":
    main()
