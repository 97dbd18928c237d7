"""Training clips: a deterministic sampler, keyed by (seed, step, index), through DataLoader.

Clips are decoded ahead by worker processes, which may die.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing
from itertools import groupby, islice, pairwise
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator as Random
from numpy.random import default_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vtok._files import ScratchFolder
from vtok.errors import InputError, OptionError, VtokError
from vtok.training.clips import Clip, ClipSpec, middle_clip, random_clip
from vtok.training.decoding import FrameCache, PartStore
from vtok.training.sources import Source, chances
from vtok.video.frames import Frames

TOTAL_PARTS, MIN_PARTS = 256, 4  # a video has the more parts the fewer videos there are
MANY_VIDEOS, STEPS_PER_PART = 256, 4  # from here on no cache holds all: consecutive steps share one
SHOWN_REASONS = 3
PART_OF = re.compile(r" \((part [0-9]+ of [0-9]+|middle)\)$")  # of a source's name: only a part
PART_STREAM, WINDOW_STREAM = 0, 1  # separate the random numbers of parts and of windows in them
MAX_DEATHS = 3  # of workers in a row, without a clip between them, that end the run
SCRATCH = "vtok-clips-"
MAX_WORKERS = 16

Key = tuple[int, int]


def max_parts(sources: Sequence[Source]) -> int:
    """Return the maximum number of parts of one video."""
    videos = sum(source.kind == "video" for source in sources)
    return max(MIN_PARTS, TOTAL_PARTS // max(1, videos))


def steps_per_part(sources: Sequence[Source]) -> int:
    """Return for how many consecutive steps the clips of one index come from the same part."""
    videos = sum(source.kind == "video" for source in sources)
    return STEPS_PER_PART if videos >= MANY_VIDEOS else 1


def note_skipped(skipped: MutableMapping[str, str], name: str, reason: str) -> None:
    """Note why a source, or a part of it, cannot be read; a whole source replaces its parts."""
    if PART_OF.sub("", name) in skipped:
        return
    skipped[name] = reason
    for other in list(skipped):
        if PART_OF.sub("", other) == name != other:
            skipped.pop(other, None)


def no_clip_error(reasons: Mapping[str, str]) -> InputError:
    """Return the error for sources none of which gives a clip, with the first reasons."""
    counted = "1 source" if len(reasons) == 1 else f"{len(reasons)} sources"
    shown = [f"{name}: {reason}" for name, reason in islice(reasons.items(), SHOWN_REASONS)]
    more = "; ..." if len(reasons) > SHOWN_REASONS else ""
    return InputError(f"no clip could be read from {counted}: {'; '.join(shown)}{more}")


class ClipDataset:
    """Map-style dataset of clips, keyed by (step, index).

    A clip depends on the sources, the spec and its key only. An unreadable source is noted in
    `skipped`, name to reason ("name (part 2 of 5)" if only a part is), and replaced by the next
    draw of the same generator, so that the same broken files give the same clips in any order and
    in any process.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        spec: ClipSpec,
        store: PartStore,
        skipped: MutableMapping[str, str],
    ) -> None:
        self._spec, self._store, self.skipped = spec, store, skipped
        kinds = [[s for s in sources if s.kind == kind] for kind in ("video", "photo")]
        self._videos, self._photos = kinds
        self._ends = [np.cumsum(chances(kind)) if kind else np.zeros(0) for kind in kinds]
        self._photo_share = 1.0 if not self._videos else spec.photo_share if self._photos else 0.0
        self._drawable = [
            *(self._videos if self._photo_share < 1 else []),
            *(self._photos if self._photo_share > 0 else []),
        ]
        self._steps_per_part = steps_per_part(sources)

    def __getitem__(self, key: tuple[int, int]) -> Clip:
        """Return the clip of a step and an index; `InputError` if no source can be read."""
        step, index = key
        turn = step // self._steps_per_part
        source, part = self._draw(default_rng((self._spec.seed, PART_STREAM, turn, index)))
        rng = default_rng((self._spec.seed, WINDOW_STREAM, step, index))
        return random_clip(source.kind, part, self._spec, rng)

    def _draw(self, rng: Random) -> tuple[Source, Frames]:
        """Draw a source and a part of it until one can be read.

        Every draw takes the same numbers from the generator, whatever is known to be unreadable.
        """
        while self._any_left():
            is_photo, place, turn = rng.random(3)
            kind = int(is_photo < self._photo_share)
            ends = self._ends[kind]
            position = min(int(np.searchsorted(ends, place, side="right")), len(ends) - 1)
            source = (self._videos, self._photos)[kind][position]
            count = self._count(source)
            if count is None:
                continue
            frames = self._load(source, int(turn * count), count)
            if frames is not None:
                return source, frames
        raise no_clip_error({s.name: self.skipped[s.name] for s in self._drawable})

    def _count(self, source: Source) -> int | None:
        if source.name in self.skipped:
            return None
        try:
            return self._store.count(source)
        except InputError as exc:
            self._skip(source, source.name, exc)
            return None

    def _load(self, source: Source, number: int, count: int) -> Frames | None:
        name = f"{source.name} (part {number + 1} of {count})"
        if name in self.skipped:
            return None
        try:
            return self._store.load(source, number)
        except InputError as exc:
            self._skip(source, name, exc)
            names = (f"{source.name} (part {part + 1} of {count})" for part in range(count))
            if all(name in self.skipped for name in names):
                self._skip(source, source.name, exc)
            return None

    def _skip(self, source: Source, name: str, error: InputError) -> None:
        note_skipped(self.skipped, name, str(error).removeprefix(f"{source.name}: "))

    def _any_left(self) -> bool:
        return not self.skipped or any(s.name not in self.skipped for s in self._drawable)


class ClipLoader:
    """Training clips from sources, decoded ahead by worker processes.

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
            float32 [len(range), 3, frames, crop, crop] in -1..1 for each step and range.

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
                    yield torch.as_tensor(answer.clips)
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

        An unreadable source is noted in `skipped` and left out; `InputError` if all are.

        Returns:
            float32 [n, 3, frames, crop, crop] in -1..1, n from 1 to `count`.
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
    """A worker's result for a group of keys: clips, or an error."""

    clips: Tensor | Clip  # in shared memory, or an array that is sent through a pipe
    skipped: dict[str, str]
    error: VtokError | None


class _AnswerDataset(Dataset[_Answer]):
    """Map-style dataset of answers, since DataLoader adds a traceback to the text of an error."""

    def __init__(self, clips: ClipDataset) -> None:
        self._clips = clips

    def __getitem__(self, keys: list[Key]) -> _Answer:
        known = set(self._clips.skipped)
        clips: Tensor | Clip = np.zeros(0, np.float32)
        error = None
        try:
            clips = _shared(np.stack([self._clips[key] for key in keys]))
        except VtokError as exc:
            error = exc
        except Exception as exc:  # a bug or lack of memory: report it in one line
            reason = f"{type(exc).__name__}: {_first_line(exc)}"
            error = VtokError(f"making a clip failed ({reason})")
        found = {n: reason for n, reason in self._clips.skipped.items() if n not in known}
        return _Answer(clips, found, error)


def _shared(clips: Clip) -> Tensor | Clip:
    """Move clips to shared memory, if it has space: containers often have little of it."""
    try:
        # here, where a full /dev/shm is an exception; in DataLoader it would hang
        return torch.from_numpy(clips).share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError):
        return clips


def _unchanged(answer: Any) -> Any:
    return answer


def _worker_context() -> BaseContext:
    # workers of a fork server start fast, since it has imported torch, and are not children of this
    # process, so that DataLoader's SIGCHLD handler cannot raise in the middle of a step
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
