"""The local engine: one record for each task, and what it does to the process it runs in."""

import sys
from pathlib import Path
from typing import Any

import pytest

from vtok.dataset import engine
from vtok.dataset.engine import SWITCH_SECONDS, LocalEngine

SEEN: list[float] = []


class Encoder:
    """Stands for a `ClipEncoder`."""

    def __init__(self, model: Any, settings: Any) -> None:
        assert model == "model"

    def encode(self, task: Any) -> dict[str, Any]:
        SEEN.append(sys.getswitchinterval())
        if task == Path("bad"):
            raise OSError("the disk is full")
        return {"id": str(task)}

    def close(self) -> None:
        pass


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> LocalEngine:
    SEEN.clear()
    monkeypatch.setattr(engine, "ClipEncoder", Encoder)
    return LocalEngine(lambda: "model", None, 2)  # type: ignore[arg-type, return-value]


@pytest.fixture(autouse=True)
def same_interval() -> Any:
    """What a run changes of the process is as before after it."""
    before = sys.getswitchinterval()
    yield
    assert sys.getswitchinterval() == before


def test_each_task_has_its_record(local: LocalEngine) -> None:
    tasks: Any = (Path(str(number)) for number in range(20))
    records = list(local.run(tasks))
    assert sorted(int(record["id"]) for record in records) == list(range(20))
    assert all(seen == pytest.approx(SWITCH_SECONDS) for seen in SEEN)


def test_a_failure_of_the_disk_ends_it(local: LocalEngine) -> None:
    tasks: Any = iter([Path("0"), Path("bad")])
    with pytest.raises(OSError, match="the disk is full"):
        list(local.run(tasks))


def test_one_that_is_closed_early_leaves_nothing(local: LocalEngine) -> None:
    tasks: Any = (Path(str(number)) for number in range(20))
    records = local.run(tasks)
    next(records)
    records.close()


def test_nothing_to_do_loads_no_model(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_load", lambda: pytest.fail("loaded"))
    assert list(local.run(iter(()))) == []
