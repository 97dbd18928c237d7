"""A pool of processes that make clips ahead of the training that uses them."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, cycle
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vtok import errors
from vtok._files import ScratchFolder
from vtok.errors import InputError, UsageError, VtokError
from vtok.training.clips import Clip, ClipSpec, middle_clip
from vtok.training.decoding import PartStore
from vtok.training.frame_cache import Cache
from vtok.training.sampler import note_skipped, steps_a_part, why_nothing
from vtok.training.sources import Source
from vtok.training.worker import map_clip
from vtok.video.decoder_process import ChildProcess
from vtok.video.worker import create_memory

LIVES = 3
"""How many worker processes may die over one request."""


class Lane:
    """One worker process at a time, that does one request after the other.

    Args:
        start: what the worker is told first, but for the file descriptors.
        spec: what clips it makes.
        skipped: where it notes what cannot be read.
    """

    def __init__(
        self, start: dict[str, Any], spec: ClipSpec, skipped: MutableMapping[str, str]
    ) -> None:
        self._start, self._skipped = start, skipped
        self._memory = create_memory()
        self._slot = map_clip(self._memory, spec)
        self._lock, self._closed = threading.Lock(), False
        self._process = self._new_process()
        self._queue = ThreadPoolExecutor(1, thread_name_prefix="vtok-clips")

    def clip(self, step: int, index: int) -> Future[Clip]:
        """Ask for a clip, float32 [3, frames, crop, crop] in -1..1."""
        return self._queue.submit(self._clip, {"step": step, "index": index})

    def prepare(self, position: int) -> Future[bool]:
        """Ask for all parts of a source to be put into the cache; True where that is full."""
        return self._queue.submit(self._ask, {"prepare": position})

    def close(self) -> None:
        """End the process and drop what is queued. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._process.kill()
        self._queue.shutdown(wait=True, cancel_futures=True)
        os.close(self._memory)
        del self._slot

    def _clip(self, request: dict[str, Any]) -> Clip:
        self._ask(request)
        return self._slot.copy()

    def _ask(self, request: dict[str, Any]) -> bool:
        """Have a request done, whatever happens to the process; True where the cache is full.

        A clip depends on its number only, so a new process makes the same one.
        """
        end = ""
        for _ in range(LIVES):
            process = self._living_process()
            answer = process.ask(request)
            if answer is not None:
                return self._take(answer)
            end = process.end()
        raise VtokError(
            f"a process that reads clips died {LIVES} times in a row ({end}):"
            " if memory is short, use fewer workers"
        )

    def _living_process(self) -> WorkerProcess:
        """The process, or a new one where it has died."""
        with self._lock:
            if self._closed:
                raise VtokError("the pool of clips is closed")
            if not self._process.alive:
                self._process = self._new_process()
            return self._process

    def _new_process(self) -> WorkerProcess:
        return WorkerProcess({**self._start, "skipped": dict(self._skipped)}, self._memory)

    def _take(self, answer: dict[str, Any]) -> bool:
        """Note what an answer says; raise the error in it."""
        for name, reason in answer["skipped"].items():
            note_skipped(self._skipped, name, reason)
        if answer["error"] is not None:
            kind: type[VtokError] = getattr(errors, answer["error"]["type"])
            raise kind(answer["error"]["message"])
        return bool(answer["full"])


class WorkerProcess(ChildProcess):
    """A process that makes clips.

    Args:
        start: what it is told first, but for the file descriptors.
        memory: file descriptor of the memory for a clip.
    """

    def __init__(self, start: dict[str, Any], memory: int) -> None:
        super().__init__("vtok.training.worker", memory)
        self.alive = True
        first = {**start, "memory": memory, "lifeline": self.lifeline}
        self._first: dict[str, Any] | None = first

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Have a request done and return the answer; None where the process dies over it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            for message in (self._first, request):
                if message is not None:
                    self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._first = None
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (OSError, ValueError):  # it died before it had read this, or was closed meanwhile
            line = b""
        self.alive = line.endswith(b"\n")
        return json.loads(line) if self.alive else None


__all__ = ["ClipPool", "ClipSpec"]

SCRATCH = "vtok-clips-"

T = TypeVar("T")
Job = Callable[[], Future[T]]


class ClipPool:
    """Clips from sources, made by worker processes; a context manager.

    A clip is a function of the sources, the spec, its step and its number in the step, whatever
    the number of workers, the cache, and what was asked for before.

    Args:
        sources: to draw from.
        spec: what clips to draw.
        workers: number of processes, from 1.
        cache: folder for decoded parts, shared with other pools of the same sources; None
            decodes again what memory does not hold.
        cache_bytes: the most space that the folder takes.
        skipped: what was found unreadable before, name to reason.

    Raises:
        InputError: there is no source.
        UsageError: `workers` is out of range.
        OutputError: the cache cannot be made.
    """

    skipped: dict[str, str]
    """Why sources could not be read, by name; "name (part 2 of 5)" where it is but a part."""
    waited_seconds: float
    """How long `batches` has waited for clips."""

    def __init__(
        self,
        sources: Sequence[Source],
        spec: ClipSpec,
        *,
        workers: int,
        cache: Path | None,
        cache_bytes: int,
        skipped: Mapping[str, str] = {},
    ) -> None:
        if not sources:
            raise InputError("nothing to train on: no video or photo was given")
        if workers < 1:
            raise UsageError(f"workers {workers}: must be at least 1")
        self.skipped, self.waited_seconds = dict(skipped), 0.0
        self._sources, self._spec = sources, spec
        self._steps_a_part = steps_a_part(sources)
        if cache is not None:
            Cache(cache, cache_bytes).tidy(sources)
        members = any(source.member for source in sources)  # which are unpacked one by one
        self._scratch = ScratchFolder(SCRATCH) if members else None
        start = {
            "sources": [[s.name, str(s.path.absolute()), s.member, s.kind] for s in sources],
            "spec": dataclasses.asdict(spec),
            "cache": None if cache is None else str(cache.absolute()),
            "cache_bytes": cache_bytes,
            "scratch": str(self._scratch.path) if self._scratch else "",
        }
        self._lanes = [Lane(start, spec, self.skipped) for _ in range(workers)]

    def __enter__(self) -> ClipPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def batches(self, steps: range, indices: Sequence[range]) -> Iterator[Tensor]:
        """The clips of some steps, made ahead while what was given before is used.

        Args:
            steps: numbers of the steps.
            indices: for each batch of a step, the numbers of its clips within the step.

        Yields:
            For each step, for each range in `indices`: float32
            [len(range), 3, frames, crop, crop] in -1..1.

        Raises:
            InputError: nothing that could be drawn is readable.
            VtokError: worker processes died again and again.
        """
        per_step = sum(map(len, indices))
        jobs = (self._batch(step, indices) for step in steps)
        ahead = 2 * per_step + 2 * len(self._lanes)
        for futures in _ahead(chain.from_iterable(jobs), ahead):
            begin = time.perf_counter()
            batch = torch.empty(len(futures), *self._spec.shape)
            for target, future in zip(batch, futures, strict=True):
                target.copy_(torch.from_numpy(future.result()))
            self.waited_seconds += time.perf_counter() - begin
            yield batch

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Decode the parts of all sources into the cache, until they are there or it is full.

        Training does not need it: it decodes what it draws. What is in the cache already costs
        next to nothing.

        Yields:
            How many sources are done, and how many there are.
        """
        total, lanes = len(self._sources), cycle(self._lanes)
        jobs: Iterator[list[Job[bool]]] = (
            [partial(next(lanes).prepare, position)] for position in range(total)
        )
        for done, futures in enumerate(_ahead(jobs, 2 * len(self._lanes)), 1):
            if futures[0].result():
                return
            yield done, total

    def fixed(self, sources: Sequence[Source], count: int) -> Tensor:
        """Clips for validation: the middle of each source, in order, the centre of the picture.

        Args:
            sources: where from; one that cannot be read is noted in `skipped` and left out.
            count: the most clips.

        Returns:
            float32 [n, 3, frames, crop, crop] in -1..1, n from 1 to `count`.

        Raises:
            InputError: none of the sources can be read.
        """
        clips: list[Clip] = []
        reasons: dict[str, str] = {}
        with ScratchFolder(SCRATCH) as scratch:
            store = PartStore(self._spec, 1, None, scratch)
            for source in sources:
                if len(clips) == count:
                    break
                try:
                    clips.append(middle_clip(store.middle(source), self._spec))
                except InputError as exc:
                    reasons[source.name] = str(exc).removeprefix(f"{source.name}: ")
        if not clips:
            raise InputError(why_nothing(reasons))
        for name, reason in reasons.items():  # it may still be fit for training
            note_skipped(self.skipped, f"{name} (middle)", reason)
        return torch.from_numpy(np.stack(clips))

    def close(self) -> None:
        """End all processes. Closing twice is fine."""
        for lane in self._lanes:
            lane.close()
        if self._scratch is not None:
            self._scratch.close()

    def _batch(self, step: int, indices: Sequence[range]) -> Iterator[list[Job[Clip]]]:
        """The jobs of one step; those that share a part go to one worker, which may hold it."""
        turn = step // self._steps_a_part
        number = turn * sum(map(len, indices))
        for clips in indices:
            jobs: list[Job[Clip]] = []
            for index in clips:
                lane = self._lanes[number % len(self._lanes)]
                jobs.append(partial(lane.clip, step, index))
                number += 1
            yield jobs


def _ahead(jobs: Iterator[list[Job[T]]], count: int) -> Iterator[list[Future[T]]]:
    """Start jobs in order, about `count` of them before they are asked for."""
    waiting: deque[list[Future[T]]] = deque()
    try:
        while True:
            while sum(max(1, len(futures)) for futures in waiting) < count:
                group = next(jobs, None)
                if group is None:
                    break
                waiting.append([job() for job in group])
            if not waiting:
                return
            yield waiting.popleft()
    finally:
        for futures in waiting:
            for future in futures:
                future.cancel()
