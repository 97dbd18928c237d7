"""scripts/benchmark_models.py: each model and size is measured in a process of its own."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark_models.py"


@pytest.mark.slow
def test_speed_and_memory_are_measured(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--threads", "1", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"\| vtok-base \| 64x64 \| cpu, (float32|bfloat16) \|", done.stdout)
    (row,) = json.loads(found.read_text())["rows"]
    assert row["encode"] > 0
    assert row["decode"] > 0
    assert row["peak_mb"] > 50


def test_frames_fill_sizes_larger_than_the_example() -> None:
    make_frames = runpy.run_path(str(SCRIPT))["make_frames"]
    frames = make_frames((1280, 720), 3)
    assert frames.shape == (3, 720, 1280, 3)
    assert frames.dtype == np.uint8
    assert frames[:, 700:, 1200:].std() > 1
