"""Give a written video the times of its frames and a sound, by copying packets to another file.

The packets of sound come from files of unknown origin, so they are written by a child process: run
as a module, this file reads lines of JSON from standard input, the job and then blocks of sound.
"""

from __future__ import annotations

import heapq
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.packet import Packet

from vtok._sound import Sound
from vtok.video.ffmpeg import Watchdog, child_environment, describe_end, limit_memory
from vtok.video.timeline import Ticks

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}  # an mp4 that can be written to a pipe
INDEX_FIRST = {"movflags": "+faststart"}  # players start at once
MEMORY_BYTES = 2 << 30  # of the child


@dataclass(frozen=True)
class FrameTimes:
    """Times of the frames of a video.

    Attributes:
        time_base: seconds in one tick.
        ticks: time of each frame and of the end, rising, `[n + 1]`.
    """

    time_base: Fraction
    ticks: Ticks


def can_hold(container: str, codec: str) -> bool:
    """Return True if files of a container, by ffmpeg's name, can hold a sound of this codec."""
    if container in ("gif", "yuv4mpegpipe"):
        return False
    with suppress(ValueError, av.error.FFmpegError), av.open(io.BytesIO(), "w", container) as made:
        return codec in made.supported_codecs
    return False


def remux(
    source: Path,
    output: Path,
    container: str,
    times: FrameTimes,
    sound: Iterable[Sound] = (),
    *,
    stream: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> None:
    """Copy a video to a file with other times and a sound.

    Args:
        source: video.
        output: file to write.
        container: ffmpeg's name of the container.
        times: new times of its frames.
        sound: blocks of packets, from the first frame on.
        stream: write an mp4 that can be read front to back.
        memory_bytes: limit of the process that copies a sound; not all systems enforce it.

    Raises:
        OSError, ValueError: ffmpeg cannot write them.
    """
    blocks = iter(sound)
    first = next(blocks, None)
    if first is None:
        _copy(source, output, container, times, iter(()), stream)
        return
    job = {
        "source": str(source),
        "output": str(output),
        "container": container,
        "time_base": str(times.time_base),
        "ticks": times.ticks.tolist(),
        "stream": stream,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "vtok.video.mux", str(memory_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with suppress(BrokenPipeError):
                for message in chain([job], (one.to_message() for one in chain([first], blocks))):
                    child.stdin.write(json.dumps(message) + "\n")
                child.stdin.close()
            reason = child.stdout.read().strip()
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise ValueError(reason or describe_end("the muxer", child.returncode))


def _copy(
    source: Path,
    output: Path,
    container: str,
    times: FrameTimes,
    sound: Iterator[Sound],
    stream: bool,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Copy the packets of a video and a sound to a file, by time."""
    options = (FRAGMENTED if stream else INDEX_FIRST) if container in ("mp4", "mov") else {}
    first = next(sound, None)
    with ExitStack() as stack:
        given = stack.enter_context(av.open(source))
        made = stack.enter_context(av.open(output, "w", container, options=options))
        kept = made.add_stream_from_template(given.streams.video[0])
        kept.time_base = times.time_base
        packets = _video_packets(given, kept, times, _shown_order(source))
        if first is not None:
            setup = stack.enter_context(av.open(io.BytesIO(first.setup), format="nut"))
            if not setup.streams.audio or setup.streams.audio[0].codec_context is None:
                raise ValueError("the set-up of the sound is damaged")
            heard = made.add_stream_from_template(setup.streams.audio[0])
            heard.time_base = first.time_base
            packets = heapq.merge(
                packets, _sound_packets(chain([first], sound), heard), key=lambda pair: pair[0]
            )
        for _, packet in packets:
            on_progress()
            made.mux(packet)


def measure(path: Path) -> tuple[int, int, int]:
    """Return frames, width and height of a video that was just written.

    Raises:
        OSError, ValueError: It is no video, or cut.
    """
    with av.open(path) as video:
        stream = video.streams.video[0]
        frames = sum(1 for packet in video.demux(stream) if packet.size)
        return frames, stream.codec_context.width, stream.codec_context.height


def _video_packets(
    given: Any, kept: Any, times: FrameTimes, order: Ticks
) -> Iterator[tuple[Fraction, Any]]:
    """Yield packets with the times of their frames, and the seconds at which they are decoded."""
    delay, ticks = int((np.arange(len(order)) - order).max(initial=0)), times.ticks.tolist()
    packets = (packet for packet in given.demux(given.streams.video[0]) if packet.size)
    for number, (packet, place) in enumerate(zip(packets, order.tolist(), strict=True)):
        decoded = number - delay
        packet.time_base, packet.stream = times.time_base, kept
        packet.pts = ticks[place]
        packet.dts = ticks[decoded] if decoded >= 0 else ticks[0] + decoded
        packet.duration = ticks[place + 1] - ticks[place]
        yield packet.dts * times.time_base, packet


def _sound_packets(sound: Iterable[Sound], heard: Any) -> Iterator[tuple[Fraction, Any]]:
    """Yield packets of sound, and the seconds at which they start."""
    for block in sound:
        for start, duration, data in block.packets:
            packet = Packet(data)
            packet.time_base, packet.stream = block.time_base, heard
            packet.pts = packet.dts = start
            packet.duration, packet.is_keyframe = duration, True
            yield start * block.time_base, packet


def _shown_order(source: Path) -> Ticks:
    """Return the number of the frame of each packet."""
    with av.open(source) as given:
        shown = [packet.pts for packet in given.demux(given.streams.video[0]) if packet.size]
    order: Ticks = np.argsort(np.argsort(shown, kind="stable"))
    return order


def main() -> None:
    """Do the job that standard input describes; the reason of a failure goes to standard output.

    Argument of the command: memory limit in bytes.
    """
    limit_memory(int(sys.argv[1]))
    watchdog = Watchdog()
    watchdog.progress()
    lines = (json.loads(line) for line in sys.stdin)
    job = next(lines)
    times = FrameTimes(Fraction(job["time_base"]), np.array(job["ticks"], np.int64))
    source, output = Path(job["source"]), Path(job["output"])
    av.logging.set_level(None)
    try:
        sound = map(Sound.from_message, lines)
        _copy(source, output, job["container"], times, sound, job["stream"], watchdog.progress)
    except Exception as exc:
        print(f"{type(exc).__name__}: {exc}".partition("\n")[0])  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    main()
