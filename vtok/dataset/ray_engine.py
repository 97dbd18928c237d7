"""Encode items in actors of a Ray cluster, each with its own model.

These are plain actors instead of Ray Data, which by default retries an item that kills its actor
forever, and with errors allowed silently drops the other rows of its block. Here each task gives
exactly one record, and the number of retries is limited.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vtok.dataset.item import Record
from vtok.dataset.worker import GPU_BATCH, DiskFailure, Job, Task, Worker, worker_error
from vtok.errors import OptionError, UsageError, VtokError

LOCAL = "local"
STORE_BYTES = 100 * 2**20
"""Shared memory of a cluster started here. Videos do not use it; Ray would reserve a third."""
MAX_DEATHS = 2
"""Actor deaths after which an item fails; the last actor has it alone."""
MAX_FAILED_STARTS = 3
"""Actors in a row that may die before any is ready."""
START_SECONDS = 900.0
"""Longest wait for an actor if there is none: a cluster may have to start a machine."""


class _Attempt(NamedTuple):
    task: Task
    deaths: int = 0


class RayEngine:
    """Encodes on a Ray cluster whose nodes can read the sources and write to the output folder.

    Items are only given to actors that are ready, so an actor that waits for room in the cluster,
    or was lost with its machine, delays nothing.

    Args:
        job: settings of the run; by default there are as many actors as GPUs, or as CPUs if there
            is no GPU or the device is the CPU.

    Raises:
        OptionError: the model is not a name or path.
        UsageError: Ray is not installed.
    """

    def __init__(self, job: Job) -> None:
        if not isinstance(job.model, (str, Path)):
            raise OptionError("model", "a loaded tokenizer", "a name or path with `engine` ray")
        self._ray = import_ray(job.options.ray_address)
        self._job, self._options = job, job.options
        self._starting: dict[Any, Any] = {}  # result of `ready` -> actor
        self._free: dict[Any, int] = {}  # ready actor -> items that it can take
        self._busy: dict[Any, tuple[Any, _Attempt]] = {}  # result of `encode` -> actor, attempt
        self._new: deque[_Attempt] = deque()
        self._suspects: deque[_Attempt] = deque()  # were running when an actor died
        self._failed_starts = 0

    def run(self, tasks: Iterator[Task]) -> Generator[Record, None, None]:
        """Encode tasks; see `vtok.dataset.scheduler.Engine`.

        Raises:
            DiskFailure: the output disk is full or broken.
            VtokError: there is no cluster, or no actor starts in it.
        """
        with joined_cluster(self._ray, self._options.ray_address):
            resources = self._ray.cluster_resources()
            self._gpus = int(resources.get("GPU", 0) >= 1 and self._options.device != "cpu")
            # a batch that runs and one that waits; without a GPU, one item
            self._capacity = 2 * (self._options.batch or GPU_BATCH) if self._gpus else 1
            available = int(resources.get("GPU" if self._gpus else "CPU", 1))
            try:
                for _ in range(self._options.workers or max(1, available)):
                    self._start_actor()
                yield from self._encode_all(tasks)
            finally:
                for actor in {*self._starting.values(), *self._free}:
                    self._ray.kill(actor)

    def _encode_all(self, tasks: Iterator[Task]) -> Iterator[Record]:
        while True:
            if not self._new and (task := next(tasks, None)) is not None:
                self._new.append(_Attempt(task))
            if self._assign():
                continue
            if not self._busy and not self._new and not self._suspects:
                return
            record = self._await_one()
            if record is not None:
                yield record

    def _assign(self) -> bool:
        """Give one attempt to one actor; returns False if that is not possible."""
        for actor, free in self._free.items():
            if self._suspects and free == self._capacity:
                attempt, taken = self._suspects.popleft(), free
            elif self._new and free:
                attempt, taken = self._new.popleft(), 1
            else:
                continue
            self._free[actor] -= taken
            self._busy[actor.encode.remote(attempt.task)] = (actor, attempt)
            return True
        return False

    def _await_one(self) -> Record | None:
        """Wait for an event; returns a record if an item is finished.

        Raises:
            DiskFailure: the output disk is full or broken.
            VtokError: no actor starts.
        """
        timeout = None if self._busy else START_SECONDS
        done, _ = self._ray.wait([*self._busy, *self._starting], num_returns=1, timeout=timeout)
        if not done:
            raise VtokError(
                f"no worker started in the Ray cluster within {START_SECONDS:g} seconds: does it "
                "have free CPUs?"
            )
        if done[0] in self._starting:
            self._add_actor(done[0])
            return None
        actor, attempt = self._busy.pop(done[0])
        return self._result(done[0], actor, attempt)

    def _add_actor(self, ready: Any) -> None:
        """Add an actor that is ready, or start another if it failed to start."""
        actor = self._starting.pop(ready)
        try:
            self._ray.get(ready)
        except self._ray.exceptions.RayError as exc:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS and not self._free and not self._starting:
                reason = " ".join((str(exc).strip().splitlines() or [""])[-1].split())[:200]
                raise VtokError(f"a worker cannot start in the Ray cluster: {reason}") from exc
            if self._failed_starts < MAX_FAILED_STARTS:
                self._start_actor()
            return
        self._failed_starts = 0
        self._free[actor] = self._capacity

    def _result(self, done: Any, actor: Any, attempt: _Attempt) -> Record | None:
        """The record of an attempt; None if it is repeated."""
        errors = self._ray.exceptions
        try:
            record: Record = self._ray.get(done)
        except errors.RayTaskError as exc:
            if isinstance(exc.cause, DiskFailure):
                raise DiskFailure(str(exc.cause)) from exc
            text = " ".join(str(exc.cause).split())[:200]
            record = worker_error(attempt.task, f"internal error: {text}")
        except errors.RayError as exc:
            if self._free.pop(actor, None) is not None:  # the first report of its death
                self._ray.kill(actor)  # it may only be unreachable, and would stay
                self._start_actor()
            deaths = attempt.deaths + 1
            if deaths < MAX_DEATHS:
                self._suspects.append(attempt._replace(deaths=deaths))
                return None
            reason = f"its worker died {MAX_DEATHS} times ({type(exc).__name__})"
            return worker_error(attempt.task, reason)
        if actor in self._free:
            self._free[actor] += self._capacity if attempt.deaths else 1
        return record

    def _start_actor(self) -> None:
        kind = self._ray.remote(
            num_cpus=1, num_gpus=self._gpus, max_restarts=0, max_concurrency=self._capacity
        )(RayActor)
        actor = kind.remote(self._job, str(Path.cwd()))
        self._starting[actor.ready.remote()] = actor


class RayActor:
    """Process in the cluster: a model, and a decoder process for each running item.

    Relative paths start from `folder`.
    """

    def __init__(self, job: Job, folder: str) -> None:
        from vtok.pipeline._runtime import many_videos  # imports torch

        os.chdir(folder)
        # the scratch folder is on another machine
        self._worker = Worker(replace(job, scratch=Path(tempfile.gettempdir())))
        self._settings = ExitStack()  # referenced until the process ends
        self._settings.enter_context(many_videos(self._worker.model.device))

    def ready(self) -> None:
        """Return after the model is loaded."""

    def encode(self, task: Task) -> Record:
        """Encode an item; see `Worker`."""
        return self._worker.encode(task)


def import_ray(address: str | None) -> Any:
    """Import Ray, which reads its environment variables at that moment.

    Raises:
        UsageError: it is not installed.
    """
    if _target(address) == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # not stored in a file
    if "RAY_AUTH_TOKEN" in os.environ or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` does the same
    try:
        import ray
    except ImportError as exc:
        raise UsageError("`engine` ray needs Ray: pip install 'vtok[ray]'") from exc
    return ray


@contextmanager
def joined_cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster until the block ends; an existing connection is kept.

    Without an address and RAY_ADDRESS, a separate cluster is started on this machine, and ends
    with the block or the process.

    Raises:
        VtokError: it cannot be joined or started.
    """
    if ray.is_initialized():
        yield
        return
    address = _target(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with ExitStack() as stack:
        try:
            if address == LOCAL:
                # its folder has sockets, whose paths must be short: the default may be too deep
                short = os.environ.get("RAY_TMPDIR", "/tmp" if os.name == "posix" else None)
                folder = tempfile.mkdtemp(prefix="vtok-ray-", dir=short)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
                options["_temp_dir"] = folder
            stack.callback(ray.shutdown)
            ray.init(address, **options)
        except Exception as exc:  # Ray raises many types, plain Exception among them
            text = " ".join(str(exc).split())[:200]
            raise VtokError(f"`ray_address` {address}: no cluster can be joined ({text})") from exc
        yield


def _target(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or LOCAL
