"""Run log: rows read back, and a killed and resumed run leaves the log of an uninterrupted one."""

import csv
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vtok.errors import OutputError
from vtok.training.runlog import (
    EVENTS,
    STEPS,
    VALIDATIONS,
    RunLog,
    StepReport,
    ValidationReport,
)


def step_report(step: int, *, stages: int = 2, **parts: float) -> StepReport:
    """Return a report whose numbers depend on the step."""
    rng = np.random.default_rng(step)
    psnr = {k: 20 + k + float(rng.random()) for k in range(1, stages + 1)}
    numbers = [float(value) for value in rng.random(6)]
    return StepReport(
        step, 100, float(rng.random()), parts or {"l1": 0.1, "rmse": 0.2}, psnr, *numbers, 5.0, 1
    )


def validation(step: int) -> ValidationReport:
    return ValidationReport(step, {1: 20.0 + step, 2: 21.0}, 0.75, Path("run") / f"{step}.png")


def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    without_tensorboard(monkeypatch)


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows with csv alone."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("plain")
def test_every_number_reads_back(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    reports = [step_report(step) for step in (1, 2, 3)]
    for report in reports:
        log.append(report)
    log.validated(validation(3))
    log.close()
    for row, report in zip(read(tmp_path / STEPS), reports, strict=True):
        named = {**report.parts, "psnr_1": report.psnr[1], "psnr_2": report.psnr[2]}
        for name, text in row.items():
            expected = named[name] if name in named else getattr(report, name)
            assert float(text) == pytest.approx(expected, rel=1e-6), name
    assert list(read(tmp_path / STEPS)[0])[:6] == ["step", "loss", "l1", "rmse", "psnr_1", "psnr_2"]
    assert read(tmp_path / VALIDATIONS) == [
        {"step": "3", "psnr_1": "23", "psnr_2": "21", "code_usage": "0.75", "picture": "3.png"}
    ]


@pytest.mark.usefixtures("plain")
def test_later_columns_are_inserted_in_order(tmp_path: Path) -> None:
    # numbers of stages are drawn at random, and the adversarial loss starts late
    log = RunLog(tmp_path)
    log.append(step_report(1, stages=1))
    log.append(step_report(2, stages=10, l1=0.1, adversarial=0.3))
    rows = read(tmp_path / STEPS)
    assert [row["adversarial"] for row in rows] == ["", "0.3"]
    assert rows[1]["rmse"] == ""
    stages = [name for name in rows[0] if name.startswith("psnr")]
    assert stages == [f"psnr_{k}" for k in range(1, 11)]
    assert [row["step"] for row in rows] == ["1", "2"]
    assert rows[0]["psnr_10"] == ""


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("cut", [1, 5, 40, 200])
def test_resumed_run_leaves_the_log_of_an_uninterrupted_one(tmp_path: Path, cut: int) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        log = RunLog(tmp_path / name)
        for step in range(1, 9):
            log.append(step_report(step))
            if step % 4 == 0:
                log.validated(validation(step))
    for name, length in ((STEPS, cut), (VALIDATIONS, min(cut, 15))):  # inside a row
        path = tmp_path / "killed" / name
        path.write_bytes(path.read_bytes()[:-length])
    log = RunLog(tmp_path / "killed")
    log.rewind(4)
    assert [row["step"] for row in read(tmp_path / "killed" / STEPS)] == ["1", "2", "3", "4"]
    assert [row["step"] for row in read(tmp_path / "killed" / VALIDATIONS)] == ["4"]
    for step in range(5, 9):
        log.append(step_report(step))
    log.validated(validation(8))
    for name in (STEPS, VALIDATIONS):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.mark.usefixtures("plain")
def test_repeated_step_replaces_later_rows(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in (1, 2, 3, 2):  # a roll-back in one process
        log.append(step_report(step))
    assert [row["step"] for row in read(tmp_path / STEPS)] == ["1", "2"]
    RunLog(tmp_path).append(step_report(2))  # and a restart
    assert [row["step"] for row in read(tmp_path / STEPS)] == ["1", "2"]


def test_process_killed_while_writing_leaves_complete_rows(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "sys.modules['torch.utils.tensorboard'] = None\n"
        "from test_training_runlog import *\n"
        f"log = RunLog(Path({str(tmp_path)!r}))\n"
        "for step in range(1, 10**6):\n"
        "    log.append(step_report(step))\n"
        "    if step == 50: print(flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    RunLog(tmp_path).rewind(10**6)
    steps = [int(row["step"]) for row in read(tmp_path / STEPS)]
    assert len(steps) >= 50
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.usefixtures("plain")
def test_non_finite_values_are_logged(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append(step_report(1, l1=math.nan, mse=math.inf))
    (row,) = read(tmp_path / STEPS)
    assert (row["l1"], row["mse"]) == ("nan", "inf")


@pytest.mark.usefixtures("plain")
def test_damaged_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / STEPS
    path.write_text("something else\n1,2\n")
    with pytest.raises(OutputError, match=r"log\.csv: not the log of a run"):
        RunLog(tmp_path).rewind(1)
    path.write_bytes(
        b"step,loss\n1,0.5\n\0\0\0\xff\n2,0.25\nx,1\n4\n5,1,1\n" + b"9" * 5000 + b",1\n3,"
    )
    RunLog(tmp_path).rewind(9)
    assert read(path) == [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": "0.25"}]
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match=r"log\.csv: cannot be read"):
        RunLog(tmp_path).append(step_report(1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is missing")
@pytest.mark.usefixtures("plain")
def test_full_disk_is_an_output_error(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.append(step_report(1))
    (tmp_path / STEPS).unlink()
    (tmp_path / STEPS).symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"log\.csv: cannot be written \(No space left"):
        log.append(step_report(2))


def test_missing_tensorboard_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_tensorboard(monkeypatch)
    said: list[str] = []
    log = RunLog(tmp_path, said.append)
    for step in (1, 2, 3):
        log.append(step_report(step))
    assert said == ["TensorBoard is not installed, logging CSV only: install vtok[train]"]
    assert not (tmp_path / EVENTS).exists()


def test_tensorboard_shows_the_same_as_the_table(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.append(step_report(step))
    log.validated(validation(5))
    log.rewind(3)
    log.append(step_report(4))
    log.close()
    events = EventAccumulator(str(tmp_path / EVENTS)).Reload()
    rows = read(tmp_path / STEPS)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    for name in rows[0].keys() - {"step"}:
        found = events.Scalars(f"train/{name}")
        assert [event.step for event in found] == [1, 2, 3, 4]
        expected = [float(row[name]) for row in rows]
        assert [event.value for event in found] == pytest.approx(expected, rel=1e-5)
    assert events.Scalars("validation/psnr_1") == []
