"""Classic codecs for comparison, by ffmpeg: encode at a quality, or at a number of bytes.

Each is given the same frames as the tokenizer, made 4:2:0 of 8 bits as such codecs take them; what
counts are the bytes of the bare stream, without a container and without the encoder's own notes.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np

from vtok.errors import UsageError, VtokError
from vtok.evaluation.metrics import Frames
from vtok.video.ffmpeg import QUIET, ffmpeg_path, input_arguments
from vtok.video.writer import BT709, TO_BT709, Encoder, Encoding

TOLERANCE = 0.02
"""How far from the bytes asked for a stream may be, as a share of them, to end the search."""
MOST_TRIALS = 14
_TO_RGB = "scale=in_color_matrix=bt709:in_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp"


@dataclass(frozen=True)
class Codec:
    """An encoder and how it is asked for a quality.

    Attributes:
        encoder: ffmpeg's name.
        described: encoder and preset, for people.
        stream: ffmpeg's name of the bare stream's format.
        least, most: of its constant rate factor, best to worst quality.
        step: in which that can be set.
        arguments: of ffmpeg; `{crf}` stands for the factor.
    """

    encoder: str
    described: str
    stream: str
    least: int
    most: int
    step: Fraction
    arguments: tuple[str, ...]


_TENTH, _QUARTER = Fraction(1, 10), Fraction(1, 4)
# x264 and x265 choose other bits with other numbers of threads: no result may hang on the machine
_X264 = (
    *("-preset", "medium", "-crf", "{crf}", "-x264-params", "threads=1:lookahead-threads=1"),
    *("-bsf:v", "filter_units=remove_types=6"),  # its settings as text
)
_X265 = (
    *("-preset", "medium", "-crf", "{crf}"),
    *("-x265-params", "frame-threads=1:info=0:log-level=error"),
)
_SVT = ("-preset", "6", "-svtav1-params", "crf={crf}")  # ffmpeg's own option takes whole numbers
_AOM = ("-cpu-used", "6", "-crf", "{crf}", "-b:v", "0")
CODECS: dict[str, tuple[Codec, ...]] = {
    "x264": (Codec("libx264", "x264, preset medium", "h264", 1, 51, _TENTH, _X264),),
    "x265": (Codec("libx265", "x265, preset medium", "hevc", 1, 51, _TENTH, _X265),),
    "av1": (
        Codec("libsvtav1", "SVT-AV1, preset 6", "obu", 1, 63, _QUARTER, _SVT),
        Codec("libaom-av1", "libaom AV1, cpu-used 6", "obu", 1, 63, Fraction(1), _AOM),
    ),
}
"""By the names that users give; of several, the first that ffmpeg has."""


def find_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        UsageError: if it is not known, or this ffmpeg has no encoder for it.
    """
    if name not in CODECS:
        raise UsageError(f"--with {name}: expected some of {', '.join(CODECS)}")
    found = [codec for codec in CODECS[name] if codec.encoder in _encoders()]
    if not found:
        wanted = " or ".join(codec.encoder for codec in CODECS[name])
        raise UsageError(
            f"--with {name}: this ffmpeg has no {wanted}: leave it out, or use imageio-ffmpeg's own"
        )
    return found[0]


@cache
def _encoders() -> frozenset[str]:
    done = subprocess.run(
        [ffmpeg_path(), "-hide_banner", "-encoders"], capture_output=True, text=True, check=False
    )
    return frozenset(re.findall(r"^ [A-Z.]{6} (\S+)", done.stdout, re.MULTILINE))


@dataclass(frozen=True)
class Master:
    """The frames that every codec is given, losslessly on disk.

    Attributes:
        path: FFV1 in Matroska, 4:2:0, odd sides made even by their last row or column again.
        width, height, frames: of the clip itself.
    """

    path: Path
    width: int
    height: int
    frames: int


class _Lossless(Encoding):
    def arguments(self) -> list[str]:
        colours = f"{TO_BT709},format=yuv420p,{BT709}"
        return ["-vf", colours, "-c:v", "ffv1", "-f", "matroska"]


def make_master(path: Path, batches: Iterable[Frames], fps: Fraction) -> Master:
    """Write frames uint8 [n, H, W, 3], batch by batch, where every codec can read them.

    Raises:
        OutputError: the file cannot be written.
    """
    encoder: Encoder | None = None
    height = width = frames = 0
    try:
        for batch in batches:
            frames, (height, width) = frames + len(batch), batch.shape[1:3]
            even = np.pad(batch, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if encoder is None:
                shape = (even.shape[2], even.shape[1])
                encoder = Encoder(_Lossless("", "", *shape, fps, 0), path.name, path)
            encoder.write(even)
        if encoder is None:
            raise VtokError("there is no frame to compare")
        encoder.finish()
    finally:
        if encoder is not None:
            encoder.abort()
    return Master(path, width, height, frames)


def encode_stream(master: Master, codec: Codec, crf: float, output: Path) -> int:
    """Encode a master; returns the bytes of the stream.

    Raises:
        VtokError: ffmpeg has failed.
    """
    arguments = [argument.format(crf=f"{crf:g}") for argument in codec.arguments]
    command = [ffmpeg_path(), *QUIET, "-y", *input_arguments(master.path), "-an"]
    command += ["-c:v", codec.encoder, *arguments, "-f", codec.stream, f"file:{output}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode:
        size = f"{master.width}x{master.height}"
        raise VtokError(
            f"{codec.described} cannot code frames of {size} at crf {crf:g} ({_why(done.stderr)})"
        )
    return output.stat().st_size


def _why(log: str) -> str:
    """The first error in what an encoder had to say, without who said it and where."""
    lines = [line for line in log.splitlines() if "[error]" in line]
    found = re.sub(r"^.*\[error\]:? *", "", lines[0]) if lines else "ffmpeg did not say why"
    return found.strip()[:200]


def decode_stream(master: Master, stream: Path) -> Iterator[Frames]:
    """Decode what `encode_stream` wrote, frame by frame, uint8 [1, H, W, 3].

    Raises:
        VtokError: it does not hold all frames of the master.
    """
    width, height = (side + side % 2 for side in (master.width, master.height))
    command = [ffmpeg_path(), *QUIET, *input_arguments(stream), "-fps_mode", "passthrough"]
    command += ["-vf", f"{_TO_RGB},format=rgb24", "-f", "rawvideo", "pipe:1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    count, size = 0, width * height * 3
    try:
        while len(data := process.stdout.read(size)) == size:
            count += 1
            frame = np.frombuffer(data, np.uint8).reshape(1, height, width, 3)
            yield frame[:, : master.height, : master.width]
    finally:
        process.kill()
        process.wait()
        with suppress(OSError):
            process.stdout.close()
    if count != master.frames:
        raise VtokError(f"{stream.name}: decodes to {count} frames instead of {master.frames}")


class RateMatcher:
    """Finds, for one codec and one master, the factor that gives a number of bytes.

    What was tried for one number of bytes is remembered for the next.
    """

    def __init__(self, codec: Codec, bytes_at: Callable[[float], int]) -> None:
        """Begin; `bytes_at` encodes with a constant rate factor and tells the bytes."""
        self._codec, self._bytes_at = codec, bytes_at
        self._known: dict[int, int] = {}  # by multiples of the step

    def match(self, target: float) -> tuple[float, int]:
        """The factor whose bytes are nearest to `target`, by their ratio, and these bytes.

        Bisection, guided by the logarithm of the bytes being nearly a line: until they are within
        `TOLERANCE`, or no factor lies between one that takes more and one that takes fewer.
        """
        for trial in range(MOST_TRIALS):
            wanted = self._next(target, halve=trial % 3 == 2)
            if wanted is None:
                break
            self._known[wanted] = self._bytes_at(float(wanted * self._codec.step))
            if abs(self._known[wanted] / target - 1) <= TOLERANCE:
                break
        best = min(self._known, key=lambda k: abs(math.log(self._known[k] / target)))
        return float(best * self._codec.step), self._known[best]

    def _next(self, target: float, *, halve: bool) -> int | None:
        """What to try next; None where nothing can come nearer."""
        known, per_one = self._known, 1 / self._codec.step
        least, most = round(self._codec.least * per_one), round(self._codec.most * per_one)
        if any(abs(count / target - 1) <= TOLERANCE for count in known.values()):
            return None
        low = max((k for k in known if known[k] > target), default=None)  # too many bytes
        high = min((k for k in known if known[k] <= target), default=None)
        if low is None and high is None:
            return (2 * most + least) // 3
        if low is None or high is None:
            end, outward = (min(known), -1) if low is None else (max(known), 1)
            # six more halve the bytes of most encoders
            jump = round(6 * math.log2(known[end] / target) * per_one) or outward
            wanted = min(most, max(least, end + jump))
            return None if wanted in known else wanted
        if high - low <= 1:
            return None
        share = math.log(known[low] / target) / math.log(known[low] / known[high])
        middle = (low + high) // 2 if halve else round(low + share * (high - low))
        return min(high - 1, max(low + 1, middle))
