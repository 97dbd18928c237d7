"""Video files by PyAV: the index of a file, and its frames with their own time stamps.

The index comes from the packets of the video stream, without decoding. That gives the exact number
of frames, also for clips cut without re-encoding, where packets before the cut are marked to be
decoded but not shown.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from av.video.frame import VideoFrame

from vtok.errors import OptionError, VideoError
from vtok.video.frames import DEFAULT_READING, MAX_PIXELS, Frames, ReadOptions
from vtok.video.pixels import Converter, deinterlace, describe_pixels
from vtok.video.timeline import UNSET, Timeline, find_timeline

ALIVE_EVERY = 64  # packets between two calls of on_progress
# log messages of demuxers about a file that ends before its index says so
DAMAGE = ("partial file", "File ended prematurely", "Packet corrupt")
# containers with reliable time stamps and key frames after a seek
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_CODE_FILE = b"\x89VTOK\r\n\n"  # vtok.codefile.records.MAGIC, above this package
SEEK_MARGIN = Fraction(3)  # seconds before the wanted time to seek to
MIN_ASPECT = Fraction(1, 8)  # of pixels; smaller ones, and those above 8, are not believed

TimedFrames = Iterator[tuple[Fraction, Callable[[], Frames]]]
"""Pairs of the seconds from the first frame, and a function that converts the frame to RGB.

In place of a damaged frame there is a `Damaged`.
"""


@dataclass(frozen=True)
class Damaged:
    """Placeholder for frames that are lost or were decoded with errors."""

    reason: str

    def __call__(self) -> Frames:
        """Raise a VideoError: there is no picture."""
        raise VideoError(self.reason)


@dataclass(frozen=True)
class BadPacket:
    """A packet that the decoder refused."""

    packet: Any
    reason: str


@dataclass(frozen=True)
class VideoIndex:
    """Properties of a video file, known without decoding it."""

    container: str  # ffmpeg's name of the container, such as "mov,mp4,m4a,3gp,3g2,mj2"
    demuxer: str | None  # container to open the file as; None to recognize it
    stream: int  # number of the stream that is read
    width: int  # width in pixels as stored
    height: int  # height in pixels as stored
    codec: str  # name of the codec
    num_video_streams: int  # video streams in the file
    has_sound: bool  # the file has a stream of sound
    pixel_aspect: Fraction  # width to height of the stored pixels
    timeline: Timeline  # times of the shown frames
    damage: str | None  # message of ffmpeg about a file that is cut; None if intact
    cut_frames: int  # frames at the end that a cut file states and lacks, if it states their number
    doubtful: bool  # the container was recognized with little certainty


@contextmanager
def open_container(path: Path, demuxer: str | None = None) -> Iterator[Any]:
    """Open exactly this file: no name is parsed as an option, a pattern or a URL."""
    options = {"protocol_whitelist": "file"}
    try:
        name = f"file:{path.absolute()}"
        name.encode()
        found: Any = av.open(
            name, format=demuxer, container_options=options, metadata_errors="replace"
        )
    except UnicodeEncodeError:  # the name is not valid UTF-8
        with path.open("rb") as file:
            yield av.open(file, format=demuxer, metadata_errors="replace")
        return
    with found:
        yield found


def read_index(
    path: Path,
    on_progress: Callable[[], None] = lambda: None,
    demuxer: str | None = None,
    number: int = 0,
) -> VideoIndex:
    """Read the index of a video file.

    Args:
        path: An existing, regular file.
        on_progress: Called repeatedly while a long file is read.
        demuxer: ffmpeg's name of the container; None to recognize it.
        number: Number of the video stream, from 0.

    Raises:
        OptionError: There is no stream of that number.
        VideoError: The file holds no video known to ffmpeg.
    """
    with path.open("rb") as file:
        if file.read(len(_CODE_FILE)) == _CODE_FILE:  # which ffmpeg may take for sound
            raise VideoError(f"{path}: a code file of vtok, not a video: decode it first")
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.INFO)
    av.logging.set_skip_repeated(False)  # the file before may have given the same message
    try:
        with av.logging.Capture() as log, open_container(path, demuxer) as container:
            return _index(path, container, log, on_progress, demuxer, number)
    except av.error.FFmpegError as exc:
        raise VideoError(f"{path}: {_why_not_open(exc, log)}") from exc
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)


def _index(
    path: Path,
    container: Any,
    log: Any,
    on_progress: Callable[[], None],
    demuxer: str | None,
    number: int,
) -> VideoIndex:
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    doubtful = _is_misdetected(log)
    if container.format.name == "tty" or (doubtful and not streams):  # text, drawn like a terminal
        raise VideoError(f"{path}: not a video file")
    if not streams:
        raise VideoError(f"{path}: {_why_no_video(container)}")
    if number >= len(streams):
        least = "0" if len(streams) == 1 else f"0 to {len(streams) - 1}"
        count = "1 video stream" if len(streams) == 1 else f"{len(streams)} video streams"
        raise OptionError("video_stream", number, f"{least}: {path} has {count}")
    stream = streams[number]
    is_avif = container.metadata.get("major_brand") == "avis"  # a still picture and an animation
    if is_avif and number == 0:
        stream = max(streams, key=lambda one: one.frames)
    context = stream.codec_context
    ticks, durations, breaks, damage, num_packets = _read_packets(container, stream, on_progress)
    damage = damage or next((text for _, _, text in log if any(w in text for w in DAMAGE)), None)
    if not ticks and doubtful:
        raise VideoError(f"{path}: not a video file")
    if context is None or not ticks:
        reason = f" ({log[-1][2].strip()})" if log else ""
        raise VideoError(f"{path}: no frames in the video stream{reason}")
    if context.width * context.height > MAX_PIXELS:
        size = f"{context.width}x{context.height}"
        raise VideoError(f"{path}: {size} is larger than {MAX_PIXELS} pixels")
    timeline = find_timeline(
        np.array(ticks, np.int64),
        np.array(durations, np.int64),
        stream.time_base,
        context.framerate if UNSET in ticks and context.framerate else stream.average_rate,
        stream.base_rate,
        breaks,
    )
    return VideoIndex(
        container=container.format.name,
        demuxer=demuxer,
        stream=stream.index,
        width=context.width,
        height=context.height,
        codec=context.codec.canonical_name,
        num_video_streams=1 if is_avif else len(streams),
        has_sound=bool(container.streams.audio),
        pixel_aspect=_pixel_aspect(stream),
        timeline=timeline,
        # broadcast streams may be cut anywhere
        damage=None if container.format.name == "mpegts" or damage is None else damage.strip(),
        cut_frames=max(0, stream.frames - num_packets) if damage else 0,
        doubtful=doubtful,
    )


def _pixel_aspect(stream: Any) -> Fraction:
    """Return the width to height of stored pixels; 1 if unknown, or beyond any real format."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    context = stream.codec_context
    if not MIN_ASPECT <= aspect <= 1 / MIN_ASPECT:
        return Fraction(1)
    pixels = context.width * context.height * max(aspect, 1 / aspect)
    return aspect if pixels <= MAX_PIXELS else Fraction(1)


def _read_packets(
    container: Any, stream: Any, on_progress: Callable[[], None]
) -> tuple[array[int], array[int], list[int], str | None, int]:
    """Read times of the shown packets, where time goes back, damage, and the number of packets."""
    ticks, durations, breaks, damage, count = array("q"), array("q"), [], None, 0
    before: int | None = None
    by_order = _is_timed_by_order(container)
    for number, packet in enumerate(container.demux(stream)):
        if number % ALIVE_EVERY == 0:
            on_progress()
        count += packet.size > 0
        if not packet.size or packet.is_discard or _is_hidden(packet, stream):
            continue
        if packet.dts is not None:
            if before is not None and packet.dts < before:
                breaks.append(len(ticks))
            before = packet.dts
        tick = packet.dts if by_order or packet.pts is None else packet.pts
        ticks.append(UNSET if tick is None else tick)
        durations.append(packet.duration or 0)
        if packet.is_corrupt:
            damage = "partial file"
    return ticks, durations, breaks, damage, count


def _is_timed_by_order(container: Any) -> bool:
    """Return True for containers that number packets in decoding order instead of timing them."""
    return bool(container.format.name == "avi")


def _is_hidden(packet: Any, stream: Any) -> bool:
    """Return True for a reference frame of VP8 that is not shown."""
    return stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


def _is_misdetected(log: Any) -> bool:
    return any("misdetection possible" in text for _, _, text in log)


def _why_no_video(container: Any) -> str:
    """Explain why a file has no video stream."""
    if container.streams.video:
        return "no video stream (audio with a cover picture)"
    return "no video stream (audio only)" if container.streams.audio else "not a video file"


def _why_not_open(error: Exception, log: Any) -> str:
    """Explain an error of opening a file or reading its packets."""
    reasons = [text.strip() for level, _, text in log if level <= av.logging.ERROR]
    if _is_misdetected(log):
        return "not a video file"
    if any("moov atom not found" in reason for reason in reasons):
        return "cut short: it ends before its index (moov atom not found), no frame can be read"
    if not reasons:
        return "not a video file"
    return f"not a readable video file ({reasons[0]})"


class FrameStream:
    """Frames of a video in order, from its start or from a later time.

    Attributes:
        timeline: of the frames that can be decoded.
        notes: remarks about the pixels.
        width, height: size of the upright picture in square pixels.
        start: time stamp of the first frame in seconds; 0 if it has none.
        rotation: degrees clockwise from the stored picture to the upright one.
        changes: number and size of each frame whose stored size differs from the frame before.

    Raises:
        VideoError: no frame can be decoded.
    """

    def __init__(
        self,
        path: Path,
        index: VideoIndex,
        reading: ReadOptions = DEFAULT_READING,
    ) -> None:
        self._path, self._index = path, index
        self._reading = reading
        self.changes: list[tuple[int, str]] = []
        self.notes: list[str] = []
        self._origin = 0  # to subtract from time stamps of frames
        self._stack = ExitStack()
        self._container = self._stack.enter_context(open_container(path, index.demuxer))
        self._decoded = self._decode(self._container)
        first = next(self._decoded, None)
        if not isinstance(first, VideoFrame):
            self._stack.close()
            if index.doubtful:
                raise VideoError(f"{path}: not a video file")
            raise VideoError(f"{path}: {describe_damage(0, index.damage or 'none is whole')}")
        self.timeline = index.timeline
        if (tick := self._tick(first)) is not None:
            ticks, count = self.timeline.ticks, self.timeline.position_of(tick, 0)
            assert ticks is not None
            if index.container != "avi" and count < len(ticks):
                self.timeline = self.timeline.without_first(count)
            else:  # decoded frames carry the time stamps of later packets
                self._origin = tick - int(ticks[0])
        self._first = first
        self.start = (first.pts or 0) * (first.time_base or Fraction(0))
        self.rotation = round(-first.rotation / 90) * 90 % 360
        aspect, one = index.pixel_aspect, Fraction(1)  # the shorter side of pixels is stretched
        self.width = round(first.width * max(aspect, one))
        self.height = round(first.height / min(aspect, one))
        if self.rotation in (90, 270):
            self.width, self.height = self.height, self.width

    def read(self, width: int, height: int, start: Fraction = Fraction(0)) -> TimedFrames:
        """Yield the frames once, scaled to a size; those before `start` may be left out.

        Damaged frames, and those up to the next key frame, which are predicted from them, are
        yielded as `Damaged`.
        """
        index = self._index
        converter = Converter(width, height, self.rotation, str(self._path), self._reading)
        seek = start - SEEK_MARGIN
        with self._stack:
            if seek <= 0 or index.container not in SEEKABLE or not self._can_seek():
                yield from self._timed(chain([self._first], self._decoded), converter, known=True)
                return
            self._seek(self._container, seek)
            timed = self._timed(self._decode(self._container), converter, known=False)
            first = next(timed, None)
            if first is not None and first[0] <= start:
                yield first
                yield from timed
                return
        with open_container(self._path, index.demuxer) as container:  # the seek came too late
            yield from self._timed(self._decode(container), converter, known=True)

    def _can_seek(self) -> bool:
        return self.timeline.ticks is not None and not self.timeline.jumps

    def _seek(self, container: Any, seconds: Fraction) -> None:
        ticks = self.timeline.ticks
        assert ticks is not None
        stream = container.streams[self._index.stream]
        container.seek(int(ticks[0]) + int(seconds / self.timeline.time_base), stream=stream)

    def _timed(
        self, frames: Iterable[VideoFrame | BadPacket], converter: Converter, *, known: bool
    ) -> TimedFrames:
        """Yield frames with their times; `known` if the first one is the first of the file."""
        size, count = None, 0
        position: int | None = -1 if known else None  # number of the last frame in the file
        last: Fraction | None = None
        damage: Damaged | None = None  # holds up to the next key frame
        for frame in frames:
            if isinstance(frame, BadPacket):
                seconds, position = self._time(frame.packet, position)
                damage = Damaged(frame.reason)
                yield seconds, damage
                continue
            if size not in (None, (frame.width, frame.height)):
                self.changes.append((count, f"{frame.width}x{frame.height}"))
            size = frame.width, frame.height
            seconds, position = self._time(frame, position)
            if last is not None and seconds <= last:  # time stamps that stand still or go back
                seconds = last + self.timeline.time_base
            last, count = seconds, count + 1
            if frame.is_corrupt:
                damage = damage or Damaged("a frame has errors")
            elif frame.key_frame:
                damage = None
            yield seconds, damage or _Picture(frame, converter)

    def _time(self, frame: Any, position: int | None) -> tuple[Fraction, int]:
        """Return the time and the number of a frame or packet after the one at `position`."""
        timeline, tick = self.timeline, self._tick(frame)
        if tick is None or timeline.ticks is None:
            number = 0 if position is None else position + 1
            return timeline.time(number), number
        expected = 0 if position is None else position + 1
        found = timeline.position_of(tick - self._origin, expected)
        if timeline.jumps:
            return timeline.time(found), found
        ticks = tick - self._origin - int(timeline.ticks[0])
        return timeline.time_of(ticks * timeline.time_base), found

    def _tick(self, frame: Any) -> int | None:
        """Return the time stamp of a frame or packet; None if there is none."""
        if self._index.timeline.ticks is None:
            return None
        tick: int | None = frame.dts if self._index.container == "avi" else frame.pts
        return tick

    def _decode(self, container: Any) -> Iterator[VideoFrame | BadPacket]:
        """Decode every frame, deinterlaced if requested."""
        decoded = self._decode_stored(container)
        return deinterlace(decoded) if self._reading.deinterlace else decoded

    def _decode_stored(self, container: Any) -> Iterator[VideoFrame | BadPacket]:
        """Decode every frame in one thread; broadcasts may start with damaged ones."""
        index, count = self._index, 0
        stream = container.streams[index.stream]
        if not stream.codec_context.is_open:
            stream.codec_context.thread_count = 1
        alpha = _alpha_decoder(stream)
        for packet in container.demux(stream):
            try:
                frames = packet.decode() if alpha is None else alpha.decode(packet)
            except av.error.FFmpegError as exc:
                if count:
                    yield BadPacket(packet, str(exc.strerror or exc))
                continue
            for frame in frames:
                if count or not frame.is_corrupt or index.container != "mpegts":
                    if not count:
                        self.notes = describe_pixels(frame, self._reading)
                    yield frame
                    count += 1


def _alpha_decoder(stream: Any) -> Any:
    """Return a decoder for VP8 or VP9 with transparency, which ffmpeg's own decoders drop."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.codec.canonical_name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return None
    return av.CodecContext.create(name, "r")


class _Picture:
    """A decoded frame, converted to uint8 [H, W, 3] RGB when called."""

    def __init__(self, frame: VideoFrame, converter: Converter) -> None:
        self._frame, self._converter = frame, converter

    def __call__(self) -> Frames:
        return self._converter.convert(self._frame)


def describe_damage(count: int, reason: str) -> str:
    """Describe how much of a damaged file could be read, and why not more."""
    frames = "no frame" if count == 0 else "1 frame" if count == 1 else f"{count} frames"
    return f"damaged or cut short: {frames} could be read ({reason})"
