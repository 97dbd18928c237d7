"""Read video files as batches of frames, decoded ahead in a child process."""

from __future__ import annotations

import stat
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from vtok.errors import InputError, UsageError, VideoError, VtokError
from vtok.video.decoder_process import ChildDied, ChildTimeout, Decoder
from vtok.video.frames import Frames, VideoInfo, parse_size
from vtok.video.source import Request
from vtok.video.worker import RingShape, map_ring

ERRORS = {kind.__name__: kind for kind in (VtokError, UsageError, InputError, VideoError)}
"""Errors that the child may report, by name."""


class VideoReader:
    """The frames of one video file or picture, in order, batch by batch.

    Iterating gives uint8 arrays [n, H, W, 3], n from 1 to 16, once. Memory stays the same however
    long the video is. Decoding runs ahead in a child process, so a file that crashes or hangs its
    decoder is an error like any other.

    ```python
    with VideoReader(Path("clip.mp4"), size="256") as reader:
        for frames in reader:
            ...
    ```
    """

    info: VideoInfo
    """What the file holds, before `start_seconds`, `fps` and `size`."""
    output_fps: Fraction
    """Rate of the frames that are given; the mean where it varies."""
    output_size: tuple[int, int]
    """Width and height in pixels of the frames that are given."""
    frames_read: int
    """Frames given so far."""

    def __init__(
        self,
        path: Path,
        *,
        start_seconds: float | Fraction = 0.0,
        duration_seconds: float | Fraction | None = None,
        fps: Fraction | None = None,
        size: tuple[int, int] | str | None = None,
        timeout_seconds: float = 60.0,
        decoder: Decoder | None = None,
    ) -> None:
        """Open a video and start decoding it.

        Args:
            path: The file.
            start_seconds: Leave out frames before this time.
            duration_seconds: Leave out frames this long after the start and later; None reads on.
            fps: Rate to bring the frames to by dropping and repeating; None keeps them as they are.
            size: Width and height to resize to, or a text as `parse_size` takes it; None keeps the
                size of the source.
            timeout_seconds: Longest time that the decoder may do nothing when it is waited for.
            decoder: What reads it, if it is to read others after this one; None starts one.

        Raises:
            UsageError: An argument is out of range.
            InputError: The file is missing or cannot be opened.
            VideoError: The file holds no readable video.
        """
        self._path, self._timeout_seconds = path, timeout_seconds
        self.frames_read = 0
        self._ring: Frames | None = None
        request = make_request(path, start_seconds, duration_seconds, fps, size)
        _check_file(path)
        self._ended, self._is_lent = False, decoder is not None
        self._decoder = decoder or Decoder()
        self._child = self._decoder.start(request)
        try:
            self._take_info(self._receive("info"))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def __iter__(self) -> VideoReader:
        """Return itself: a video is read once."""
        return self

    def __next__(self) -> Frames:
        """Wait for the next frames, uint8 [n, H, W, 3].

        Raises:
            VideoError: The file is damaged, or its decoder crashed or hung. Frames before that
                have been given.
        """
        if self._ring is None:
            raise StopIteration
        try:
            message = self._receive("frames")
        except BaseException:
            self.close()
            raise
        if message["kind"] == "end":
            self._ended = True
            self.close()
            if self.frames_read == 0:
                raise VideoError(f"{self._path}: no frame in the requested part{self._length()}")
            raise StopIteration
        frames: Frames = self._ring[message["slot"], : message["count"]].copy()
        self._child.release_slot()
        self.frames_read += len(frames)
        return frames

    def close(self) -> None:
        """Stop decoding. Closing twice is fine."""
        if not self._is_lent:
            self._decoder.close()
        elif not self._ended:
            self._decoder.stop()
            self._ended = True  # what it does from now on is another reader's
        self._ring = None

    def _take_info(self, message: dict[str, Any]) -> None:
        """Take the first message, and map the ring that it announces."""
        fields = message["info"]
        self.info = VideoInfo(**{**fields, "fps": Fraction(fields["fps"])})
        self.output_fps = Fraction(message["fps"])
        width, height = self.output_size = message["width"], message["height"]
        shape = RingShape(message["batch_frames"], height, width)
        self._ring = map_ring(self._decoder.memory, shape)

    def _receive(self, expected: str) -> dict[str, Any]:
        """Wait for a message of one kind, or `end`; turn any failure into an error."""
        try:
            message = self._child.receive(self._timeout_seconds)
        except ChildTimeout:
            raise VideoError(
                f"{self._path}: the decoder did nothing for {self._timeout_seconds:g} s"
                f" after {self.frames_read} frames and was stopped"
            ) from None
        except ChildDied as exc:
            raise VideoError(f"{self._path}: {exc} after {self.frames_read} frames") from exc
        if message["kind"] == "error":
            raise ERRORS[message["type"]](message["message"])
        assert message["kind"] in (expected, "end")
        return message

    def _length(self) -> str:
        """The length of the video in words."""
        seconds = self.info.duration_seconds
        return "" if seconds is None else f" (the video is {seconds:.3f} s long)"


def probe(path: Path, timeout_seconds: float = 60.0) -> VideoInfo:
    """Find out what a video file holds.

    Args:
        path: The file.
        timeout_seconds: Longest time that the decoder may do nothing.

    Raises:
        InputError: The file is missing or cannot be opened.
        VideoError: The file holds no readable video.
    """
    with VideoReader(path, timeout_seconds=timeout_seconds) as reader:
        return reader.info


def make_request(
    path: Path,
    start_seconds: float | Fraction,
    duration_seconds: float | Fraction | None,
    fps: Fraction | None,
    size: tuple[int, int] | str | None,
) -> dict[str, Any]:
    """What a `VideoReader` with these arguments asks its decoder for.

    Raises:
        UsageError: An argument is out of range.
    """
    start = _to_seconds("start", start_seconds)
    duration = None if duration_seconds is None else _to_seconds("duration", duration_seconds)
    if duration == 0:
        raise UsageError("duration 0 s: must be above 0")
    if fps is not None and not 0 < fps <= 1000:
        raise UsageError(f"fps {fps}: must be above 0 and at most 1000")
    text = size if size is None or isinstance(size, str) else f"{size[0]}x{size[1]}"
    if text is not None:
        parse_size(text, 16, 9)  # nonsense is an error before any file is opened
    return {**Request(path, start, duration, fps, text).to_fields()}


def _to_seconds(name: str, seconds: float | Fraction) -> Fraction:
    """Take a time as the decimal that was meant, not as its binary neighbour."""
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{name} {seconds} s: must not be below 0")
    return Fraction(str(seconds))


def _check_file(path: Path) -> None:
    """Refuse what is no file with something in it."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a folder, not a video file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
            raise InputError(f"{path}: is no regular file; save the stream to a file first")
        with path.open("rb"):
            pass
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such file") from exc
    except OSError as exc:
        raise InputError(f"{path}: cannot be opened ({exc.strerror})") from exc
    if status.st_size == 0:
        raise VideoError(f"{path}: empty file (0 bytes)")
