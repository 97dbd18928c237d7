"""Clips through torch's DataLoader: decoded ahead by worker processes that may die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby, islice, pairwise
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vtok._files import ScratchFolder
from vtok.errors import InputError, OptionError, VtokError
from vtok.training.clips import Clip, ClipSpec, middle_clip
from vtok.training.decoding import PartStore
from vtok.training.frame_cache import FrameCache
from vtok.training.sampler import (
    ClipDataset,
    max_parts,
    no_clip_error,
    note_skipped,
    steps_per_part,
)
from vtok.training.sources import Source

MAX_DEATHS = 3
"""Worker deaths in a row, without a clip between them, that end the run."""
SCRATCH = "vtok-clips-"
MAX_WORKERS = 16

Key = tuple[int, int]


class ClipLoader:
    """Training clips from sources, decoded ahead by worker processes.

    A clip depends on the sources, the spec, its step and its index only, not on the number of
    workers, the cache, or the steps before it.

    Args:
        sources: videos and photos.
        spec: options of the clips.
        workers: number of processes, from 1.
        cache: folder for decoded frames, which several loaders may share; None decodes again
            whatever memory does not hold.
        cache_bytes: maximum size of that folder.
        skipped: sources known to be unreadable, name to reason.

    Attributes:
        skipped: reason for each unreadable source; "name (part 2 of 5)" if only a part is.
        waited_seconds: time that `batches` has waited for clips.

    Raises:
        InputError: if there is no source.
        OptionError: if `workers` is out of range.
        OutputError: if the cache cannot be created.
    """

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
            raise OptionError("workers", workers, "1 or more")
        self.skipped, self.waited_seconds = dict(skipped), 0.0
        self._sources, self._spec, self._workers = sources, spec, workers
        self._steps_per_part = steps_per_part(sources)
        self._cache = None if cache is None else FrameCache(cache.absolute(), cache_bytes)
        if self._cache is not None:
            self._cache.tidy(sources)
        members = any(source.member for source in sources)
        self._scratch = ScratchFolder(SCRATCH) if members else None  # removed with this object

    def batches(
        self, steps: Sequence[int], indices: Sequence[range]
    ) -> Generator[Tensor, None, None]:
        """Load the clips of several steps; the next ones are decoded while one is used.

        Close the iterator to end the worker processes. A worker that dies, for example because the
        system runs out of memory, is replaced.

        Args:
            steps: ascending step numbers.
            indices: for each batch of a step, the indices of its clips.

        Yields:
            For each step, for each range in `indices`: float32
            [len(range), 3, frames, crop, crop] in -1..1.

        Raises:
            InputError: if no source can be read.
            VtokError: if workers die repeatedly.
        """
        sizes, shape = [len(part) for part in indices], self._spec.shape
        shares = self._shares([index for part in indices for index in part])
        groups = self._fetch(steps, shares)
        with closing(groups):
            for turn in self._turns(steps):
                begin = time.perf_counter()
                loaded = [next(groups).view(len(turn), -1, *shape) for _ in shares]
                self.waited_seconds += time.perf_counter() - begin
                for number in range(len(turn)):
                    empty = torch.empty(0, *shape)
                    clips = torch.cat([empty, *(group[number] for group in loaded)])
                    yield from torch.split(clips, sizes)

    def _turns(self, steps: Sequence[int]) -> Iterator[list[int]]:
        """Steps grouped by the parts that their clips come from."""
        for _, turn in groupby(steps, lambda step: step // self._steps_per_part):
            yield list(turn)

    def _shares(self, indices: Sequence[int]) -> list[Sequence[int]]:
        """Indices of a step, split between workers; each worker gets the same ones again."""
        count = min(self._workers, len(indices))
        ends = [len(indices) * n // count for n in range(count + 1)] if count else []
        return [indices[begin:end] for begin, end in pairwise(ends)]

    def _fetch(
        self, steps: Sequence[int], shares: Sequence[Sequence[int]]
    ) -> Generator[Tensor, None, None]:
        """Load the clips of each turn and share, float32 [n, 3, T, H, W], surviving deaths."""
        done = deaths = 0
        while True:
            keys = (
                [(step, index) for step in turn for index in share]
                for turn in self._turns(steps)
                for share in shares
            )
            try:
                for answer in self._data_loader(islice(keys, done, None)):
                    for name, reason in answer.skipped.items():
                        note_skipped(self.skipped, name, reason)
                    if answer.error is not None:
                        raise answer.error
                    done, deaths = done + 1, 0
                    yield answer.clips
                return
            except (RuntimeError, OSError, EOFError) as exc:  # all that DataLoader raises itself
                deaths += 1
                if deaths == MAX_DEATHS:
                    raise VtokError(
                        f"processes that decode clips died {deaths} times in a row "
                        f"({_first_line(exc)}): if memory is short, use fewer workers"
                    ) from exc

    def _data_loader(self, keys: Iterable[list[Key]]) -> DataLoader[_Answer]:
        scratch = self._scratch.path if self._scratch else Path()
        store = PartStore(self._spec, max_parts(self._sources), self._cache, scratch)
        clips = ClipDataset(self._sources, self._spec, store, dict(self.skipped))
        return DataLoader(
            _AnswerDataset(clips),
            batch_size=None,  # a key of this dataset is a list of keys
            sampler=keys,
            num_workers=self._workers,
            prefetch_factor=2 if self._steps_per_part == 1 else 1,
            collate_fn=_unchanged,
            worker_init_fn=_init_worker,
            multiprocessing_context=_worker_context(),
            generator=torch.Generator(),  # leaves torch's global one alone
        )

    def middle_clips(self, sources: Sequence[Source], count: int) -> Tensor:
        """Decode clips for validation: the middle of each source, in order, at the centre.

        Args:
            sources: sources to read; an unreadable one is noted in `skipped` and left out.
            count: maximum number of clips.

        Returns:
            float32 [n, 3, frames, crop, crop] in -1..1, n from 1 to `count`.

        Raises:
            InputError: if none of the sources can be read.
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
            raise no_clip_error(reasons)
        for name, reason in reasons.items():  # other parts of it may be readable
            note_skipped(self.skipped, f"{name} (middle)", reason)
        return torch.from_numpy(np.stack(clips))


def default_workers(processes: int) -> int:
    """Return one worker for each core but one, shared by the training processes of a machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MAX_WORKERS, (cores or 1) // processes - 1))


class _Answer(NamedTuple):
    """A worker's result for a group of keys: clips in shared memory, or an error."""

    clips: Tensor
    skipped: dict[str, str]
    error: VtokError | None


class _AnswerDataset(Dataset[_Answer]):
    """Map-style dataset of answers: errors and skipped sources travel with the clips.

    DataLoader would turn an exception into one with a traceback of many lines as its message.
    """

    def __init__(self, clips: ClipDataset) -> None:
        self._clips = clips

    def __getitem__(self, keys: list[Key]) -> _Answer:
        known = set(self._clips.skipped)
        clips, error = torch.empty(0), None
        try:
            # shared here, where a full /dev/shm is an exception; in DataLoader it would hang
            clips = torch.from_numpy(np.stack([self._clips[key] for key in keys]))
            clips.share_memory_()  # type: ignore[no-untyped-call]
        except VtokError as exc:
            error = exc
        except Exception as exc:  # a bug or lack of memory: report it in one line
            reason = f"{type(exc).__name__}: {_first_line(exc)}"
            error = VtokError(f"making a clip failed ({reason})")
        found = {n: reason for n, reason in self._clips.skipped.items() if n not in known}
        return _Answer(clips, found, error)


def _unchanged(answer: Any) -> Any:
    return answer


def _worker_context() -> BaseContext:
    """Return the way to start workers, without a fork of this process and its threads.

    Workers of a fork server start fast, since it has imported torch, and are not children of this
    process, so that DataLoader's SIGCHLD handler cannot raise in the middle of a step.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _init_worker(number: int) -> None:
    """Leave Ctrl-C to the main process, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
