"""What came of encoding or decoding one clip, and how far it has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vtok.codefile import Header
from vtok.errors import UsageError

if TYPE_CHECKING:
    from vtok.pipeline.model_calls import CodeChunk

Progress = Callable[[int, int | None], None]
"""Called with the frames done so far, and with all frames where their number is known."""


@dataclass(frozen=True)
class Result:
    """What one clip became.

    Attributes:
        input, output: names, `-` for a stream.
        width, height, fps: of the clip.
        frames: of the clip.
        code_shape: [stages * codebooks, t, h, w], of the most stages that a chunk has.
        codes: integers in all.
        bytes: of the codes' file; without those of stages that were not used.
        seconds: of wall time.
        bits_per_code: log2 of the codebook's size.
        lost: of a salvaged file, what was wrong where it ended; None where it was whole.
        lost_frames: how many frames it held beyond those here, where that is known.
        gaps: which ones: of each run the first, and the one after the last.
        note: what else a person should know, in one line; None where there is nothing.
        stages: how many chunks have so many stages, by their number.
        psnr: mean over the frames as they will be decoded, in dB; None where it was not measured.
    """

    input: str
    output: str
    width: int
    height: int
    fps: Fraction
    frames: int
    code_shape: tuple[int, int, int, int]
    codes: int
    bytes: int
    seconds: float
    bits_per_code: int
    lost: str | None = None
    lost_frames: int | None = None
    gaps: tuple[tuple[int, int], ...] = ()
    note: str | None = None
    stages: dict[int, int] = field(default_factory=dict)
    psnr: float | None = None

    @property
    def pixels(self) -> int:
        """T * H * W."""
        return self.frames * self.width * self.height

    @property
    def bpp(self) -> float:
        """Bits of the file per pixel, header included."""
        return 8 * self.bytes / self.pixels

    @property
    def contents(self) -> str:
        """How many codes there are, in words."""
        return f"{self.codes:,} codes"

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
            "lost_frames": self.lost_frames,
            "gaps": [list(gap) for gap in self.gaps],
            "note": self.note,
            "chunk_stages": {str(stages): self.stages[stages] for stages in sorted(self.stages)},
            "chunk_bits": round(8 * self.bytes / max(1, sum(self.stages.values()))),
            "psnr": None if self.psnr is None else round(self.psnr, 3),
        }


@dataclass
class Counts:
    """What has gone through so far.

    Attributes:
        frames, steps: of video, and of latents.
        codes: integers.
        bytes: of the codes' file, set at its end.
        lost, lost_frames, gaps: what was wrong with a salvaged file, how many frames it held
            beyond those that were saved, and which ones, set at its end.
        start: number of the first frame that was asked for.
        note: what else a person should know.
        stages: chunks by the number of their stages.
        psnr: mean over frames in dB, where it was measured.
    """

    start: int = 0
    frames: int = 0
    steps: int = 0
    codes: int = 0
    bytes: int = 0
    lost: str | None = None
    lost_frames: int | None = None
    gaps: list[tuple[int, int]] = field(default_factory=list)
    note: str | None = None
    stages: Counter[int] = field(default_factory=Counter)
    psnr: float | None = None

    def follow(
        self, chunks: Iterable[CodeChunk], progress: Progress | None, total: int | None
    ) -> Iterator[CodeChunk]:
        """Pass chunks on and count each when the next one is asked for."""
        for chunk in chunks:
            yield chunk
            stages, _, steps, *_ = chunk.codes.shape
            self.add(chunk.num_frames, steps, stages, chunk.codes.size)
            if progress is not None:
                progress(self.frames, total)

    def close_gaps(self) -> None:
        """Join gaps that touch; what is lost and in none of them was lost at the end."""
        inner = sum(end - first for first, end in self.gaps)
        if inner or self.lost_frames:
            self.lost_frames = lost = max(self.lost_frames or 0, inner)
            end = self.start + self.frames + lost
            self.gaps += [(end - lost + inner, end)] if lost > inner else []
        joined: list[tuple[int, int]] = []
        for first, end in sorted(self.gaps):
            if joined and first <= joined[-1][1]:
                first, end = joined.pop()[0], end
            joined.append((first, end))
        self.gaps = joined

    def add(self, frames: int, steps: int, stages: int, codes: int) -> None:
        """Count one chunk."""
        self.frames += frames
        self.steps += steps
        self.codes += codes
        self.stages[stages] += 1


def make_result(names: tuple[str, str], header: Header, counts: Counts, seconds: float) -> Result:
    """A result from a code file's header and the counts at its end."""
    layout = header.format
    return Result(
        input=names[0],
        output=names[1],
        width=header.transform.width,
        height=header.transform.height,
        fps=header.transform.fps,
        frames=counts.frames,
        code_shape=(
            max(counts.stages, default=0) * layout.num_codebooks,
            counts.steps,
            *layout.grid,
        ),
        codes=counts.codes,
        bytes=counts.bytes,
        seconds=seconds,
        bits_per_code=layout.bits_per_code,
        lost=counts.lost,
        lost_frames=counts.lost_frames,
        gaps=tuple(counts.gaps),
        note=counts.note,
        stages=dict(counts.stages),
        psnr=counts.psnr,
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
