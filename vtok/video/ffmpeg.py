"""The ffmpeg program: its log, the index of a video file, and frames through a pipe.

The index comes from copying the packets of the first video stream, without decoding, to a list of
their time stamps. That gives the exact number of frames, also for clips cut without re-encoding,
where packets before the cut are marked to be decoded but not shown.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import numpy as np

from vtok.errors import VideoError, VtokError
from vtok.video.frames import MAX_PIXELS, Frames, Timeline, find_timeline

# options for a log that is parsed line by line
QUIET = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info")
DISCARD = 0x4  # packet flag of ffmpeg: decode, but do not show
# log messages of demuxers about a file that ends before its index says so
DAMAGE = ("partial file", "File ended prematurely", "Packet corrupt")
ALIVE_EVERY = 64  # packets between two calls of on_progress
# containers with reliable time stamps and key frames after a seek
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
SEEK_MARGIN = Fraction(3)  # seconds before the wanted time to seek to


@dataclass(frozen=True)
class LogLine:
    """One line of the log of ffmpeg."""

    source: str  # part of ffmpeg that wrote it, such as "in#0/mp4" or "h264"; empty for the program
    level: str  # "info", "warning", "error" or "fatal"
    text: str  # the message


def ffmpeg_path() -> str:
    """Find the ffmpeg program.

    Raises:
        VtokError: It is not installed.
    """
    if named := os.environ.get("IMAGEIO_FFMPEG_EXE"):
        return named  # like imageio, but without its slow import in every child
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as exc:
        raise VtokError("no ffmpeg program found: reinstall imageio-ffmpeg") from exc


def input_arguments(path: Path) -> list[str]:
    """Make arguments that open exactly this file: no name is parsed as an option or a URL."""
    return ["-protocol_whitelist", "file", "-i", f"file:{path.absolute()}"]


def parse_log_line(line: str) -> LogLine:
    """Split a line written with `QUIET` into source, level and message."""
    match = re.match(r"((?:\[[^\]]* @ [^\]]*\] )*)\[(\w+)\] (.*)", line)
    if match is None:
        return LogLine("", "info", line)
    source = re.match(r"\[(\S*)", match[1])
    return LogLine(source[1] if source else "", match[2], match[3])


@dataclass(frozen=True)
class VideoIndex:
    """Properties of a video file, known without decoding it."""

    container: str  # ffmpeg's name of the container, such as "mov,mp4,m4a,3gp,3g2,mj2"
    width: int  # width in pixels as shown, after rotation
    height: int  # height in pixels as shown, after rotation
    rotation: int  # degrees clockwise from the stored picture to the shown one: 0, 90, 180 or 270
    codec: str  # name of the codec
    num_video_streams: int  # video streams in the file; the first one is read
    timeline: Timeline  # times of the shown frames
    damage: str | None  # message of ffmpeg about a file that is cut; None if intact


@dataclass
class _Header:
    """Statements of ffmpeg's log about its input."""

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
        on_progress: Called repeatedly while a long file is read.

    Raises:
        VideoError: The file holds no video known to ffmpeg.
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
    """Shown packets of a stream, and header lines of the listing."""

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
    """Collect statements about the input, up to the start of the output."""
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
        header.damage = None  # broadcast streams may be cut anywhere
    return header


def _parse_input_line(text: str, header: _Header) -> None:
    """Parse one line such as `  Stream #0:0(eng): Video: h264 (High), yuv420p, 64x48, 30 fps`."""
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
    """Explain why a file has no video stream."""
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
    """Combine header and packets, and check the claims of the header."""
    size = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", packets.stated.get("#dimensions", ""))
    if header.container == "tty" or size is None:  # tty: a text file, rendered like a terminal
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


# a time stamp of the next frame in seconds, if known; or why a packet could not be decoded
_Event = tuple[Fraction | None, str | None]


def read_ffmpeg(
    path: Path, index: VideoIndex, width: int, height: int, start: Fraction = Fraction(0)
) -> Iterator[tuple[Fraction, Frames]]:
    """Read the frames of a video, scaled by ffmpeg.

    Args:
        path: The video file.
        index: Its index.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        start: Seconds before which frames may be left out.

    Yields:
        Seconds from the first frame, and the frame, uint8 [height, width, 3].

    Raises:
        VideoError: The file is damaged or cut; the message says how many frames were read.
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
    """Read from a time on; the log has the time of each frame before the pipe has its pixels."""
    timeline = index.timeline
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
            seconds, fault = event
            if fault is not None:
                if count and index.damage is None:
                    raise VideoError(f"{path}: {describe_damage(count, fault)}")
                continue  # broadcasts start anywhere; cut files are read to their end
            frame = np.empty((height, width, 3), np.uint8)
            pixels = frame.reshape(-1).data
            if process.stdout.readinto(pixels) < len(pixels):  # type: ignore[attr-defined]
                break
            if seconds is None or timeline.ticks is None:
                seconds = count / timeline.fps
            else:
                first = int(timeline.ticks[0]) * timeline.time_base
                seconds = timeline.time_of(seek + seconds - first)
            yield seconds, frame
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
    """Describe how much of a damaged file could be read, and why not more."""
    frames = "no frame" if count == 0 else "1 frame" if count == 1 else f"{count} frames"
    return f"damaged or cut short: {frames} could be read ({reason})"


def _start(path: Path, width: int, height: int, seek: Fraction) -> subprocess.Popen[bytes]:
    """Start ffmpeg on the first video stream, with every decoded frame output once."""
    filters = f"scale={width}:{height},format=rgb24,showinfo=checksum=0"
    command = [ffmpeg_path(), *QUIET, "-threads", "2"]
    if seek > 0:
        command += ["-ss", f"{float(seek):.6f}"]
    command += [*input_arguments(path), "-map", "0:V:0", "-fps_mode", "passthrough"]
    command += ["-vf", filters, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _follow_log(log: IO[bytes], events: SimpleQueue[_Event | None], errors: list[str]) -> None:
    """Convert the log into events, in order; None at its end."""
    time_base = Fraction(1)
    for raw in log:
        line = parse_log_line(raw.decode(errors="replace").rstrip())
        if line.level in ("error", "fatal"):
            errors.append(line.text)
            if line.source.startswith("vist#"):  # a decoder refused a packet; others repair theirs
                events.put((None, line.text))
        if not line.source.startswith("Parsed_showinfo"):
            continue
        if match := re.match(r"config in time_base: ([0-9]+/[0-9]+)", line.text):
            time_base = Fraction(match[1])
        elif match := re.match(r"n: *[0-9]+ pts: *(-?[0-9]+|NOPTS)", line.text):
            known = match[1] != "NOPTS"
            events.put((int(match[1]) * time_base if known else None, None))
    events.put(None)
