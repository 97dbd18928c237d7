"""ffmpeg as an encoder: raw frames in, one video file or stream out, every failure noticed.

imageio's own writer starts the same program, but rescales odd sizes, leaves the colours untagged
and never looks at how ffmpeg ended; a full disk would go unseen.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import Queue
from typing import IO, BinaryIO, NoReturn

import numpy as np

from vtok.errors import OutputError
from vtok.media.ffmpeg import QUIET, ffmpeg_path, parse_log_line
from vtok.media.frames import Frames

TO_BT709 = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp"
"""Conversion to the colours that players assume of HD video."""
BT709 = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
"""The tags that say so; as options of ffmpeg, not all of them would reach the file."""
GIF_FILTER = (
    "split[a][b];[a]palettegen=stats_mode=single[p];"
    "[b][p]paletteuse=new=1:dither=bayer:bayer_scale=5"
)
"""A palette for each frame, so that no frame has to wait for the last one."""


@dataclass(frozen=True)
class Encoding:
    """How frames become a video."""

    container: str
    """ffmpeg's name of the container."""
    codec: str
    """ffmpeg's name of the encoder."""
    width: int
    """Width in pixels."""
    height: int
    """Height in pixels."""
    fps: Fraction
    """Exact rate."""
    crf: int
    """Constant rate factor of x264, 0 (lossless) to 51; other encoders take its like."""

    def arguments(self) -> list[str]:
        """Output arguments of ffmpeg, but for the output."""
        if self.codec == "gif":
            return ["-vf", GIF_FILTER, "-c:v", "gif", "-f", self.container]
        odd = self.width % 2 or self.height % 2  # 4:2:0 halves both sides
        pixels = "yuv444p" if odd else "yuv420p"
        colours = f"{TO_BT709},format={pixels},{BT709}"
        return ["-vf", colours, "-c:v", self.codec, *self._quality(), *self._container()]

    def _quality(self) -> list[str]:
        """Arguments of the encoder."""
        if self.codec == "libvpx-vp9":  # its scale goes to 63
            speed = ["-deadline", "realtime", "-cpu-used", "7", "-row-mt", "1"]
            return ["-crf", str(round(self.crf * 63 / 51)), "-b:v", "0", *speed]
        return ["-crf", str(self.crf), "-preset", "veryfast"]

    def _container(self) -> list[str]:
        """Arguments of the container: an index in front, so that players can start at once."""
        front = ["-movflags", "+faststart"] if self.container in ("mp4", "mov") else []
        return [*front, "-f", self.container]


FRAGMENTED = ("-movflags", "frag_keyframe+empty_moov", "-f", "mp4")
"""Arguments of an mp4 that can be written to a pipe, where nothing can be gone back to."""


class Encoder:
    """One running ffmpeg that takes frames."""

    def __init__(self, encoding: Encoding, name: str, output: Path | BinaryIO) -> None:
        """Start ffmpeg.

        Args:
            encoding: How to encode.
            name: What to call the output in errors.
            output: File to write, or a binary stream that takes a fragmented mp4.
        """
        self._name = name
        size = f"{encoding.width}x{encoding.height}"
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(encoding.fps)]
        to_file = isinstance(output, Path)
        sink = [f"file:{output}"] if to_file else [*FRAGMENTED, "pipe:1"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by finish and abort
        self._process = subprocess.Popen(
            [ffmpeg_path(), *QUIET, "-y", *source, "-i", "pipe:0", *encoding.arguments(), *sink],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if to_file else subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the parent, which then aborts
        )
        assert self._process.stdin is not None
        self._feeder = _Feeder(self._process.stdin)
        self._pump: _Pump | None = None
        if not isinstance(output, Path):
            assert self._process.stdout is not None
            self._pump = _Pump(self._process.stdout, output)

    def write(self, frames: Frames) -> None:
        """Encode frames, while the caller makes the next ones.

        Args:
            frames: uint8 [T, H, W, 3] RGB, of the size of the video; not to be changed any more.

        Raises:
            OutputError: ffmpeg has failed, maybe at earlier frames.
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
            self._pump.join(timeout_seconds=1.0)  # it may wait for a reader that never comes
        self._feeder.close()
        self._log.close()

    def _fail(self) -> NoReturn:
        """Raise what went wrong, in the words of the stream or of ffmpeg."""
        status = self._process.wait()
        reason = self._pump.join() if self._pump else None
        self._log.seek(0)
        reason = reason or _first_error(self._log.read().decode(errors="replace"), status)
        self.abort()
        raise OutputError(f"{self._name}: cannot be written ({reason})")


def _first_error(log: str, status: int) -> str:
    """The first error in a log of ffmpeg, which is the cause of those after it."""
    lines = [parse_log_line(line) for line in log.splitlines()]
    errors = [line.text for line in lines if line.level in ("error", "fatal")]
    if not errors and status < 0:
        return f"ffmpeg was stopped by {signal.Signals(-status).name}"
    return errors[0] if errors else f"ffmpeg ended with status {status}"


class _Feeder:
    """A thread that writes frames to a pipe; no more than one batch waits for it."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._waiting: Queue[Frames | None] = Queue(1)
        self._is_broken = False
        self._thread = threading.Thread(target=self._feed, name="vtok-writer", daemon=True)
        self._thread.start()

    def give(self, frames: Frames) -> bool:
        """Have frames written as soon as those before them are; False if nobody reads the pipe."""
        if not self._is_broken:
            self._waiting.put(frames)
        return not self._is_broken

    def close(self) -> None:
        """Close the pipe once all is written, or nobody reads it. Closing twice is fine."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        with contextlib.suppress(OSError):
            self._pipe.close()

    def _feed(self) -> None:
        while (frames := self._waiting.get()) is not None:
            try:
                for frame in () if self._is_broken else frames:  # then it only makes room
                    self._pipe.write(np.ascontiguousarray(frame).data)
            except OSError:  # of any kind: a thread that ended would leave its caller waiting
                self._is_broken = True


class _Pump:
    """A thread that copies a pipe to a stream."""

    def __init__(self, pipe: IO[bytes], stream: BinaryIO) -> None:
        self._pipe, self._stream = pipe, stream
        self._error: str | None = None
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def join(self, timeout_seconds: float | None = None) -> str | None:
        """Wait for the end of the pipe; returns why the stream took no more, if so."""
        self._thread.join(timeout_seconds)
        return self._error

    def _copy(self) -> None:
        with self._pipe as pipe:  # closing it ends ffmpeg where the stream takes no more
            try:
                while data := os.read(pipe.fileno(), 2**16):
                    self._stream.write(data)
                self._stream.flush()
            except OSError as exc:
                self._error = exc.strerror or str(exc)
            except ValueError as exc:  # the stream is closed
                self._error = str(exc)
