"""The PSNR of codes, measured while they are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from vtok.codefile import Header, encode_parts
from vtok.codefile.records import FOOTER_BYTES, ROW, ChunkHead, preamble_to_bytes
from vtok.errors import UsageError
from vtok.evaluation.metrics import psnr_per_frame
from vtok.models.load import LoadedTokenizer
from vtok.nn.streaming import StreamState
from vtok.pipeline.model_calls import CodeChunk, decode_chunk, encode_frames
from vtok.pipeline.options import Rate
from vtok.video.frames import Frames


class RateControl:
    """Encodes a stream of frames with a number of stages chosen chunk by chunk.

    Attributes:
        psnr: mean over all frames so far in dB, as a decoder will give it; None where the rate
            does not ask for it.
    """

    def __init__(
        self, model: LoadedTokenizer, header: Header, rate: Rate, compress: bool = False
    ) -> None:
        self._compress = compress
        self._model, self._header, self._rate = model, header, rate
        self._state = StreamState()  # of a decoder of what was chosen so far
        self._bytes = len(preamble_to_bytes(header)) + FOOTER_BYTES
        self._frames = 0
        self._decibels = 0.0  # summed over frames

    @property
    def psnr(self) -> float | None:
        """See the class."""
        return None if self._rate.min_psnr is None else self._decibels / max(1, self._frames)

    def encode(self, batches: Iterable[Frames]) -> Iterator[CodeChunk]:
        """Encode frames.

        Args:
            batches: uint8 [n, H, W, 3], any n, all of one size.

        Yields:
            Chunks of 1 to num_stages stages, with their parts as they are to be written.

        Raises:
            UsageError: at the end, where not even one stage a chunk keeps to the bits.
        """
        held = _Held(batches)
        for chunk in encode_frames(held, self._model, self._header.format.num_stages):
            yield self._choose(chunk, held.take(chunk.num_frames))
        if self._rate.max_bpp is not None and self._bytes > self._room():
            bpp = 8 * self._bytes / self._pixels()
            raise UsageError(
                f"--max-bpp {self._rate.max_bpp:g}: one stage takes {bpp:.3g} bits a pixel already"
            )

    def _choose(self, chunk: CodeChunk, frames: Frames) -> CodeChunk:
        parts = encode_parts(chunk.codes, self._header.format, compress=self._compress)
        self._frames += len(frames)
        sizes = [ChunkHead.length(1 + k) + ROW.itemsize for k in range(len(parts))]
        sizes = [
            size + sum(len(part.data) for part in parts[: k + 1]) for k, size in enumerate(sizes)
        ]
        stages = len(parts)
        if self._rate.max_bpp is not None:
            left = self._room() - self._bytes
            stages = max(1, sum(size <= left for size in sizes))
        if self._rate.min_psnr is not None:
            stages = self._fewest(chunk, frames, stages)
        self._bytes += sizes[stages - 1]
        return replace(chunk, codes=chunk.codes[:stages], parts=parts[:stages])

    def _fewest(self, chunk: CodeChunk, frames: Frames, most: int) -> int:
        """The fewest stages that are good enough; goes on from the decoder that they leave."""
        shape = self._header.transform
        for stages in range(1, most + 1):
            state = self._state.clone()
            trial = replace(chunk, codes=chunk.codes[:stages])
            shown = list(decode_chunk(trial, self._model, (shape.height, shape.width), state))
            decibels = psnr_per_frame(np.concatenate(shown), frames)
            if decibels.mean() >= (self._rate.min_psnr or 0):
                break
        self._state = state
        self._decibels += float(decibels.sum())
        return stages

    def _pixels(self) -> int:
        return self._frames * self._header.transform.width * self._header.transform.height

    def _room(self) -> float:
        """Bytes that the frames so far may take."""
        return (self._rate.max_bpp or 0) * self._pixels() / 8


class _Held:
    """Passes frames on, and holds them until they are taken."""

    def __init__(self, batches: Iterable[Frames]) -> None:
        self._batches = batches
        self._held: list[Frames] = []

    def __iter__(self) -> Iterator[Frames]:
        for batch in self._batches:
            self._held.append(batch)
            yield batch

    def take(self, count: int) -> Frames:
        """The next `count` frames that went through."""
        frames = np.concatenate(self._held)
        self._held = [frames[count:]]
        return frames[:count]


class PsnrMeter:
    """Passes frames on to an encoder and its chunks back, and decodes these to compare.

    Memory holds the frames of the chunk under way, whatever the length of the video.

    Args:
        model: decodes.
        frames: uint8 [n, H, W, 3], any n.
    """

    def __init__(self, model: LoadedTokenizer, frames: Iterable[Frames]) -> None:
        self._model, self._frames = model, frames
        self._held: list[Frames] = []
        self._state = StreamState()
        self._decibels, self._count = 0.0, 0

    @property
    def psnr(self) -> float:
        """Mean over the frames so far, in dB."""
        return self._decibels / max(1, self._count)

    def __iter__(self) -> Iterator[Frames]:
        """The frames, once."""
        for batch in self._frames:
            self._held.append(batch)
            yield batch

    def follow(self, header: Header, chunks: Iterator[CodeChunk]) -> Iterator[CodeChunk]:
        """Pass chunks of these frames on."""
        size = (header.transform.height, header.transform.width)
        for chunk in chunks:
            held = np.concatenate(self._held)
            frames, self._held = held[: chunk.num_frames], [held[chunk.num_frames :]]
            shown = np.concatenate(list(decode_chunk(chunk, self._model, size, self._state)))
            self._decibels += float(psnr_per_frame(shown, frames).sum())
            self._count += len(frames)
            yield chunk
