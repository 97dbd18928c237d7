"""Times of the frames and sound of a code file: for parts in seconds, and for decoded videos."""

from __future__ import annotations

from vtok._times import Part
from vtok.codefile.index import frames_between
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.sections import SOUND, TIME, find_times, sound_between
from vtok.errors import OptionError
from vtok.pipeline.options import DecodeOptions
from vtok.video.mux import FrameTimes, can_hold
from vtok.video.outputs import FrameWriter
from vtok.video.timeline import Timeline
from vtok.video.writer import VideoWriter


def times_of_file(reader: CodeFileReader) -> FrameTimes | None:
    """Return the times of the frames of a file; None if they have an even rate."""
    fps = reader.header.transform.fps
    found = find_times(reader.frame_durations(), reader.index.num_frames, fps)
    return None if found is None else FrameTimes(*found)


def frames_of_part(reader: CodeFileReader, part: Part) -> tuple[int, int]:
    """Find the frames of a part of a seekable file: (first, last + 1), at least one frame.

    Raises:
        OptionError: if there is no such frame.
    """
    total, times = reader.index.num_frames, times_of_file(reader)
    if times is None:
        return frames_between(reader.header, total, part)
    length = int(times.ticks[-1]) * times.time_base
    fps = reader.header.transform.fps
    timeline = Timeline(times.ticks[:-1], times.time_base, total, fps, True, length)
    start, end = timeline.bounds(part)
    first = timeline.count_before(start)
    if first >= total:
        field = "start_seconds" if part.start_frame is None else "start_frame"
        expected = f"a time in the file ({total} frames, {float(length):g} s)"
        raise OptionError(field, f"{float(getattr(part, field)):g}", expected)
    return first, total if end is None else max(first + 1, timeline.count_before(end))


Y4M = "yuv4mpegpipe"


class Extras:
    """Times and sound of the frames of a file that a decoded video gets.

    Attributes:
        may_exist: False if the video gets neither; True for a pipe, where that shows at its end.
        notes: remarks about what is left out.
    """

    def __init__(
        self, reader: CodeFileReader, frames: tuple[int, int] | None, options: DecodeOptions
    ) -> None:
        """Look whether there are any, before another thread reads the file.

        Args:
            reader: of the file.
            frames: first and last + 1 to decode; None for all.
            options: whether to leave them out.
        """
        self._reader, self._frames, self._options = reader, frames, options
        kinds = {TIME: not options.constant_rate, SOUND: options.audio}
        self._kinds = [kind for kind, wanted in kinds.items() if wanted]
        self.may_exist = bool(self._kinds) and (
            not reader.seekable or any(True for _ in reader.sections(*self._kinds))
        )
        self.notes: list[str] = []

    def give(self, writer: VideoWriter | FrameWriter) -> None:
        """Set times and sound of a video, after all frames were decoded."""
        reader, frames = self._reader, self._frames
        if not self.may_exist or not isinstance(writer, VideoWriter) or not writer.container:
            return  # pictures and arrays hold neither
        sound = next(reader.sound(), None) if SOUND in self._kinds else None
        if reader.lost:  # the frames that are left are at other times
            self.notes += ["the sound is left out, since frames were lost"] if sound else []
            return
        times = times_of_file(reader) if TIME in self._kinds else None
        if times is not None and writer.container == Y4M:
            self.notes.append("times of frames are left out: y4m has one rate")
        elif times is not None:
            first, end = frames or (0, reader.index.num_frames)
            ticks = times.ticks[first : end + 1]
            writer.times = FrameTimes(times.time_base, ticks - ticks[0])
        if sound is not None and can_hold(writer.container, sound.codec):
            writer.sound = sound_between(reader, frames or (0, reader.index.num_frames))
        elif sound is not None:
            shown = "y4m" if writer.container == Y4M else writer.container
            self.notes.append(f"the sound is left out: {shown} holds no {sound.codec}, .mkv does")
