"""Sound of a video file: its packets, without decoding them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.packet import Packet as AvPacket

from vtok._sound import BLOCK_BYTES, MAX_PACKETS, Packet, Sound
from vtok.video.container import ALIVE_EVERY, SEEK_MARGIN, SEEKABLE, open_container


class Clock(NamedTuple):
    """Part of a video in the time of its file, in seconds.

    Attributes:
        start: time stamp of the first frame that was read.
        end: time stamp at which the last one ends; None for the end of the file.
        is_first: True if that frame is the first of the file.
    """

    start: Fraction
    end: Fraction | None
    is_first: bool


def read_sound(
    path: Path, clock: Clock, on_progress: Callable[[], None], notes: list[str]
) -> Iterator[Sound]:
    """Read the packets of the first stream of sound of a part of a video.

    Args:
        path: An existing, regular file.
        clock: The part.
        on_progress: Called repeatedly.
        notes: Receives remarks about what is left out.

    Yields:
        Blocks in order; none if the file has no sound.

    Raises:
        ValueError: a code file cannot hold the sound.
    """
    with open_container(path) as container:
        streams = container.streams.audio
        if not streams:
            return
        if len(streams) > 1:
            notes.append(f"has {len(streams)} streams of sound, the first is kept")
        stream = streams[0]
        if stream.codec_context is None:
            notes.append("the sound is left out: its codec is unknown")
            return
        seek = clock.start - SEEK_MARGIN
        if seek > 0 and container.format.name in SEEKABLE:
            container.seek(int(seek / stream.time_base), stream=stream)
        begin = None if clock.is_first else clock.start
        empty: Sound | None = None
        held: list[Packet] = []
        size = 0
        for packet in _packets(container, stream, on_progress):
            if empty is None:
                empty = _describe(stream, packet)
            held.append(packet)
            size += len(packet.data)
            if size >= BLOCK_BYTES or len(held) == MAX_PACKETS:
                yield from _cut(empty, held, begin, clock)
                if clock.end is not None and packet.start * stream.time_base > clock.end:
                    return
                held, size = [], 0
        if empty is not None:
            yield from _cut(empty, held, begin, clock)


def _cut(empty: Sound, held: list[Packet], begin: Fraction | None, clock: Clock) -> Iterator[Sound]:
    """Yield a block of the packets in a part, relative to its start, unless it is empty."""
    found = replace(empty, packets=tuple(held)).between(begin, clock.end)
    if found.packets:
        yield found.shifted(-clock.start).checked()


def _packets(container: Any, stream: Any, on_progress: Callable[[], None]) -> Iterator[Packet]:
    end = 0  # of the packet before
    for number, packet in enumerate(container.demux(stream)):
        if number % ALIVE_EVERY == 0:
            on_progress()
        if packet.size:
            start = end if packet.pts is None else packet.pts
            found = Packet(start, max(0, packet.duration or 0), bytes(packet))
            end = found.end
            yield found


def _describe(stream: Any, first: Packet) -> Sound:
    """Make an empty block of a stream, from its first packet."""
    context, buffer = stream.codec_context, io.BytesIO()
    with av.open(buffer, "w", "nut") as made:
        copy = made.add_stream_from_template(stream)
        packet = AvPacket(first.data)
        packet.time_base, packet.pts, packet.dts = stream.time_base, 0, 0
        packet.duration, packet.stream = first.duration, copy
        made.mux(packet)
    return Sound(
        codec=context.codec.canonical_name,
        sample_rate=context.sample_rate,
        channels=context.layout.nb_channels,
        time_base=Fraction(stream.time_base),
        extradata=context.extradata or b"",
        setup=buffer.getvalue(),
        packets=(),
    )
