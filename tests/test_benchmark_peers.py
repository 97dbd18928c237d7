"""The benchmark beside other tokenizers: what it plans, what it shows, and that it never hangs."""

import json
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "benchmark_peers.py"))


def child_of(bench: dict[str, Any], code: str, **fields: Any) -> Any:
    """A child that runs this Python."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    return bench["Child"]("x", process, **fields)


def close(child: Any) -> None:
    child.close()
    child.process.stdin.close()
    child.process.stdout.close()


@pytest.mark.slow
def test_ours_runs_and_what_is_missing_is_a_row(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPTS / "benchmark_peers.py", "--sizes", "64x32", "--frames", "9"]
    command += ["--repeats", "2", "--threads", "1", "--json", tmp_path / "peers.json"]
    command += ["--only", "vtok-base", "magvit2-pytorch", "--peers", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours, theirs = json.loads((tmp_path / "peers.json").read_text())["rows"]["64x32"]
    assert ours["frames"] == 9
    assert ours["both fps"] > 0
    assert ours["peak mb"] > 50
    assert 5 < ours["encode kMAC/px"] < ours["decode kMAC/px"] < 100
    assert "| vtok-base | 4.3 |" in done.stdout
    assert "1.0x" in done.stdout
    if "error" in theirs:  # where it is not installed beside vtok
        assert theirs["error"].startswith("not installed")
        assert "| magvit2-pytorch | not installed" in done.stdout


def test_a_slow_peer_gets_fewer_frames(bench: dict[str, Any]) -> None:
    def frames(per_pixel: float, most: int = 17) -> Any:
        child = child_of(bench, "", per_pixel=per_pixel)
        row = bench["plan"](child, 100, 100, Namespace(budget=10.0, frames=most))
        close(child)
        return row["frames"]

    assert [frames(x) for x in (1e-6, 1e-4, 2e-4, 1.0)] == [17, 9, 1, 1]
    assert frames(1e-6, 9) == 9


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import time; time.sleep(60)", "more than 1 s"),
        ("input()", "ended with exit code 0"),
        ("import os; input(); os.kill(os.getpid(), 9)", "SIGKILL, as when memory runs out"),
        ('input(); print(\'{"error": "no"}\')', "no"),
    ],
)
def test_a_peer_that_fails_is_told_of(bench: dict[str, Any], code: str, error: str) -> None:
    child = child_of(bench, code)
    seconds = 1 if "sleep" in code else 60
    assert error in child.ask({}, seconds)["error"]
    close(child)


def test_the_table_marks_what_is_not_alike(bench: dict[str, Any]) -> None:
    raw = {"peer": "vtok-base", "height": 10, "width": 10, "parameters": 4e6, "frames": 17,
           "peak mb": 300.0, "encode macs": 17e5, "decode macs": 34e5}  # fmt: skip
    ours = bench["summary"]({**raw, "seconds": [(1.0, 2.0), (2.0, 4.0), (3.0, 3.0)]})
    assert (ours["encode fps"], ours["both fps"]) == (8.5, 17 / 5)
    assert (ours["encode kMAC/px"], ours["decode kMAC/px"]) == (1.0, 2.0)
    slow = {**ours, "peer": "slow", "frames": 1, "both fps": 0.34, "note": "so it is"}
    failed = {"peer": "none", "error": "not installed (x)"}
    shown = bench["table"]([ours, slow, failed], 17)
    assert "| slow | 4.0 | 1 + 2 | 8.5 | 5.67 | 0.34 | 10.0x | 300 | 1 (budget) |" in shown
    assert "| none | not installed (x) |" in shown
    assert shown.endswith("slow: so it is.")
    assert len({line.count("|") for line in shown.splitlines() if line.startswith("|")}) == 1


def test_a_page_is_filled_between_its_marks() -> None:
    filled = runpy.run_path(str(SCRIPTS / "fill_page.py"))["filled"]
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n"
    new = filled(page, "x", r"new \1" + "\n")
    assert new == page.replace("old", r"new \1")
    assert filled(new, "x", "old") == page
    for name, text in (("z", "new"), ("x", " \n")):
        with pytest.raises(SystemExit):
            filled(page, name, text)
