"""The child process that decodes: a damaged file may crash or hang it, and nothing else.

It reads lines of JSON from its standard input: how it is to run, then one request after another,
each followed by a byte for each batch that the parent has taken. For each request it writes lines
of JSON to its standard output: `info` once, `frames` for each batch in the shared ring, `alive`
while it is busy without one, and `end` or `error` at last.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import mmap
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vtok.errors import VtokError
from vtok.video.frames import Frames, resample
from vtok.video.source import Request, Source, open_source

NUM_SLOTS = 4
"""Batches that the writer may be ahead."""
BATCH_FRAMES = 16
"""Most frames in a batch."""
BATCH_BYTES = 8 * 2**20
"""Most bytes in a batch, but for one frame alone."""


@dataclass(frozen=True)
class RingShape:
    """Sizes of a ring of batches, [num_slots, batch_frames, height, width, 3]."""

    batch_frames: int
    """Frames in a full batch."""
    height: int
    """Height of a frame in pixels."""
    width: int
    """Width of a frame in pixels."""

    @property
    def dimensions(self) -> tuple[int, int, int, int, int]:
        """Shape of the whole ring as an array."""
        return NUM_SLOTS, self.batch_frames, self.height, self.width, 3


def ring_shape(width: int, height: int) -> RingShape:
    """Choose how many frames of this size make a batch."""
    fitting = BATCH_BYTES // (width * height * 3)
    return RingShape(min(BATCH_FRAMES, max(1, fitting)), height, width)


def create_memory() -> int:
    """Make an empty piece of memory without a name; returns its file descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vtok-frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def map_ring(descriptor: int, shape: RingShape) -> Frames:
    """Map a ring into this process, growing the memory to its size where needed.

    Returns:
        uint8 [num_slots, batch_frames, height, width, 3], shared; unmapped with its last use.
    """
    num_bytes = int(np.prod(shape.dimensions))
    if os.fstat(descriptor).st_size < num_bytes:
        os.ftruncate(descriptor, num_bytes)
    return np.frombuffer(mmap.mmap(descriptor, num_bytes), np.uint8).reshape(shape.dimensions)


ALIVE_SECONDS = 1.0


class Channel:
    """Messages to the parent, and its answers."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)  # whatever a library prints must not be taken for a message
        self._last_sent = time.monotonic()

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message; the parent being gone ends this process."""
        line = json.dumps({"kind": kind, **fields}) + "\n"
        os.write(self._out, line.encode())
        self._last_sent = time.monotonic()

    def alive(self) -> None:
        """Tell the parent now and then that work goes on."""
        if time.monotonic() - self._last_sent > ALIVE_SECONDS:
            self.send("alive")

    def wait_for_slot(self) -> None:
        """Wait until the parent has taken a batch; the parent being gone ends this process."""
        if not os.read(0, 1):
            os._exit(0)


def die_with_parent(lifeline: int) -> None:
    """Have the system end this process and its children when the parent's end of a pipe closes.

    The kernel sends SIGIO to the process group and the default action ends it, even while a
    decoder hangs with the interpreter lock held, when no Python code could run.

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


def select(source: Source, request: Request, channel: Channel) -> Iterator[tuple[Fraction, Frames]]:
    """Take the frames from the requested start to the requested end."""
    end = None if request.duration is None else request.start + request.duration
    for seconds, frame in source.frames:
        channel.alive()
        if end is not None and seconds >= end:
            return
        if seconds >= request.start:
            yield seconds, frame


def send_frames(frames: Iterator[Frames], memory: int, shape: RingShape, channel: Channel) -> None:
    """Send frames through the ring, batch by batch, also those before an error."""
    ring = map_ring(memory, shape)
    batches = filled = 0
    try:
        for frame in frames:
            if filled == 0 and batches >= NUM_SLOTS:
                channel.wait_for_slot()
            ring[batches % NUM_SLOTS, filled] = frame
            filled += 1
            if filled == shape.batch_frames:
                channel.send("frames", slot=batches % NUM_SLOTS, count=filled)
                batches, filled = batches + 1, 0
    finally:
        if filled:
            channel.send("frames", slot=batches % NUM_SLOTS, count=filled)


def serve(request: Request, memory: int, channel: Channel) -> None:
    """Open the video and send it."""
    source = open_source(request, channel.alive)
    shape = ring_shape(source.width, source.height)
    map_ring(memory, shape)  # so that the memory has its size before the parent maps it
    fps = request.fps or source.info.fps
    channel.send(
        "info",
        info=source.info_fields(),
        fps=str(fps),
        width=source.width,
        height=source.height,
        batch_frames=shape.batch_frames,
    )
    timed = select(source, request, channel)
    frames: Iterator[Frames] = (frame for _, frame in timed)
    if request.fps is not None:
        frames = resample(timed, request.fps, source.last_seconds)
    send_frames(frames, memory, shape, channel)
    channel.send("end")


def limit_memory(num_bytes: int) -> None:
    """Bound the memory of this process and of each one it starts, apart from what is shared.

    Where the system knows no such limit, nothing happens.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def answer(fields: dict[str, Any], memory: int, channel: Channel) -> None:
    """Serve one request; every failure becomes a message."""
    os.ftruncate(memory, 0)  # frames of the video before may have been larger
    try:
        serve(Request.from_fields(fields), memory, channel)
    except VtokError as exc:
        channel.send("error", type=type(exc).__name__, message=str(exc))
    except Exception as exc:  # a bug or an exhausted machine: the parent must hear of it
        reason = f"{type(exc).__name__}: {exc}".partition("\n")[0]
        message = f"{fields['path']}: reading failed ({reason})"
        channel.send("error", type="VideoError", message=message)


def main() -> None:
    """Serve requests until the parent is gone."""
    channel = Channel()
    lines = io.FileIO(0, closefd=False)  # unbuffered: `wait_for_slot` reads the same pipe
    first = lines.readline()
    if not first:
        return
    start = json.loads(first)
    die_with_parent(start["lifeline"])
    if start["limit"] is not None:
        limit_memory(start["limit"])
    for line in lines:
        if line.strip():  # what is left of the bytes for the batches of the last request
            answer(json.loads(line), start["memory"], channel)


if __name__ == "__main__":
    main()
