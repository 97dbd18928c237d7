"""Passes of one video through the model at the same time, each a few layers behind the last.

A causal layer needs of the pass before only what that pass left in the same layer. So the next
pass may begin as soon as the first layer is free, and each thread computes a pass of its own:
threads that share every operation of one pass wait for one another at each. What comes out is the
same to the last bit, since it is the same passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Queue
from threading import Barrier, Condition, Event, Thread
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vtok.models.load import LoadedTokenizer
from vtok.nn.streaming import StreamState
from vtok.nn.tokenizer import VideoTokenizer

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # chunks that wait, at most: it bounds memory


def worked(items: Iterable[T], work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Each item with what `work` makes of it in a thread, while the next are found in this one.

    Raises:
        What finding an item or work on one raises; nothing after it is given.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(1, "vtok-coder") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                while waiting and (waiting[0][1].done() or len(waiting) > AHEAD):
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _result(pair: tuple[T, Future[R]]) -> tuple[T, R]:
    return pair[0], pair[1].result()


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items, found in a thread before they are asked for.

    Closing it stops the thread, but does not wait for one that waits for a pipe.

    Raises:
        What finding an item raises, in its place.
    """
    found: Queue[Any] = Queue(AHEAD)
    stop = Event()

    def find() -> None:
        error = None
        try:
            for item in items:
                found.put(item)
                if stop.is_set():
                    return
        except BaseException as exc:  # it is the other thread's to raise
            error = exc
        found.put(_End(error))

    thread = Thread(target=find, name="vtok-reader", daemon=True)
    thread.start()
    try:
        while not isinstance(item := found.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        with suppress(Empty):  # make room for what the thread is about to put in
            while True:
                found.get_nowait()
        thread.join(timeout=2)


class _End(NamedTuple):
    """After the last item, and why it was the last, if not for being that."""

    error: BaseException | None


MOST_WORKERS = 4
"""The slowest layer of `vtok-base` takes 0.22 of a pass: more would wait for one another there."""


class Part(Protocol):
    """What goes through the model in one pass."""

    @property
    def begins(self) -> bool:
        """Whether it is the first of a video."""


P = TypeVar("P", bound=Part)


def relayed(
    parts: Iterable[P],
    work: Callable[[P, StreamState], R],
    model: LoadedTokenizer,
    *,
    beside: bool = True,
) -> Iterator[R]:
    """What `work` makes of each part of a stream, in order.

    Where torch has several threads on a CPU, that many parts are under way at once (at most
    `MOST_WORKERS`), with the threads shared out among them.

    Args:
        parts: of one video after another; so many are asked for ahead, and one more.
        work: takes a part, and the state that the part before left.
        model: that does the work.
        beside: False for one part at a time, begun when it is asked for.

    Raises:
        What finding a part or work on one raises, in its place; nothing after it is given.
    """
    workers = _workers(model) if beside else 1
    if workers > 1:
        yield from _beside(parts, work, workers)
        return
    state = StreamState()
    for part in parts:
        state = StreamState() if part.begins else state
        yield work(part, state)


def _workers(model: LoadedTokenizer) -> int:
    """How many passes to have under way; one, where threads join their clips or there is a GPU."""
    if model.device.type != "cpu" or not isinstance(model.tokenizer, VideoTokenizer):
        return 1
    return min(MOST_WORKERS, torch.get_num_threads())


def _beside(parts: Iterable[P], work: Callable[[P, StreamState], R], workers: int) -> Iterator[R]:
    last: PassState | None = None
    waiting: deque[Future[R]] = deque()
    pool = _start(workers)
    try:
        for part in parts:
            last = PassState(None if part.begins else last)
            waiting.append(pool.submit(_pass, work, part, last))
            while waiting and (waiting[0].done() or len(waiting) > workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pass(work: Callable[[P, StreamState], R], part: P, state: PassState) -> R:
    try:
        return work(part, state)
    finally:
        state.end()


def _start(workers: int) -> ThreadPoolExecutor:
    """Threads that each compute with their share of torch's threads.

    torch gives a thread, when it first asks, as many as any thread set last. So each asks before
    it sets its own number, and once all have, the number for other new threads is what it was.
    """
    threads = torch.get_num_threads()
    ready = Barrier(workers)

    def begin() -> None:
        torch.get_num_threads()
        torch.set_num_threads(max(1, threads // workers))
        ready.wait()

    pool = ThreadPoolExecutor(workers, "vtok-model")
    for started in [pool.submit(begin) for _ in range(workers)]:
        started.result()
    torch.set_num_threads(threads)
    return pool


class PassState(StreamState):
    """What one pass leaves to the next, which may ask for it before it is there.

    Args:
        before: of the pass before, or None at the start of a video.
    """

    def __init__(self, before: PassState | None) -> None:
        super().__init__()
        self._before, self._first = before, before is None
        self._kept, self._ended = Condition(), False

    @property
    def started(self) -> bool:
        """Whether a pass goes before this one."""
        return not self._first

    def past(self, layer: nn.Module) -> Tensor | None:
        """What the pass before left in `layer`; waits for it."""
        return None if self._before is None else self._before.left(layer)

    def keep(self, layer: nn.Module, recent: Tensor) -> None:
        """Leave `recent` in `layer` to the next pass."""
        with self._kept:
            self.memory[layer] = recent
            self._kept.notify_all()

    def left(self, layer: nn.Module) -> Tensor | None:
        """What this pass leaves in `layer`, once it is there or the pass has ended without it."""
        with self._kept:
            self._kept.wait_for(lambda: layer in self.memory or self._ended)
            return self.memory.get(layer)

    def end(self) -> None:
        """The pass is over, well or not: nobody waits for it, and it lets the one before go."""
        with self._kept:
            self._ended = True
            self._kept.notify_all()
        self._before = None
