"""Who encodes clips: threads of this process, each with a decoding process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from vtok.dataset.worker import ClipEncoder, Record, Settings, Task

if TYPE_CHECKING:
    from vtok.models.load import LoadedTokenizer

AHEAD = 2
"""Clips for each worker that may be under way or wait to have their end noted."""


class Engine(Protocol):
    """Encodes clips, however it does that."""

    def run(self, tasks: Iterator[Task]) -> Generator[Record, None, None]:
        """Encode clips; gives one record for each, in any order.

        Tasks are taken as they can be worked on, not before. Where the iterator is closed, what
        is under way is dropped.

        Raises:
            DiskFailure: the output's disk takes no more.
        """


class LocalEngine:
    """Encodes in threads of this process.

    Numeric libraries let go of the interpreter's lock while they compute, and decoding happens in
    child processes, so threads keep as many cores busy. While one waits for its video, the others
    have the model.

    Args:
        load: loads the model, for threads to share; called when there is something to do.
        settings: how clips are encoded.
        workers: number of threads.
    """

    def __init__(
        self, load: Callable[[], LoadedTokenizer], settings: Settings, workers: int
    ) -> None:
        self._load, self._settings, self._workers = load, settings, workers
        self._local = threading.local()
        self._encoders: list[ClipEncoder] = []
        self._stopped = False

    def run(self, tasks: Iterator[Task]) -> Generator[Record, None, None]:
        """See `Engine`."""
        first = next(tasks, None)
        if first is None:
            return
        from vtok.pipeline._runtime import many_videos  # imports torch

        self._model = self._load()
        with many_videos(self._model.device):
            yield from self._run_all(chain([first], tasks))

    def _run_all(self, tasks: Iterator[Task]) -> Generator[Record, None, None]:
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="vtok-dataset")
        under_way: set[Future[Record]] = set()
        try:
            for task in tasks:
                under_way.add(pool.submit(self._encode, task))
                if len(under_way) >= AHEAD * self._workers:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            self._stopped = True
            for encoder in self._encoders:
                encoder.close()  # which ends clips that are still under way
            pool.shutdown(wait=True, cancel_futures=True)

    def _encode(self, task: Task) -> Record:
        if not hasattr(self._local, "encoder"):
            self._local.encoder = ClipEncoder(self._model, self._settings)
            self._encoders.append(self._local.encoder)
        if self._stopped:
            raise RuntimeError("the run has ended")
        encoder: ClipEncoder = self._local.encoder
        return encoder.encode(task)
