"""The PSNR of codes, measured while they are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from vtok.codec.streams import CodeChunk, decode_chunk
from vtok.codefile import Header
from vtok.evaluation.metrics import psnr_per_frame
from vtok.media.frames import Frames
from vtok.model import Model
from vtok.nn.streaming import StreamState


class PsnrMeter:
    """Passes frames on to an encoder and its chunks back, and decodes these to compare.

    Memory holds the frames of the chunk under way, whatever the length of the video.

    Args:
        model: decodes.
        frames: uint8 [n, H, W, 3], any n.
    """

    def __init__(self, model: Model, frames: Iterable[Frames]) -> None:
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
