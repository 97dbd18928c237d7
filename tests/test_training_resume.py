"""Runs of the command: killed at random moments, interrupted, refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training import tiny_config_file, tiny_data

from vtok.training.state import from_bytes, state_files

COMMAND = (sys.executable, "-m", "vtok", "train")
STEPS, SEED = 24, 3


@pytest.fixture
def start(tmp_path: Path):
    """Start `vtok train` on two videos; remaining processes are killed at the end."""
    config = tiny_config_file(
        tmp_path, steps=STEPS, save_every=1, validate_every=8, ema=0.9, accumulate=2
    )
    data, started = tiny_data(tmp_path / "data"), []

    def begin(name: str, *options: str) -> subprocess.Popen:
        arguments = (data, "--out", tmp_path / name, "--config", config, "--threads", "1")
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments), *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Wait for a process; returns its messages."""
    _, said = process.communicate(timeout=600)
    assert process.returncode == status, said
    return said


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    """Wait until a run has saved the state of a step, or has ended."""
    while process.poll() is None:
        files = state_files(out / "states")
        if files and int(files[0].stem.removeprefix("step-")) >= step:
            return
        time.sleep(0.005)


def newest(out: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the last state, which must be that of the last step."""
    state = from_bytes(state_files(out / "states")[0].read_bytes(), "state")
    assert state.step == STEPS
    return state.tensors


@pytest.mark.slow
def test_killed_run_ends_with_the_same_weights(start, tmp_path: Path) -> None:
    finish(start("whole"))
    rng, out = random.Random(SEED), tmp_path / "killed"
    moments = sorted(rng.sample(range(1, STEPS), 4))
    process = start("killed")
    time.sleep(rng.uniform(0, 3))  # before there is a state
    process.kill()
    process.communicate()
    for step in moments:
        process = start("killed")
        wait_for_step(process, out, step)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    finish(start("killed"))
    ours, theirs = newest(out), newest(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    model = "model.safetensors"
    assert (out / model).read_bytes()[-9999:] == (tmp_path / "whole" / model).read_bytes()[-9999:]
    timed = ("clips_per_second", "waiting")
    rows = [
        [row.split(",") for row in (tmp_path / name / "log.csv").read_text().splitlines()]
        for name in ("killed", "whole")
    ]
    columns = [n for n, name in enumerate(rows[0][0]) if name not in timed]
    ours_read, theirs_read = ([[row[n] for n in columns] for row in table] for table in rows)
    assert ours_read == theirs_read
    left = [p.name for p in out.rglob("*") if p.name.startswith(".vtok")]
    assert not left  # no partial files


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["process", "group"])
def test_signal_saves_the_state_first(start, tmp_path: Path, send, number: int) -> None:
    process = start("run", "--set", "save_every=1000", "--steps", "100000")
    while "step=1/" not in process.stderr.readline():
        assert process.poll() is None
    send(process.pid, number)
    said = finish(process, 128 + number)
    assert "stopped at step" in said
    state = from_bytes(state_files(tmp_path / "run" / "states")[0].read_bytes(), "state")
    assert state.step >= 1
    assert f"stopped at step {state.step}:" in said
    last = str(state.step + 1)
    said = finish(start("run", "--set", "save_every=1000", "--steps", last))
    assert f"resuming at step {state.step}" in said


@pytest.mark.slow
def test_command_prints_json_and_refuses_another_config(start, tmp_path: Path) -> None:
    process = start("run", "--steps", "2", "--json")
    output, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2]
    said = finish(start("run", "--set", "crop=24", "--set", "l1=1"), 2)
    assert "crop (16, now 24), l1 (0.25, now 1.0)" in said
    assert len(said.splitlines()) == 1
    assert "finished at step 2" in finish(start("run", "--steps", "2"))
    encoded = subprocess.run(
        [sys.executable, "-m", "vtok", "encode", tmp_path / "data" / "0.mp4",
         "--model", tmp_path / "run" / "model.safetensors", "-o", tmp_path / "0.vtok"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert encoded.returncode == 0, encoded.stderr
