"""Chunks of codes, the observers that follow them, and the result of a conversion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vtok.codefile.header import Header, LatentFormat, LatentHeader
from vtok.codefile.packing import CodedPart
from vtok.pipeline.files import name_of
from vtok.video.frames import Frames

if TYPE_CHECKING:
    from torch import Tensor

Codes = npt.NDArray[Any]
"""int64 [stages, codebooks, t, h, w], or latents [1, D, t, h, w]."""
End = str | Path | BinaryIO
"""Input or output of a conversion."""
Progress = Callable[[int, int | None], None]
"""Called with the number of frames done, and with that of all frames or None if unknown."""


@dataclass(frozen=True)
class CodeChunk:
    """Codes of consecutive frames: one record of a code file.

    Attributes:
        codes: int64 [stages, codebooks, t, h, w]; of a tokenizer without codes, latents
            [1, D, t, h, w] of a float type.
        num_frames: frames that they show, without padding.
        restart: whether the decoder starts from an empty state.
        skip: decoded frames to drop before those shown.
        parts: the codes as bytes, where an observer has coded them already.
    """

    codes: Codes
    num_frames: int
    restart: bool = False
    skip: int = 0
    parts: tuple[CodedPart, ...] | None = None


class Observer:
    """Base class of everything that follows an `Encoder` or a `Decoder`.

    Override `on_frames` and `on_chunk`; to time the work of producing frames or chunks, override
    the generators `frames` and `chunks`.

    Attributes:
        sequential: whether each model call of an `Encoder` must end before the next one begins.
    """

    sequential = False

    def on_frames(self, frames: Frames) -> None:
        """Receive frames, uint8 [n, H, W, 3]: before encoding, or after decoding."""

    def on_latents(self, latents: Tensor, clip: Tensor, begins: bool) -> Tensor:
        """Receive latents and clip of a model call of the encoder; those returned replace them."""
        return latents

    def on_call(self, num_frames: int) -> None:
        """Receive the number of frames of a model call that has ended, in order."""

    def on_chunk(self, chunk: CodeChunk) -> CodeChunk:
        """Receive a chunk; the chunk returned replaces it, e.g. one with fewer stages."""
        return chunk

    def on_end(self) -> None:
        """Receive the end of the chunks."""

    def frames(self, batches: Iterator[Frames]) -> Iterator[Frames]:
        """Forward batches of frames."""
        for batch in batches:
            self.on_frames(batch)
            yield batch

    def chunks(self, chunks: Iterator[CodeChunk]) -> Iterator[CodeChunk]:
        """Forward chunks."""
        for chunk in chunks:
            yield self.on_chunk(chunk)
        self.on_end()


def count_call(observers: Iterable[Observer], num_frames: int) -> None:
    """Call `on_call` of each observer."""
    for observer in observers:
        observer.on_call(num_frames)


class ChunkObserver(Observer):
    """Observer of an `Encoder` that receives each chunk together with its source frames.

    It holds the frames of the chunk in progress only.
    """

    def __init__(self) -> None:
        self._held: list[Frames] = []

    def on_frames(self, frames: Frames) -> None:
        """Hold frames until their chunk arrives."""
        self._held.append(frames)

    def on_chunk(self, chunk: CodeChunk) -> CodeChunk:
        """Take the frames of the chunk and forward both."""
        held = np.concatenate(self._held)
        self._held = [held[chunk.num_frames :]]
        return self.on_pair(chunk, held[: chunk.num_frames])

    def on_pair(self, chunk: CodeChunk, frames: Frames) -> CodeChunk:
        """Receive a chunk and its source frames; the chunk returned replaces it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Conversion:
    """Facts about the conversion of one video.

    Attributes:
        input, output: names, `-` for a stream.
        width, height, fps, frames: of the video.
        bytes: size of the file of codes or tokens; without stages that were not read.
        seconds: wall time.
    """

    input: str
    output: str
    width: int
    height: int
    fps: Fraction
    frames: int
    bytes: int
    seconds: float

    @property
    def pixels(self) -> int:
        """Pixels of all frames, T * H * W."""
        return self.frames * self.width * self.height

    @property
    def bpp(self) -> float:
        """Bits of the file per pixel, header included."""
        return 8 * self.bytes / self.pixels

    @property
    def frames_per_second(self) -> float:
        """Speed of the whole conversion, without loading the model."""
        return self.frames / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return {
            "input": self.input,
            "output": self.output,
            "width": self.width,
            "height": self.height,
            "fps": f"{self.fps.numerator}/{self.fps.denominator}",
            "frames": self.frames,
            "bytes": self.bytes,
            "bpp": round(self.bpp, 6),
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 2),
        }


@dataclass(frozen=True)
class Result(Conversion):
    """Result of converting a video to codes or back.

    Attributes:
        code_shape: [stages * codebooks, t, h, w], with the most stages that a chunk has.
        codes: number of integers.
        bits_per_code: log2 of the codebook size; bits of a number of latents.
        vocab_size: entries of a codebook; 0 for latents.
        lost: description of the damage where a salvaged file ended; None for a whole file.
        lost_frames: frames of a salvaged file that could not be decoded, if known.
        gaps: ranges of those frames: the first one, and the one after the last.
        note: remarks for the user, one line.
        missing_frames: frames of the part that an encoded source lacks: lost, or not decodable.
        stages: number of chunks by number of stages.
        psnr: mean over the frames as they will be decoded, in dB; None if not measured.
        audio_bytes: bytes of sound among `bytes`, which do not count in bits per pixel.
    """

    code_shape: tuple[int, int, int, int]
    codes: int
    bits_per_code: int
    vocab_size: int
    lost: str | None = None
    lost_frames: int | None = None
    gaps: tuple[tuple[int, int], ...] = ()
    note: str | None = None
    missing_frames: int | None = None
    stages: dict[int, int] = field(default_factory=dict)
    psnr: float | None = None
    audio_bytes: int = 0

    @property
    def bpp(self) -> float:
        """Bits of the file per pixel, header included and sound excluded."""
        return 8 * (self.bytes - self.audio_bytes) / self.pixels

    @property
    def contents(self) -> str:
        """Number of codes, in words."""
        return f"{self.codes:,} {'codes' if self.vocab_size else 'latent numbers'}"

    @property
    def raw_bpp(self) -> float:
        """Bits of the codes per pixel, without entropy coding and header."""
        return self.codes * self.bits_per_code / self.pixels

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return {
            **super().to_json(),
            "codes": self.codes,
            "code_shape": list(self.code_shape),
            "bits_per_code": self.bits_per_code,
            "vocab_size": self.vocab_size,
            "raw_bpp": round(self.raw_bpp, 6),
            "lost": self.lost,
            "lost_frames": self.lost_frames,
            "gaps": [list(gap) for gap in self.gaps],
            "note": self.note,
            "missing_frames": self.missing_frames,
            "chunk_stages": {str(stages): self.stages[stages] for stages in sorted(self.stages)},
            "chunk_bits": round(
                8 * (self.bytes - self.audio_bytes) / max(1, sum(self.stages.values()))
            ),
            "psnr": None if self.psnr is None else round(self.psnr, 3),
            "audio_bytes": self.audio_bytes,
        }


@dataclass
class Counts(Observer):
    """Observer that counts chunks when the next one is requested, and reports progress.

    Attributes:
        progress: called after each model call, and after each chunk that took none.
        total: expected number of frames, if known.
        start: number of the first requested frame.
        frames_done, steps: frames of video and latent steps so far.
        codes: integers so far.
        bytes: size of the code file, set at its end.
        lost, lost_frames, gaps: fields of the `Result` of a salvaged file, set at its end.
        note, missing_frames: fields of the `Result`.
        stages: number of chunks by number of stages.
        psnr, audio_bytes: fields of the `Result`.
    """

    progress: Progress | None = None
    total: int | None = None
    start: int = 0
    frames_done: int = 0
    steps: int = 0
    codes: int = 0
    bytes: int = 0
    lost: str | None = None
    lost_frames: int | None = None
    gaps: list[tuple[int, int]] = field(default_factory=list)
    note: str | None = None
    missing_frames: int | None = None
    stages: Counter[int] = field(default_factory=Counter)
    psnr: float | None = None
    audio_bytes: int = 0
    _called: int = 0
    _reported: int = 0

    def on_call(self, num_frames: int) -> None:
        """Report progress."""
        self._called += num_frames
        self._report(self._called)

    def chunks(self, chunks: Iterator[CodeChunk]) -> Iterator[CodeChunk]:
        """Forward chunks, and count each when the next one is requested."""
        for chunk in chunks:
            yield chunk
            stages, _, steps, *_ = chunk.codes.shape
            self.add(chunk.num_frames, steps, stages, chunk.codes.size)

    def add(self, frames: int, steps: int, stages: int, codes: int) -> None:
        """Count one chunk."""
        self.frames_done += frames
        self.steps += steps
        self.codes += codes
        self.stages[stages] += 1
        self._report(self.frames_done)

    def _report(self, frames: int) -> None:
        if self.progress is not None and frames > self._reported:
            self._reported = frames
            self.progress(frames, self.total)

    def close_gaps(self) -> None:
        """Join adjacent gaps, and add one at the end for lost frames that are in no gap."""
        inner = sum(end - first for first, end in self.gaps)
        if inner or self.lost_frames:
            self.lost_frames = lost = max(self.lost_frames or 0, inner)
            end = self.start + self.frames_done + lost
            self.gaps += [(end - lost + inner, end)] if lost > inner else []
        joined: list[tuple[int, int]] = []
        for first, end in sorted(self.gaps):
            if joined and first <= joined[-1][1]:
                first, end = joined.pop()[0], end
            joined.append((first, end))
        self.gaps = joined


def make_result(
    source: End, output: End, header: Header | LatentHeader, counts: Counts, seconds: float
) -> Result:
    """Make a result from a header and the final counts."""
    layout = header.format
    if isinstance(layout, LatentFormat):
        num_codebooks, bits, entries = layout.latent_dim, int(layout.dtype[5:]), 0
    else:
        num_codebooks, bits = layout.num_codebooks, layout.bits_per_code
        entries = layout.num_entries
    return Result(
        input=name_of(source) or "-",
        output=name_of(output) or "-",
        width=header.transform.width,
        height=header.transform.height,
        fps=header.transform.fps,
        frames=counts.frames_done,
        code_shape=(
            max(counts.stages, default=0) * num_codebooks,
            counts.steps,
            *layout.grid,
        ),
        codes=counts.codes,
        bytes=counts.bytes,
        seconds=seconds,
        bits_per_code=bits,
        vocab_size=entries,
        lost=counts.lost,
        lost_frames=counts.lost_frames,
        gaps=tuple(counts.gaps),
        note=counts.note,
        missing_frames=counts.missing_frames,
        stages=dict(counts.stages),
        psnr=counts.psnr,
        audio_bytes=counts.audio_bytes,
    )
