"""Encoding in threads: one record per task, and no change to the process."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vtok.dataset import worker
from vtok.dataset.scheduler import Engine
from vtok.dataset.worker import encode_in_threads
from vtok.pipeline._runtime import SWITCH_SECONDS

SEEN: list[tuple[float, int]] = []
MODEL = SimpleNamespace(device=torch.device("cpu"))


class FakeWorker:
    def __init__(self, job: Any) -> None:
        self.model = MODEL

    def encode(self, task: Any) -> dict[str, Any]:
        SEEN.append((sys.getswitchinterval(), torch.get_num_threads()))
        if task == Path("bad"):
            raise OSError("the disk is full")
        return {"id": str(task)}

    def close(self) -> None:
        pass


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Engine:
    SEEN.clear()
    monkeypatch.setattr(worker, "Worker", FakeWorker)
    return partial(encode_in_threads, None, 2)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def same_settings() -> Any:
    before = sys.getswitchinterval(), torch.get_num_threads()
    yield
    assert (sys.getswitchinterval(), torch.get_num_threads()) == before


def test_each_task_has_one_record(local: Engine) -> None:
    tasks: Any = (Path(str(number)) for number in range(20))
    records = list(local(tasks))
    assert sorted(int(record["id"]) for record in records) == list(range(20))
    assert all(seen == (pytest.approx(SWITCH_SECONDS), 1) for seen in SEEN)


def test_disk_failure_stops_the_engine(local: Engine) -> None:
    tasks: Any = iter([Path("0"), Path("bad")])
    with pytest.raises(OSError, match="the disk is full"):
        list(local(tasks))


def test_engine_can_be_closed_early(local: Engine) -> None:
    tasks: Any = (Path(str(number)) for number in range(20))
    records = local(tasks)
    next(records)
    records.close()
