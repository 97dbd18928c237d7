"""scripts/benchmark_memory.py: memory does not depend on the length of a video."""

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
def test_a_longer_video_takes_no_more_memory(bench: dict[str, Any]) -> None:
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
def test_copies_are_of_joined_codes(bench: dict[str, Any]) -> None:
    setting = bench["Setting"]((64, 64), 5, 4, bench["SMALL"], ("cat", "verify"), made=3)
    rows = list(bench["measure"]("copies", setting))
    assert [(row["command"], row["short frames"], row["long frames"]) for row in rows] == [
        ("cat", 15, 60),
        ("verify", 15, 60),
    ]


def test_what_grows_is_named(bench: dict[str, Any]) -> None:
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
    assert "1.040, of encode at 64x64 (within the 5% aimed at)" in bench["table"]([row])
    worse = {**row, "command": "decode", "ratio": 1.06}
    assert "1.060, of decode at 64x64 (more than the 5%" in bench["table"]([row, worse])


def test_only_settings_that_exist_are_run(
    bench: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench["main"](["day"])
    assert "expected some of hour, " in capsys.readouterr().err


def test_memory_is_that_of_a_command_and_of_what_it_starts(processes: dict[str, Any]) -> None:
    mine = bytearray(300 << 20)  # which a command that is started does not have
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


def test_a_command_that_fails_says_why(processes: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"missing\.vtok"):
        processes["run_command"]([*processes["VTOK"], "verify", "missing.vtok"])
