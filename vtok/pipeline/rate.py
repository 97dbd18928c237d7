"""Observers of the encoder that decode its chunks: PSNR measurement and rate control."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vtok.codefile.header import Header
from vtok.codefile.packing import encode_parts
from vtok.codefile.records import FOOTER_BYTES, ROW, ChunkHead, preamble_to_bytes
from vtok.errors import OptionError, ShapeError
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.codec import Decoder
from vtok.pipeline.options import Rate
from vtok.pipeline.result import ChunkObserver, CodeChunk
from vtok.video.frames import Frames

IDENTICAL_DB = 100.0
"""PSNR of equal frames, so that means stay finite."""


def psnr_per_frame(a: Frames, b: Frames) -> npt.NDArray[np.float64]:
    """Compute the PSNR of each frame in dB, 10 log10(255^2 / MSE), at most `IDENTICAL_DB`.

    Args:
        a, b: uint8 [T, H, W, 3] of equal shapes. They are cast before they are subtracted:
            uint8 would wrap around.

    Returns:
        float64 [T].

    Raises:
        ShapeError: for other types, or for shapes that differ.
    """
    check_pair(a, b)
    # one frame at a time: float64 takes eight times the memory of uint8
    errors = np.array(
        [np.square(x.astype(np.float64) - y).mean() for x, y in zip(a, b, strict=True)]
    )
    with np.errstate(divide="ignore"):
        ratios: npt.NDArray[np.float64] = 10 * np.log10(255.0**2 / errors)
    return ratios.clip(max=IDENTICAL_DB)


def check_pair(a: Frames, b: Frames) -> None:
    """Check that two videos are uint8 [T, H, W, 3] of equal shapes.

    Raises:
        ShapeError: otherwise.
    """
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ShapeError(f"frames of {a.dtype} and {b.dtype}: expected uint8")
    if a.shape != b.shape or a.ndim != 4:
        raise ShapeError(
            f"frames of shape {list(a.shape)} and {list(b.shape)}: "
            "expected two of one shape [T, H, W, 3]"
        )


class Originals:
    """Source frames that wait for their decoded frames, which may come later."""

    def __init__(self) -> None:
        self._held: list[Frames] = []

    def add(self, frames: Frames) -> None:
        """Add source frames."""
        self._held.append(frames)

    def pair(self, decoded: Iterable[Frames]) -> Iterator[tuple[Frames, Frames]]:
        """Yield decoded frames, each batch with its source frames."""
        for frames in decoded:
            held = np.concatenate(self._held)
            self._held = [held[len(frames) :]]
            yield frames, held[: len(frames)]


class PsnrMeter(ChunkObserver):
    """Measure the PSNR of chunks against their source frames while they are encoded.

    Args:
        model: tokenizer to decode with.
        size: (height, width) of the frames.
    """

    def __init__(self, model: LoadedTokenizer, size: tuple[int, int]) -> None:
        super().__init__()
        self._decoder = Decoder(model, size)
        self._decibels, self._count = 0.0, 0
        self._originals = Originals()

    @property
    def psnr(self) -> float:
        """Mean over all frames so far, in dB."""
        return self._decibels / max(1, self._count)

    def on_pair(self, chunk: CodeChunk, frames: Frames) -> CodeChunk:
        """Decode a chunk and compare."""
        self._originals.add(frames)
        self._measure(self._decoder.decode_next(chunk))
        return chunk

    def on_end(self) -> None:
        """Compare the last frames."""
        self._measure(self._decoder.finish())

    def _measure(self, decoded: Iterator[Frames]) -> None:
        for shown, frames in self._originals.pair(decoded):
            self._decibels += float(psnr_per_frame(shown, frames).sum())
            self._count += len(frames)


class RateControl(ChunkObserver):
    """Choose the number of stages of each chunk by PSNR, by file size, or by both.

    Args:
        model: tokenizer to decode with.
        header: header of the code file, with the most stages that a chunk may have.
        rate: limits to keep.
        compress: whether parts are entropy-coded.
    """

    def __init__(
        self, model: LoadedTokenizer, header: Header, rate: Rate, compress: bool = False
    ) -> None:
        super().__init__()
        self._header, self._rate, self._compress = header, rate, compress
        self._decoder = Decoder(model, (header.transform.height, header.transform.width))
        self._bytes = len(preamble_to_bytes(header)) + FOOTER_BYTES
        self._frames = 0
        self._decibels = 0.0  # summed over frames

    @property
    def psnr(self) -> float | None:
        """Mean over all frames so far in dB; None if the rate sets no PSNR."""
        return None if self._rate.min_psnr is None else self._decibels / max(1, self._frames)

    def on_pair(self, chunk: CodeChunk, frames: Frames) -> CodeChunk:
        """Cut a chunk to the chosen stages; the result carries its coded parts."""
        parts = encode_parts(chunk.codes, self._header.format, compress=self._compress)
        self._frames += len(frames)
        sizes = np.cumsum([len(part.data) for part in parts]).tolist()
        sizes = [size + ChunkHead.length(1 + k) + ROW.itemsize for k, size in enumerate(sizes)]
        stages = len(parts)
        if self._rate.max_bpp is not None:
            left = self._allowed_bytes() - self._bytes
            stages = max(1, sum(size <= left for size in sizes))
        if self._rate.min_psnr is not None:
            stages = self._fewest_stages(chunk, frames, stages)
        self._bytes += sizes[stages - 1]
        return replace(chunk, codes=chunk.codes[:stages], parts=parts[:stages])

    def on_end(self) -> None:
        """Check the size of the file.

        Raises:
            OptionError: if one stage per chunk already exceeds `max_bpp`.
        """
        if self._rate.max_bpp is not None and self._bytes > self._allowed_bytes():
            bpp = 8 * self._bytes / self._pixels()
            expected = f"at least {bpp:.3g}, the bits per pixel of one stage"
            raise OptionError("max_bpp", f"{self._rate.max_bpp:g}", expected)

    def _fewest_stages(self, chunk: CodeChunk, frames: Frames, most: int) -> int:
        """Find the fewest stages that reach the PSNR, and keep the decoder that used them."""
        for stages in range(1, most + 1):
            decoder = self._decoder.fork()
            trial = replace(chunk, codes=chunk.codes[:stages])
            decibels = psnr_per_frame(np.concatenate(list(decoder.decode_next(trial))), frames)
            if decibels.mean() >= (self._rate.min_psnr or 0):
                break
        self._decoder = decoder
        self._decibels += float(decibels.sum())
        return stages

    def _pixels(self) -> int:
        return self._frames * self._header.transform.width * self._header.transform.height

    def _allowed_bytes(self) -> float:
        """Bytes that the frames so far may take."""
        return (self._rate.max_bpp or 0) * self._pixels() / 8
