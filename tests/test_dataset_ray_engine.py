"""The scheduling of actors, on a stand-in for Ray whose actors die when they are told to."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vtok.dataset import ray_engine
from vtok.dataset.api import DatasetOptions
from vtok.dataset.item import Item
from vtok.dataset.ray_engine import RayEngine
from vtok.dataset.worker import DiskFailure, Record, Settings, Task, blank_record
from vtok.errors import UsageError, VtokError


class RayError(Exception):
    """As Ray's own: something happened to an actor."""


class RayTaskError(RayError):
    """As Ray's own: the method raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class StandIn:
    """As much of Ray as the engine uses: everything happens when its result is asked for.

    Attributes:
        room: how many actors the cluster has a place for; the others wait for one.
        stillborn: how many of the next actors die before they are ready.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(
        self, work: Callable[[Task], Record], num_cpus: int = 3, num_gpus: int = 0
    ) -> None:
        self._work, self._resources = work, {"CPU": num_cpus, "GPU": num_gpus}
        self._random = random.Random(0)
        self.room, self.stillborn, self.most = 100, 0, 0
        self.started: list[dict[str, Any]] = []
        self.alive: list[Actor] = []

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, int]:
        return self._resources

    def remote(self, **options: Any) -> Callable[[type], Any]:
        def start(*arguments: Any) -> Any:
            self.started.append(options)
            self.alive.append(Actor())
            self.most = max(self.most, len(self.alive))
            return self.alive[-1]

        return lambda kind: SimpleNamespace(remote=start)

    def wait(
        self, calls: list[Any], num_returns: int, timeout: float | None
    ) -> tuple[list[Any], list[Any]]:
        placed = self.alive[: self.room]
        due = [call for call in calls if call.actor in placed or call.actor not in self.alive]
        assert due or timeout is not None, "nobody would ever wake up"
        return ([self._random.choice(due)] if due else []), []

    def get(self, call: Any) -> Record | None:
        if call.task is None and self.stillborn:
            self.stillborn -= 1
            self.kill(call.actor)
            raise RayError("Traceback\n\nModuleNotFoundError: No module named 'vtok'")
        if call.actor not in self.alive:
            raise RayError("the actor is dead")
        try:
            return None if call.task is None else self._work(call.task)
        except RayError:
            self.kill(call.actor)
            raise
        except Exception as exc:
            raise RayTaskError(exc) from exc

    def kill(self, actor: Any) -> None:
        if actor in self.alive:
            self.alive.remove(actor)


class Actor:
    """A handle of an actor."""

    def __init__(self) -> None:
        self.encode = SimpleNamespace(remote=lambda task: Call(self, task))
        self.ready = SimpleNamespace(remote=lambda: Call(self, None))


class Call:
    """What a call of a method gives."""

    def __init__(self, actor: Actor, task: Task | None) -> None:
        self.actor, self.task = actor, task


def engine(tmp_path: Path, stand_in: StandIn, **options: Any) -> RayEngine:
    settings = Settings(None, tmp_path, tmp_path, tmp_path)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_engine, "import_ray", lambda address: stand_in)
        return RayEngine(DatasetOptions(**options), settings, None)


def tasks(count: int) -> list[Task]:
    return [Task(Item(str(number), f"{number}.mp4"), Path(str(number)), True)
            for number in range(count)]  # fmt: skip


def ok(task: Task) -> Record:
    return blank_record(task) | {"status": "ok"}


def test_every_task_has_one_record_whoever_dies(tmp_path: Path) -> None:
    dying = {"3": 1, "7": 2, "8": 5, "19": 1}  # how often each takes its actor along

    def work(task: Task) -> Record:
        if dying.get(task.item.id, 0):
            dying[task.item.id] -= 1
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


def test_a_clip_that_kills_takes_none_of_its_batch_along(tmp_path: Path) -> None:
    def work(task: Task) -> Record:
        if task.item.id == "5":
            raise RayError("killed")
        return ok(task)

    stand_in = StandIn(work, num_gpus=1)
    records = list(engine(tmp_path, stand_in).run(iter(tasks(40))))
    assert sorted(int(record["id"]) for record in records) == list(range(40))
    assert [record["id"] for record in records if record["status"] == "failed"] == ["5"]
    assert len(stand_in.started) == 3
    assert stand_in.alive == []


def test_a_machine_that_is_gone_leaves_its_clips_to_the_others(tmp_path: Path) -> None:
    def work(task: Task) -> Record:
        if task.item.id == "4" and stand_in.room == 2:
            stand_in.room = 1  # with the machine
            raise RayError("gone")
        return ok(task)

    stand_in = StandIn(work, num_cpus=2)
    stand_in.room = 2
    records = list(engine(tmp_path, stand_in).run(iter(tasks(20))))
    assert sorted(int(record["id"]) for record in records) == list(range(20))
    assert {record["status"] for record in records} == {"ok"}


def test_actors_for_which_there_is_no_room_hold_nothing_up(tmp_path: Path) -> None:
    stand_in = StandIn(ok, num_cpus=2)
    stand_in.room = 2
    assert len(list(engine(tmp_path, stand_in, workers=9).run(iter(tasks(20))))) == 20
    stand_in.room = 0
    with pytest.raises(VtokError, match="no worker has come up in the Ray cluster for 900 sec"):
        list(engine(tmp_path, stand_in).run(iter(tasks(3))))
    assert stand_in.alive == []


def test_actors_that_cannot_start_end_the_run_and_not_each_clip(tmp_path: Path) -> None:
    stand_in = StandIn(ok, num_cpus=2)
    stand_in.stillborn = 2
    assert len(list(engine(tmp_path, stand_in).run(iter(tasks(5))))) == 5
    stand_in.stillborn = 100
    with pytest.raises(VtokError, match="start in the Ray cluster: ModuleNotFoundError: No module"):
        list(engine(tmp_path, stand_in).run(iter(tasks(5))))
    assert len(stand_in.started) < 20


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
    assert len(taken) <= 4  # two under way, one that was asked for, one ahead
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
