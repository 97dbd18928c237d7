"""Several processes take the same steps as one with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import tiny_config_file, tiny_data
from typer.testing import CliRunner

from vtok.cli.app import app
from vtok.training.processes import is_main_process, num_processes
from vtok.training.state import from_bytes, state_files

LAUNCH = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines",
    "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m",
)  # fmt: skip


def train(*arguments: object, launch: tuple[str, ...] = ("-m",)) -> str:
    """Run `vtok train`; returns its messages."""
    done = subprocess.run(
        [sys.executable, *launch, "vtok", "train", *map(str, arguments), "--device", "cpu",
         "--threads", "1"],
        capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def state(out: Path):
    """The newest state of a run."""
    return from_bytes(state_files(out / "states")[0].read_bytes(), "state")


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_micro_batches(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    data = tiny_data(tmp_path / "data")
    config = tiny_config_file(
        tmp_path, steps=6, ema=0.9, adversarial=0.1, adversarial_from=1, validate_every=3
    )
    train(data, "--out", tmp_path / "one", "--config", config, "--set", "accumulate=2")
    two = (data, "--out", tmp_path / "two", "--config", config)
    train(*two, launch=LAUNCH)
    state_files(tmp_path / "two" / "states")[0].unlink()  # as if killed after step 4
    assert "resuming at step 4" in train(*two, launch=LAUNCH)  # by both
    ours, theirs = state(tmp_path / "two"), state(tmp_path / "one")
    assert ours.step == theirs.step == 6
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert torch.allclose(ours.tensors[name], tensor, rtol=1e-4, atol=1e-5), name
    assert ours.facts["psnr"] == pytest.approx(theirs.facts["psnr"], rel=1e-5)


def test_several_processes_need_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    data = tiny_data(tmp_path / "data", 1)
    result = CliRunner().invoke(app, ["train", str(data), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "pip install 'vtok[train]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_rank_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "PMI_SIZE", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert num_processes() == 1
    assert is_main_process()
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", "3")
    assert num_processes() == 4
    assert not is_main_process()
