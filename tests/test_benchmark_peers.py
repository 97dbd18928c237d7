"""The benchmark beside other tokenizers: what it plans, what it shows, and that it never hangs."""

import json
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"
CLIP = {"frames": 17, "height": 64, "width": 64}
PEER = """
import json, sys
seconds, most = float(sys.argv[1]), int(sys.argv[2])
for line in sys.stdin:
    asked = json.loads(line)
    macs = {"encode macs": 1e3 * asked["frames"], "decode macs": 2e3 * asked["frames"]}
    if "operations" in asked:
        answer = {**macs, "gigabytes": asked["frames"] / 10}
        if len(sys.argv) == 4:
            answer = {"error": "it looks at values"}
    elif asked["frames"] > most:
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
    """A child that runs this Python."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    return bench["Child"](name, process)


def settings(**changed: Any) -> Namespace:
    known = {"limit": 60.0, "budget": 30.0, "turns": 3, "frames": 17}
    return Namespace(**known | changed)


def turns(bench: dict[str, Any], seconds: float, *, most: int = 17, **changed: Any) -> Any:
    """What is found of a peer that takes so many seconds a frame and pass."""
    peer, ours = (child_of(bench, PEER, each, most) for each in (seconds, 0.001))
    macs = {"encode macs": 17e3, "decode macs": 34e3}
    found = bench["take_turns"](peer, ours, CLIP, macs, settings(**changed))
    peer.close()
    ours.close()
    return found


@pytest.mark.slow
def test_ours_runs_and_what_is_missing_is_a_row(tmp_path: Path) -> None:
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
    assert 5 < ours["encode kMAC/px"] < ours["decode kMAC/px"] < 100
    assert "| vtok-base | 4.3 |" in done.stdout
    if "error" in theirs:  # where it is not installed beside vtok
        assert "| magvit2_pytorch is not installed |" in done.stdout

    ours["both fps"] = 12345.0
    file.write_text(json.dumps(written))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1.23e+04" in again.stdout  # not measured again
    assert "vtok-base: " not in again.stderr


def test_turns_of_both_are_kept_but_the_one_to_warm_up(bench: dict[str, Any]) -> None:
    found = turns(bench, 0.01)
    assert found["theirs"] == [[0.17, 0.17]] * 3
    assert found["ours"] == [[0.017, 0.017]] * 3
    assert len(turns(bench, 0.01, budget=0.5)["theirs"]) == 2  # after which 0.68 s are spent
    assert len(turns(bench, 0.01, budget=0.1)["theirs"]) == 1  # too long to only warm up


def test_a_peer_that_would_take_too_long_is_not_begun(bench: dict[str, Any]) -> None:
    assert turns(bench, 10.0)["error"] == "340 s expected, limit 60 s"


def test_what_cannot_be_counted_ahead_is_counted_as_it_runs(bench: dict[str, Any]) -> None:
    peer, ours = child_of(bench, PEER, 0.01, 17, "no"), child_of(bench, PEER, 0.001, 17)
    found = bench["take_turns"](peer, ours, CLIP, {}, settings())
    peer.close()
    ours.close()
    assert found["decode macs"] == 34e3


def test_what_a_limit_stops_gets_fewer_frames(
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
    assert row["stopped"] == {"17": "2 GB of memory expected, limit 1 GB"}
    args.memory = 2.0
    row = bench["measure"]("Wan", "64x64", ours, args)
    assert (row["frames"], row["turns"], round(row["ratio"], 3)) == (9, 3, 10)
    assert "| 9 | 3 | 17 frames: more than 1 GB of memory |" in bench["table"]([row])

    monkeypatch.setitem(
        inside, "start", lambda name, **_: (child_of(bench, PEER, 0.01, 0), {"error": "no module"})
    )
    row = bench["measure"]("Wan", "64x64", ours, args)
    assert (row["error"], row["stopped"]) == ("no module", {})
    ours.close()


def test_memory_is_known_before_it_is_taken() -> None:
    allocated = runpy.run_path(str(SCRIPTS / "peers" / "allocated.py"))["Allocated"]
    megabyte = torch.empty(512, 512, device="meta")
    with torch.no_grad(), allocated() as seen:
        two = torch.cat([megabyte, megabyte])
        four = torch.cat([two, two.view(1024, 512)])
        del two
        for _ in range(5):
            four = four + 1
    assert seen.peak == 8 << 20


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
    child.close()


def test_the_table_marks_what_is_not_alike(bench: dict[str, Any]) -> None:
    found = {"theirs": [(1.0, 2.0), (2.0, 4.0), (3.0, 3.0)], "ours": [(0.1, 0.2)] * 3,
             "peak mb": 300.0, "encode macs": 17e5, "decode macs": 34e5}  # fmt: skip
    figures = bench["summary"]({"frames": 17, "height": 10, "width": 10}, found)
    assert (figures["encode fps"], figures["both fps"]) == (8.5, 17 / 6)
    assert (figures["encode kMAC/px"], figures["decode kMAC/px"]) == (1.0, 2.0)
    row = {**figures, "peer": "slow", "parameters": 4e6, "note": "so it is", "frames": 17}
    failed = {"peer": "none", "error": "not installed", "stopped": {}}
    stopped = {"peer": "long", "error": "b", "stopped": {"17": "a", "9": "b"}, "parameters": 1e6}
    shown = bench["table"]([{**row, "stopped": {}}, failed, stopped])
    assert "| slow | 4.0 | 1 + 2 | 8.5 | 5.67 | 2.83 | 20.0x | 300 | 17 | 3 |  |" in shown
    assert "| not installed |" in shown
    assert "| long | 1.0 |" in shown
    assert "| 17 frames: a; 9 frames: b |" in shown
    assert shown.endswith("slow: so it is.")
    assert len({line.count("|") for line in shown.splitlines() if line.startswith("|")}) == 1


def test_rows_are_kept_only_for_what_is_alike(bench: dict[str, Any], tmp_path: Path) -> None:
    file, kept_rows = tmp_path / "peers.json", bench["kept_rows"]
    machine = {"date": "2020-01-01", "threads": "2"}
    assert kept_rows(file, machine) == {}
    rows = {"64x32": [{"peer": "a", "ratio": 2.0}, {"peer": "b", "error": "no"}]}
    file.write_text(json.dumps({"machine": machine, "rows": rows}))
    assert kept_rows(file, {**machine, "date": "2020-01-02"}) == {"64x32": rows["64x32"][:1]}
    with pytest.raises(SystemExit, match="another threads"):
        kept_rows(file, {**machine, "threads": "1"})


def test_a_page_is_filled_between_its_marks() -> None:
    filled = runpy.run_path(str(SCRIPTS / "fill_page.py"))["filled"]
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n"
    new = filled(page, "x", r"new \1" + "\n")
    assert new == page.replace("old", r"new \1")
    assert filled(new, "x", "old") == page
    for name, text in (("z", "new"), ("x", " \n")):
        with pytest.raises(SystemExit):
            filled(page, name, text)
