"""The scripts that train the shipped weights: recipe, a rehearsal and a profile."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from training import tiny_data

from vtok.models.checkpoint import load_checkpoint
from vtok.nn.config import PRESETS, TokenizerConfig
from vtok.training.config import TrainingConfig, read_config

SCRIPTS = Path(__file__).parent.parent / "scripts"
FEW = (
    "steps=2", "batch=1", "frames=5", "crop=32", "warm_up=1", "validate_every=9", "save_every=1",
)  # fmt: skip


FIRST_PASS = PRESETS["vtok-base"]
BOTH_PASSES = replace(FIRST_PASS, second_pass=(2, 3))


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize(("name", "expected"), [("base", FIRST_PASS), ("second_pass", BOTH_PASSES)])
def test_recipes_are_valid(name: str, expected: TokenizerConfig, accelerated: bool) -> None:
    data = read_config(SCRIPTS / "recipes" / f"{name}.toml", accelerated=accelerated)
    assert TrainingConfig.from_dict({**data, "init": "start"}).tokenizer == expected


@pytest.mark.slow
def test_script_trains_and_resumes(tmp_path: Path) -> None:
    settings = [argument for setting in FEW for argument in ("--set", setting)]
    command = [SCRIPTS / "train_base", tiny_data(tmp_path / "data"), "--", "--threads", "1",
               *settings]  # fmt: skip

    def run() -> str:
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, check=False, timeout=900,
            env={**os.environ, "RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1",
                 "CLIPS": "2", "READY": sys.executable},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "starting from" in run()
    (tmp_path / "runs" / "base" / "states" / "step-00000002.safetensors").unlink()
    assert "base: resuming at step 1" in run()
    _, info = load_checkpoint(tmp_path / "runs" / "vtok-base.safetensors")
    assert (info.name, info.config) == ("vtok-base", BOTH_PASSES)
    assert (tmp_path / "runs" / "vtok-base.safetensors").stat().st_size < 25e6


def run_script(name: str, *arguments: str) -> list[str]:
    """Run a Python script of the repository; returns the lines of its standard output."""
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments], capture_output=True, text=True,
        check=False, timeout=3600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_rehearsal_packs_trains_resumes_compiled_and_measures() -> None:
    rows = [json.loads(line) for line in run_script("rehearse_training.py", "--json")]
    results = [row["result"] for row in rows]
    assert "5 files" in results[0]
    assert results[1].startswith("killed after step")
    assert "clips/s" in results[2]
    assert "dB at 18 bits" in results[3]


@pytest.mark.slow
def test_profile_splits_a_step_into_parts(tmp_path: Path) -> None:
    settings = ("frames=5", "crop=32", "batch=1", "model.layers=[['space_time_patch', 16]]")
    options = [f"--set={setting}" for setting in settings]
    data = str(tiny_data(tmp_path / "data"))
    (line,) = run_script("profile_training.py", data, "--steps=1", "--json", *options)
    (found,) = json.loads(line).values()
    assert found["step"] == pytest.approx(sum(found["seconds"].values()))
    assert all(found["seconds"][part] > 0 for part in ("clips", "encoder", "backward", "optimizer"))
    assert found["step_pixels_per_second"] < found["forward_pixels_per_second"]
