"""scripts/benchmark_memory.py: memory is measured, and independent of the length of a video."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "benchmark_memory.py"))


@pytest.fixture(scope="module")
def processes() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "processes.py"))


@pytest.mark.slow
def test_memory_is_independent_of_video_length(bench: dict[str, Any]) -> None:
    setting = bench["Setting"]((64, 64), 150, 8, bench["SMALL"], bench["ALL"])
    rows = list(bench["measure"]("hour", setting))
    commands = [row["command"] for row in rows]
    assert commands[:3] == ["encode", "decode", "encode --to tokens"]
    assert "pack (the entropy coder alone)" in commands
    assert all(0.5 < row["ratio"] < 1.05 for row in rows)
    shown = bench["table"](rows)
    assert "| 64x64 | small | encode | 150 | 1,200 |" in shown
    assert "`1080p`: 240 against 720 frames of 1920x1080" in shown
    assert "`hour`" not in shown


@pytest.mark.slow
def test_copies_setting_uses_joined_codes(bench: dict[str, Any]) -> None:
    setting = bench["Setting"]((64, 64), 5, 4, bench["SMALL"], ("cat", "verify"), copies=3)
    rows = list(bench["measure"]("copies", setting))
    assert [(row["command"], row["short frames"], row["long frames"]) for row in rows] == [
        ("cat", 15, 60),
        ("verify", 15, 60),
    ]


def test_largest_ratio_is_compared_with_the_target(bench: dict[str, Any]) -> None:
    row = {
        "setting": "hour",
        "size": "64x64",
        "model": "small",
        "command": "encode",
        "short frames": 1,
        "long frames": 2,
        "short MB": 100.0,
        "long MB": 104.0,
        "ratio": 1.04,
    }
    assert "1.040, of encode at 64x64 (within the target of 1.05)" in bench["table"]([row])
    worse = {**row, "command": "decode", "ratio": 1.06}
    assert "1.060, of decode at 64x64 (above the target" in bench["table"]([row, worse])


def test_unknown_settings_are_an_error(
    bench: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench["main"](["day"])
    assert "expected some of hour, " in capsys.readouterr().err


def test_peak_memory_includes_child_processes(processes: dict[str, Any]) -> None:
    mine = bytearray(300 << 20)  # must not count for the command
    mine[:: 1 << 12] = b"1" * len(mine[:: 1 << 12])
    take = "x = bytearray(120 << 20); x[::4096] = b'1' * len(x[::4096]); import time; time.sleep(1)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {take!r}], check=True)"
    peaks = [
        processes["run_command"]([sys.executable, "-c", code]).peak_mb
        for code in ("import time; time.sleep(0.3)", take, start)
    ]
    assert 2 < peaks[0] < 60
    assert 120 < peaks[1] < 180
    assert peaks[1] + 2 < peaks[2] < 240


def test_failed_commands_report_their_error(processes: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"missing\.vtok"):
        processes["run_command"]([*processes["VTOK"], "verify", "missing.vtok"])
