"""What came of encoding or decoding one clip, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

from vtok.codec.streams import CodeChunk
from vtok.codefile import Header
from vtok.errors import OutputError, UsageError

Progress = Callable[[int, int | None], None]
"""Called with the frames done so far, and with all frames where their number is known."""


@dataclass(frozen=True)
class Result:
    """What one clip became.

    Attributes:
        input, output: names, `-` for a stream.
        width, height, fps: of the clip.
        frames: of the clip.
        code_shape: [stages * codebooks, t, h, w].
        bytes: of the codes' file; without those of stages that were not used.
        seconds: of wall time.
        bits_per_code: log2 of the codebook's size.
        lost: of a salvaged file, what was wrong where it ended; None where it was whole.
    """

    input: str
    output: str
    width: int
    height: int
    fps: Fraction
    frames: int
    code_shape: tuple[int, int, int, int]
    bytes: int
    seconds: float
    bits_per_code: int
    lost: str | None = None

    @property
    def codes(self) -> int:
        """Integers in all."""
        k, t, h, w = self.code_shape
        return k * t * h * w

    @property
    def pixels(self) -> int:
        """T * H * W."""
        return self.frames * self.width * self.height

    @property
    def bpp(self) -> float:
        """Bits of the file per pixel, header included."""
        return 8 * self.bytes / self.pixels

    @property
    def raw_bpp(self) -> float:
        """Bits of the codes per pixel, without any coding or header."""
        return self.codes * self.bits_per_code / self.pixels

    @property
    def frames_per_second(self) -> float:
        """Speed over all, model loading left out."""
        return self.frames / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "input": self.input,
            "output": self.output,
            "width": self.width,
            "height": self.height,
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "frames": self.frames,
            "codes": self.codes,
            "code_shape": list(self.code_shape),
            "bits_per_code": self.bits_per_code,
            "bytes": self.bytes,
            "bpp": round(self.bpp, 6),
            "raw_bpp": round(self.raw_bpp, 6),
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 2),
            "lost": self.lost,
        }


@dataclass
class Counts:
    """What has gone through so far.

    Attributes:
        frames, steps: of video, and of latents.
        bytes: of the codes' file, set at its end.
        lost: what was wrong where a salvaged file ended, set at its end.
    """

    frames: int = 0
    steps: int = 0
    bytes: int = 0
    lost: str | None = None

    def follow(
        self, chunks: Iterable[CodeChunk], progress: Progress | None, total: int | None
    ) -> Iterator[CodeChunk]:
        """Pass chunks on and count each when the next one is asked for."""
        for chunk in chunks:
            yield chunk
            self.frames += chunk.num_frames
            self.steps += chunk.codes.shape[2]
            if progress is not None:
                progress(self.frames, total)


def make_result(
    names: tuple[str, str], header: Header, stages: int, counts: Counts, seconds: float
) -> Result:
    """A result from a code file's header, the stages used, and the counts at its end."""
    layout = header.format
    return Result(
        input=names[0],
        output=names[1],
        width=header.transform.width,
        height=header.transform.height,
        fps=header.transform.fps,
        frames=counts.frames,
        code_shape=(stages * layout.num_codebooks, counts.steps, *layout.grid),
        bytes=counts.bytes,
        seconds=seconds,
        bits_per_code=layout.bits_per_code,
        lost=counts.lost,
    )


def choose_stages(
    num_stages: int | None, num_bits: int | None, available: int, bits_per_stage: int
) -> int:
    """How many stages are asked for; all that are available where neither number is given.

    Args:
        num_stages: the number itself.
        num_bits: in its place, bits a position: as many stages as fit.
        available: stages that the model or the file has.
        bits_per_stage: bits a position of one stage.

    Raises:
        UsageError: for both numbers, or one that cannot be had.
    """
    if num_stages is not None and num_bits is not None:
        raise UsageError("--stages and --bits say the same thing: give one of them")
    if num_bits is not None:
        if num_bits < bits_per_stage:
            raise UsageError(f"--bits {num_bits}: one stage takes {bits_per_stage} already")
        return min(num_bits // bits_per_stage, available)
    if num_stages is not None and not 1 <= num_stages <= available:
        raise UsageError(f"--stages {num_stages}: there are 1 to {available}")
    return num_stages or available


class CountingStream:
    """A writable binary stream that counts what goes through, and names itself where it fails."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.name = stream, name
        self.count = 0

    def write(self, data: Any) -> int:
        """Write, and count what was taken.

        Raises:
            BrokenPipeError: if nobody reads the stream any more.
            OutputError: for any other reason.
        """
        with self._naming():
            taken = self.stream.write(data)
        self.count += taken
        return taken

    def flush(self) -> None:
        """Flush the stream; raises as `write` does."""
        with self._naming():
            self.stream.flush()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise OutputError(f"{self.name}: cannot be written ({exc.strerror})") from exc
