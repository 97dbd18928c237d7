"""Scheduling of actors, on a fake Ray whose actors die on demand."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vtok.dataset import ray_engine
from vtok.dataset.item import Item, Record
from vtok.dataset.options import DatasetOptions
from vtok.dataset.ray_engine import RayEngine
from vtok.dataset.worker import DiskFailure, Job, Task, blank_record
from vtok.errors import UsageError, VtokError


class RayError(Exception):
    """Ray's error for an actor that died."""


class RayTaskError(RayError):
    """Ray's error for a method that raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class FakeRay:
    """The part of Ray that the engine uses; calls run when their result is requested.

    Attributes:
        room: number of actors that run; the others wait.
        stillborn: number of the next actors that die before they are ready.
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
        assert due or timeout is not None, "the wait would never end"
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
    """Handle of an actor."""

    def __init__(self) -> None:
        self.encode = SimpleNamespace(remote=lambda task: Call(self, task))
        self.ready = SimpleNamespace(remote=lambda: Call(self, None))


class Call:
    """Result of a remote call."""

    def __init__(self, actor: Actor, task: Task | None) -> None:
        self.actor, self.task = actor, task


def engine(tmp_path: Path, fake_ray: FakeRay, **options: Any) -> RayEngine:
    job = Job("vtok-base", DatasetOptions(**options), tmp_path, tmp_path, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_engine, "import_ray", lambda address: fake_ray)
        return RayEngine(job)


def tasks(count: int) -> list[Task]:
    return [Task(Item(str(number), f"{number}.mp4"), Path(str(number)), True)
            for number in range(count)]  # fmt: skip


def ok(task: Task) -> Record:
    return blank_record(task) | {"status": "ok"}


def test_every_task_has_one_record_if_actors_die(tmp_path: Path) -> None:
    dying = {"3": 1, "7": 2, "8": 5, "19": 1}  # how often each kills its actor

    def work(task: Task) -> Record:
        if dying.get(task.item.id, 0):
            dying[task.item.id] -= 1
            raise RayError("killed")
        return ok(task)

    fake_ray = FakeRay(work)
    records = list(engine(tmp_path, fake_ray).run(iter(tasks(20))))
    assert sorted(int(record["id"]) for record in records) == list(range(20))
    failed = {record["id"] for record in records if record["status"] == "failed"}
    assert failed == {"7", "8"}
    assert {record["message"] for record in records if record["id"] == "7"} == {
        "7.mp4: its worker died 2 times (RayError)"
    }
    assert fake_ray.most == 3
    assert len(fake_ray.started) == 3 + 1 + 2 + 2 + 1


def test_item_that_kills_its_actor_fails_alone(tmp_path: Path) -> None:
    def work(task: Task) -> Record:
        if task.item.id == "5":
            raise RayError("killed")
        return ok(task)

    fake_ray = FakeRay(work, num_gpus=1)
    records = list(engine(tmp_path, fake_ray).run(iter(tasks(40))))
    assert sorted(int(record["id"]) for record in records) == list(range(40))
    assert [record["id"] for record in records if record["status"] == "failed"] == ["5"]
    assert len(fake_ray.started) == 3
    assert fake_ray.alive == []


def test_items_of_a_lost_machine_run_elsewhere(tmp_path: Path) -> None:
    def work(task: Task) -> Record:
        if task.item.id == "4" and fake_ray.room == 2:
            fake_ray.room = 1  # with the machine
            raise RayError("gone")
        return ok(task)

    fake_ray = FakeRay(work, num_cpus=2)
    fake_ray.room = 2
    records = list(engine(tmp_path, fake_ray).run(iter(tasks(20))))
    assert sorted(int(record["id"]) for record in records) == list(range(20))
    assert {record["status"] for record in records} == {"ok"}


def test_actors_without_room_delay_nothing(tmp_path: Path) -> None:
    fake_ray = FakeRay(ok, num_cpus=2)
    fake_ray.room = 2
    assert len(list(engine(tmp_path, fake_ray, workers=9).run(iter(tasks(20))))) == 20
    fake_ray.room = 0
    with pytest.raises(VtokError, match="no worker started in the Ray cluster within 900 sec"):
        list(engine(tmp_path, fake_ray).run(iter(tasks(3))))
    assert fake_ray.alive == []


def test_actors_that_cannot_start_end_the_run(tmp_path: Path) -> None:
    fake_ray = FakeRay(ok, num_cpus=2)
    fake_ray.stillborn = 2
    assert len(list(engine(tmp_path, fake_ray).run(iter(tasks(5))))) == 5
    fake_ray.stillborn = 100
    with pytest.raises(VtokError, match="start in the Ray cluster: ModuleNotFoundError: No module"):
        list(engine(tmp_path, fake_ray).run(iter(tasks(5))))
    assert len(fake_ray.started) < 20


def test_error_in_an_actor_is_a_record(tmp_path: Path) -> None:
    def work(task: Task) -> Record:
        raise KeyError("bug")

    (record,) = engine(tmp_path, FakeRay(work)).run(iter(tasks(1)))
    assert record["message"] == "0.mp4: internal error: 'bug'"


def test_full_disk_ends_the_run(tmp_path: Path) -> None:
    def work(task: Task) -> Record:
        raise DiskFailure("no space left")

    with pytest.raises(DiskFailure, match="no space left"):
        list(engine(tmp_path, FakeRay(work)).run(iter(tasks(5))))


def test_tasks_are_taken_when_needed(tmp_path: Path) -> None:
    taken = []

    def some() -> Any:
        for task in tasks(50):
            taken.append(task)
            yield task

    run = engine(tmp_path, FakeRay(ok), workers=2).run(some())
    next(run)
    assert len(taken) <= 4  # two running, one requested, one ahead
    run.close()


@pytest.mark.parametrize(
    ("options", "gpus", "places"), [({}, 1, 16), ({"batch": 4}, 1, 8), ({"device": "cpu"}, 0, 1)]
)
def test_actors_have_a_gpu_and_a_batch(
    tmp_path: Path, options: dict[str, Any], gpus: int, places: int
) -> None:
    fake_ray = FakeRay(ok, num_cpus=4, num_gpus=2)
    assert len(list(engine(tmp_path, fake_ray, **options).run(iter(tasks(3))))) == 3
    assert len(fake_ray.started) == (2 if gpus else 4)
    assert {(one["num_gpus"], one["max_concurrency"]) for one in fake_ray.started} == {
        (gpus, places)
    }


def test_actor_keeps_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = SimpleNamespace(device=torch.device("cpu"))
    monkeypatch.setattr(ray_engine, "Worker", lambda job: SimpleNamespace(model=model))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    job = Job("vtok-base", DatasetOptions(), tmp_path, tmp_path, tmp_path)
    actor = ray_engine.RayActor(job, str(tmp_path))
    assert torch.get_num_threads() == 1
    actor._settings.close()
    torch.set_num_threads(threads)


def test_missing_ray_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    job = Job("vtok-base", DatasetOptions(), tmp_path, tmp_path, tmp_path)
    with pytest.raises(UsageError, match=r"pip install 'vtok\[ray\]'"):
        RayEngine(job)
