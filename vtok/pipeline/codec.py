"""`Encoder` and `Decoder`: the only code that walks frames to codes and back.

    frames -> model calls -> codes -> chunks        Encoder
    chunks -> model calls -> frames                 Decoder

Both work on iterators, so memory does not grow with the length of a video. Observers
(`pipeline.result.Observer`) follow the frames and the chunks: counting, timing, PSNR, rate control.

A model call takes a power of two of latent steps, so that calls fill the chunks of a code file
exactly, and few enough pixels for its activations to stay in the cache. Tokenizers that cannot
stream take windows, each a model call, a chunk and a segment of the code file; elsewhere than on a
CPU several windows form a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vtok.codefile.packing import steps_to_code
from vtok.models.load import DTYPES, LoadedTokenizer
from vtok.nn.geometry import Stream, Window
from vtok.nn.interface import StreamState
from vtok.pipeline._runtime import pipelined_calls
from vtok.pipeline.result import CodeChunk, Codes, Observer, count_call
from vtok.video.frames import Frames

R = TypeVar("R")
C = TypeVar("C")
CHUNK_STEPS, RATE_STEPS = 32, 8
"""Latent steps in a chunk of a code file, which the entropy coder codes alone: 4 to 5 seconds of
video with vtok-base, and about one second where rate control chooses the stages of each chunk."""
CALL_STEPS, CALL_PIXELS = 8, 600_000
"""Most latent steps and pixels in a model call: 8 frames of 256x256 stay in the cache."""
MOST_WINDOWS, WINDOW_PIXELS = 8, 10_000_000
"""Most windows in a batch, and most pixels of all, except on a CPU: 8 windows of 17x256x256."""

Unpack = Callable[[Tensor], Tensor]
"""Turns codes [stages, codebooks, t, h, w] of a chunk into the decoder's input."""


class Encoder:
    """Encode frames to chunks of codes.

    Args:
        model: tokenizer to encode with.
        num_stages: stages of codes per chunk; all by default.
        observers: follow the frames and chunks; each sees the chunks that the one before returned.
        to_codes: replaces the quantizer, from latents [1, D, t, h, w] to codes of learned tokens.
        steps_per_chunk: latent steps in a chunk; by default as many as the entropy coder takes.
        fast: whether to leave out the second pass of the encoder, if it has one.
        pipelined: False runs single model calls when their chunk is consumed, to be timed.
        latent_dtype: float16 or float32: of latents [1, D, t, h, w] that take the place of codes.
    """

    def __init__(
        self,
        model: LoadedTokenizer,
        num_stages: int | None = None,
        *,
        observers: Sequence[Observer] = (),
        to_codes: Callable[[Tensor], Codes] | None = None,
        steps_per_chunk: int | None = None,
        fast: bool = False,
        pipelined: bool = True,
        latent_dtype: str = "float16",
    ) -> None:
        self._model, self._num_stages, self._observers = model, num_stages, observers
        self._pipelined = pipelined and not any(one.sequential for one in observers)
        self._latent_dtype, stages = latent_dtype, 1 if fast else num_stages
        self._encode_latents = partial(model.tokenizer.encode_latents, num_stages=stages)
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
            function: takes latents [1, D, t, h, w]; runs in the thread of the model call.

        Yields:
            The function's result, and the number of frames that the latents show.
        """

        def finish(latents: Tensor, clip: Tensor, part: EncodeCall) -> tuple[R, int]:
            for observer in self._observers:
                latents = observer.on_latents(latents, clip, part.begins)
            return function(latents), len(part.frames)

        def call(part: EncodeCall, state: StreamState) -> tuple[R, int]:
            with torch.inference_mode():
                clip = frames_to_clip(part.frames, self._model)
                return finish(self._encode_latents(clip, state), clip, part)

        frames = iter(batches)
        for observer in self._observers:
            frames = observer.frames(frames)
        plan = self._model.geometry.plan
        if isinstance(plan, Stream):
            calls = plan_encoding(frames, self._model.geometry.temporal_compression)
            yield from pipelined_calls(calls, call, self._model, enabled=self._pipelined)
            return
        windows = plan_windows(frames, plan.frames)

        def at_once(part: EncodeCall) -> int:
            return windows_at_once(self._model, part.frames.shape[1:3])

        def call_windows(group: list[EncodeCall]) -> list[tuple[R, int]]:
            with torch.inference_mode():
                filled = (fill(part.frames, plan.frames) for part in group)
                clips = [frames_to_clip(frames, self._model) for frames in filled]
                joined = _batch(clips, at_once(group[0]))
                latents = torch.split(self._encode_latents(joined), 1)
                parts = zip(latents, clips, group, strict=False)
                return [finish(*one) for one in parts]

        for group in _batches_of(windows, at_once):
            yield from call_windows(group)  # a function, so that its tensors are freed

    def _group(self, calls: Iterator[tuple[Codes, int]]) -> Iterator[CodeChunk]:
        """Join the codes of model calls into chunks."""
        pending: list[Codes] = []
        covered = steps = 0
        wanted, windowed = self._steps_per_chunk, isinstance(self._model.geometry.plan, Window)
        for codes, num_frames in calls:
            count_call(self._observers, num_frames)
            pending.append(codes)
            covered += num_frames
            steps += codes.shape[2]
            wanted = wanted or chunk_steps(self._model, codes.shape[3:], len(codes), steps)
            if steps >= wanted:
                yield CodeChunk(np.concatenate(pending, axis=2), covered, windowed)
                pending, covered, steps = [], 0, 0
        if pending:
            yield CodeChunk(np.concatenate(pending, axis=2), covered, windowed)

    def _quantize(self, latents: Tensor) -> Codes:
        if self._model.geometry.entries is None:
            return latents.to(DTYPES[self._latent_dtype]).cpu().numpy()
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
        self._state = model.tokenizer.new_state()  # of `decode_next`, as is the queue
        self._queue = _AheadQueue(model.geometry.lookahead)
        self._begun = False

    def decode(self, chunks: Iterable[CodeChunk]) -> Iterator[Frames]:
        """Decode the chunks of a video, from its start or from where a decoder may start.

        Yields:
            uint8 [n, H, W, 3], in all as many frames as the chunks show.
        """

        def calls() -> Iterator[DecodeCall]:
            begins, observed = True, iter(chunks)
            queue = _AheadQueue(self._model.geometry.lookahead)
            for observer in self._observers:
                observed = observer.chunks(observed)
            for chunk in observed:
                for call in self._calls_of(chunk, begins or chunk.restart):
                    yield from queue.add(call)
                begins = False
            yield from queue.end()

        yield from self.run(calls())

    def run(self, calls: Iterable[DecodeCall]) -> Iterator[Frames]:
        """Run planned model calls, several at a time where that is faster; see `decode`."""
        if isinstance(self._model.geometry.plan, Stream):
            found = pipelined_calls(calls, self._call, self._model)
        else:
            groups = _batches_of(calls, lambda _: windows_at_once(self._model, self._size))
            found = chain.from_iterable(map(self._decode_windows, groups))
        frames: Iterator[Frames] = filter(len, found)
        for observer in self._observers:
            frames = observer.frames(frames)
        for some in frames:
            yield some
            count_call(self._observers, len(some))

    def decode_next(self, chunk: CodeChunk) -> Iterator[Frames]:
        """Decode the next chunk of a video, one model call at a time; see `decode`.

        With look-ahead, the last frames of the chunk come with the next one or from `finish`.
        """
        for planned in self._calls_of(chunk, chunk.restart or not self._begun):
            self._begun = True
            for call in self._queue.add(planned):
                yield from self._decode_call(call)

    def finish(self) -> Iterator[Frames]:
        """Decode the frames that waited for steps after the last chunk."""
        for call in self._queue.end():
            yield from self._decode_call(call)

    def _decode_call(self, call: DecodeCall) -> Iterator[Frames]:
        if isinstance(self._model.geometry.plan, Window):
            yield from filter(len, self._decode_windows([call]))
        elif len(frames := self._call(call, self._state)):
            yield frames

    def fork(self) -> Decoder:
        """Return a decoder in the same state, to try a chunk without changing this one."""
        other = Decoder(self._model, self._size, self._unpack)
        other._state, other._begun = self._state.clone(), self._begun
        other._queue = self._queue.copy()
        return other

    def _calls_of(self, chunk: CodeChunk, begins: bool) -> Iterator[DecodeCall]:
        per_call = steps_per_call(self._model, self._size)
        parts = torch.split(torch.from_numpy(chunk.codes), per_call, dim=2)
        counted = ((part, part.shape[2]) for part in parts)
        temporal, ahead = self._model.geometry.temporal_compression, self._model.geometry.lookahead
        return plan_decoding(counted, temporal, chunk.skip, chunk.num_frames, begins, ahead > 0)

    def _call(self, call: DecodeCall, state: StreamState) -> Frames:
        last = call.skip + call.shown
        with torch.inference_mode():
            ready = self._unpack(call.steps.to(self._model.device))
            clip = self._model.tokenizer.decode(
                ready, size=self._size, state=state, num_frames=last, ahead=call.ahead
            )
            return clip_to_frames(clip[:, :, call.skip :])

    def _decode_windows(self, group: Sequence[DecodeCall]) -> Iterator[Frames]:
        """Decode windows of equal shape as one batch."""
        with torch.inference_mode():
            ready = [self._unpack(call.steps.to(self._model.device)) for call in group]
            joined = _batch(ready, windows_at_once(self._model, self._size))
            clips = self._model.tokenizer.decode(joined, size=self._size)
        for call, clip in zip(group, torch.split(clips, 1), strict=False):
            yield clip_to_frames(clip[:, :, call.skip : call.skip + call.shown])


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
        ahead: number of steps at the end that are look-ahead only.
    """

    steps: Tensor
    skip: int
    shown: int
    begins: bool
    ahead: int = 0


class _AheadQueue:
    """Queue of model calls of the decoder that appends to each the `steps` steps after it."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._waiting: list[DecodeCall] = []

    def add(self, call: DecodeCall) -> Iterator[DecodeCall]:
        """Add the next call; yield those that are complete."""
        if call.begins:
            yield from self.end()
        self._waiting.append(call)
        while self._waiting and self._held() >= self._steps:
            yield from self._first()

    def end(self) -> Iterator[DecodeCall]:
        """Yield the remaining calls, at the end of a video."""
        while self._waiting:
            yield from self._first()

    def copy(self) -> _AheadQueue:
        """Return an independent copy."""
        other = _AheadQueue(self._steps)
        other._waiting = list(self._waiting)
        return other

    def _held(self) -> int:
        return sum(call.steps.shape[2] for call in self._waiting[1:])

    def _first(self) -> Iterator[DecodeCall]:
        call = self._waiting.pop(0)
        if not call.skip + call.shown:
            return  # only the frames of earlier calls depend on it
        if self._steps and self._waiting:
            after = torch.cat([one.steps for one in self._waiting], dim=2)[:, :, : self._steps]
            call = call._replace(steps=torch.cat([call.steps, after], 2), ahead=after.shape[2])
        yield call


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


def plan_windows(batches: Iterable[Frames], length: int) -> Iterator[EncodeCall]:
    """Regroup batches of frames into windows of `length` frames, the last one shorter."""
    held: list[Frames] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        while count >= length:
            joined = np.concatenate(held)
            held, count = [joined[length:].copy()], count - length  # a view would keep all of it
            yield EncodeCall(joined[:length], True)
    if count:
        yield EncodeCall(np.concatenate(held), True)


def fill(frames: Frames, length: int) -> Frames:
    """Repeat the last frame up to `length` frames."""
    if len(frames) == length:
        return frames
    return np.concatenate([frames, frames[-1:].repeat(length - len(frames), axis=0)])


def windows_at_once(model: LoadedTokenizer, size: Sequence[int]) -> int:
    """Return the number of windows of frames of (height, width) in a model call."""
    plan = model.geometry.plan
    if isinstance(plan, Stream) or model.device.type == "cpu":
        return 1
    return max(1, min(MOST_WINDOWS, WINDOW_PIXELS // (plan.frames * size[0] * size[1])))


def _batches_of(windows: Iterable[C], at_once: Callable[[C], int]) -> Iterator[list[C]]:
    """Group consecutive windows into batches."""
    group: list[C] = []
    for window in windows:
        group.append(window)
        if len(group) == at_once(group[0]):
            yield group
            group = []
    if group:
        yield group


def _batch(windows: Sequence[Tensor], size: int) -> Tensor:
    """Join windows [1, ...] to a batch filled with zeros, whose size no result depends on."""
    if size == 1:
        return windows[0]
    blank = torch.zeros_like(windows[0])
    return torch.cat([*windows, *[blank] * (size - len(windows))])


def plan_decoding(
    parts: Iterable[tuple[Tensor, int]],
    temporal: int,
    skip: int,
    shown: int,
    begins: bool,
    spare: bool = False,
) -> Iterator[DecodeCall]:
    """Plan the model calls for a range of frames; steps after the last frame shown are left out.

    Args:
        parts: input of each model call and its number of latent steps.
        temporal: frames per latent step.
        skip: decoded frames to drop at the start.
        shown: frames to keep after those.
        begins: whether the first step starts a video and decodes to a single frame.
        spare: whether to keep the steps after the last frame shown, as calls that show nothing.
    """
    for steps, count in parts:
        if not skip + shown and not spare:
            return
        frames = count * temporal - (temporal - 1 if begins else 0)
        dropped = min(skip, frames)
        given = min(shown, frames - dropped)
        yield DecodeCall(steps, dropped, given, begins)
        skip, shown, begins = skip - dropped, shown - given, False


def steps_per_call(model: LoadedTokenizer, size: tuple[int, int]) -> int:
    """Latent steps in a model call for frames of (height, width)."""
    if (steps := model.geometry.window_steps) is not None:
        return steps
    return _steps_of_pixels(size[0] * size[1], model.geometry.temporal_compression)


def chunk_steps(
    model: LoadedTokenizer, grid: Sequence[int], stages: int, per_call: int, most: int = CHUNK_STEPS
) -> int:
    """Latent steps in a chunk: `most`, or fewer where the entropy coder's limit is lower.

    Args:
        model: encoder of the chunk.
        grid: (h, w) of the latents.
        stages: stages of codes.
        per_call: latent steps in a model call, the least that a chunk has.
    """
    if (steps := model.geometry.window_steps) is not None:
        return steps
    shape = (model.geometry.num_codebooks, most, grid[0], grid[1])
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
    steps = CALL_STEPS
    while steps > 1 and steps * temporal * pixels > CALL_PIXELS:
        steps //= 2
    return steps
