"""Work beside other work: a thread that codes or reads one chunk while the model is at another.

What it does is arithmetic of numpy, which lets other threads run, as the model's own does. Order
and errors are those of doing the same in one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

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
