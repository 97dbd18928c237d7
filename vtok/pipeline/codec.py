"""`Encoder` and `Decoder`: the only code that walks frames to codes and back.

    frames -> model calls -> codes -> chunks        Encoder
    chunks -> model calls -> frames                 Decoder

Both work on iterators, so memory does not grow with the length of a video. Observers
(`pipeline.result.Observer`) follow the frames and the chunks: counting, timing, PSNR, rate control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vtok.models.load import LoadedTokenizer
from vtok.nn.streaming import StreamState
from vtok.pipeline._runtime import pipelined_calls
from vtok.pipeline.model_calls import (
    DecodeCall,
    EncodeCall,
    Unpack,
    chunk_steps,
    clip_to_frames,
    frames_to_clip,
    plan_decoding,
    plan_encoding,
    steps_per_call,
)
from vtok.pipeline.result import CodeChunk, Codes, Observer
from vtok.video.frames import Frames

R = TypeVar("R")


class Encoder:
    """Encode frames to chunks of codes.

    Args:
        model: tokenizer to encode with.
        num_stages: stages of codes per chunk; all by default.
        observers: follow the frames and chunks; each sees the chunks that the one before returned.
        to_codes: replaces the quantizer: turns latents [1, D, t, h, w] into codes, for learned
            tokens.
        steps_per_chunk: latent steps in a chunk; by default as many as the entropy coder takes.
        pipelined: whether model calls may run ahead of the chunk that is consumed; False where
            single calls are timed.
    """

    def __init__(
        self,
        model: LoadedTokenizer,
        num_stages: int | None = None,
        *,
        observers: Sequence[Observer] = (),
        to_codes: Callable[[Tensor], Codes] | None = None,
        steps_per_chunk: int | None = None,
        pipelined: bool = True,
    ) -> None:
        self._model, self._num_stages = model, num_stages
        self._observers, self._pipelined = observers, pipelined
        self._to_codes, self._steps_per_chunk = to_codes or self._quantize, steps_per_chunk

    def encode(self, batches: Iterable[Frames]) -> Iterator[CodeChunk]:
        """Encode the frames of one video.

        Args:
            batches: uint8 [n, H, W, 3], any n, all of one size.

        Yields:
            Chunks of equal numbers of latent steps, the last one shorter.
        """
        chunks = self._group(self.map_latents(batches, self._to_codes))
        for observer in self._observers:
            chunks = observer.chunks(chunks)
        yield from chunks

    def map_latents(
        self, batches: Iterable[Frames], function: Callable[[Tensor], R]
    ) -> Iterator[tuple[R, int]]:
        """Apply a function to the latents of each model call.

        Args:
            batches: uint8 [n, H, W, 3], any n, all of one size.
            function: takes latents [1, D, t, h, w]. It runs in the thread of the model call:
                torch operations in another thread would compete for the cores.

        Yields:
            The function's result, and the number of frames that the latents show.
        """

        def call(part: EncodeCall, state: StreamState) -> tuple[R, int]:
            with torch.inference_mode():
                clip = frames_to_clip(part.frames, self._model)
                latents = self._model.tokenizer.encode_latents(clip, state=state)
                return function(latents), len(part.frames)

        frames = iter(batches)
        for observer in self._observers:
            frames = observer.frames(frames)
        calls = plan_encoding(frames, self._model.tokenizer.temporal_compression)
        yield from pipelined_calls(calls, call, self._model, enabled=self._pipelined)

    def _group(self, calls: Iterator[tuple[Codes, int]]) -> Iterator[CodeChunk]:
        """Join the codes of model calls into chunks."""
        pending: list[Codes] = []
        covered = steps = 0
        wanted = self._steps_per_chunk
        for codes, num_frames in calls:
            pending.append(codes)
            covered += num_frames
            steps += codes.shape[2]
            wanted = wanted or chunk_steps(self._model, codes.shape[3:], len(codes), steps)
            if steps >= wanted:
                yield CodeChunk(np.concatenate(pending, axis=2), covered)
                pending, covered, steps = [], 0, 0
        if pending:
            yield CodeChunk(np.concatenate(pending, axis=2), covered)

    def _quantize(self, latents: Tensor) -> Codes:
        quantizer = self._model.tokenizer.quantizer
        codes = quantizer.latents_to_codes(latents, self._num_stages)
        codes = codes.unsqueeze(1) if codes.ndim == 4 else codes
        split = rearrange(codes, "1 (s k) t h w -> s k t h w", k=quantizer.num_codebooks)
        return split.cpu().numpy()


def codes_of_grid(codes: Tensor) -> Tensor:
    """Arrange codes [stages, codebooks, t, h, w] as the tokenizer takes them, [1, K, t, h, w]."""
    return rearrange(codes, "s k t h w -> 1 (s k) t h w")


class Decoder:
    """Decode chunks of codes to frames.

    Args:
        model: tokenizer to decode with.
        size: (height, width) of the frames.
        unpack: turns codes [stages, codebooks, t, h, w] into the tokenizer's input.
        observers: follow the chunks and the frames.
    """

    def __init__(
        self,
        model: LoadedTokenizer,
        size: tuple[int, int],
        unpack: Unpack = codes_of_grid,
        *,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._model, self._size, self._unpack = model, size, unpack
        self._observers = observers
        self._state = StreamState()  # of `decode_next`

    def decode(self, chunks: Iterable[CodeChunk]) -> Iterator[Frames]:
        """Decode the chunks of a video, from its start or from where a decoder may start.

        Yields:
            uint8 [n, H, W, 3], in all as many frames as the chunks show.
        """

        def calls() -> Iterator[DecodeCall]:
            begins, observed = True, iter(chunks)
            for observer in self._observers:
                observed = observer.chunks(observed)
            for chunk in observed:
                yield from self._calls_of(chunk, begins or chunk.restart)
                begins = False

        yield from self.run(calls())

    def run(self, calls: Iterable[DecodeCall]) -> Iterator[Frames]:
        """Run planned model calls, several at a time where that is faster; see `decode`."""
        frames: Iterator[Frames] = filter(len, pipelined_calls(calls, self._call, self._model))
        for observer in self._observers:
            frames = observer.frames(frames)
        yield from frames

    def decode_next(self, chunk: CodeChunk) -> Iterator[Frames]:
        """Decode the next chunk of a video, one model call at a time; see `decode`."""
        for call in self._calls_of(chunk, not self._state.started):
            if len(frames := self._call(call, self._state)):
                yield frames

    def fork(self) -> Decoder:
        """Return a decoder in the same state, to try a chunk without changing this one."""
        other = Decoder(self._model, self._size, self._unpack)
        other._state = self._state.clone()
        return other

    def _calls_of(self, chunk: CodeChunk, begins: bool) -> Iterator[DecodeCall]:
        per_call = steps_per_call(self._model, self._size)
        parts = torch.split(torch.from_numpy(chunk.codes), per_call, dim=2)
        counted = ((part, part.shape[2]) for part in parts)
        temporal = self._model.tokenizer.temporal_compression
        return plan_decoding(counted, temporal, chunk.skip, chunk.num_frames, begins)

    def _call(self, call: DecodeCall, state: StreamState) -> Frames:
        last = call.skip + call.shown
        with torch.inference_mode():
            ready = self._unpack(call.steps.to(self._model.device))
            clip = self._model.tokenizer.decode(
                ready, size=self._size, state=state, num_frames=last
            )
            return clip_to_frames(clip[:, :, call.skip :])
