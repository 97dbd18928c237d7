"""The scheduling of actors, on a stand-in for Ray whose actors die when they are told to."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vtok.dataset import ray_engine
from vtok.dataset.api import DatasetOptions
from vtok.dataset.entry import Entry
from vtok.dataset.ray_engine import RayEngine
from vtok.dataset.work import DiskFailure, Record, Settings, Task, blank_record
from vtok.errors import UsageError


class RayError(Exception):
    """As Ray's own: something happened to an actor."""


class RayTaskError(RayError):
    """As Ray's own: the method raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class StandIn:
    """As much of Ray as the engine uses: everything happens when its result is asked for."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(
        self, work: Callable[[Task], Record], num_cpus: int = 3, num_gpus: int = 0
    ) -> None:
        self._work, self._resources = work, {"CPU": num_cpus, "GPU": num_gpus}
        self._random = random.Random(0)
        self.alive = self.most = 0
        self.started: list[dict[str, Any]] = []

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, int]:
        return self._resources

    def remote(self, **options: Any) -> Callable[[type], Any]:
        def start(*arguments: Any) -> Any:
            self.started.append(options)
            self.alive += 1
            self.most = max(self.most, self.alive)
            return Actor()

        return lambda kind: SimpleNamespace(remote=start)

    def wait(self, calls: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return [self._random.choice(calls)], []

    def get(self, call: Any) -> Record:
        if call.actor.dead:
            raise RayError("the actor is dead")
        try:
            return self._work(call.task)
        except RayError:
            call.actor.dead = True
            self.alive -= 1
            raise
        except Exception as exc:
            raise RayTaskError(exc) from exc

    def kill(self, actor: Any) -> None:
        self.alive -= 1


class Actor:
    """A handle of an actor."""

    def __init__(self) -> None:
        self.dead = False
        self.encode = SimpleNamespace(remote=lambda task: Call(self, task))


class Call:
    """What a call of a method gives."""

    def __init__(self, actor: Actor, task: Task) -> None:
        self.actor, self.task = actor, task


def engine(tmp_path: Path, stand_in: StandIn, **options: Any) -> RayEngine:
    made = object.__new__(RayEngine)
    settings = Settings(None, tmp_path, tmp_path, tmp_path)  # type: ignore[arg-type]
    made._ray, made._address, made._replaced = stand_in, None, {}
    made._options, made._settings = DatasetOptions(**options), settings
    return made


def tasks(count: int) -> list[Task]:
    return [Task(Entry(str(number), f"{number}.mp4"), Path(str(number)), True)
            for number in range(count)]  # fmt: skip


def ok(task: Task) -> Record:
    return blank_record(task) | {"status": "ok"}


def test_every_task_has_one_record_whoever_dies(tmp_path: Path) -> None:
    dying = {"3": 1, "7": 2, "8": 5, "19": 1}  # how often each takes its actor along

    def work(task: Task) -> Record:
        if dying.get(task.entry.id, 0):
            dying[task.entry.id] -= 1
            raise RayError("killed")
        return ok(task)

    stand_in = StandIn(work)
    records = list(engine(tmp_path, stand_in).run(iter(tasks(20))))
    assert sorted(int(record["id"]) for record in records) == list(range(20))
    failed = {record["id"] for record in records if record["status"] == "failed"}
    assert failed == {"7", "8"}
    assert {record["message"] for record in records if record["id"] == "7"} == {
        "7.mp4: its worker died 2 times (RayError)"
    }
    assert stand_in.most == 3
    assert len(stand_in.started) == 3 + 1 + 2 + 2 + 1


def test_an_actor_with_many_tasks_is_replaced_once(tmp_path: Path) -> None:
    dying = ["5"]

    def work(task: Task) -> Record:
        if task.entry.id in dying:
            dying.remove(task.entry.id)
            raise RayError("killed")
        return ok(task)

    stand_in = StandIn(work, num_gpus=1)
    records = list(engine(tmp_path, stand_in).run(iter(tasks(40))))
    assert sorted(int(record["id"]) for record in records) == list(range(40))
    assert len(stand_in.started) == 2


def test_an_error_in_an_actor_is_a_record(tmp_path: Path) -> None:
    def work(task: Task) -> Record:
        raise KeyError("bug")

    (record,) = engine(tmp_path, StandIn(work)).run(iter(tasks(1)))
    assert record["message"] == "0.mp4: internal error: 'bug'"


def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    def work(task: Task) -> Record:
        raise DiskFailure("no space left")

    with pytest.raises(DiskFailure, match="no space left"):
        list(engine(tmp_path, StandIn(work)).run(iter(tasks(5))))


def test_tasks_are_taken_as_they_can_be_worked_on(tmp_path: Path) -> None:
    taken = []

    def some() -> Any:
        for task in tasks(50):
            taken.append(task)
            yield task

    run = engine(tmp_path, StandIn(ok), workers=2).run(some())
    next(run)
    assert len(taken) <= 4
    run.close()


@pytest.mark.parametrize(
    ("options", "gpus", "places"), [({}, 1, 16), ({"batch": 4}, 1, 8), ({"device": "cpu"}, 0, 1)]
)
def test_an_actor_has_a_gpu_and_a_batch(
    tmp_path: Path, options: dict[str, Any], gpus: int, places: int
) -> None:
    stand_in = StandIn(ok, num_cpus=4, num_gpus=2)
    assert len(list(engine(tmp_path, stand_in, **options).run(iter(tasks(3))))) == 3
    assert len(stand_in.started) == (2 if gpus else 4)
    assert {(one["num_gpus"], one["max_concurrency"]) for one in stand_in.started} == {
        (gpus, places)
    }


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    settings = Settings(None, tmp_path, tmp_path, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"pip install 'vtok\[ray\]'"):
        ray_engine.RayEngine(DatasetOptions(), settings, None)
