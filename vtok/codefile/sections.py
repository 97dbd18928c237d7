"""Optional sections of a code file, which follow its last chunk of codes: times and sound."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from vtok._sound import Packet, Sound
from vtok.codefile.records import PACKED, ByteSource, ChunkHead, Damage, Part

if TYPE_CHECKING:
    from vtok.codefile.reader import CodeFileReader

TIME = b"time"
SOUND = b"soun"
KINDS = (TIME, SOUND)
MAX_TICKS = 2**53 - 1  # of one frame
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
    """Read an optional section after its head; raise `Damage` if it is wrong."""
    parts = []
    for part in head.parts:
        parts.append(source.read(part.length))
        if zlib.crc32(parts[-1]) != part.crc:
            raise Damage(f"an optional section {str(head.kind)[1:]} does not match its CRC")
    return Section(head.kind, head.first_frame, head.num_frames, tuple(parts))


@dataclass(frozen=True, eq=False)
class FrameDurations:
    """Durations of consecutive frames, the content of a `time` section.

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

    def to_section(self) -> Section:
        """Write the section."""
        ticks = self.ticks.tolist()
        steps = (_fold(after - before) for before, after in pairwise([0, *ticks]))
        base = (self.time_base.numerator, self.time_base.denominator)
        data = write_numbers((*base, *steps))
        return Section(TIME, self.first_frame, len(ticks), (data,))

    @classmethod
    def from_section(cls, section: Section) -> FrameDurations:
        """Read a section; raise `Damage` if it is wrong."""
        if len(section.parts) != 1:
            raise Damage(f"a section of times has {len(section.parts)} parts, not 1")
        numbers = read_numbers(section.parts[0], section.num_frames + 2)
        above, below = numbers[:2]
        ticks = list(accumulate(map(_unfold, numbers[2:])))
        good = 0 < above <= MAX_BASE and 0 < below <= MAX_BASE and ticks
        if not good or min(ticks) < 1 or max(ticks) > MAX_TICKS or sum(ticks) > MAX_TICKS:
            raise Damage("a section of times holds durations out of range")
        return cls(section.first_frame, Fraction(above, below), np.array(ticks, np.int64))

    def between(self, first: int, end: int) -> FrameDurations | None:
        """Return the durations of frames `first` to `end` - 1 in a file that starts with `first`.

        None if there are none.
        """
        begin, stop = max(first, self.first_frame), min(end, self.end)
        if begin >= stop:
            return None
        ticks = self.ticks[begin - self.first_frame : stop - self.first_frame]
        return replace(self, first_frame=begin - first, ticks=ticks)


def sound_to_section(sound: Sound) -> Section:
    """Write a block of sound as a section."""
    facts = {
        "channels": sound.channels,
        "codec": sound.codec,
        "extradata": sound.extradata.hex(),
        "sample_rate": sound.sample_rate,
        "time_base": [sound.time_base.numerator, sound.time_base.denominator],
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    numbers, end = [len(sound.packets)], 0
    for packet in sound.packets:
        numbers += [_fold(packet.start - end), packet.duration, len(packet.data)]
        end = packet.end
    data = b"".join(packet.data for packet in sound.packets)
    return Section(SOUND, 0, 0, (text, sound.setup, write_numbers(numbers), data))


def sound_of_section(section: Section) -> Sound:
    """Read a block of sound; raise `Damage` if it is wrong."""
    if len(section.parts) != 4:
        raise Damage(f"a section of sound has {len(section.parts)} parts, not 4")
    text, setup, table, data = section.parts
    try:
        facts = json.loads(text)
        rate, channels = facts["sample_rate"], facts["channels"]
        above, below = facts["time_base"]
        codec, extradata = facts["codec"], bytes.fromhex(facts["extradata"])
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Damage("a section of sound has no valid description") from exc
    sizes = (rate, channels, above, below)
    good = all(isinstance(one, int) and 0 < one <= MAX_BASE for one in sizes)
    if not good or not re.fullmatch(r"[a-z0-9_]{1,64}", str(codec)):
        raise Damage("a section of sound has no valid description")
    numbers = read_numbers(table, None)
    rows = [numbers[place : place + 3] for place in range(1, len(numbers), 3)]
    lengths = [row[-1] for row in rows]
    if not numbers or len(numbers) != 1 + 3 * numbers[0] or sum(lengths) != len(data):
        raise Damage("a section of sound does not hold the packets that it lists")
    packets: list[Packet] = []
    start = place = 0
    for gap, duration, length in rows:
        start += _unfold(gap)
        packets.append(Packet(start, duration, data[place : place + length]))
        start, place = start + duration, place + length
    base = Fraction(above, below)
    return Sound(codec, rate, channels, base, extradata, setup, tuple(packets))


def find_times(
    spans: Sequence[FrameDurations], num_frames: int, fps: Fraction
) -> tuple[Fraction, Ticks] | None:
    """Compute when each frame of a file is shown.

    Args:
        spans: of the file. Frames that no span covers last 1 / `fps`.
        num_frames: of the file.
        fps: rate of the file.

    Returns:
        Seconds in one tick, and the times of the frames and of the end, `[num_frames + 1]`, from
        the first frame; None if there are no spans.
    """
    spans = sorted(spans, key=lambda span: span.first_frame)
    spans = [span for span in spans if span.end <= num_frames]
    if not spans:
        return None
    base = _common_base([*(span.time_base for span in spans), 1 / fps])
    ticks = np.full(num_frames, 1 / fps / base, np.float64)
    for span in spans:
        ticks[span.first_frame : span.end] = span.ticks * float(span.time_base / base)
    return base, np.rint(np.append(0, np.cumsum(ticks))).astype(np.int64)


def find_seconds(reader: CodeFileReader, frames: tuple[int, int]) -> tuple[Fraction, Fraction]:
    """Return the seconds from the start of a file at which some of its frames begin and end."""
    total, fps = reader.index.num_frames, reader.header.transform.fps
    times = find_times(reader.frame_durations(), total, fps)
    if times is None:
        return frames[0] / fps, frames[1] / fps
    begin, end = (int(times[1][frame]) * times[0] for frame in frames)
    return begin, end


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


def _common_base(bases: Sequence[Fraction]) -> Fraction:
    """Return the longest time base of which all others are multiples, if it is not too short."""
    below = int(np.lcm.reduce([base.denominator for base in bases], dtype=object))
    above = int(np.gcd.reduce([int(base * below) for base in bases], dtype=object))
    common = Fraction(above, below)
    simple = common.denominator <= 1_000_000 and common.numerator <= MAX_BASE
    return common if simple else COMMON_BASE


def write_numbers(numbers: Iterable[int]) -> bytes:
    """Write numbers of 0 or more, 7 bits to a byte, the lowest first."""
    data = bytearray()
    for number in numbers:
        while number > 127:
            data.append(number & 127 | 128)
            number >>= 7
        data.append(number)
    return bytes(data)


def read_numbers(data: bytes, count: int | None) -> list[int]:
    """Read `count` numbers, or any, of at most 56 bits that take all of `data`.

    Raises `Damage` if they do not.
    """
    numbers, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
        elif shift > 49:
            raise Damage("a section holds a number of too many bytes")
    if shift or count not in (None, len(numbers)):
        raise Damage("a section does not hold as many numbers as it says")
    return numbers


def _fold(number: int) -> int:
    """Map 0, -1, 1, -2, 2 ... to 0, 1, 2, 3, 4 ..."""
    return 2 * number if number >= 0 else -2 * number - 1


def _unfold(number: int) -> int:
    return -(number + 1 >> 1) if number & 1 else number >> 1
