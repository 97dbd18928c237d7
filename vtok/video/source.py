"""Frames of one file: a video by PyAV, a picture or a stack of pictures by Pillow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from vtok._times import Part
from vtok.video.container import Damaged, FrameStream, TimedFrames, VideoIndex, read_index
from vtok.video.frames import DEFAULT_FPS, Frames, ReadOptions, VideoInfo, parse_size, resize_frames
from vtok.video.images import Pages, find_demuxer, open_pages
from vtok.video.sequences import open_sequence
from vtok.video.sound import Clock
from vtok.video.timeline import MAX_GAP, Timeline, find_timeline

MAX_NOTES = 5  # of one kind


@dataclass(frozen=True)
class Request:
    """File, and the part of it to read."""

    path: Path
    part: Part  # frames to read
    fps: Fraction | None  # rate of the output; None keeps the frames as they are
    size: str | None  # size as `parse_size` takes it; None keeps the size of the source
    reading: ReadOptions  # stream, damage, and treatment of pixels

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
            reading=ReadOptions.from_fields(json.loads(fields["reading"] or "{}")),
        )


@dataclass(frozen=True)
class Source:
    """An opened video."""

    info: VideoInfo  # properties of the file
    width: int  # width of the frames that are read, in pixels
    height: int  # height of the frames that are read, in pixels
    start: Fraction  # seconds from the first frame at which the requested part starts
    end: Fraction | None  # seconds at which it ends; None for the end of the video
    timeline: Timeline  # times of the frames
    frames: TimedFrames  # can be read once; may begin before and end after the part
    origin: Fraction | None = None
    """Time stamp of the first frame of the file in seconds; None for pictures."""
    changes: list[tuple[int, str]] = field(default_factory=list)
    """Number and size of each frame where the stored size changes; complete after reading."""
    cut_frames: int = 0  # frames that a cut file lacks after its timeline, if known

    def expected(self) -> int:
        """Return the number of frames that the part has if none is missing."""
        length, rate = self.timeline.duration_seconds, self.timeline.fps
        end = length if self.end is None else self.end
        cut = self.cut_frames
        if self.end is not None:
            cut = min(cut, max(0, round((end - length) * rate)))
        if self.timeline.variable:
            return self.timeline.count_before(end) - self.timeline.count_before(self.start) + cut
        return max(0, round(min(end, length) * rate) - round(self.start * rate)) + cut


def open_source(request: Request, on_progress: Callable[[], None]) -> Source:
    """Open a video or a picture.

    Args:
        request: Part and options. The path names an existing, regular file.
        on_progress: Called repeatedly while the index is read.

    Raises:
        VideoError: The file holds no readable video.
        OptionError: The size does not fit the source.
    """
    path, reading = request.path, request.reading
    if (timeless := open_sequence(path, request.fps, reading)) is not None:
        return _open_pages(request, timeless, request.fps or DEFAULT_FPS)
    if (pages := open_pages(path, reading)) is not None:
        return _open_pages(request, pages)
    index = read_index(path, on_progress, find_demuxer(path), reading.video_stream)
    stream = FrameStream(path, index, reading)
    timeline, width, height = stream.timeline, stream.width, stream.height
    info = VideoInfo(
        width=width,
        height=height,
        fps=timeline.fps,
        num_frames=timeline.num_frames,
        duration_seconds=float(timeline.duration_seconds),
        rotation=stream.rotation,
        variable_frame_rate=timeline.variable,
        reader="av",
        codec=index.codec,
        missing_frames=timeline.missing + index.cut_frames,
        damage=index.damage,
        pixel_aspect=f"{index.pixel_aspect.numerator}:{index.pixel_aspect.denominator}",
        notes=(*_notes(index, reading), *stream.notes),
        has_sound=index.has_sound,
    )
    start, end = timeline.bounds(request.part)
    if request.size is not None:
        width, height = parse_size(request.size, width, height)
    frames = stream.read(width, height, start)
    if index.damage is not None:  # after the last frame
        lost = (max(start, timeline.duration_seconds), Damaged(index.damage))
        frames = chain(frames, [lost])
    return Source(
        info,
        width,
        height,
        start,
        end,
        timeline,
        frames,
        origin=stream.start,
        changes=stream.changes,
        cut_frames=index.cut_frames,
    )


def find_clock(source: Source, times: list[Fraction], end: Fraction | None) -> Clock | None:
    """Return the part that was read in the time of the file; None where that is unknown.

    Args:
        source: The opened video.
        times: Seconds from its first frame to each frame that was read.
        end: Seconds at which the part ends; None for the end of the file.
    """
    origin = source.origin
    if not times or origin is None or source.timeline.jumps:
        return None
    return Clock(origin + times[0], None if end is None else origin + end, times[0] == 0)


def _notes(index: VideoIndex, reading: ReadOptions) -> list[str]:
    """Return remarks about what is not read as it is stored."""
    notes = []
    if index.num_video_streams > 1:
        read = f"number {reading.video_stream}" if reading.video_stream else "the first"
        notes.append(f"has {index.num_video_streams} video streams, {read} is read")
    for jump in index.timeline.jumps[:MAX_NOTES]:
        notes.append(
            f"time stamps jump by {jump.seconds:.3f} s before frame {jump.position}, which is not "
            f"filled (jumps back, and jumps of more than {MAX_GAP} s and ten frames, are not)"
        )
    return notes


def _open_pages(request: Request, pages: Pages, fps: Fraction | None = None) -> Source:
    """Open a picture as a clip of one frame, or a stack of pages."""
    width, height, count = pages.width, pages.height, len(pages.times) - 1
    ticks = np.array([round(time * 1000) for time in pages.times], np.int64)
    timeline = find_timeline(ticks[:-1], np.diff(ticks), Fraction(1, 1000), None)
    if fps is not None:  # exact
        timeline = Timeline(None, 1 / fps, count, fps, False, count / fps)
    info = VideoInfo(
        width=width,
        height=height,
        fps=timeline.fps,
        num_frames=count,
        duration_seconds=float(timeline.duration_seconds),
        rotation=0,
        variable_frame_rate=timeline.variable,
        reader="pillow",
        codec=None,
        notes=pages.notes,
    )
    if request.size is not None:
        width, height = parse_size(request.size, width, height)

    def page(number: int) -> Frames:
        resized: Frames = resize_frames(pages.read(number)[None], width, height)[0]
        return resized

    start, end = timeline.bounds(request.part)
    frames = ((timeline.time(number), partial(page, number)) for number in range(count))
    return Source(info, width, height, start, end, timeline, frames)
