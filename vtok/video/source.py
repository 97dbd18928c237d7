"""Frames of one video file: decord for what it reads exactly, ffmpeg for the rest.

decord returns wrong or repeated frames after a seek, past frames that an editor hid, and in MPEG
streams. It is therefore used only to read forward, and `DecordFault` hands over to ffmpeg. It also
has no back pressure and may decode a whole clip into memory, so it only reads clips that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vtok._times import Part
from vtok.errors import VideoError
from vtok.video.ffmpeg import VideoIndex, describe_damage, read_ffmpeg, read_index
from vtok.video.frames import DEFAULT_FPS, Frames, Timeline, VideoInfo, parse_size, resize_frames
from vtok.video.images import is_picture, read_picture

TimedFrames = Iterator[tuple[Fraction, Frames]]
"""Pairs of the seconds from the first frame and a frame, uint8 [H, W, 3]."""
SEEK_SECONDS = 10
"""Starting later than this, ffmpeg's seeking beats decord's reading from the beginning."""
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "gif")
"""Containers whose frames decord gives completely and in order."""
MEMORY_BYTES = 256 * 2**20  # largest decoded clip that decord may hold
UNSET = -1e9  # time stamps below this, in seconds, are decord's way to say that there is none


@dataclass(frozen=True)
class Request:
    """File, and the part of it to read."""

    path: Path
    part: Part  # frames to read
    fps: Fraction | None  # rate of the output; None keeps the frames as they are
    size: str | None  # size as `parse_size` takes it; None keeps the size of the source

    @classmethod
    def from_fields(cls, fields: dict[str, str | None]) -> Request:
        """Convert from a result of `make_request`."""
        duration, fps = fields["duration_seconds"], fields["fps"]
        first, count = fields["start_frame"], fields["num_frames"]
        return cls(
            path=Path(fields["path"] or ""),
            part=Part(
                Fraction(fields["start_seconds"] or 0),
                None if duration is None else Fraction(duration),
                None if first is None else int(first),
                None if count is None else int(count),
            ),
            fps=None if fps is None else Fraction(fps),
            size=fields["size"],
        )


@dataclass(frozen=True)
class Source:
    """An opened video."""

    info: VideoInfo  # properties of the file
    width: int  # width of the frames that are read, in pixels
    height: int  # height of the frames that are read, in pixels
    start: Fraction  # seconds from the first frame at which the requested part starts
    end: Fraction | None  # seconds at which it ends; None for the end of the video
    length: Fraction  # seconds from the first frame to the end of the last
    frames: TimedFrames  # the frames, to be read once, perhaps with some before and after the part


def open_source(request: Request, on_progress: Callable[[], None]) -> Source:
    """Open a video or a picture.

    Args:
        request: What to read. The path names an existing, regular file.
        on_progress: Called repeatedly while the index is read.

    Raises:
        VideoError: The file holds no readable video.
        OptionError: The size does not fit the source.
    """
    if is_picture(request.path):
        return _open_picture(request)
    index = read_index(request.path, on_progress)
    width, height = index.width, index.height
    if request.size is not None:
        width, height = parse_size(request.size, width, height)
    timeline = index.timeline
    start, end = timeline.bounds(request.part)
    reader, frames = _choose_reader(request.path, start, index, width, height)
    info = VideoInfo(
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
    return Source(info, width, height, start, end, timeline.duration_seconds, frames)


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
    timeline = Timeline(None, Fraction(1), 1, DEFAULT_FPS, False, 1 / DEFAULT_FPS)
    start, end = timeline.bounds(request.part)
    frames = iter([(Fraction(0), frame)])
    return Source(info, width, height, start, end, 1 / DEFAULT_FPS, frames)


def _choose_reader(
    path: Path, start: Fraction, index: VideoIndex, width: int, height: int
) -> tuple[Literal["decord", "ffmpeg"], TimedFrames]:
    """Choose decord for what it reads exactly, else ffmpeg; try the first frame."""
    if suits_decord(index, width, height) and start < SEEK_SECONDS:
        frames = read_decord(path, index, width, height)
        try:
            first = next(frames)
        except DecordFault:
            pass
        else:
            rest = _finish_with_ffmpeg(frames, path, index, width, height)
            return "decord", chain([first], rest)
    return "ffmpeg", _to_the_end(path, start, index, width, height)


def _finish_with_ffmpeg(
    frames: TimedFrames, path: Path, index: VideoIndex, width: int, height: int
) -> TimedFrames:
    """Continue with decord after the first frame, and with ffmpeg if decord fails."""
    count = 1
    try:
        for timed in frames:
            count += 1
            yield timed
    except DecordFault:
        yield from islice(read_ffmpeg(path, index, width, height), count, None)


def _to_the_end(
    path: Path, start: Fraction, index: VideoIndex, width: int, height: int
) -> TimedFrames:
    """Read with ffmpeg; if the file is cut, raise an error at its end."""
    count = 0
    for timed in read_ffmpeg(path, index, width, height, start):
        count += 1
        yield timed
    if index.damage is not None:
        raise VideoError(f"{path}: {describe_damage(count, index.damage)}")


class DecordFault(Exception):
    """decord cannot return the next frame, although the file may be intact."""


def suits_decord(index: VideoIndex, width: int, height: int) -> bool:
    """Return True if decord reads a file exactly and in bounded memory at this output size."""
    return (
        index.container in CONTAINERS
        and index.num_video_streams == 1
        and index.damage is None
        and index.timeline.num_frames * width * height * 3 <= MEMORY_BYTES
    )


def read_decord(
    path: Path, index: VideoIndex, width: int, height: int
) -> Iterator[tuple[Fraction, Frames]]:
    """Read the frames of a video, scaled by the decoder.

    Args:
        path: The video file.
        index: Its index.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.

    Yields:
        Seconds from the first frame, and the frame, uint8 [height, width, 3].

    Raises:
        DecordFault: decord cannot open the file, counts its frames differently, or cannot decode
            the next one.
    """
    video = _open(path, width, height)
    starts = video.get_frame_timestamp(range(len(video)))[:, 0]
    shown = (starts >= 0) | (starts < UNSET)  # frames before time 0 are decoded but not shown
    if np.count_nonzero(shown) != index.timeline.num_frames:
        raise DecordFault("the count of frames differs")
    for position in range(index.timeline.num_frames):
        try:
            frame: Frames = video.next().asnumpy()
        except Exception as exc:  # decord's errors have no common base class
            raise DecordFault(str(exc)) from exc
        if frame.shape != (height, width, 3):  # some narrow frames have padded rows
            raise DecordFault(f"unexpected shape {frame.shape}")
        yield index.timeline.time(position), frame


def _open(path: Path, width: int, height: int) -> Any:
    """Open a file with decord, whose reader has no type annotations."""
    try:
        import decord  # slow to import, and not always needed

        decord.logging.set_level(decord.logging.QUIET)
        # fault_tol just above 0 makes a repeated frame an error; 0 would disable the check
        return decord.VideoReader(
            str(path.absolute()), width=width, height=height, num_threads=1, fault_tol=1e-9
        )
    except Exception as exc:  # decord's errors have no common base class
        raise DecordFault(str(exc)) from exc
