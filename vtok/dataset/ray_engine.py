"""Who encodes clips: actors of a Ray cluster, each with a model of its own.

Plain actors, and not Ray Data: with its defaults a clip that kills its actor is tried for ever, and
with errors allowed the other rows of its block vanish without a word. Here each task ends in
exactly one record, and how often it may take an actor along is bounded.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtok.dataset.api import DatasetOptions, load
from vtok.dataset.work import ClipEncoder, DiskFailure, Record, Settings, Task, blank_record
from vtok.errors import UsageError

LIVES = 2
"""How many actors may die over one clip."""


class RayEngine:
    """Encodes on a Ray cluster whose nodes see the sources and the folder of the output.

    Args:
        options: how; `workers` is the number of actors, as many as there are CPUs (or GPUs, where
            there are any and the device is not the CPU) if None.
        settings: how clips are encoded.
        address: of a cluster; if None, one is started on this machine for as long as the run takes.

    Raises:
        UsageError: Ray is not installed.
    """

    def __init__(self, options: DatasetOptions, settings: Settings, address: str | None) -> None:
        try:
            import ray
        except ImportError as exc:
            raise UsageError("--engine ray needs Ray: pip install 'vtok[ray]'") from exc
        self._ray: Any = ray
        self._options, self._settings, self._address = options, settings, address
        self._replaced: dict[Any, Any] = {}

    def run(self, tasks: Iterator[Task]) -> Generator[Record, None, None]:
        """See `Engine`."""
        first = next(tasks, None)
        if first is None:
            return
        ray, waiting = self._ray, deque([(first, LIVES)])
        own = not ray.is_initialized()
        if own:
            ray.init(
                address=self._address,
                include_dashboard=False if self._address is None else None,
                log_to_driver=False,
                logging_level="ERROR",
            )
        idle = [actor for actor, places in self._actors() for _ in range(places)]
        busy: dict[Any, tuple[Any, Task, int]] = {}
        try:
            while True:
                while idle and (waiting or (fresh := next(tasks, None)) is not None):
                    if not waiting:
                        assert fresh is not None
                        waiting.append((fresh, LIVES))
                    actor, (task, lives) = self._living(idle.pop()), waiting.popleft()
                    busy[actor.encode.remote(task)] = (actor, task, lives)
                if not busy:
                    return
                (done,), _ = ray.wait(list(busy), num_returns=1)
                actor, task, lives = busy.pop(done)
                record, actor = self._result(done, actor, task, lives - 1)
                idle.append(actor)
                if record is None:
                    waiting.append((task, lives - 1))
                else:
                    yield record
        finally:
            for actor in {*idle, *(actor for actor, _, _ in busy.values())}:
                ray.kill(actor)
            if own:
                ray.shutdown()

    def _result(self, done: Any, actor: Any, task: Task, lives: int) -> tuple[Record | None, Any]:
        """What came of a task, and the actor to go on with; no record for a task to try again.

        Raises:
            DiskFailure: the output's disk takes no more.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(done), actor
        except errors.RayTaskError as exc:
            if isinstance(exc.cause, DiskFailure):
                raise DiskFailure(str(exc.cause)) from exc
            text = " ".join(str(exc.cause).split())[:200]
            return _failed(task, f"internal error: {text}"), actor
        except errors.RayError as exc:
            fresh = self._living(actor, dead=True)
            if lives:
                return None, fresh
            kind = type(exc).__name__
            return _failed(task, f"its worker died {LIVES} times ({kind})"), fresh

    def _living(self, actor: Any, *, dead: bool = False) -> Any:
        """The actor, or the one that took its place, of which there is one however many asked."""
        if dead and actor not in self._replaced:
            self._replaced[actor] = self._start_actor(self._num_gpus())
        while actor in self._replaced:
            actor = self._replaced[actor]
        return actor

    def _actors(self) -> list[tuple[Any, int]]:
        """Actors, and how many clips each takes at once."""
        resources, gpus = self._ray.cluster_resources(), self._num_gpus()
        count = int(resources.get("GPU" if gpus else "CPU", 1))
        return [
            (self._start_actor(gpus), self._places(gpus))
            for _ in range(self._options.workers or max(1, count))
        ]

    def _num_gpus(self) -> int:
        has_gpu = self._ray.cluster_resources().get("GPU", 0) >= 1
        return int(has_gpu and self._options.device != "cpu")

    def _places(self, gpus: int) -> int:
        """Clips under way at once in one actor: those of a batch, and as many that wait."""
        return 2 * (self._options.batch or 8) if gpus else 1

    def _start_actor(self, gpus: int) -> Any:
        actor = self._ray.remote(
            num_cpus=1, num_gpus=gpus, max_restarts=0, max_concurrency=self._places(gpus)
        )(Worker)
        return actor.remote(self._options, self._settings, str(Path.cwd()))


class Worker:
    """What runs in an actor: a model, and a decoding process for each clip under way.

    Args:
        options: how.
        settings: how clips are encoded, but for the scratch folder, which is this machine's own.
        folder: that relative paths start from.
    """

    def __init__(self, options: DatasetOptions, settings: Settings, folder: str) -> None:
        os.chdir(folder)
        self._scratch = tempfile.TemporaryDirectory(prefix="vtok-dataset-")
        self._settings = replace(settings, scratch=Path(self._scratch.name))
        self._model = load(options)
        self._local = threading.local()

    def encode(self, task: Task) -> Record:
        """Encode a clip; see `ClipEncoder`."""
        if not hasattr(self._local, "encoder"):
            self._local.encoder = ClipEncoder(self._model, self._settings)
        encoder: ClipEncoder = self._local.encoder
        return encoder.encode(task)


def _failed(task: Task, message: str) -> Record:
    return {
        **blank_record(task), "stage": "model", "error": "WorkerError", "seconds": 0.0,
        "message": f"{task.entry.name}: {message}",
    }  # fmt: skip
