"""Optional sections of a code file, which follow its last chunk of codes: times and sound."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import gcd, lcm
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vtok._sound import MAX_PACKETS, Packet, Sound
from vtok._times import MAX_SECONDS
from vtok.codefile.records import PACKED, ByteSource, ChunkHead, Damage, Part
from vtok.errors import CodeFileError

if TYPE_CHECKING:
    from vtok.codefile.reader import CodeFileReader

TIME = b"time"
SOUND = b"soun"
MAX_SECTIONS = 2**16  # of a file
MAX_FRAMES = 2**16  # of a section
NUMBER_BYTES = 8  # at most, 7 bits in each
MAX_TEXT = 2**20  # bytes of the description of sound
MAX_BYTES: dict[bytes, tuple[int, ...]] = {
    TIME: (NUMBER_BYTES * (MAX_FRAMES + 2),),
    SOUND: (MAX_TEXT, 2**32, NUMBER_BYTES * (3 * MAX_PACKETS + 1), 2**32),
}
"""Most bytes of each part of a section."""
MAX_TICKS = 2**53 - 1  # of all frames
MAX_BASE = 2**31 - 1  # numerator and denominator of a time base
COMMON_BASE = Fraction(1, 1_000_000)  # where sections have no simple common time base

Ticks = npt.NDArray[np.int64]


class Section(NamedTuple):
    """Optional chunk: type, frames that it is about, and its parts."""

    kind: bytes
    first_frame: int
    num_frames: int
    parts: tuple[bytes, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the file, head included."""
        return ChunkHead.length(len(self.parts)) + sum(map(len, self.parts))

    def to_bytes(self) -> bytes:
        """Write the chunk."""
        table = tuple(Part(PACKED, len(data), zlib.crc32(data)) for data in self.parts)
        head = ChunkHead(self.kind, self.first_frame, self.num_frames, 0, table)
        return head.to_bytes() + b"".join(self.parts)


def read_section(source: ByteSource, head: ChunkHead) -> Section:
    """Read an optional section of a known kind after its head; raise `Damage` if it is wrong."""
    _check_parts(head.kind, [part.length for part in head.parts])
    parts = []
    for part in head.parts:
        parts.append(source.read(part.length))
        if zlib.crc32(parts[-1]) != part.crc:
            raise Damage(f"an optional section {str(head.kind)[1:]} does not match its CRC")
    return Section(head.kind, head.first_frame, head.num_frames, tuple(parts))


def _check_parts(kind: bytes, lengths: Sequence[int]) -> None:
    most = MAX_BYTES[kind]
    if len(lengths) != len(most) or any(map(int.__gt__, lengths, most)):
        raise Damage(f"an optional section {str(kind)[1:]} has parts of {list(lengths)} bytes")


@dataclass(frozen=True, eq=False)
class FrameDurations:
    """Durations of consecutive frames, the content of `time` sections.

    Attributes:
        first_frame: number of the first of them in the file.
        time_base: seconds in one tick.
        ticks: duration of each frame, int64 `[n]`, at least 1.
    """

    first_frame: int
    time_base: Fraction
    ticks: Ticks

    @property
    def end(self) -> int:
        """Number of the last frame + 1."""
        return self.first_frame + len(self.ticks)

    def to_sections(self) -> Iterator[Section]:
        """Write sections of at most `MAX_FRAMES`."""
        for begin in range(0, len(self.ticks), MAX_FRAMES):
            ticks = self.ticks[begin : begin + MAX_FRAMES]
            base = self.time_base.as_integer_ratio()
            data = write_numbers((*base, *_fold(np.diff(ticks, prepend=0)).tolist()))
            yield Section(TIME, self.first_frame + begin, len(ticks), (data,))

    @classmethod
    def from_section(cls, section: Section) -> FrameDurations:
        """Read a section; raise `Damage` if it is wrong."""
        _check_parts(TIME, list(map(len, section.parts)))
        numbers = read_numbers(section.parts[0])
        if len(numbers) != section.num_frames + 2 or len(numbers) < 3:
            raise Damage("a section of times does not hold as many numbers as it says")
        above, below = numbers[:2].tolist()
        ticks = list(accumulate(_unfold(numbers[2:]).tolist()))  # of any size
        good = 0 < above <= MAX_BASE and 0 < below <= MAX_BASE
        if not good or min(ticks) < 1 or sum(ticks) > MAX_TICKS:
            raise Damage("a section of times holds durations out of range")
        return cls(section.first_frame, Fraction(above, below), np.array(ticks, np.int64))

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON types, as in the manifests of data sets."""
        above, below = self.time_base.as_integer_ratio()
        return {"time_base": f"{above}/{below}", "durations": self.ticks.tolist()}

    @classmethod
    def from_json(cls, value: Any) -> FrameDurations:
        """Convert from a result of `to_json`; the first frame is number 0.

        Raises:
            ValueError: if it is none.
        """
        try:
            base, ticks = str(value["time_base"]), np.array(value["durations"])
        except (TypeError, KeyError) as exc:
            raise ValueError("no time base or durations") from exc
        match = re.fullmatch(r"([1-9]\d{0,9})/([1-9]\d{0,9})", base, re.ASCII)
        if match is None or max(map(int, match.groups())) > MAX_BASE:
            raise ValueError(f"a time base of {base[:40]!r}")
        if ticks.ndim != 1 or ticks.dtype.kind not in "iu" or not len(ticks):
            raise ValueError("durations that are no integers")
        if ticks.min() < 1 or ticks.max() > MAX_TICKS // len(ticks):
            raise ValueError("durations out of range")
        return cls(0, Fraction(base), ticks.astype(np.int64))

    @property
    def starts(self) -> npt.NDArray[np.float64]:
        """Seconds from the first of them to each, `[n]`."""
        ends = np.cumsum(self.ticks).astype(np.float64) * np.float64(self.time_base)
        return np.append(0.0, ends[:-1])

    def between(self, first: int, end: int) -> FrameDurations | None:
        """Return the durations of frames `first` to `end` - 1 in a file that starts with `first`.

        None if there are none.
        """
        begin, stop = max(first, self.first_frame), min(end, self.end)
        if begin >= stop:
            return None
        ticks = self.ticks[begin - self.first_frame : stop - self.first_frame]
        return replace(self, first_frame=begin - first, ticks=ticks)


def check_durations(
    spans: Iterable[FrameDurations], num_frames: int, fps: Fraction
) -> list[FrameDurations]:
    """List the durations of frames in a file.

    Args:
        spans: of the file, in order. Frames that no span covers last 1 / `fps`.
        num_frames: of the file.
        fps: rate of the file.

    Raises:
        Damage: if they overlap or reach beyond the file or `MAX_SECONDS`.
    """
    checked: list[FrameDurations] = []
    end, length = 0, num_frames / fps
    for span in spans:
        if not end <= span.first_frame < span.end <= num_frames:
            raise Damage("sections of times overlap, or are about frames that the file lacks")
        length += span.time_base * int(span.ticks.sum()) - len(span.ticks) / fps
        end = span.end
        checked.append(span)
    if checked and length > MAX_SECONDS:
        raise Damage("sections of times state times out of range")
    return checked


def sound_to_section(sound: Sound) -> Section:
    """Write a block of sound as a section."""
    facts = {
        "channels": sound.channels,
        "codec": sound.codec,
        "extradata": sound.extradata.hex(),
        "sample_rate": sound.sample_rate,
        "time_base": sound.time_base.as_integer_ratio(),
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    numbers, end = [len(sound.packets)], 0
    for packet in sound.packets:
        numbers += [int(_fold(packet.start - end)), packet.duration, len(packet.data)]
        end = packet.end
    data = b"".join(packet.data for packet in sound.packets)
    return Section(SOUND, 0, 0, (text, sound.setup, write_numbers(numbers), data))


def sound_of_section(section: Section) -> Sound:
    """Read a block of sound; raise `Damage` if it is wrong."""
    _check_parts(SOUND, list(map(len, section.parts)))
    text, setup, table, data = section.parts
    numbers = read_numbers(table).tolist()
    rows = list(zip(*[iter(numbers[1:])] * 3, strict=False))
    if numbers[:1] != [len(rows)] or len(numbers) % 3 != 1 or sum(r[2] for r in rows) != len(data):
        raise Damage("a section of sound does not hold the packets that it lists")
    packets: list[Packet] = []
    start = place = 0
    for gap, duration, length in rows:
        start += _unfold(gap)
        packets.append(Packet(start, duration, data[place : place + length]))
        start, place = start + duration, place + length
    try:
        facts = json.loads(text)
        base = Fraction(*map(index, facts["time_base"]))
        extradata = bytes.fromhex(facts["extradata"])
        sizes = facts["sample_rate"], facts["channels"]
        return Sound(facts["codec"], *sizes, base, extradata, setup, tuple(packets)).checked()
    except (ArithmeticError, ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Damage("a section of sound has no valid description") from exc


@dataclass(frozen=True, eq=False)
class FileTimes:
    """Times of the frames of a file.

    Attributes:
        time_base: seconds in one tick.
        frames: numbers of some frames, rising, from 0 to that of all frames. The frames between
            two of them last equally long.
        ticks: time of each of these frames.
    """

    time_base: Fraction
    frames: Ticks
    ticks: Ticks

    def at(self, first: int, end: int) -> Ticks:
        """Return the times of frames `first` to `end` - 1."""
        found = np.interp(np.arange(first, end), self.frames, self.ticks)
        return np.rint(found).astype(np.int64)

    def seconds(self, frame: int) -> Fraction:
        """Return the time of a frame, or of the end, in seconds."""
        return int(self.at(frame, frame + 1)[0]) * self.time_base


def find_times(spans: Sequence[FrameDurations], num_frames: int, fps: Fraction) -> FileTimes | None:
    """Compute when each frame of a file is shown; None if there are no spans.

    Arguments are those of `check_durations`, which has checked the spans.
    """
    if not spans:
        return None
    base, end = _common_base([*(span.time_base for span in spans), 1 / fps]), 0
    frames: list[npt.NDArray[Any]] = [np.zeros(1)]
    steps: list[npt.NDArray[Any]] = [np.zeros(1)]
    for span in [*spans, FrameDurations(num_frames, base, np.zeros(0, np.int64))]:
        if span.first_frame > end:
            frames.append(np.array([span.first_frame]))
            steps.append(np.array([float((span.first_frame - end) / fps / base)]))
        end = span.end
        frames.append(np.arange(span.first_frame, end) + 1)
        steps.append(span.ticks * float(span.time_base / base))
    ticks = np.rint(np.cumsum(np.concatenate(steps)))
    return FileTimes(base, np.concatenate(frames).astype(np.int64), ticks.astype(np.int64))


def find_seconds(reader: CodeFileReader, frames: tuple[int, int]) -> tuple[Fraction, Fraction]:
    """Return the seconds from the start of a file at which some of its frames begin and end."""
    total, fps = reader.index.num_frames, reader.header.transform.fps
    times = find_times(reader.frame_durations(), total, fps)
    if times is None:
        return frames[0] / fps, frames[1] / fps
    return times.seconds(frames[0]), times.seconds(frames[1])


def sound_between(reader: CodeFileReader, frames: tuple[int, int]) -> Iterator[Sound]:
    """Iterate over the sound of a range of frames, first and last + 1, of a file.

    Packets start relative to the first of the frames. Those before and after all frames of the file
    are kept with the first and the last frame.
    """
    begin, end = find_seconds(reader, frames)
    first = begin if frames[0] else None
    last = end if frames[1] < reader.index.num_frames else None
    for block in reader.sound():
        part = block.between(first, last).shifted(-begin)
        if part.packets:
            yield part


def _common_base(bases: Iterable[Fraction]) -> Fraction:
    """Return the longest time base of which all others are multiples, if it is not too short."""
    above, below = 0, 1
    for base in set(bases):
        above, below = gcd(above, base.numerator), lcm(below, base.denominator)
        if below > COMMON_BASE.denominator:
            return COMMON_BASE
    return Fraction(above, below)


def write_numbers(numbers: Iterable[int]) -> bytes:
    """Write numbers of 0 to 2**56 - 1, 7 bits to a byte, the lowest first.

    Raises:
        CodeFileError: if one is larger.
    """
    data = bytearray()
    for number in numbers:
        if number >> 7 * NUMBER_BYTES:
            raise CodeFileError("times of sound or frames are out of range")
        while number > 127:
            data.append(number & 127 | 128)
            number >>= 7
        data.append(number)
    return bytes(data)


def read_numbers(data: bytes) -> Ticks:
    """Read numbers, int64 `[n]`; raise `Damage` unless they take all of `data`."""
    digits = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(digits < 128) + 1
    starts = np.append(0, ends)[: len(ends)]
    lengths = ends - starts
    if (ends[-1] if len(ends) else 0) < len(data) or lengths.max(initial=0) > NUMBER_BYTES:
        raise Damage("a section holds a number that is cut or has too many bytes")
    numbers = np.zeros(len(ends), np.int64)
    for place in range(lengths.max(initial=0)):
        longer = lengths > place
        found = digits[starts[longer] + place].astype(np.int64) & 127
        numbers[longer] |= found << 7 * place
    return numbers


def _fold(number: Any) -> Any:
    """Map 0, -1, 1, -2, 2 ... to 0, 1, 2, 3, 4 ..., for an integer or an array."""
    return 2 * abs(number) - (number < 0)


def _unfold(number: Any) -> Any:
    return (number >> 1) ^ -(number & 1)
