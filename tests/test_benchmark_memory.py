"""scripts/benchmark_memory.py: memory does not depend on the length of a video."""

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "benchmark_memory.py"


@pytest.mark.slow
def test_a_longer_video_takes_no_more_memory(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(["--seconds", "5", "--times", "8", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert {"encode", "decode", "encode --to tokens", "pack (the entropy coder alone)"} <= {
        *figures
    }
    assert all(0.5 < row["ratio"] < 1.05 for row in figures.values())


def test_a_command_that_fails_says_why() -> None:
    peak_megabytes = runpy.run_path(str(SCRIPT))["peak_megabytes"]
    with pytest.raises(SystemExit, match=r"missing\.vtok"):
        peak_megabytes("verify", "missing.vtok")
