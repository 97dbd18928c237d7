"""The index of a video file: what its header states, and when each of its frames is shown.

ffmpeg copies the packets of the first video stream, without decoding, to a list of their time
stamps. That gives the exact count, also of clips that an editor cut without re-encoding, where
packets before the cut are marked to be decoded but not shown.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from vtok.errors import VideoError
from vtok.video.ffmpeg import QUIET, LogLine, ffmpeg_path, input_arguments, parse_log_line
from vtok.video.frames import MAX_PIXELS, Timeline, find_timeline

DISCARD = 0x4
"""Packet flag of ffmpeg: decode, but do not show."""
DAMAGE = ("partial file", "File ended prematurely", "Packet corrupt")
"""What demuxers log where a file ends before its own index says so."""
ALIVE_EVERY = 64
"""Packets between two calls of the progress function."""


@dataclass(frozen=True)
class VideoIndex:
    """One video file, as far as it is known without decoding it."""

    container: str
    """ffmpeg's name of the container, such as "mov,mp4,m4a,3gp,3g2,mj2"."""
    width: int
    """Width in pixels as shown, after rotation."""
    height: int
    """Height in pixels as shown, after rotation."""
    rotation: int
    """Degrees clockwise from the stored picture to the shown one: 0, 90, 180 or 270."""
    codec: str
    """Name of the codec."""
    num_video_streams: int
    """Video streams in the file; the first one is read."""
    timeline: Timeline
    """Times of the shown frames."""
    damage: str | None
    """Why the file looks cut, in the words of ffmpeg; None where it does not."""


@dataclass
class _Header:
    """What the log of ffmpeg states about its input."""

    container: str = ""
    streams: dict[str, str] = field(default_factory=dict)
    stated_fps: Fraction | None = None
    rotation: int = 0
    damage: str | None = None
    errors: list[LogLine] = field(default_factory=list)
    misdetected: bool = False

    def count(self, kind: str) -> int:
        """Count streams of one kind: "Video", "Audio" or "Picture" (a cover)."""
        return list(self.streams.values()).count(kind)


def read_index(path: Path, on_progress: Callable[[], None] = lambda: None) -> VideoIndex:
    """Read the index of a video file.

    Args:
        path: An existing, regular file.
        on_progress: Called now and then, to show that a long file is still being read.

    Raises:
        VideoError: The file holds no video that ffmpeg knows.
    """
    copy = ["-map", "0:V:0", "-c", "copy", "-f", "framecrc", "pipe:1"]
    command = [ffmpeg_path(), *QUIET, *input_arguments(path), *copy]
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
            assert process.stdout is not None
            packets = _read_packets(process.stdout, on_progress)
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    if process.returncode < 0:
        crash = signal.Signals(-process.returncode).name
        raise VideoError(f"{path}: ffmpeg crashed while opening it ({crash})")
    header = _parse_header(map(parse_log_line, lines))
    if not header.count("Video"):
        raise VideoError(f"{path}: {_why_no_video(header)}")
    if not packets.ticks:
        last = f" ({header.errors[-1].text})" if header.errors else ""
        raise VideoError(f"{path}: no frames in the video stream{last}")
    return _make_index(path, header, packets)


@dataclass
class _Packets:
    """The shown packets of a stream, and what the listing says about it."""

    stated: dict[str, str] = field(default_factory=dict)
    ticks: array[int] = field(default_factory=lambda: array("q"))
    durations: array[int] = field(default_factory=lambda: array("q"))


def _read_packets(listing: IO[bytes], on_progress: Callable[[], None]) -> _Packets:
    """Parse lines of stream, dts, pts, duration, size, checksum and marked further fields."""
    packets = _Packets()
    for number, line in enumerate(listing):
        if number % ALIVE_EVERY == 0:
            on_progress()
        if line.startswith(b"#"):  # such as `#dimensions 0: 64x48`
            key, _, value = line.decode(errors="replace").strip().partition(" 0: ")
            packets.stated[key] = value
            continue
        columns = line.split(b",")
        flags = [int(text.strip()[2:], 16) for text in columns[6:] if text.strip()[:2] == b"F="]
        if not (flags and flags[0] & DISCARD):
            packets.ticks.append(int(columns[2]))
            packets.durations.append(int(columns[3]))
    return packets


def _parse_header(lines: Iterable[LogLine]) -> _Header:
    """Collect what the log states about the input, up to where the output begins."""
    header, in_input = _Header(), True
    for line in lines:
        header.misdetected |= "misdetection possible" in line.text
        if any(words in line.text for words in DAMAGE):
            header.damage = header.damage or line.text
        if line.level in ("error", "fatal"):
            header.errors.append(line)
        in_input &= not line.text.startswith("Output #0")
        if in_input and not line.source:
            _parse_input_line(line.text, header)
    if header.container == "mpegts":
        header.damage = None  # broadcast streams are cut anywhere, and whole all the same
    return header


def _parse_input_line(text: str, header: _Header) -> None:
    """Take one line such as `  Stream #0:0(eng): Video: h264 (High), yuv420p, 64x48, 30 fps`."""
    if match := re.match(r"Input #0, (\S+), from ", text):
        header.container = match[1]
    elif match := re.match(r"\s+Stream #0:([0-9]+)\S*: (\w+): (.*)", text):
        is_picture = match[3].endswith("(attached pic)")
        header.streams[match[1]] = "Picture" if is_picture else match[2]
        rate = re.search(r", ([0-9.]+) fps", match[3])
        if rate and float(rate[1]) and header.count("Video") == 1:
            header.stated_fps = header.stated_fps or Fraction(rate[1])
    elif match := re.match(r"(?i)\s+Display ?Matrix: rotation of (-?[0-9.]+) degrees", text):
        in_first_video = [*header.streams.values()].count("Video") == 1
        if in_first_video and [*header.streams.values()][-1] == "Video":
            header.rotation = round(-float(match[1]) / 90) * 90 % 360


def _why_no_video(header: _Header) -> str:
    """Say in a few words why a file has no video stream."""
    if header.count("Picture"):
        return "no video stream (audio with a cover picture)"
    if header.count("Audio"):
        return "no video stream (audio only)"
    reasons = [line.text for line in header.errors if line.source]
    if header.misdetected or not reasons:
        return "not a video file"
    if "moov atom not found" in reasons[0]:
        return "cut short: it ends before its index (moov atom not found), no frame can be read"
    return f"not a readable video file ({reasons[0].removeprefix('Error opening input: ')})"


def _make_index(path: Path, header: _Header, packets: _Packets) -> VideoIndex:
    """Put header and packets together, checking what the header claims."""
    size = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", packets.stated.get("#dimensions", ""))
    if header.container == "tty" or size is None:  # tty: text, drawn as a terminal would
        raise VideoError(f"{path}: not a video file")
    width, height = int(size[1]), int(size[2])
    if width * height > MAX_PIXELS:
        raise VideoError(f"{path}: {width}x{height} is larger than {MAX_PIXELS} pixels")
    if header.rotation in (90, 270):
        width, height = height, width
    return VideoIndex(
        container=header.container,
        width=width,
        height=height,
        rotation=header.rotation,
        codec=packets.stated.get("#codec_id", "unknown"),
        num_video_streams=header.count("Video"),
        timeline=find_timeline(
            np.array(packets.ticks, np.int64),
            np.array(packets.durations, np.int64),
            Fraction(packets.stated["#tb"]),
            header.stated_fps,
        ),
        damage=header.damage,
    )
