"""scripts/benchmark_peers.py: turns, limits, failures and the table."""

import json
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from vtok.models.checkpoint import read_info

SCRIPTS = Path(__file__).parent.parent / "scripts"
CLIP = {"frames": 17, "height": 64, "width": 64}
PEER = """
import json, sys
seconds, max_frames = float(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin:
    asked = json.loads(line)
    macs = {"encode macs": 1e3 * asked["frames"], "decode macs": 2e3 * asked["frames"]}
    if "operations" in asked:
        answer = {"error": "meta tensors have no values"} if len(sys.argv) == 4 else macs
    elif asked["frames"] > max_frames:
        answer = {"error": "more than 1 GB of memory"}
    else:
        each = seconds * asked["frames"]
        answer = {"encode": each, "decode": each, "peak mb": 300.0}
        answer |= macs if asked["count"] else {}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "benchmark_peers.py"))


def child_of(bench: dict[str, Any], code: str, *arguments: object, name: str = "x") -> Any:
    """Start a child process that runs Python code."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    return bench["Child"](name, process)


def settings(**changed: Any) -> Namespace:
    known = {"limit": 60.0, "budget": 30.0, "turns": 3, "frames": 17}
    return Namespace(**known | changed)


def turns(bench: dict[str, Any], seconds: float, *, most: int = 17, **changed: Any) -> Any:
    """Measure a peer that takes `seconds` per frame for encoding and for decoding."""
    peer, ours = (child_of(bench, PEER, each, most) for each in (seconds, 0.001))
    macs = {"encode macs": 17e3, "decode macs": 34e3}
    found = bench["take_turns"](peer, ours, CLIP, macs, settings(**changed))
    peer.close()
    ours.close()
    return found


@pytest.mark.slow
def test_vtok_runs_and_missing_peers_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    command = [sys.executable, SCRIPTS / "benchmark_peers.py", "--sizes", "64x32", "--frames", "9"]
    command += ["--turns", "1", "--threads", "1", "--json", file, "--resume", "--peers", tmp_path]
    command += ["--only", "vtok-base", "magvit2-pytorch"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    written = json.loads(file.read_text())
    ours, theirs = written["rows"]["64x32"]
    assert ours["frames"] == 9
    assert ours["both fps"] > 0
    assert ours["peak mb"] > 50
    assert 5 < ours["decode kMAC/px"] < ours["encode kMAC/px"] < 100  # encoding decodes too
    millions = read_info("vtok-base").num_parameters / 1e6
    assert f"| vtok-base | {millions:.1f} |" in done.stdout
    if "error" in theirs:  # not installed
        assert "| magvit2_pytorch is not installed |" in done.stdout

    ours["both fps"] = 12345.0
    file.write_text(json.dumps(written))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1.23e+04" in again.stdout  # not measured again
    assert "vtok-base: " not in again.stderr


def test_first_turn_warms_up_within_the_budget(bench: dict[str, Any]) -> None:
    found = turns(bench, 0.01)
    assert found["theirs"] == [[0.17, 0.17]] * 3
    assert found["ours"] == [[0.017, 0.017]] * 3
    assert len(turns(bench, 0.01, budget=0.5)["theirs"]) == 2  # 0.68 s
    assert len(turns(bench, 0.01, budget=0.1)["theirs"]) == 1  # the first turn counts


def test_operations_are_counted_in_the_first_run_if_needed(bench: dict[str, Any]) -> None:
    peer, ours = child_of(bench, PEER, 0.01, 17, "no"), child_of(bench, PEER, 0.001, 17)
    found = bench["take_turns"](peer, ours, CLIP, {}, settings())
    peer.close()
    ours.close()
    assert found["decode macs"] == 34e3


def test_peers_over_a_limit_get_fewer_frames(
    bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(name: str, **_: Any) -> Any:
        return child_of(bench, PEER, 0.01, 9, name=name), {"parameters": 2e6, "note": ""}

    inside = bench["measure"].__globals__
    monkeypatch.setitem(inside, "start", start)
    monkeypatch.setitem(inside, "find_spec", lambda _: True)
    args = settings(threads=1, dtype="float32", memory=1.2, peers=None, debug=False)
    ours = child_of(bench, PEER, 0.001, 17)
    row = bench["measure"]("Wan", "64x64", ours, args)
    assert (row["frames"], row["turns"], round(row["ratio"], 3)) == (9, 3, 10)
    assert "| 9 | 3 | 17 frames: more than 1 GB of memory |" in bench["table"]([row])

    monkeypatch.setitem(
        inside, "start", lambda name, **_: (child_of(bench, PEER, 0.01, 0), {"error": "no module"})
    )
    row = bench["measure"]("Wan", "64x64", ours, args)
    assert (row["error"], row["exceeded"]) == ("no module", {})
    ours.close()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import time; time.sleep(60)", "more than 1 s"),
        ("input()", "ended with exit code 0"),
        ("import os; input(); os.kill(os.getpid(), 9)", "SIGKILL, as when memory runs out"),
        ('input(); print(\'{"error": "no"}\')', "no"),
    ],
)
def test_failures_of_a_peer_are_reported(bench: dict[str, Any], code: str, error: str) -> None:
    child = child_of(bench, code)
    seconds = 1 if "sleep" in code else 60
    assert error in child.ask({}, seconds)["error"]
    child.close()


def test_table_has_figures_errors_and_notes(bench: dict[str, Any]) -> None:
    found = {"theirs": [(1.0, 2.0), (2.0, 4.0), (3.0, 3.0)], "ours": [(0.1, 0.2)] * 3,
             "peak mb": 300.0, "encode macs": 17e5, "decode macs": 34e5}  # fmt: skip
    figures = bench["summary"]({"frames": 17, "height": 10, "width": 10}, found)
    assert (figures["encode fps"], figures["both fps"]) == (8.5, 17 / 6)
    assert (figures["encode kMAC/px"], figures["decode kMAC/px"]) == (1.0, 2.0)
    row = {**figures, "peer": "slow", "parameters": 4e6, "note": "checked", "frames": 17}
    failed = {"peer": "none", "error": "not installed", "exceeded": {}}
    stopped = {"peer": "long", "error": "b", "exceeded": {"17": "a", "9": "b"}, "parameters": 1e6}
    shown = bench["table"]([{**row, "exceeded": {}}, failed, stopped])
    assert "| slow | 4.0 | 1 + 2 | 8.5 | 5.67 | 2.83 | 20.0x | 300 | 17 | 3 |  |" in shown
    assert "| not installed |" in shown
    assert "| long | 1.0 |" in shown
    assert "| 17 frames: a; 9 frames: b |" in shown
    assert shown.endswith("slow: checked.")
    assert len({line.count("|") for line in shown.splitlines() if line.startswith("|")}) == 1


def test_resume_requires_the_same_machine(bench: dict[str, Any], tmp_path: Path) -> None:
    file, kept_rows = tmp_path / "peers.json", bench["kept_rows"]
    machine = {"date": "2020-01-01", "threads": "2"}
    assert kept_rows(file, machine) == {}
    rows = {"64x32": [{"peer": "a", "ratio": 2.0}, {"peer": "b", "error": "no"}]}
    file.write_text(json.dumps({"machine": machine, "rows": rows}))
    assert kept_rows(file, {**machine, "date": "2020-01-02"}) == {"64x32": rows["64x32"][:1]}
    with pytest.raises(SystemExit, match="another threads"):
        kept_rows(file, {**machine, "threads": "1"})


def test_fill_page_replaces_text_between_markers() -> None:
    filled = runpy.run_path(str(SCRIPTS / "fill_page.py"))["filled"]
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n"
    new = filled(page, "x", r"new \1" + "\n")
    assert new == page.replace("old", r"new \1")
    assert filled(new, "x", "old") == page
    for name, text in (("z", "new"), ("x", " \n")):
        with pytest.raises(SystemExit):
            filled(page, name, text)
