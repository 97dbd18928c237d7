"""Reader of video files: batches of frames, decoded ahead in a child process."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from vtok._sound import Sound
from vtok._times import Part, exact
from vtok.errors import InputError, OptionError, UsageError, VideoError, VtokError
from vtok.video.decoder_process import ChildDied, ChildTimeout, Decoder
from vtok.video.frames import (
    DEFAULT_READING,
    Frames,
    ReadOptions,
    VideoInfo,
    parse_size,
    ring_bytes,
)
from vtok.video.suffixes import is_pattern, list_pictures

ERRORS: dict[str, type[VtokError]] = {
    kind.__name__: kind for kind in (VtokError, UsageError, OptionError, InputError, VideoError)
}


class VideoReader:
    """Frames of one video file or picture, in order, in batches.

    Iterating yields uint8 arrays [n, H, W, 3], n from 1 to 16, once. Memory does not depend on the
    length of the video. Decoding runs ahead in a child process, so a file that crashes or hangs
    its decoder raises an error like any other.

    ```python
    with VideoReader(Path("clip.mp4"), size="256") as reader:
        for frames in reader:
            ...
    ```
    """

    info: VideoInfo  # what the file holds, before `start_seconds`, `fps` and `size`
    output_fps: Fraction  # rate of the returned frames; the mean if it varies
    output_size: tuple[int, int]  # width and height in pixels of the returned frames
    start_seconds: Fraction  # time of the requested start, from the first frame of the file
    frames_read: int  # frames returned so far
    missing_frames: int | None  # frames of the part that the file lacks; None before its end
    durations: tuple[Fraction, list[int]] | None
    """Seconds in a tick, and the ticks of each frame; None before the end and at an even rate."""
    notes: list[str]  # remarks about what was read, one line each; complete at the end

    def __init__(
        self,
        path: Path,
        *,
        start_seconds: float | Fraction = 0.0,
        duration_seconds: float | Fraction | None = None,
        start_frame: int | None = None,
        num_frames: int | None = None,
        fps: Fraction | None = None,
        size: tuple[int, int] | str | None = None,
        reading: ReadOptions = DEFAULT_READING,
        timeout_seconds: float = 60.0,
        decoder: Decoder | None = None,
    ) -> None:
        """Open a video and start decoding it.

        Args:
            path: The file; or a folder, a pattern (`frame_%04d.png`) or a glob of pictures.
            start_seconds: Skip frames before this time; see `vtok._times`.
            duration_seconds: Length to read; None reads to the end.
            start_frame: Number of the first frame, in place of `start_seconds`.
            num_frames: Frames of the source to read, in place of `duration_seconds`.
            fps: Rate to convert to by dropping and repeating frames; None keeps all frames.
                It is the rate of the source for pictures and arrays, which have none.
            size: Width and height to resize to, or a text for `parse_size`; None keeps the source
                size.
            reading: Stream, choice for damaged frames, and treatment of pixels.
            timeout_seconds: Longest wait for a decoder that makes no progress.
            decoder: Decoder to share between readers; None starts a new one.

        Raises:
            OptionError: An argument is out of range.
            InputError: The file is missing or cannot be opened.
            VideoError: The file holds no readable video.
        """
        self._path, self._timeout_seconds = path, timeout_seconds
        self.frames_read, self.missing_frames, self.durations = 0, None, None
        self._shape: tuple[int, int, int] | None = None  # of a batch; None after the end
        self._clock: list[Any] | None = None
        part = Part(start_seconds, duration_seconds, start_frame, num_frames)
        request = make_request(path, part, fps, size, reading)
        _check_file(path)
        self._ended, self._is_lent = False, decoder is not None
        self._decoder = decoder or Decoder()
        self._child = self._decoder.start(request)
        try:
            message = self._receive("info")
            facts = message["info"]
            fps, self.notes = Fraction(facts["fps"]), list(facts["notes"])
            self.info = VideoInfo(**{**facts, "fps": fps, "notes": tuple(self.notes)})
            self.output_fps = Fraction(message["fps"])
            self.start_seconds = Fraction(message["start"])
            width, height = self.output_size = message["width"], message["height"]
            batch_frames = message["batch_frames"]
            self._child.provide_ring(ring_bytes(batch_frames, height, width))
            self._shape = batch_frames, height, width
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> VideoReader:
        return self

    def __next__(self) -> Frames:
        """Return the next frames, uint8 [n, H, W, 3].

        Raises:
            VideoError: The file is damaged, or its decoder crashed or hung, after the frames
                returned so far.
        """
        if self._shape is None:
            raise StopIteration
        try:
            message = self._receive("frames")
            if message["kind"] == "frames":
                return self._take(message)
        except BaseException:
            self.close()
            raise
        self._ended = True
        self.missing_frames = message["missing"]
        self.notes += message["notes"]
        if uneven := message["durations"]:
            self.durations = Fraction(uneven["time_base"]), uneven["ticks"]
        self._clock = message["clock"]
        self.close()
        if self.frames_read == 0:
            seconds = self.info.duration_seconds
            length = "" if seconds is None else f" (the video is {seconds:.3f} s long)"
            raise VideoError(f"{self._path}: no frame in the requested part{length}")
        raise StopIteration

    def close(self) -> None:
        """Stop decoding. Closing twice is fine."""
        if not self._is_lent:
            self._decoder.close()
        elif not self._ended:
            self._decoder.stop()
            self._ended = True  # the decoder may now serve another reader
        self._shape = None

    def _take(self, message: dict[str, Any]) -> Frames:
        """Copy the batch of a message."""
        assert self._shape is not None
        with self._naming_failures():
            frames = self._child.take_batch(
                message["slot"], message["count"], self._shape, self._timeout_seconds
            )
        self.frames_read += len(frames)
        return frames

    def sound(self) -> Iterator[Sound]:
        """Read the sound of the frames, after the last one; its start is that of the first frame.

        Raises:
            VideoError: The decoder crashed or made no progress.
        """
        if self._clock is None:
            return
        decoder = self._decoder if self._is_lent else Decoder()
        try:
            self._child = decoder.start({"path": str(self._path), "clock": self._clock})
            while (message := self._receive("sound"))["kind"] != "end":
                yield Sound.from_message(message["block"])
            self.notes += message["notes"]
        except BaseException:
            decoder.stop()
            raise
        finally:
            if not self._is_lent:
                decoder.close()

    def _receive(self, expected: str) -> dict[str, Any]:
        """Wait for a message of one kind, or `end`; raise any failure."""
        with self._naming_failures():
            message = self._child.receive(self._timeout_seconds)
        if message["kind"] == "error":
            raise ERRORS[message["type"]](*message["arguments"])
        assert message["kind"] in (expected, "end")
        return message

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Convert failures of the decoder to errors that name the file."""
        try:
            yield
        except ChildTimeout:
            raise VideoError(
                f"{self._path}: the decoder did nothing for {self._timeout_seconds:g} s"
                f" after {self.frames_read} frames and was stopped"
            ) from None
        except ChildDied as exc:
            raise VideoError(f"{self._path}: {exc} after {self.frames_read} frames") from exc


def probe(path: Path, timeout_seconds: float = 60.0) -> VideoInfo:
    """Read size, rate and length of a video file.

    Args:
        path: The file.
        timeout_seconds: Longest wait for a decoder that makes no progress.

    Raises:
        InputError: The file is missing or cannot be opened.
        VideoError: The file holds no readable video.
    """
    with VideoReader(path, timeout_seconds=timeout_seconds) as reader:
        return reader.info


def make_request(
    path: Path,
    part: Part,
    fps: Fraction | None,
    size: tuple[int, int] | str | None,
    reading: ReadOptions = DEFAULT_READING,
) -> dict[str, Any]:
    """Make the request that a `VideoReader` with these arguments sends to its decoder.

    Raises:
        OptionError: An argument is out of range.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise OptionError("fps", fps, "a rate above 0 and at most 1000")
    text = f"{size[0]}x{size[1]}" if isinstance(size, tuple) else size
    if text is not None:
        parse_size(text, 16, 9)  # an invalid size is an error before any file is opened
    if str(path).startswith(("/dev/", "/proc/")):  # may be a descriptor of this process
        path = path.resolve()
    duration = part.duration_seconds
    fields = {
        **vars(part),
        "reading": json.dumps(reading.changed_values()),
        "start_seconds": exact(part.start_seconds),
        "duration_seconds": None if duration is None else exact(duration),
        "path": path,
        "fps": fps,
        "size": text,
    }
    return {name: None if value is None else str(value) for name, value in fields.items()}


def _check_file(path: Path) -> None:
    """Check that the path names a readable regular file that is not empty, or pictures."""
    if path.is_dir() or is_pattern(path):
        list_pictures(path)
        return
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
            raise InputError(f"{path}: is not a regular file; save the stream to a file first")
        with path.open("rb"):
            pass
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such file") from exc
    except OSError as exc:
        raise InputError(f"{path}: cannot be opened ({exc.strerror})") from exc
    if status.st_size == 0:
        raise VideoError(f"{path}: empty file (0 bytes)")
