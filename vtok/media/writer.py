"""Write frames to video files, pictures and streams, whole and checked."""

from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import numpy as np

from vtok.atomic import atomic_output, check_output
from vtok.errors import OutputError, ShapeError, UsageError, VideoError
from vtok.media.encoder import Encoder, Encoding
from vtok.media.frames import Frames
from vtok.media.images import PICTURE_SUFFIXES, save_picture
from vtok.media.index import read_index

FORMATS = {
    ".mp4": ("mp4", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".mov": ("mov", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
    ".gif": ("gif", "gif"),
}
"""Container and encoder for each name of a video."""
GIF_FPS = 100
"""Most frames per second that the time stamps of a GIF can tell apart."""


class VideoWriter:
    """A video that is written frame by frame, and appears whole or not at all.

    Odd sizes are kept. The file is written under a temporary name, opened again to count its
    frames, and renamed. Leaving the block by an exception, Ctrl-C included, removes it.

    ```python
    with VideoWriter(Path("clip.mp4"), width=640, height=360, fps=Fraction(30000, 1001)) as writer:
        writer.write(frames)
    ```
    """

    def __init__(
        self,
        output: Path | BinaryIO,
        *,
        width: int,
        height: int,
        fps: Fraction,
        crf: int = 18,
        codec: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Start a video.

        Args:
            output: File to write, its suffix a known format (a picture format takes one frame);
                or a binary stream such as standard output, which gets a fragmented mp4.
            width: Width in pixels.
            height: Height in pixels.
            fps: Exact frame rate.
            crf: Quality, from 0 (lossless but for the colour conversion) to 51; 18 looks the same
                as the original to most eyes.
            codec: ffmpeg's name of the encoder; None takes the usual one of the format.
            overwrite: Replace an existing file.

        Raises:
            UsageError: The suffix is unknown, or a number is out of range.
            OutputError: The file exists or cannot be written.
        """
        if width < 1 or height < 1 or fps <= 0 or not 0 <= crf <= 51:
            raise UsageError(f"cannot write {width}x{height} at {fps} frames/s with crf {crf}")
        suffix = output.suffix.lower() if isinstance(output, Path) else ".mp4"
        self._name = str(output) if isinstance(output, Path) else "<stream>"
        self._shape = (height, width, 3)
        self._closed = False
        self.frames_written = 0
        self._sink: _Sink
        if isinstance(output, Path) and suffix in PICTURE_SUFFIXES:
            self._sink = _PictureSink(output, overwrite)
            return
        container, usual_codec = _find_format(self._name, suffix, fps)
        encoding = Encoding(container, codec or usual_codec, width, height, fps, crf)
        if isinstance(output, Path):
            self._sink = _FileSink(output, encoding, overwrite)
        else:
            self._sink = Encoder(encoding, self._name, output)

    def write(self, frames: Frames) -> None:
        """Add frames.

        Args:
            frames: uint8 [T, H, W, 3] RGB; not to be changed any more, as they may wait.

        Raises:
            ShapeError: The frames are of another size or type.
            OutputError: Writing failed, maybe at earlier frames.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._shape:
            raise ShapeError(
                f"{self._name}: frames of {frames.dtype} {list(frames.shape)} do not fit"
                f" uint8 [T, {self._shape[0]}, {self._shape[1]}, 3]"
            )
        self._sink.write(frames)
        self.frames_written += len(frames)

    def close(self) -> None:
        """Finish the file, check it, and give it its name. Closing twice is fine.

        Raises:
            OutputError: Writing failed, no frame was given, or the file does not hold the frames.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self.frames_written == 0:
                raise OutputError(f"{self._name}: there is no frame to write")
            self._sink.finish()
        except BaseException:
            self._sink.abort()
            raise

    def abort(self) -> None:
        """Stop, leaving nothing behind."""
        self._closed = True
        self._sink.abort()

    def __enter__(self) -> "VideoWriter":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close, or abort where the block raised."""
        if kind is None:
            self.close()
        else:
            self.abort()


def _find_format(name: str, suffix: str, fps: Fraction) -> tuple[str, str]:
    """Look up container and encoder for a suffix."""
    if suffix not in FORMATS:
        known = ", ".join([*FORMATS, *PICTURE_SUFFIXES])
        raise UsageError(f"{name}: unknown video format {suffix or 'without suffix'} (use {known})")
    if suffix == ".gif" and fps > GIF_FPS:
        raise UsageError(f"{name}: a GIF holds at most {GIF_FPS} frames/s, not {float(fps):g}")
    return FORMATS[suffix]


class _Sink(Protocol):
    """Where frames go."""

    def write(self, frames: Frames) -> None:
        """Take frames."""

    def finish(self) -> None:
        """Complete the output."""

    def abort(self) -> None:
        """Stop and remove the output; fine after `finish` and twice."""


class _FileSink:
    """A video file: encoded under a temporary name, checked, renamed."""

    def __init__(self, path: Path, encoding: Encoding, overwrite: bool) -> None:
        self._path, self._encoding = path, encoding
        self._num_frames = 0
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(atomic_output(path, overwrite))
        self._encoder = Encoder(encoding, str(path), self._temporary)

    def write(self, frames: Frames) -> None:
        """Encode frames."""
        self._encoder.write(frames)
        self._num_frames += len(frames)

    def finish(self) -> None:
        """Complete, check and rename the file."""
        self._encoder.finish()
        self._check()
        self._stack.close()

    def abort(self) -> None:
        """Stop ffmpeg and remove the temporary file."""
        self._encoder.abort()
        self._stack.__exit__(OutputError, OutputError("abandoned"), None)

    def _check(self) -> None:
        """Open the written file and compare what it holds with what was given."""
        try:
            index = read_index(self._temporary)
        except VideoError as exc:
            raise OutputError(f"{self._path}: what was written is no video") from exc
        written = (index.timeline.num_frames, index.width, index.height)
        given = (self._num_frames, self._encoding.width, self._encoding.height)
        if written != given or index.damage is not None:
            raise OutputError(
                f"{self._path}: the written file holds {written[0]} frames of {written[1]}x"
                f"{written[2]} instead of {given[0]} of {given[1]}x{given[2]}"
            )


class _PictureSink:
    """A picture file, which holds one frame."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        check_output(path, overwrite)
        self._path, self._overwrite = path, overwrite
        self._frame: Frames | None = None

    def write(self, frames: Frames) -> None:
        """Keep the one frame."""
        if len(frames) > 1 or (self._frame is not None and len(frames)):
            raise OutputError(f"{self._path}: a picture holds one frame, this video has more")
        if len(frames):
            self._frame = frames[0].copy()

    def finish(self) -> None:
        """Write the picture."""
        assert self._frame is not None
        save_picture(self._path, self._frame, self._overwrite)

    def abort(self) -> None:
        """Forget the frame."""
        self._frame = None
