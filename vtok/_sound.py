"""Packets of compressed sound, as they go from a video through a code file to a video."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

from vtok._times import MAX_SECONDS

BLOCK_BYTES = 1 << 20  # of the packets of a block, unless a single one is larger
MAX_PACKETS = 1 << 16  # of a block
MAX_EXTRADATA = 1 << 18  # bytes
MAX_TICK = 2**53 - 1
MAX_NUMBER = 2**31 - 1


class Packet(NamedTuple):
    """Compressed sound of some samples: start and duration in ticks, and the bytes."""

    start: int
    duration: int
    data: bytes

    @property
    def end(self) -> int:
        """Tick after the last sample."""
        return self.start + self.duration


@dataclass(frozen=True)
class Sound:
    """Block of consecutive packets of one stream of sound.

    Attributes:
        codec: ffmpeg's name of the codec, such as "aac".
        sample_rate: samples per second.
        channels: number of channels.
        time_base: seconds in one tick.
        extradata: global header of the codec, perhaps empty.
        setup: NUT file of the first packet of the stream: all parameters of the codec, for ffmpeg.
        packets: rising in time. They start relative to the first frame of the video; those before
            it are below 0.
    """

    codec: str
    sample_rate: int
    channels: int
    time_base: Fraction
    extradata: bytes
    setup: bytes
    packets: tuple[Packet, ...]

    @property
    def kind(self) -> tuple[str, int, int, bytes]:
        """Codec, rate, channels and header, which packets of one stream have in common."""
        return self.codec, self.sample_rate, self.channels, self.extradata

    @property
    def summary(self) -> str:
        """The stream in words."""
        channels = f"{self.channels} channel{'s' * (self.channels != 1)}"
        return f"{self.codec}, {self.sample_rate} Hz, {channels}"

    def checked(self) -> Sound:
        """Return this block, if a code file can hold it.

        Raises:
            ValueError: if not.
        """
        numbers = (self.sample_rate, self.channels, *self.time_base.as_integer_ratio())
        if not all(type(one) is int and 0 < one <= MAX_NUMBER for one in numbers):
            raise ValueError("its rate or its channels are unknown or out of range")
        if not (isinstance(self.codec, str) and re.fullmatch(r"[a-z0-9_]{1,64}", self.codec)):
            raise ValueError("its codec is unknown")
        if len(self.extradata) > MAX_EXTRADATA:
            raise ValueError("the header of its codec is too long")
        most = min(MAX_TICK, int(MAX_SECONDS / self.time_base))
        if any(not -most <= one.start <= one.end <= most for one in self.packets):
            raise ValueError("its time stamps are out of range")
        return self

    def between(self, begin: Fraction | None, end: Fraction | None) -> Sound:
        """Keep the packets that sound between two times in seconds; None for no limit.

        The packet before them is kept as well: a decoder needs it to give the first one.
        """
        first = None if begin is None else round(begin / self.time_base)
        last = None if end is None else round(end / self.time_base)
        kept = (
            packet
            for packet in self.packets
            if (first is None or packet.end + packet.duration > first)
            and (last is None or packet.start < last)
        )
        return replace(self, packets=tuple(kept))

    def shifted(self, seconds: Fraction) -> Sound:
        """Move the packets by a time in seconds."""
        ticks = round(seconds / self.time_base)
        moved = (packet._replace(start=packet.start + ticks) for packet in self.packets)
        return replace(self, packets=tuple(moved))

    def until(self, seconds: Fraction) -> Sound:
        """Keep the packets that end at a time in seconds or less than half a packet after."""
        ticks = seconds / self.time_base
        kept = (one for one in self.packets if one.end - Fraction(one.duration, 2) < ticks)
        return replace(self, packets=tuple(kept))

    def to_message(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return {
            **vars(self),
            "time_base": str(self.time_base),
            "extradata": self.extradata.hex(),
            "setup": self.setup.hex(),
            "packets": [
                (start, duration, base64.b64encode(data).decode())
                for start, duration, data in self.packets
            ],
        }

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Sound:
        """Convert from a result of `to_message`."""
        packets = (
            Packet(start, duration, base64.b64decode(data))
            for start, duration, data in message["packets"]
        )
        return cls(
            **{
                **message,
                "time_base": Fraction(message["time_base"]),
                "extradata": bytes.fromhex(message["extradata"]),
                "setup": bytes.fromhex(message["setup"]),
                "packets": tuple(packets),
            }
        )
