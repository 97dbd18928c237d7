"""Child side of the decoding process: a damaged file may crash or hang it, and nothing else.

Both processes exchange JSON through a connection of `multiprocessing`. The parent sends one request
after another, which names the shared memory, and an empty message for each batch that it has
copied. The child answers with `info`, waits for larger memory if that is too small, and sends
`frames` for each batch in the shared ring, `alive` while it is busy without one, and finally `end`
or `error`. Without shared memory, a batch follows its message through the connection.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from fractions import Fraction
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import av

from vtok.errors import OptionError, VideoError, VtokError
from vtok.video import ffmpeg
from vtok.video.container import Damaged, TimedFrames, describe_damage
from vtok.video.ffmpeg import Watchdog, limit_memory
from vtok.video.frames import (
    NUM_SLOTS,
    Frames,
    frames_per_batch,
    map_ring,
    resample,
    ring_bytes,
)
from vtok.video.sound import Clock, read_sound
from vtok.video.source import MAX_NOTES, Request, Source, find_clock, open_source

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as Connection
else:
    from multiprocessing.connection import Connection

ALIVE_SECONDS = 1.0


class Channel:
    """Messages to the parent, and its answers."""

    def __init__(self, handle: int) -> None:
        self._connection = Connection(handle)
        self._memory: SharedMemory | None = None
        self._memory_bytes = 0
        self._last_sent = time.monotonic()
        self._watchdog = Watchdog()

    def receive(self) -> bytes:
        """Wait for a message; ends this process if the parent has ended."""
        try:
            while not self._connection.poll(ffmpeg.HANG_SECONDS / 2):  # the parent may be slow
                self._watchdog.progress()
            message = self._connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        self._watchdog.progress()
        return message

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message; ends this process if the parent has ended."""
        self._send(json.dumps({"kind": kind, **fields}).encode())

    def alive(self) -> None:
        """Send a heartbeat, at most once a second."""
        if time.monotonic() - self._last_sent > ALIVE_SECONDS:
            self.send("alive")

    def open_memory(self, fields: dict[str, Any]) -> None:
        """Open the shared memory that a message of the parent names."""
        name = fields["memory"]
        if name != (self._memory and self._memory.name):
            if self._memory is not None:
                with suppress(BufferError):  # an array still refers to it
                    self._memory.close()
            self._memory = None if name is None else _open_memory(name)
        self._memory_bytes = fields["memory_bytes"]

    def ring(self, batch_frames: int, height: int, width: int) -> Frames:
        """Return the shared ring of batches, or a private one if there is no shared memory."""
        num_bytes = ring_bytes(batch_frames, height, width)
        if num_bytes > self._memory_bytes:
            self.open_memory(json.loads(self.receive()))
        buffer = None if self._memory is None else self._memory.buf
        return map_ring(buffer, batch_frames, height, width)

    def send_batch(self, ring: Frames, slot: int, count: int) -> None:
        """Send a batch that is in the ring."""
        self.send("frames", slot=slot, count=count)
        if self._memory is None:
            self._watchdog.pause()  # the parent may be slow
            self._send(ring[slot, :count].tobytes())

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError:
            os._exit(0)
        self._last_sent = time.monotonic()
        self._watchdog.progress()


def _open_memory(name: str) -> SharedMemory:
    """Open shared memory of the parent, which removes it."""
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False)
    resource_tracker.register = lambda name, rtype: None  # a second tracker would remove it too
    return SharedMemory(name)


def end_with_parent() -> None:
    """End this process when standard input, which the parent holds open, closes."""

    def wait() -> None:
        with suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class Selection:
    """Intact frames of the requested part of a video.

    Attributes:
        times: seconds from the first frame of the video to each frame so far.
        end: seconds at which the part ends; None for the end of the video.
        notes: remarks about damage.

    Raises:
        VideoError: The part is damaged and the request allows no damage.
    """

    def __init__(self, source: Source, request: Request, channel: Channel) -> None:
        self._source, self._request, self._channel = source, request, channel
        self.times: list[Fraction] = []
        self.end = source.end
        self.notes: list[str] = []

    def __iter__(self) -> TimedFrames:
        start, end = self._source.start, self._source.end
        for seconds, picture in self._source.frames:
            self._channel.alive()
            if end is not None and seconds >= end:
                if isinstance(picture, Damaged):  # packets are not in the order of their frames
                    continue
                return
            if seconds < start:
                continue
            if isinstance(picture, Damaged):
                if not self._accepts(picture):
                    self.end = seconds
                    return
                continue
            self.times.append(seconds)
            yield seconds, picture

    def _accepts(self, damage: Damaged) -> bool:
        """Return False to end the video; raises a VideoError if no damage is allowed."""
        count = len(self.times)
        text, choice = describe_damage(count, damage.reason), self._request.reading.on_damage
        if choice == "fail":
            raise VideoError(
                f"{self._request.path}: {text}; `on_damage` skip leaves out what is damaged, "
                "`on_damage` stop ends before it"
            )
        if choice == "stop":
            self.notes.append(f"ends early: {text}")
        elif not self.notes:
            self.notes.append(
                f"damaged frames are left out, the first after {count} ({damage.reason})"
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
                channel.receive()
            ring[batches % NUM_SLOTS, filled] = last[1]
            filled += 1
            if filled == ring.shape[1]:
                channel.send_batch(ring, batches % NUM_SLOTS, filled)
                batches, filled = batches + 1, 0
    finally:
        if filled:
            channel.send_batch(ring, batches % NUM_SLOTS, filled)


def _serve(request: Request, channel: Channel) -> None:
    """Open the video and send it."""
    source = open_source(request, channel.alive)
    batch_frames = frames_per_batch(source.width, source.height)
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
    ring = channel.ring(batch_frames, source.height, source.width)
    timed = Selection(source, request, channel)
    frames: Iterable[Callable[[], Frames]] = (picture for _, picture in timed)
    if request.fps is not None:
        length = source.timeline.duration_seconds
        frames = resample(timed, request.fps, min(source.end or length, length))
    _send_frames(frames, ring, channel)
    changes = [f"the size changes to {size} at frame {at}" for at, size in source.changes]
    missing = max(0, source.expected() - len(timed.times))
    uneven = None if request.fps else _uneven_durations(source, timed.times)
    clock = find_clock(source, timed.times, timed.end)
    channel.send(
        "end",
        missing=missing,
        notes=timed.notes + changes[:MAX_NOTES],
        durations=uneven,
        clock=clock and [str(clock.start), clock.end and str(clock.end), clock.is_first],
    )


def _serve_sound(fields: dict[str, Any], channel: Channel) -> None:
    """Send the sound of a part of a video, block by block."""
    start, end, is_first = fields["clock"]
    clock = Clock(Fraction(start), end and Fraction(end), is_first)
    notes: list[str] = []
    try:
        for block in read_sound(Path(fields["path"]), clock, channel.alive, notes):
            channel.send("sound", block=block.to_message())
    except (av.error.FFmpegError, ValueError) as exc:
        notes.append(f"the sound is left out or cut: it cannot be read ({exc})")
    channel.send("end", notes=notes)


def _uneven_durations(source: Source, times: list[Fraction]) -> dict[str, Any] | None:
    """Return the time base and the durations of frames; None if they have an even rate."""
    length = source.timeline.duration_seconds
    base, ticks = source.timeline.durations(times, min(source.end or length, length))
    if all(count * base * source.timeline.fps == 1 for count in set(ticks)):
        return None
    return {"time_base": str(base), "ticks": ticks}


def _answer(fields: dict[str, Any], channel: Channel) -> None:
    """Serve one request; every failure becomes a message."""
    try:
        channel.open_memory(fields)
        if "clock" in fields:
            _serve_sound(fields, channel)
        else:
            _serve(Request.from_fields(fields), channel)
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
    """Serve requests until the parent ends.

    Arguments of the command: handle of the connection; memory limit in bytes, 0 for none.
    """
    handle, limit = map(int, sys.argv[1:])
    end_with_parent()
    if limit:
        limit_memory(limit)
    channel = Channel(handle)
    while True:
        if message := channel.receive():  # empty ones acknowledge batches of the last video
            _answer(json.loads(message), channel)


if __name__ == "__main__":
    main()
