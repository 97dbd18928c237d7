"""Who encodes clips: actors of a Ray cluster, each with a model of its own.

Plain actors, and not Ray Data: with its defaults a clip that kills its actor is tried for ever, and
with errors allowed the other rows of its block vanish without a word. Here each task ends in
exactly one record, and how often it may take an actor along is bounded.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from vtok.dataset.api import DatasetOptions, load
from vtok.dataset.worker import ClipEncoder, DiskFailure, Record, Settings, Task, blank_record
from vtok.errors import UsageError, VtokError

LOCAL = "local"
STORE_BYTES = 100 * 2**20
"""Shared memory of a cluster of our own: clips do not go through it, and Ray would take a third."""


def import_ray(address: str | None) -> Any:
    """The library, which looks at its environment once, when it is imported.

    Args:
        address: of the cluster that is to be joined, see `joined_cluster`.

    Raises:
        UsageError: it is not installed.
    """
    if _target(address) == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of its use
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # and kept in no file
    if "RAY_AUTH_TOKEN" in os.environ or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` goes by that, too
    try:
        import ray
    except ImportError as exc:
        raise UsageError("--engine ray needs Ray: pip install 'vtok[ray]'") from exc
    return ray


@contextmanager
def joined_cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Be connected to a cluster while the block runs; one that is joined already stays so.

    Args:
        ray: the library.
        address: of the cluster; if None, what RAY_ADDRESS says, else one is started on this
            machine, whatever others run there, and ends with the block or this process.

    Raises:
        VtokError: it cannot be joined or started.
    """
    if ray.is_initialized():
        yield
        return
    address = _target(address)
    with ExitStack() as stack:
        try:
            _join(ray, address, stack)
        except Exception as exc:  # of many kinds, also the plain one
            text = " ".join(str(exc).split())[:200]
            raise VtokError(f"--ray-address {address}: no cluster can be joined ({text})") from exc
        yield


def _join(ray: Any, address: str, stack: ExitStack) -> None:
    """Connect; what has to be removed in the end is put on the stack."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        # sockets lie in there, whose paths must be short: the usual folder may be too deep
        folder = tempfile.mkdtemp(prefix="vtok-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES,
                    "_temp_dir": folder}  # fmt: skip
    stack.callback(ray.shutdown)
    ray.init(address, **options)


def _target(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


LIVES = 2
"""How many actors may die over one clip; the last of them has it alone."""
STARTS = 3
"""How many actors in a row may die before any is ready."""
START_SECONDS = 900.0
"""How long to wait for an actor where none is left: a cluster may have to bring up a machine."""


class _Job(NamedTuple):
    task: Task
    lives: int = LIVES


class RayEngine:
    """Encodes on a Ray cluster whose nodes see the sources and the folder of the output.

    Clips are given to actors that have said that they are ready: one for which the cluster has no
    room, or no more, since a machine is gone, waits for it and holds nothing up.

    Args:
        options: how; `workers` is the number of actors, as many as there are CPUs (or GPUs, where
            there are any and the device is not the CPU) if None.
        settings: how clips are encoded.
        address: of a cluster, see `joined_cluster`.

    Raises:
        UsageError: Ray is not installed.
    """

    def __init__(self, options: DatasetOptions, settings: Settings, address: str | None) -> None:
        self._ray = import_ray(address)
        self._options, self._settings, self._address = options, settings, address
        self._starting: dict[Any, Any] = {}  # what says that an actor is ready -> the actor
        self._free: dict[Any, int] = {}  # actors that are ready -> clips that they could take
        self._busy: dict[Any, tuple[Any, _Job]] = {}  # results to come -> of whom, of what
        self._fresh: deque[_Job] = deque()
        self._suspects: deque[_Job] = deque()  # were there when an actor died
        self._stillborn = 0

    def run(self, tasks: Iterator[Task]) -> Generator[Record, None, None]:
        """See `Engine`.

        Raises:
            DiskFailure: the output's disk takes no more.
            VtokError: there is no cluster, or no actor starts in it.
        """
        first = next(tasks, None)
        if first is None:
            return
        with joined_cluster(self._ray, self._address):
            self._gpus = self._num_gpus()
            self._places = 2 * (self._options.batch or 8) if self._gpus else 1
            try:
                for _ in range(self._num_actors()):
                    self._start_actor()
                yield from self._encode_all(chain([first], tasks))
            finally:
                for actor in {*self._starting.values(), *self._free}:
                    self._ray.kill(actor)

    def _encode_all(self, tasks: Iterator[Task]) -> Iterator[Record]:
        while True:
            if not self._fresh and (task := next(tasks, None)) is not None:
                self._fresh.append(_Job(task))
            if self._assign():
                continue
            if not self._busy and not self._fresh and not self._suspects:
                return
            record = self._await_one()
            if record is not None:
                yield record

    def _assign(self) -> bool:
        """Give one actor one job that it may have, if there are such."""
        for actor, free in self._free.items():
            whole = free == self._places
            if self._suspects and whole:
                job, takes = self._suspects.popleft(), free
            elif self._fresh and free:
                job, takes = self._fresh.popleft(), 1
            else:
                continue
            self._free[actor] -= takes
            self._busy[actor.encode.remote(job.task)] = (actor, job)
            return True
        return False

    def _await_one(self) -> Record | None:
        """Wait until something has happened: a record, if a clip has ended.

        Raises:
            DiskFailure: the output's disk takes no more.
            VtokError: no actor comes up.
        """
        patience = None if self._busy else START_SECONDS
        done, _ = self._ray.wait([*self._busy, *self._starting], num_returns=1, timeout=patience)
        if not done:
            raise VtokError(
                f"no worker has come up in the Ray cluster for {START_SECONDS:g} seconds: has it "
                "CPUs to spare?"
            )
        if done[0] in self._starting:
            self._welcome(done[0])
            return None
        actor, job = self._busy.pop(done[0])
        return self._result(done[0], actor, job)

    def _welcome(self, ready: Any) -> None:
        """Take in an actor that has come up, or another for one that has not."""
        actor = self._starting.pop(ready)
        try:
            self._ray.get(ready)
        except self._ray.exceptions.RayError as exc:
            self._stillborn += 1
            if self._stillborn >= STARTS and not self._free and not self._starting:
                reason = " ".join((str(exc).strip().splitlines() or [""])[-1].split())[:200]
                raise VtokError(f"a worker cannot start in the Ray cluster: {reason}") from exc
            if self._stillborn < STARTS:
                self._start_actor()
            return
        self._stillborn = 0
        self._free[actor] = self._places

    def _result(self, done: Any, actor: Any, job: _Job) -> Record | None:
        """What came of a job; no record for one to try again."""
        errors = self._ray.exceptions
        try:
            record: Record = self._ray.get(done)
        except errors.RayTaskError as exc:
            if isinstance(exc.cause, DiskFailure):
                raise DiskFailure(str(exc.cause)) from exc
            text = " ".join(str(exc.cause).split())[:200]
            record = _failed(job.task, f"internal error: {text}")
        except errors.RayError as exc:
            if self._free.pop(actor, None) is not None:  # this is the first to tell of it
                self._ray.kill(actor)  # it may be out of reach only, and must not stay for ever
                self._start_actor()
            if job.lives > 1:
                self._suspects.append(job._replace(lives=job.lives - 1))
                return None
            return _failed(job.task, f"its worker died {LIVES} times ({type(exc).__name__})")
        if actor in self._free:
            alone = job.lives < LIVES
            self._free[actor] += self._places if alone else 1
        return record

    def _num_actors(self) -> int:
        resources = self._ray.cluster_resources()
        count = int(resources.get("GPU" if self._gpus else "CPU", 1))
        return self._options.workers or max(1, count)

    def _num_gpus(self) -> int:
        has_gpu = self._ray.cluster_resources().get("GPU", 0) >= 1
        return int(has_gpu and self._options.device != "cpu")

    def _start_actor(self) -> None:
        """Ask for an actor that takes as many clips at once as a batch has, and as many that wait.

        One that has no GPU takes one.
        """
        kind = self._ray.remote(
            num_cpus=1, num_gpus=self._gpus, max_restarts=0, max_concurrency=self._places
        )(Worker)
        actor = kind.remote(self._options, self._settings, str(Path.cwd()))
        self._starting[actor.ready.remote()] = actor


class Worker:
    """What runs in an actor: a model, and a decoding process for each clip under way.

    Args:
        options: how.
        settings: how clips are encoded, but for the scratch folder, which is this machine's own.
        folder: that relative paths start from.
    """

    def __init__(self, options: DatasetOptions, settings: Settings, folder: str) -> None:
        os.chdir(folder)
        # nothing of it stays when this process is killed, but for a clip that is being fetched
        self._settings = replace(settings, scratch=Path(tempfile.gettempdir()))
        from vtok.pipeline._runtime import many_videos

        self._model = load(options)
        many_videos(self._model.device).__enter__()  # the process ends with this actor
        self._local = threading.local()

    def ready(self) -> None:
        """Answer, which says that the model is loaded."""

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
