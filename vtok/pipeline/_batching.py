"""One model for many threads: passes of several videos run through it together."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from vtok.models.load import LoadedTokenizer
from vtok.nn.streaming import StreamState
from vtok.nn.tokenizer import VideoTokenizer

WAIT_SECONDS = 0.01
"""How long a pass waits for others to go with it."""


def share_model(model: LoadedTokenizer, batch: int) -> LoadedTokenizer:
    """A model that many threads may use at once.

    Each pass runs `batch` clips, empty ones where there are fewer, so what a clip becomes
    depends neither on the clips beside it nor on who came first. Of 1, nothing is joined; on a CPU
    each thread then computes alone, and the codes do not depend on how many there are.

    Args:
        model: to share.
        batch: clips of a pass, from 1.
    """
    if model.device.type == "cpu":
        torch.set_num_threads(1)
    if batch == 1 or not _can_batch(model):
        return model
    joined = cast(VideoTokenizer, BatchedTokenizer(model.tokenizer, batch))
    return replace(model, tokenizer=joined)


class _Pass(NamedTuple):
    clip: Tensor
    state: StreamState
    latents: Future[Tensor]


class BatchedTokenizer:
    """Stands for a tokenizer; encodes chunks of streams of several threads together.

    Args:
        tokenizer: does the work; everything else is its own.
        batch: clips of a pass.
    """

    def __init__(self, tokenizer: VideoTokenizer, batch: int) -> None:
        self._tokenizer, self._batch = tokenizer, batch
        self._waiting: dict[Any, list[_Pass]] = {}
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_latents(
        self, video: Tensor, cond: Tensor | None = None, state: StreamState | None = None
    ) -> Tensor:
        """See `VideoTokenizer`; waits a moment for others, but not longer."""
        if state is None or cond is not None or video.shape[0] != 1:
            return self._tokenizer.encode_latents(video, cond, state)
        own = _Pass(video, state, Future())
        key = (video.shape, video.dtype, state.started)
        with self._lock:
            group = self._waiting.setdefault(key, [])
            group.append(own)
            if len(group) == self._batch:
                del self._waiting[key]
                due = group
            else:
                due = []
        if not due and not _wait(own.latents):
            with self._lock:
                if self._waiting.get(key) is group:
                    due = self._waiting.pop(key)
        if due:
            self._run(due)
        return own.latents.result()

    def _run(self, group: list[_Pass]) -> None:
        """Encode a group, and give each its latents and its state."""
        try:
            with self._turn, torch.inference_mode():
                state = _join_states([one.state for one in group], self._batch)
                clips = _padded(torch.cat([one.clip for one in group]), self._batch)
                latents = self._tokenizer.encode_latents(clips, state=state)
                parts = [part.clone() for part in torch.split(latents, 1)]
                _split_states(state, [one.state for one in group], self._batch)
        except Exception as error:
            if len(group) > 1:  # one of them must not fail the others
                for one in group:
                    self._run([one])
            else:
                group[0].latents.set_exception(error)
            return
        for one, part in zip(group, parts, strict=False):
            one.latents.set_result(part)


def _wait(future: Future[Tensor]) -> bool:
    """Wait a moment; whether it is done."""
    try:
        future.exception(timeout=WAIT_SECONDS)
    except NotYet:
        return False
    return True


def _padded(x: Tensor, batch: int) -> Tensor:
    """Zeros behind [n, ...] up to [batch, ...]."""
    return torch.cat([x, x.new_zeros(batch - len(x), *x.shape[1:])])


def _join_states(states: list[StreamState], batch: int) -> StreamState:
    """The states of streams that stand at the same place, as that of their batch."""
    joined = StreamState()
    for layer, first in states[0].memory.items():
        if first.ndim == 0:  # a mere mark
            joined.memory[layer] = first
        else:
            parts = torch.cat([state.memory[layer] for state in states])
            joined.memory[layer] = _padded(parts, batch)
    return joined


def _split_states(joined: StreamState, states: list[StreamState], batch: int) -> None:
    for layer, memory in joined.memory.items():
        for number, state in enumerate(states):
            own = memory if memory.ndim == 0 else memory[number : number + 1].clone()
            state.memory[layer] = own


def _can_batch(model: LoadedTokenizer) -> bool:
    """Whether all that the encoder remembers has the clips of a batch in its first dimension.

    And as much of it after any chunk: attention over time remembers every frame.
    """
    tokenizer, state = model.tokenizer, StreamState()
    side, frames = 2 * tokenizer.spatial_compression, tokenizer.temporal_compression
    sizes = []
    with torch.inference_mode():
        for length in (1, frames, frames):
            clip = torch.zeros(3, 3, length, side, side, device=model.device, dtype=model.dtype)
            tokenizer.encode_latents(clip, state=state)
            sizes.append([memory.shape for memory in state.memory.values()])
    return sizes[1] == sizes[2] and all(not shape or shape[0] == 3 for shape in sizes[2])
