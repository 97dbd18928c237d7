"""Write frames to video files, pictures and streams, atomically and checked."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from queue import Queue
from typing import IO, TYPE_CHECKING, BinaryIO, NoReturn

import numpy as np

from vtok._files import atomic_output
from vtok._sound import Sound
from vtok.errors import OutputError, ShapeError, UsageError
from vtok.video.ffmpeg import QUIET, describe_end, ffmpeg_path, parse_log_line
from vtok.video.frames import Frames
from vtok.video.images import PICTURE_SUFFIXES, write_picture
from vtok.video.mux import FrameTimes, measure, remux

if TYPE_CHECKING:
    from typing_extensions import Self

# conversion to the colours that players assume for HD video
TO_BT709 = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp"
# the matching tags; as options of ffmpeg, not all of them would reach the file
BT709 = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
GIF_FILTER = (  # one palette per frame, so that frames do not wait for the last one
    "split[a][b];[a]palettegen=stats_mode=single[p];"
    "[b][p]paletteuse=new=1:dither=bayer:bayer_scale=5"
)


@dataclass(frozen=True)
class Encoding:
    """Settings of an encoder."""

    container: str  # ffmpeg's name of the container
    codec: str  # ffmpeg's name of the encoder
    width: int  # width in pixels
    height: int  # height in pixels
    fps: Fraction  # exact rate
    crf: int  # constant rate factor of x264, 0 (lossless) to 51; scaled for others

    def arguments(self) -> list[str]:
        """Make the output arguments of ffmpeg, without the output itself."""
        if self.codec == "gif":
            return ["-vf", GIF_FILTER, "-c:v", "gif", "-f", self.container]
        odd = self.width % 2 or self.height % 2  # 4:2:0 halves both sides
        pixels = "yuv444p" if odd else "yuv420p"
        colours = f"{TO_BT709},format={pixels},{BT709}"
        if self.codec == "wrapped_avframe":  # y4m, which states no matrix
            colours = f"{TO_BT709.replace('bt709', 'bt601')},format={pixels}"
            return ["-vf", colours, "-c:v", self.codec, "-f", self.container]
        quality = ["-crf", str(self.crf), "-preset", "veryfast"]
        if self.codec == "libvpx-vp9":  # its scale goes to 63
            quality = ["-crf", str(round(self.crf * 63 / 51)), "-b:v", "0"]
            quality += ["-deadline", "realtime", "-cpu-used", "7", "-row-mt", "1"]
        if self.container in ("mp4", "mov"):
            quality += ["-movflags", "+faststart"]  # index first, so that players start at once
        return ["-vf", colours, "-c:v", self.codec, *quality, "-f", self.container]


# arguments for an mp4 that can be written to a pipe
FRAGMENTED = ("-movflags", "frag_keyframe+empty_moov")


class Encoder:
    """Running ffmpeg process that encodes frames."""

    def __init__(self, encoding: Encoding, name: str, output: Path | BinaryIO) -> None:
        """Start ffmpeg.

        Args:
            encoding: Settings.
            name: Name of the output in errors.
            output: File to write, or a binary stream; an mp4 for a stream is fragmented.
        """
        self._name = name
        size = f"{encoding.width}x{encoding.height}"
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(encoding.fps)]
        to_file = isinstance(output, Path)
        fragmented = FRAGMENTED if encoding.container in ("mp4", "mov") else ()
        sink = [f"file:{output}"] if to_file else [*fragmented, "pipe:1"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by finish and abort
        self._process = subprocess.Popen(
            [ffmpeg_path(), *QUIET, "-y", *source, "-i", "pipe:0", *encoding.arguments(), *sink],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if to_file else subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches only the parent, which then aborts
        )
        assert self._process.stdin is not None
        self._feeder = _Feeder(self._process.stdin)
        self._pump: _Pump | None = None
        if not isinstance(output, Path):
            assert self._process.stdout is not None
            self._pump = _Pump(self._process.stdout, output)

    def write(self, frames: Frames) -> None:
        """Encode frames in the background.

        Args:
            frames: uint8 [T, H, W, 3] RGB of the size of the video; must not be changed later.

        Raises:
            OutputError: ffmpeg has failed, possibly at earlier frames.
        """
        if not self._feeder.give(frames):
            self._fail()

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            OutputError: ffmpeg or the stream has failed.
        """
        self._feeder.close()
        status = self._process.wait()
        stream_error = self._pump.join() if self._pump else None
        if status != 0 or stream_error is not None:
            self._fail()
        self._log.close()

    def abort(self) -> None:
        """Stop at once. Stopping twice is fine."""
        self._process.kill()
        self._process.wait()
        if self._pump:
            self._pump.join(timeout_seconds=1.0)  # it may wait for a reader forever
        self._feeder.close()
        self._log.close()

    def _fail(self) -> NoReturn:
        """Raise the error of the stream or of ffmpeg."""
        status = self._process.wait()
        reason = self._pump.join() if self._pump else None
        self._log.seek(0)
        reason = reason or _first_error(self._log.read().decode(errors="replace"), status)
        self.abort()
        raise OutputError(f"{self._name}: cannot be written ({reason})")


def _first_error(log: str, status: int) -> str:
    """Find the first error in a log of ffmpeg, the cause of later ones."""
    lines = [parse_log_line(line) for line in log.splitlines()]
    errors = [line.text for line in lines if line.level in ("error", "fatal")]
    return errors[0] if errors else describe_end("ffmpeg", status)


class _Feeder:
    """Thread that writes frames to a pipe; at most one batch waits."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._waiting: Queue[Frames | None] = Queue(1)
        self._is_broken = False
        self._thread = threading.Thread(target=self._feed, name="vtok-writer", daemon=True)
        self._thread.start()

    def give(self, frames: Frames) -> bool:
        """Queue frames; return False if the pipe is broken."""
        if not self._is_broken:
            self._waiting.put(frames)
        return not self._is_broken

    def close(self) -> None:
        """Close the pipe after everything is written. Closing twice is fine."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        with contextlib.suppress(OSError):
            self._pipe.close()

    def _feed(self) -> None:
        while (frames := self._waiting.get()) is not None:
            try:
                for frame in () if self._is_broken else frames:
                    self._pipe.write(np.ascontiguousarray(frame).data)
            except OSError:  # keep emptying the queue, or the caller would block
                self._is_broken = True


class _Pump:
    """Thread that copies a pipe to a stream."""

    def __init__(self, pipe: IO[bytes], stream: BinaryIO) -> None:
        self._pipe, self._stream = pipe, stream
        self._error: str | None = None
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def join(self, timeout_seconds: float | None = None) -> str | None:
        """Wait for the end of the pipe; return the error of the stream, if any."""
        self._thread.join(timeout_seconds)
        return self._error

    def _copy(self) -> None:
        with self._pipe as pipe:  # closing the pipe ends ffmpeg if the stream fails
            try:
                while data := os.read(pipe.fileno(), 2**16):
                    self._stream.write(data)
                self._stream.flush()
            except OSError as exc:
                self._error = exc.strerror or str(exc)
            except ValueError as exc:  # the stream is closed
                self._error = str(exc)


FORMATS = {  # container and encoder
    ".mp4": ("mp4", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".mov": ("mov", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
    ".gif": ("gif", "gif"),
    ".y4m": ("yuv4mpegpipe", "wrapped_avframe"),
}
GIF_FPS = 100  # largest rate of a GIF, whose time stamps count 1/100 s


class FrameWriter:
    """Base class of writers of frames to one output; a context manager.

    Leaving the block by an exception, including Ctrl-C, removes what was written.

    Attributes:
        frames_written: Number of frames so far.
    """

    def __init__(self, output: Path | BinaryIO, shape: tuple[int, int, int]) -> None:
        self._output, self._shape = output, shape
        self._name = str(output) if isinstance(output, Path) else "<stream>"
        self._stack, self._closed = ExitStack(), False
        self.frames_written = 0

    def write(self, frames: Frames) -> None:
        """Add frames.

        Args:
            frames: uint8 [T, H, W, 3] RGB; must not be changed later, since they may be queued.

        Raises:
            ShapeError: The frames have another size or type.
            OutputError: Writing failed, possibly at earlier frames.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._shape:
            raise ShapeError(
                f"{self._name}: frames of {frames.dtype} {list(frames.shape)} do not fit"
                f" uint8 [T, {self._shape[0]}, {self._shape[1]}, 3]"
            )
        try:
            self._add(frames)
        except OSError as exc:
            raise self._failed(exc) from exc
        self.frames_written += len(frames)

    def close(self) -> None:
        """Finish the output under its name. Closing twice is fine.

        Raises:
            OutputError: Writing failed, there was no frame, or the file does not hold the frames.
        """
        if self._closed:
            return
        self._closed = True
        with self._stack:
            try:
                if not self.frames_written:
                    raise OutputError(f"{self._name}: there is no frame to write")
                self._finish()
            except OSError as exc:
                raise self._failed(exc) from exc

    def abort(self) -> None:
        """Stop and remove everything that was written."""
        self._closed = True
        self._stack.__exit__(OutputError, OutputError("abandoned"), None)

    def _add(self, frames: Frames) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _failed(self, error: OSError) -> Exception:
        if isinstance(error, BrokenPipeError):
            return error
        return OutputError(f"{self._name}: cannot be written ({error.strerror or error})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class VideoWriter(FrameWriter):
    """Writer of a video, frame by frame and atomic.

    The file is written under a temporary name, opened again to count its frames, and renamed.
    Odd sizes are kept.

    Attributes:
        times: times of the frames; set it before `close` for frames that are at uneven times.
        sound: compressed sound, to set before `close`; of a codec that the container holds.
        container: ffmpeg's name of the container; empty for a picture.

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
        to: str | None = None,
        overwrite: bool = False,
        spool: bool = False,
    ) -> None:
        """Start a video.

        Args:
            output: File to write, with the suffix of a known format (pictures take one frame); or
                a binary stream such as standard output.
            width: Width in pixels.
            height: Height in pixels.
            fps: Exact frame rate.
            crf: Quality, from 0 (lossless except for the colour conversion) to 51; 18 is visually
                lossless to most viewers.
            codec: ffmpeg's name of the encoder; None takes the default of the format.
            to: Format of a stream, such as mkv; a fragmented mp4 if None.
            overwrite: Replace an existing file.
            spool: Hold a video for a stream in a temporary file, which times and sound need.

        Raises:
            UsageError: The suffix is unknown, or a number is out of range.
            OutputError: The file exists or cannot be written.
        """
        if width < 1 or height < 1 or fps <= 0 or not 0 <= crf <= 51:
            raise UsageError(f"cannot write {width}x{height} at {fps} frames/s with crf {crf}")
        suffix = output.suffix.lower() if isinstance(output, Path) else f".{to or 'mp4'}"
        super().__init__(output, (height, width, 3))
        self.times: FrameTimes | None = None
        self.sound: Iterable[Sound] = ()
        self.container = ""
        self._suffix, self._picture = suffix, np.empty(self._shape, np.uint8)
        self._encoder: Encoder | None = None
        self._encoding: Encoding | None = None
        self._stream = output if spool and not isinstance(output, Path) else None
        if not isinstance(output, Path) or suffix not in PICTURE_SUFFIXES:
            container, usual_codec = _find_format(self._name, suffix, fps)
            self.container = container
            self._encoding = Encoding(container, codec or usual_codec, width, height, fps, crf)
        with ExitStack() as stack:
            target = output
            if isinstance(output, Path):
                target = stack.enter_context(atomic_output(output, overwrite))
            elif spool:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vtok-"))
                target = Path(folder) / "video.mp4"
            if self._encoding is not None:
                self._encoder = Encoder(self._encoding, self._name, target)
                stack.callback(self._encoder.abort)
            self._target, self._stack = target, stack.pop_all()

    def _add(self, frames: Frames) -> None:
        if self._encoder is not None:
            self._encoder.write(frames)
        elif self.frames_written + len(frames) > 1:
            raise OutputError(
                f"{self._name}: a picture holds one frame, this video has more: "
                "give a pattern such as frame_%04d.png"
            )
        elif len(frames):
            self._picture = frames[0].copy()

    def _finish(self) -> None:
        if self._encoder is not None:
            self._encoder.finish()
        if isinstance(self._target, Path):
            self._finish_file(self._target)

    def _finish_file(self, temporary: Path) -> None:
        """Write the picture, or check the video."""
        if self._encoder is None:
            write_picture(temporary, self._picture, self._suffix, self._name)
            return
        self._remux(temporary)
        try:
            written = measure(temporary)
        except (OSError, ValueError, IndexError) as exc:
            raise OutputError(f"{self._name}: the written file is not a video") from exc
        height, width, _ = self._shape
        if written != (self.frames_written, width, height):
            raise OutputError(
                f"{self._name}: the written file holds {written[0]} frames of {written[1]}x"
                f"{written[2]} instead of {self.frames_written} of {width}x{height}"
            )
        if self._stream is not None:
            with temporary.open("rb") as file:
                shutil.copyfileobj(file, self._stream)
            self._stream.flush()

    def _remux(self, temporary: Path) -> None:
        """Set the times of the frames and add the sound, if there are any, to a written file."""
        encoding, times, blocks = self._encoding, self.times, iter(self.sound)
        assert encoding is not None
        first = next(blocks, None)
        if times is None and first is None and self._stream is None:
            return
        if times is None:
            times = FrameTimes(1 / encoding.fps, np.arange(self.frames_written + 1))
        sound = () if first is None else chain([first], blocks)
        other = temporary.with_name(f"{temporary.name}.part")
        streamed = self._stream is not None
        try:
            remux(temporary, other, encoding.container, times, sound, stream=streamed)
            other.replace(temporary)
        except (OSError, ValueError) as exc:  # errors of ffmpeg are of these types
            raise OutputError(f"{self._name}: cannot be written ({exc})") from exc
        finally:
            with contextlib.suppress(OSError):
                other.unlink(missing_ok=True)


def _find_format(name: str, suffix: str, fps: Fraction) -> tuple[str, str]:
    if suffix not in FORMATS:
        known = ", ".join([*FORMATS, *PICTURE_SUFFIXES])
        raise UsageError(f"{name}: unknown video format {suffix or 'without suffix'} (use {known})")
    if suffix == ".gif" and fps > GIF_FPS:
        raise UsageError(f"{name}: a GIF holds at most {GIF_FPS} frames/s, not {float(fps):g}")
    return FORMATS[suffix]
