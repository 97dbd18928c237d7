"""Times of the frames and sound of a file: for parts in seconds, and for decoded videos."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeGuard

from vtok._times import Part
from vtok.codefile.header import VideoHeader
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.sections import SOUND, TIME, FileTimes, find_times, sound_between
from vtok.errors import OptionError
from vtok.pipeline.options import DecodeOptions
from vtok.video.mux import FrameTimes, can_hold
from vtok.video.timeline import Timeline
from vtok.video.writer import FrameWriter, VideoWriter

Y4M = "yuv4mpegpipe"


def times_of_file(reader: CodeFileReader) -> FileTimes | None:
    """Return the times of the frames of a file; None if they have an even rate."""
    fps = reader.header.transform.fps
    return find_times(reader.frame_durations(), reader.index.num_frames, fps)


@dataclass(frozen=True)
class _FileTimeline(Timeline):
    """Timeline of the frames of a file."""

    times: FileTimes | None = None

    def time(self, position: int) -> Fraction:
        assert self.times is not None
        return self.times.seconds(position)


def part_of_file(reader: CodeFileReader, part: Part) -> tuple[int, int]:
    """Find the frames of a part of a seekable code file; see `frames_of_part`."""
    return frames_of_part(reader.header, reader.index.num_frames, times_of_file(reader), part)


def frames_of_part(
    header: VideoHeader, total: int, times: FileTimes | None, part: Part
) -> tuple[int, int]:
    """Find the frames of a part of a file: (first, last + 1), at least one frame.

    Args:
        header: of the file.
        total: frames of the file.
        times: of its frames; None at an even rate.
        part: in seconds or in frames.

    Raises:
        OptionError: if there is no such frame.
    """
    if times is None:
        return part.frames(total, header.transform.fps)
    length, fps = times.seconds(total), header.transform.fps
    timeline = _FileTimeline(None, times.time_base, total, fps, True, length, times=times)
    start, end = timeline.bounds(part)
    first = timeline.count_before(start)
    if first >= total:
        field = "start_seconds" if part.start_frame is None else "start_frame"
        expected = f"a time in the file ({total} frames, {float(length):g} s)"
        raise OptionError(field, f"{float(getattr(part, field)):g}", expected)
    return first, total if end is None else max(first + 1, timeline.count_before(end))


class Extras:
    """Times of the frames of a decoded video; base class of `FileExtras`, which adds sound.

    Attributes:
        may_exist: False if there are none.
        notes: remarks about what is left out.
    """

    def __init__(self, times: FileTimes | None, frames: tuple[int, int]) -> None:
        """Keep the times of a file.

        Args:
            times: of its frames; None at an even rate.
            frames: first and last + 1 to decode.
        """
        self._times, self._range = times, frames
        self.may_exist = times is not None
        self.notes: list[str] = []

    def give(self, writer: FrameWriter) -> None:
        """Set the times of the frames of a video, after all were decoded."""
        if self._times is None:
            return
        if not _is_video(writer):
            self.notes.append("times of frames are left out: pictures and arrays hold none")
            return
        if writer.container == Y4M:
            self.notes.append("times of frames are left out: y4m has one rate")
            return
        first, end = self._range
        ticks = self._times.at(first, end + 1)
        writer.times = FrameTimes(self._times.time_base, ticks - ticks[0])


def _is_video(writer: FrameWriter) -> TypeGuard[VideoWriter]:
    """Tell a video from a picture and from an array, which hold neither times nor sound."""
    return isinstance(writer, VideoWriter) and writer.container != ""


class FileExtras(Extras):
    """Times and sound of the frames of a code file."""

    def __init__(
        self, reader: CodeFileReader, frames: tuple[int, int] | None, options: DecodeOptions
    ) -> None:
        """Check for their presence, before another thread reads the file.

        Args:
            reader: of the file.
            frames: first and last + 1 to decode; None for all.
            options: whether to leave them out.
        """
        super().__init__(None, (0, 0))
        self._reader, self._frames = reader, frames
        kinds = {TIME: not options.constant_rate, SOUND: options.audio}
        self._kinds = [kind for kind, wanted in kinds.items() if wanted]
        self.may_exist = bool(self._kinds) and (  # in a pipe they come after the codes
            not reader.seekable or not reader.section_bytes().keys().isdisjoint(self._kinds)
        )

    def give(self, writer: FrameWriter) -> None:
        """Set times and sound of a video, after all frames were decoded."""
        if not self.may_exist:
            return
        reader = self._reader
        self._range = first, end = self._frames or (0, reader.index.num_frames)
        times = times_of_file(reader) if TIME in self._kinds else None
        sound = next(reader.sound(), None) if SOUND in self._kinds else None
        names = {TIME: "times of frames", SOUND: "sound"}
        self.notes += [
            f"left out where damaged: {names[kind]}"
            for kind in self._kinds
            if kind in reader.damaged
        ]
        if writer.frames_written != end - first:  # the others have moved
            what = [names[kind] for kind, one in ((TIME, times), (SOUND, sound)) if one]
            if what:
                self.notes.append(f"left out, since frames were lost: {' and '.join(what)}")
            return
        self._times = times
        super().give(writer)
        if sound is None:
            return
        if not _is_video(writer):
            self.notes.append("the sound is left out: pictures and arrays hold none")
        elif can_hold(writer.container, sound.codec):
            writer.sound = sound_between(reader, self._range)
        else:
            shown = "y4m" if writer.container == Y4M else writer.container
            self.notes.append(f"the sound is left out: {shown} holds no {sound.codec}, .mkv does")
