"""Classic codecs by ffmpeg, encoding at a given quality or at a given number of bytes.

Codecs get the frames that the tokenizer gets, converted to 8-bit 4:2:0. The size of a stream is
that of the elementary stream, without container and without the encoder's settings as text.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from vtok.errors import OptionError, UsageError, VtokError
from vtok.evaluation.metrics import ffmpeg_lists
from vtok.video.ffmpeg import QUIET, ffmpeg_path, input_arguments
from vtok.video.frames import Frames
from vtok.video.writer import BT709, TO_BT709, Encoder, Encoding

TOLERANCE = 0.02
"""Relative difference from the target bytes at which the search ends."""
MAX_TRIALS = 14
_TO_RGB = "scale=in_color_matrix=bt709:in_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp"


@dataclass(frozen=True)
class Codec:
    """An encoder of ffmpeg with constant-quality settings.

    Attributes:
        encoder: ffmpeg's name of the encoder.
        description: encoder and preset, for display.
        stream: ffmpeg's name of the elementary stream format.
        lowest, highest: range of the constant rate factor, best to worst quality.
        step: granularity of the constant rate factor.
        arguments: arguments of ffmpeg, with `{crf}` for the constant rate factor.
    """

    encoder: str
    description: str
    stream: str
    lowest: int
    highest: int
    step: Fraction
    arguments: tuple[str, ...]


_TENTH, _QUARTER = Fraction(1, 10), Fraction(1, 4)
# one thread: with more, x264 and x265 write other streams, and results would depend on the machine
_X264 = (
    *("-preset", "medium", "-crf", "{crf}", "-x264-params", "threads=1:lookahead-threads=1"),
    *("-bsf:v", "filter_units=remove_types=6"),  # drops the settings as text
)
_X265 = (
    *("-preset", "medium", "-crf", "{crf}"),
    *("-x265-params", "frame-threads=1:info=0:log-level=error"),
)
_SVT = ("-preset", "6", "-svtav1-params", "crf={crf}")  # -crf takes integers only
_AOM = ("-cpu-used", "6", "-crf", "{crf}", "-b:v", "0")
CODECS: dict[str, tuple[Codec, ...]] = {
    "x264": (Codec("libx264", "x264, preset medium", "h264", 1, 51, _TENTH, _X264),),
    "x265": (Codec("libx265", "x265, preset medium", "hevc", 1, 51, _TENTH, _X265),),
    "av1": (
        Codec("libsvtav1", "SVT-AV1, preset 6", "obu", 1, 63, _QUARTER, _SVT),
        Codec("libaom-av1", "libaom AV1, cpu-used 6", "obu", 1, 63, Fraction(1), _AOM),
    ),
}
"""Encoders by codec name, in order of preference."""


def find_codec(name: str) -> Codec:
    """Return the first encoder of a codec in `CODECS` that ffmpeg has.

    Raises:
        OptionError: if the codec is unknown.
        UsageError: if this ffmpeg has no encoder for it.
    """
    if name not in CODECS:
        raise OptionError("codecs", name, f"some of {', '.join(CODECS)}")
    found = [codec for codec in CODECS[name] if codec.encoder in ffmpeg_lists("encoders")]
    if not found:
        wanted = " or ".join(codec.encoder for codec in CODECS[name])
        raise UsageError(
            f"{name}: this ffmpeg has no {wanted}; leave {name} out, or use the ffmpeg of "
            "imageio-ffmpeg"
        )
    return found[0]


@dataclass(frozen=True)
class Master:
    """Lossless copy of a clip on disk, the input of every codec.

    Attributes:
        path: FFV1 in Matroska, 4:2:0; odd sides are padded by repeating the last row or column.
        width, height, frames: size of the clip itself.
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
    """Write batches of frames uint8 [n, H, W, 3] losslessly to `path`.

    Raises:
        OutputError: if the file cannot be written.
        VtokError: if there are no frames.
    """
    batches = iter(batches)
    if (first := next(batches, None)) is None:
        raise VtokError("the clip has no frames to compare")
    frames, (height, width) = 0, first.shape[1:3]
    even = (width + width % 2, height + height % 2)
    encoder = Encoder(_Lossless("", "", *even, fps, 0), path.name, path)
    try:
        for batch in chain([first], batches):
            frames += len(batch)
            padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
            encoder.write(np.pad(batch, padding, mode="edge"))
        encoder.finish()
    finally:
        encoder.abort()
    return Master(path, width, height, frames)


def encode_stream(master: Master, codec: Codec, crf: float, output: Path) -> int:
    """Encode a master at a constant rate factor; returns the bytes of the stream.

    Raises:
        VtokError: if ffmpeg failed.
    """
    arguments = [argument.format(crf=f"{crf:g}") for argument in codec.arguments]
    command = [ffmpeg_path(), *QUIET, "-y", *input_arguments(master.path), "-an"]
    command += ["-c:v", codec.encoder, *arguments, "-f", codec.stream, f"file:{output}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "[error]" in line), "")
        reason = re.sub(r"^.*\[error\]:? *", "", first).strip() or "ffmpeg gave no reason"
        raise VtokError(
            f"{codec.description} cannot encode frames of {master.width}x{master.height} at "
            f"crf {crf:g} ({reason[:200]})"
        )
    return output.stat().st_size


def decode_stream(master: Master, stream: Path) -> Iterator[Frames]:
    """Decode a stream of `encode_stream`; yields frames uint8 [1, H, W, 3].

    Raises:
        VtokError: if the number of frames is not that of the master.
    """
    width, height = (side + side % 2 for side in (master.width, master.height))
    command = [ffmpeg_path(), *QUIET, *input_arguments(stream), "-fps_mode", "passthrough"]
    command += ["-vf", f"{_TO_RGB},format=rgb24", "-f", "rawvideo", "pipe:1"]
    count, size = 0, width * height * 3
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            while len(data := process.stdout.read(size)) == size:
                count += 1
                frame = np.frombuffer(data, np.uint8).reshape(1, height, width, 3)
                yield frame[:, : master.height, : master.width]
        finally:
            process.kill()
    if count != master.frames:
        raise VtokError(f"{stream.name}: decodes to {count} frames instead of {master.frames}")


class RateMatcher:
    """Search, for one codec and one master, of the constant rate factor that gives a size.

    Trials are kept, so that searches for several sizes share them.

    Args:
        codec: range and granularity of the factor.
        bytes_at: encodes with a factor and returns the bytes.
    """

    def __init__(self, codec: Codec, bytes_at: Callable[[float], int]) -> None:
        self._codec, self._bytes_at = codec, bytes_at
        self._known: dict[int, int] = {}  # bytes by multiples of the step

    def match(self, target: float) -> tuple[float, int]:
        """Return the factor whose bytes are nearest to `target` by ratio, and these bytes.

        The search is a bisection, guided by the nearly linear logarithm of the bytes. It ends
        within `TOLERANCE`, or if no untried factor lies between one that gives too many bytes and
        one that gives too few.
        """
        known, step = self._known, self._codec.step
        lowest, highest = (round(x / step) for x in (self._codec.lowest, self._codec.highest))
        for trial in range(MAX_TRIALS):
            if any(abs(count / target - 1) <= TOLERANCE for count in known.values()):
                break
            low = max((k for k in known if known[k] > target), default=None)  # too many bytes
            high = min((k for k in known if known[k] <= target), default=None)
            if not known:
                candidate = (2 * highest + lowest) // 3
            elif low is None or high is None:
                end, outward = (min(known), -1) if low is None else (max(known), 1)
                # for most encoders, six more halve the bytes
                jump = round(6 * math.log2(known[end] / target) / step) or outward
                candidate = min(highest, max(lowest, end + jump))
            else:
                share = math.log(known[low] / target) / math.log(known[low] / known[high])
                middle = (low + high) // 2 if trial % 3 == 2 else round(low + share * (high - low))
                candidate = min(high - 1, max(low + 1, middle))
            if candidate in known:
                break
            known[candidate] = self._bytes_at(float(candidate * step))
        best = min(known, key=lambda k: abs(math.log(known[k] / target)))
        return float(best * step), known[best]
