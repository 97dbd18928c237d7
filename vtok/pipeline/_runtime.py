"""Concurrency: background threads, pipelined and batched model calls, thread settings.

A causal layer needs from the previous model call only the memory that the same layer left. The
next call can therefore start as soon as the first layer is free, each call in its own thread:
that is faster than sharing every operation of one call among threads, which wait for each other
at each operation. The results are bit for bit those of sequential calls.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from contextlib import contextmanager, suppress
from dataclasses import replace
from queue import Empty, Queue
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from vtok.models.load import LoadedTokenizer
from vtok.nn.geometry import Window
from vtok.nn.interface import StreamState, Tokenizer

T = TypeVar("T")
R = TypeVar("R")

QUEUE_LENGTH = 2
"""Most chunks that wait for a thread; bounds memory."""
MOST_WORKERS = 4
"""Most model calls at once: the slowest layer of `vtok-base` takes 0.22 of a call, so more would
wait for each other there. Measured by scripts/benchmark.py."""
WAIT_SECONDS = 0.01
"""Time that a call waits for others to form a batch."""
SWITCH_SECONDS = 0.0005
"""Time that a thread keeps the interpreter while another waits for it, in `many_videos`. The
default of 5 ms is longer than most layers take. Measured by scripts/benchmark_dataset.py."""


@contextmanager
def many_videos(device: torch.device) -> Iterator[None]:
    """Set up this process for threads that each encode a video; settings are restored at the end.

    On a CPU each thread computes alone, so that codes do not depend on the number of threads.
    """
    threads, switch = torch.get_num_threads(), sys.getswitchinterval()
    try:
        if device.type == "cpu":
            torch.set_num_threads(1)
        sys.setswitchinterval(min(SWITCH_SECONDS, switch))
        yield
    finally:
        torch.set_num_threads(threads)
        sys.setswitchinterval(switch)


def map_in_background(items: Iterable[T], function: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Apply a function to items in a background thread while this thread produces the next ones.

    Yields:
        Each item and the function's result, in order.

    Raises:
        Exception: the first one of an item or the function, after the results before it.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(1, "vtok-coder") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                while waiting and (waiting[0][1].done() or len(waiting) > QUEUE_LENGTH):
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _result(pair: tuple[T, Future[R]]) -> tuple[T, R]:
    return pair[0], pair[1].result()


def prefetch(items: Iterable[T]) -> Generator[T, None, None]:
    """Produce items in a background thread before they are requested.

    Closing the generator stops the thread, but does not wait for one that is blocked on a pipe.

    Raises:
        Exception: the one of the items, after the items before it.
    """
    found: Queue[Any] = Queue(QUEUE_LENGTH)
    stop = threading.Event()

    def find() -> None:
        error = None
        try:
            for item in items:
                found.put(item)
                if stop.is_set():
                    return
        except BaseException as exc:  # raised in the consumer's thread
            error = exc
        found.put(_End(error))

    thread = threading.Thread(target=find, name="vtok-reader", daemon=True)
    thread.start()
    try:
        while not isinstance(item := found.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        with suppress(Empty):  # make room for the item that the thread is about to add
            while True:
                found.get_nowait()
        thread.join(timeout=2)


class _End(NamedTuple):
    """End of a queue, with the error that ended it, if any."""

    error: BaseException | None


class Call(Protocol):
    """Input of one model call."""

    @property
    def begins(self) -> bool:
        """True for the first call of a video."""


C = TypeVar("C", bound=Call)


def pipelined_calls(
    calls: Iterable[C],
    function: Callable[[C, StreamState], R],
    model: LoadedTokenizer,
    *,
    enabled: bool = True,
) -> Iterator[R]:
    """Run the model calls of one or more videos, several at a time where that is faster.

    On a CPU as many calls run at once as torch has threads (at most `MOST_WORKERS`), with the
    threads divided among them.

    Args:
        calls: inputs in order; at most one more is prefetched than calls are running.
        function: runs a call with the state that the previous call left.
        model: model that the function calls.
        enabled: False runs one call at a time, started when its result is requested.

    Yields:
        The results, in order.

    Raises:
        Exception: the first one of an input or the function, after the results before it.
    """
    pipelined = enabled and model.device.type == "cpu" and not model.batched
    workers = min(MOST_WORKERS, torch.get_num_threads()) if pipelined else 1
    if workers > 1:
        yield from _run_in_threads(calls, function, workers)
        return
    state = StreamState()
    for call in calls:
        state = StreamState(started=not call.begins, memory={} if call.begins else state.memory)
        yield function(call, state)


def _run_in_threads(
    calls: Iterable[C], function: Callable[[C, StreamState], R], workers: int
) -> Iterator[R]:
    last: CallState | None = None
    waiting: deque[Future[R]] = deque()
    pool = _start(workers)
    try:
        for call in calls:
            last = CallState(None if call.begins else last)
            waiting.append(pool.submit(_run, function, call, last))
            while waiting and (waiting[0].done() or len(waiting) > workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run(function: Callable[[C, StreamState], R], call: C, state: CallState) -> R:
    try:
        return function(call, state)
    finally:
        state.end()


def _start(workers: int) -> ThreadPoolExecutor:
    """Start threads that each compute with their share of torch's threads.

    A thread's number of torch threads is set, when it first asks, to the number that any thread
    set last. So each thread asks before it sets its own number, and afterwards the number for
    other threads is set back.
    """
    threads = torch.get_num_threads()
    ready = threading.Barrier(workers)

    def begin() -> None:
        torch.get_num_threads()
        torch.set_num_threads(max(1, threads // workers))
        ready.wait()

    pool = ThreadPoolExecutor(workers, "vtok-model")
    try:
        for started in [pool.submit(begin) for _ in range(workers)]:
            started.result()
    finally:
        torch.set_num_threads(threads)
    return pool


class CallState(StreamState):
    """State that one model call leaves to the next, which may request it before it is there.

    Args:
        before: state of the previous call; None at the start of a video.
    """

    def __init__(self, before: CallState | None) -> None:
        super().__init__(started=before is not None)
        self._before = before
        self._kept, self._ended = threading.Condition(), False

    def past(self, layer: nn.Module) -> Tensor | None:
        """Return the memory that the previous call left in `layer`; wait for it."""
        return None if self._before is None else self._before.left(layer)

    def keep(self, layer: nn.Module, recent: Tensor) -> None:
        """Leave memory in `layer` to the next call."""
        with self._kept:
            self.memory[layer] = recent
            self._kept.notify_all()

    def left(self, layer: nn.Module) -> Tensor | None:
        """Return this call's memory in `layer`; wait until it is set or the call has ended."""
        with self._kept:
            self._kept.wait_for(lambda: layer in self.memory or self._ended)
            return self.memory.get(layer)

    def end(self) -> None:
        """Mark the call as ended, by success or failure, and release the previous state."""
        with self._kept:
            self._ended = True
            self._kept.notify_all()
        self._before = None


def batched(model: LoadedTokenizer, batch: int) -> LoadedTokenizer:
    """Return a model whose encoder joins the calls of several threads into batches.

    Each batch has `batch` clips, padded with zeros, so the codes of a clip depend neither on
    other clips nor on timing. A model whose memory cannot be joined is returned unchanged, as is
    any for a batch of 1. Meant to be used in `many_videos`.
    """
    if batch == 1 or not _can_batch(model):
        return model
    joined = cast(Tokenizer, BatchedTokenizer(model.tokenizer, batch))
    return replace(model, tokenizer=joined, batched=True)


class _BatchItem(NamedTuple):
    clip: Tensor
    state: StreamState
    num_stages: int | None
    latents: Future[Tensor]


class BatchedTokenizer:
    """Wrapper of a tokenizer that encodes chunks of several threads' videos in one call.

    Args:
        tokenizer: wrapped model, used for everything else unchanged.
        batch: clips in a call.
    """

    def __init__(self, tokenizer: Tokenizer, batch: int) -> None:
        self._tokenizer, self._batch = tokenizer, batch
        self._waiting: dict[Any, list[_BatchItem]] = {}
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_latents(
        self, video: Tensor, state: StreamState | None = None, *, num_stages: int | None = None
    ) -> Tensor:
        """Encode one clip, see `Tokenizer`; waits `WAIT_SECONDS` at most for others."""
        if state is None or video.shape[0] != 1:
            return self._tokenizer.encode_latents(video, state, num_stages=num_stages)
        own = _BatchItem(video, state, num_stages, Future())
        key = (video.shape, video.dtype, state.started, num_stages)
        with self._lock:
            group = self._waiting.setdefault(key, [])
            group.append(own)
            full = len(group) == self._batch
            if full:
                del self._waiting[key]
        if full:
            self._run(group)
        elif not _is_done(own.latents):
            with self._lock:
                due = self._waiting.get(key) is group
                if due:
                    del self._waiting[key]
            if due:
                self._run(group)
        return own.latents.result()

    def _run(self, group: list[_BatchItem]) -> None:
        """Encode a group; set the latents and the state of each item."""
        try:
            with self._turn, torch.inference_mode():
                state = _join_states([one.state for one in group], self._batch)
                clips = _padded(torch.cat([one.clip for one in group]), self._batch)
                latents = self._tokenizer.encode_latents(
                    clips, state=state, num_stages=group[0].num_stages
                )
                parts = [part.clone() for part in torch.split(latents, 1)]
                _split_state(state, [one.state for one in group])
        except Exception as error:
            if len(group) > 1:  # an error of one must not fail the others
                for one in group:
                    self._run([one])
            else:
                group[0].latents.set_exception(error)
            return
        for one, part in zip(group, parts, strict=False):
            one.latents.set_result(part)


def _is_done(future: Future[Tensor]) -> bool:
    try:
        future.exception(timeout=WAIT_SECONDS)
    except NotDone:
        return False
    return True


def _padded(x: Tensor, batch: int) -> Tensor:
    """Pad [n, ...] with zeros to [batch, ...]."""
    return torch.cat([x, x.new_zeros(batch - len(x), *x.shape[1:])])


def _join_states(states: list[StreamState], batch: int) -> StreamState:
    """Join the states of single clips, all at the same layer positions, into one of a batch."""
    joined = StreamState(started=states[0].started)
    for layer, first in states[0].memory.items():
        if first.ndim == 0:  # a marker without a batch dimension
            joined.memory[layer] = first
        else:
            parts = torch.cat([state.memory[layer] for state in states])
            joined.memory[layer] = _padded(parts, batch)
    return joined


def _split_state(joined: StreamState, states: list[StreamState]) -> None:
    for state in states:
        state.started = True
    for layer, memory in joined.memory.items():
        for number, state in enumerate(states):
            one = memory if memory.ndim == 0 else memory[number : number + 1].clone()
            state.memory[layer] = one


def _can_batch(model: LoadedTokenizer) -> bool:
    """Check that the encoder's memory has the batch first and a constant size.

    Attention over time remembers every frame, so its memory grows. Windows form batches of their
    own, see `pipeline.codec`.
    """
    if isinstance(model.geometry.plan, Window):
        return False
    tokenizer, state, geometry = model.tokenizer, model.tokenizer.new_state(), model.geometry
    side, frames = 2 * geometry.spatial_compression, geometry.temporal_compression
    sizes = []
    with torch.inference_mode():
        for length in (1, frames, frames):
            clip = torch.zeros(3, 3, length, side, side, device=model.device, dtype=model.dtype)
            tokenizer.encode_latents(clip, state=state)
            sizes.append([memory.shape for memory in state.memory.values()])
    return sizes[1] == sizes[2] and all(not shape or shape[0] == 3 for shape in sizes[2])
