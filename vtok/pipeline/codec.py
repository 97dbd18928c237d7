"""`Encoder` and `Decoder`: the only code that walks frames to codes and back.

    frames -> model calls -> codes -> chunks        Encoder
    chunks -> model calls -> frames                 Decoder

Both work on iterators, so memory does not grow with the length of a video. Observers
(`pipeline.result.Observer`) follow the frames and the chunks: counting, timing, PSNR, rate control.

A model call takes a power of two of latent steps, so that calls fill the chunks of a code file
exactly, and few enough pixels for its activations to stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vtok.codefile.packing import steps_to_code
from vtok.models.load import LoadedTokenizer
from vtok.nn.layers import StreamState
from vtok.pipeline._runtime import pipelined_calls
from vtok.pipeline.result import CodeChunk, Codes, Observer
from vtok.video.frames import Frames

R = TypeVar("R")
CHUNK_STEPS = 8
"""Latent steps in a chunk of a code file: about a second of video."""
CALL_PIXELS = 600_000
"""Most pixels in a model call: 8 frames of 256x256 stay in the cache."""

Unpack = Callable[[Tensor], Tensor]
"""Turns codes [stages, codebooks, t, h, w] of a chunk into the decoder's input."""


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
        self._model, self._num_stages, self._observers = model, num_stages, observers
        self._pipelined = pipelined and not any(one.sequential for one in observers)
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
                for observer in self._observers:
                    latents = observer.on_latents(latents, clip, part.begins)
                return function(latents), len(part.frames)

        frames = iter(batches)
        for observer in self._observers:
            frames = observer.frames(frames)
        calls = plan_encoding(frames, self._model.geometry.temporal_compression)
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
        codes = self._model.tokenizer.to_codes(latents, self._num_stages)
        books = self._model.geometry.num_codebooks
        split: Codes = rearrange(codes, "1 (s k) t h w -> s k t h w", k=books).cpu().numpy()
        return split


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
        self._state = model.tokenizer.new_state()  # of `decode_next`

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
        temporal = self._model.geometry.temporal_compression
        return plan_decoding(counted, temporal, chunk.skip, chunk.num_frames, begins)

    def _call(self, call: DecodeCall, state: StreamState) -> Frames:
        last = call.skip + call.shown
        with torch.inference_mode():
            ready = self._unpack(call.steps.to(self._model.device))
            clip = self._model.tokenizer.decode(
                ready, size=self._size, state=state, num_frames=last
            )
            return clip_to_frames(clip[:, :, call.skip :])


class EncodeCall(NamedTuple):
    """Frames of one model call of the encoder.

    Attributes:
        frames: uint8 [n, H, W, 3].
        begins: whether they are the first of a video.
    """

    frames: Frames
    begins: bool


class DecodeCall(NamedTuple):
    """Codes of one model call of the decoder.

    Attributes:
        steps: codes or tokens of some latent steps.
        skip: decoded frames to drop at the start.
        shown: frames to keep after those.
        begins: whether they are the first of a video.
    """

    steps: Tensor
    skip: int
    shown: int
    begins: bool


def plan_encoding(batches: Iterable[Frames], temporal: int) -> Iterator[EncodeCall]:
    """Regroup batches of frames into model calls; the first frame is a latent step by itself."""
    held: list[Frames] = []
    count, first = 0, True
    for batch in batches:
        held.append(batch)
        count += len(batch)
        call_frames = temporal * _steps_of_pixels(batch.shape[1] * batch.shape[2], temporal)
        wanted = call_frames - (temporal - 1 if first else 0)
        while count >= wanted:
            joined = np.concatenate(held)
            yield EncodeCall(joined[:wanted], first)
            held, count = [joined[wanted:]], count - wanted
            first, wanted = False, call_frames
    if count:
        yield EncodeCall(np.concatenate(held), first)


def plan_decoding(
    parts: Iterable[tuple[Tensor, int]], temporal: int, skip: int, shown: int, begins: bool
) -> Iterator[DecodeCall]:
    """Plan the model calls for a range of frames; steps after the last frame shown are left out.

    Args:
        parts: input of each model call and its number of latent steps.
        temporal: frames per latent step.
        skip: decoded frames to drop at the start.
        shown: frames to keep after those.
        begins: whether the first step starts a video and decodes to a single frame.
    """
    for steps, count in parts:
        if not skip + shown:
            return
        frames = count * temporal - (temporal - 1 if begins else 0)
        dropped = min(skip, frames)
        given = min(shown, frames - dropped)
        yield DecodeCall(steps, dropped, given, begins)
        skip, shown, begins = skip - dropped, shown - given, False


def steps_per_call(model: LoadedTokenizer, size: tuple[int, int]) -> int:
    """Latent steps in a model call for frames of (height, width)."""
    return _steps_of_pixels(size[0] * size[1], model.geometry.temporal_compression)


def chunk_steps(model: LoadedTokenizer, grid: Sequence[int], stages: int, per_call: int) -> int:
    """Latent steps in a chunk: `CHUNK_STEPS`, or fewer where the entropy coder's limit is lower.

    Args:
        model: encoder of the chunk.
        grid: (h, w) of the latents.
        stages: stages of codes.
        per_call: latent steps in a model call, the least that a chunk has.
    """
    shape = (model.geometry.num_codebooks, CHUNK_STEPS, grid[0], grid[1])
    return max(per_call, steps_to_code(shape, model.geometry.bits_per_code, stages))


def frames_to_clip(frames: Frames, model: LoadedTokenizer) -> Tensor:
    """Convert uint8 [T, H, W, 3] to [1, 3, T, H, W] in -1..1 on the model's device, in its type."""
    video = torch.from_numpy(frames).to(model.device).permute(3, 0, 1, 2)
    return video.unsqueeze(0).float().div_(127.5).sub_(1).to(model.dtype)


def clip_to_frames(clip: Tensor) -> Frames:
    """Convert [1, 3, T, H, W] in about -1..1 to uint8 [T, H, W, 3], rounded and clamped."""
    _, channels, count, height, width = clip.shape
    frames = np.empty((count, height, width, channels), np.uint8)
    at_once = 1 if clip.device.type == "cpu" else count  # one frame fits the cache, many do not
    for some, part in zip(
        np.split(frames, range(at_once, count, at_once)),
        torch.split(clip[0], at_once, dim=1),
        strict=True,
    ):
        levels = part.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        np.stack(tuple(levels.cpu().numpy()), axis=-1, out=some)
    return frames


def _steps_of_pixels(pixels: int, temporal: int) -> int:
    steps = CHUNK_STEPS
    while steps > 1 and steps * temporal * pixels > CALL_PIXELS:
        steps //= 2
    return steps
