"""One video file opened for reading: which reader suits it, and its frames in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from vtok.errors import VideoError
from vtok.video.decord_source import DecordFault, read_decord, suits_decord
from vtok.video.ffmpeg_source import describe_damage, read_ffmpeg
from vtok.video.frames import DEFAULT_FPS, Frames, VideoInfo, parse_size, resize_frames
from vtok.video.images import is_picture, read_picture
from vtok.video.probe import VideoIndex, read_index

TimedFrames = Iterator[tuple[Fraction, Frames]]
"""Pairs of the seconds from the first frame and a frame, uint8 [H, W, 3]."""
SEEK_SECONDS = 10
"""Starting later than this, ffmpeg's seeking beats decord's reading from the beginning."""


@dataclass(frozen=True)
class Request:
    """What to read of which file."""

    path: Path
    start: Fraction
    """Seconds from the first frame."""
    duration: Fraction | None
    """Seconds; None reads to the end."""
    fps: Fraction | None
    """Rate of the output; None keeps the frames as they are."""
    size: str | None
    """Size as `parse_size` takes it; None keeps the size of the source."""

    def to_fields(self) -> dict[str, str | None]:
        """Turn into what JSON can hold."""
        return {name: None if value is None else str(value) for name, value in vars(self).items()}

    @classmethod
    def from_fields(cls, fields: dict[str, str | None]) -> Request:
        """Turn back from `to_fields`."""
        duration, fps = fields["duration"], fields["fps"]
        return cls(
            path=Path(fields["path"] or ""),
            start=Fraction(fields["start"] or 0),
            duration=None if duration is None else Fraction(duration),
            fps=None if fps is None else Fraction(fps),
            size=fields["size"],
        )


@dataclass(frozen=True)
class Source:
    """An opened video."""

    info: VideoInfo
    """What the file holds."""
    width: int
    """Width of the frames that are read, in pixels."""
    height: int
    """Height of the frames that are read, in pixels."""
    last_seconds: Fraction
    """How long the last frame is shown."""
    frames: TimedFrames
    """The frames, to be read once."""

    def info_fields(self) -> dict[str, Any]:
        """Turn `info` into what JSON can hold."""
        return {**vars(self.info), "fps": str(self.info.fps)}


def open_source(request: Request, on_progress: Callable[[], None]) -> Source:
    """Open a video or a picture.

    Args:
        request: What to read. The path names an existing, regular file.
        on_progress: Called now and then while the index is read.

    Raises:
        VideoError: The file holds no readable video.
        UsageError: The size does not fit the source.
    """
    if is_picture(request.path):
        return _open_picture(request)
    index = read_index(request.path, on_progress)
    width, height = index.width, index.height
    if request.size is not None:
        width, height = parse_size(request.size, width, height)
    reader, frames = _choose_reader(request, index, width, height)
    timeline = index.timeline
    last_seconds = timeline.duration_seconds - timeline.time(timeline.num_frames - 1)
    return Source(_describe(index, reader), width, height, last_seconds, frames)


def _open_picture(request: Request) -> Source:
    """Open a picture as a clip of one frame."""
    picture = read_picture(request.path)
    height, width = picture.shape[:2]
    info = VideoInfo(
        width=width,
        height=height,
        fps=DEFAULT_FPS,
        num_frames=1,
        duration_seconds=float(1 / DEFAULT_FPS),
        rotation=0,
        variable_frame_rate=False,
        reader="imageio",
        codec=None,
    )
    if request.size is not None:
        width, height = parse_size(request.size, width, height)
    frame = resize_frames(picture[None], width, height)[0]
    return Source(info, width, height, 1 / DEFAULT_FPS, iter([(Fraction(0), frame)]))


def _choose_reader(
    request: Request, index: VideoIndex, width: int, height: int
) -> tuple[Literal["decord", "ffmpeg"], TimedFrames]:
    """Read by decord what it reads exactly, the rest by ffmpeg; the first frame decides."""
    if suits_decord(index, width, height) and request.start < SEEK_SECONDS:
        frames = read_decord(request.path, index, width, height)
        try:
            first = next(frames)
        except DecordFault:
            pass
        else:
            rest = _finish_with_ffmpeg(frames, request.path, index, width, height)
            return "decord", chain([first], rest)
    return "ffmpeg", _to_the_end(request, index, width, height)


def _finish_with_ffmpeg(
    frames: TimedFrames, path: Path, index: VideoIndex, width: int, height: int
) -> TimedFrames:
    """Read on by decord after the first frame, and by ffmpeg from where decord gives up."""
    count = 1
    try:
        for timed in frames:
            count += 1
            yield timed
    except DecordFault:
        yield from islice(read_ffmpeg(path, index, width, height), count, None)


def _to_the_end(request: Request, index: VideoIndex, width: int, height: int) -> TimedFrames:
    """Read by ffmpeg; where the file is cut, reading to its end is an error at last."""
    count = 0
    for timed in read_ffmpeg(request.path, index, width, height, request.start):
        count += 1
        yield timed
    if index.damage is not None:
        raise VideoError(f"{request.path}: {describe_damage(count, index.damage)}")


def _describe(index: VideoIndex, reader: Literal["decord", "ffmpeg"]) -> VideoInfo:
    """Put the index into the words of the rest of the program."""
    timeline = index.timeline
    return VideoInfo(
        width=index.width,
        height=index.height,
        fps=timeline.fps,
        num_frames=timeline.num_frames,
        duration_seconds=float(timeline.duration_seconds),
        rotation=index.rotation,
        variable_frame_rate=timeline.variable,
        reader=reader,
        codec=index.codec,
    )
