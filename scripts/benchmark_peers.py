#!/usr/bin/env python
"""vtok-base beside other video tokenizers: same machine, input, number type and threads, one run.

    scripts/benchmark_peers.py --json peers.json             every row is written as it comes
    scripts/benchmark_peers.py --json peers.json --resume    measures only what is not in it
    scripts/benchmark_peers.py --only Wan --sizes 256x256 --limit 300

docs/benchmarks.md says how to install the peers; a row says so where one is missing. Each is in a
process of its own, with a limit of time and of memory, so that what it takes costs nothing but its
own row. vtok-base takes its turn after each turn of a peer, with the same clip: their ratio is of
the same minutes. A peer that a limit stops gets fewer frames, and the table says which limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where a test runs this by its path
from machine import facts, line, memory_gigabytes
from peers.child import START_SECONDS, Child, start

from vtok._files import atomic_output

SIZES = ("256x256", "832x480")
LENGTHS = (17, 9, 1)  # that all of them take as they are: a step is 4 frames, or 8
PROBE = {"frames": 9, "height": 64, "width": 64, "count": False}
OURS = "vtok-base"
NEEDS = {  # the module without which a peer cannot be
    OURS: "vtok", "magvit2-pytorch": "magvit2_pytorch", "magvit2 in vtok": "magvit2_pytorch",
    "Cosmos 4x8x8": "diffusers", "LTX-Video": "diffusers", "Wan": "diffusers",
    "CogVideoX": "diffusers", "HunyuanVideo": "diffusers",
}  # fmt: skip
PACKAGES = ("vtok", "torch", "magvit2-pytorch", "diffusers")
PASSES = ("encode", "decode")
FREE_SHARE = 0.7  # of the free memory, for a peer where no limit is given
SETTINGS = ("frames", "limit", "memory", "budget", "turns")  # that figures depend on
HEADS = (
    "tokenizer", "M parameters", "kMAC/px enc + dec", "frames/s enc", "dec", "both",
    "vtok-base is faster by", "peak MB", "frames", "turns", "stopped by a limit",
)  # fmt: skip


def measure(name: str, size: str, ours: Child, args: argparse.Namespace) -> dict[str, Any]:
    """The row of a peer at a size, with the longest clip that no limit forbids."""
    width, height = (int(side) for side in size.split("x"))
    row: dict[str, Any] = {"peer": name, "height": height, "width": width, "stopped": {}}
    if find_spec(NEEDS[name]) is None:
        return {**row, "error": f"{NEEDS[name]} is not installed"}
    for frames in (n for n in LENGTHS if n <= args.frames):
        request = {"frames": frames, "height": height, "width": width}
        found = attempt(name, request, ours, args)
        row = {**found, **row} if "error" in found else {**row, **found}
        if "error" not in found:
            return {**row, "frames": frames}
        error = row.pop("error")
        say(f"{name} {size}, {frames} frames: {error}")
        if found.get("broken"):  # no limit, so fewer frames are no better
            return {**row, "error": error}
        row["stopped"][str(frames)] = error
    return {**row, "error": error}


def attempt(
    name: str, request: dict[str, Any], ours: Child, args: argparse.Namespace
) -> dict[str, Any]:
    """Figures of a peer with one clip; with an `error` where it could not."""
    memory = args.memory or FREE_SHARE * memory_gigabytes()
    child, found = start(
        name, threads=args.threads, dtype=args.dtype, memory=memory, peers=args.peers,
        debug=args.debug,
    )  # fmt: skip
    try:
        if "error" in found:
            return {**found, "broken": True}
        answer = child.ask({**request, "operations": True}, START_SECONDS)
        macs = {key: value for key, value in answer.items() if key.endswith("macs")}
        needed = answer.get("gigabytes", 0.0)
        if needed > memory:
            error = f"{needed:.0f} GB of memory expected, limit {memory:.0f} GB"
            turns = {**macs, "error": error}
        else:
            turns = take_turns(child, ours, request, macs, args)
    finally:
        child.close()
    about = {"parameters": found["parameters"], "note": found["note"]}
    return {**about, **summary(request, turns)}


def take_turns(
    child: Child, ours: Child, request: dict[str, Any], macs: dict[str, float],
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Seconds of the peer and of ours, turn by turn; a first turn that is short only warms up."""
    found: dict[str, Any] = {**macs, "theirs": [], "ours": []}
    guess = expected(child, request, macs, args) if pixels(request) > pixels(PROBE) else 0.0
    if isinstance(guess, str):
        return {**found, "error": f"{guess} for a clip of 64x64", "broken": True}
    if guess > args.limit:
        return {**found, "error": f"{guess:,.0f} s expected, limit {args.limit:,.0f} s"}
    paired = child.name != OURS
    if paired:
        ours.ask({**request, "count": False}, args.limit)
    for turn in range(args.turns + 1):
        answer = child.ask({**request, "count": turn == 0 and not macs}, args.limit)
        if "error" in answer:
            return {**found, "error": answer["error"]}
        found |= {key: answer[key] for key in answer if key.endswith("macs")}
        mine = ours.ask({**request, "count": False}, args.limit) if paired else answer
        if "error" in mine:
            raise SystemExit(f"{OURS}: {mine['error']}")
        seconds, found["peak mb"] = total(answer), answer["peak mb"]
        say(f"{child.name}: {request['frames']} frames in {seconds:.1f} s, turn {turn}")
        if turn == 0 and seconds <= args.budget:
            continue
        found["theirs"].append([answer[key] for key in PASSES])
        found["ours"].append([mine[key] for key in PASSES])
        if sum(map(sum, found["theirs"])) > args.budget:
            break
    return found


def expected(
    child: Child, request: dict[str, Any], macs: dict[str, float], args: argparse.Namespace
) -> float | str:
    """Seconds of a turn as a tiny clip lets expect, by operations; or why not even that runs."""
    tiny = child.ask({**PROBE, "count": bool(macs)}, args.limit)
    if "error" in tiny:
        return str(tiny["error"])
    if macs:
        return total(tiny) * total(macs, " macs") / total(tiny, " macs")
    return total(tiny) * pixels(request) / pixels(PROBE)


def total(answer: dict[str, Any], kind: str = "") -> float:
    """Of encoding and decoding together."""
    return float(sum(answer[f"{name}{kind}"] for name in PASSES))


def pixels(request: dict[str, Any]) -> int:
    """Pixels of the clip of a request."""
    return int(request["frames"] * request["height"] * request["width"])


def summary(request: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What a table shows of what was found: medians over turns."""
    kept = {key: found[key] for key in ("error", "broken", "peak mb") if key in found}
    for name in PASSES:
        if f"{name} macs" in found:
            kept[f"{name} kMAC/px"] = found[f"{name} macs"] / pixels(request) / 1000
    if "error" in found:
        return kept
    for index, name in enumerate(PASSES):
        seconds = statistics.median(turn[index] for turn in found["theirs"])
        kept[f"{name} fps"] = request["frames"] / seconds
        kept[f"{name} GMAC/s"] = found[f"{name} macs"] / seconds / 1e9
    both = {key: statistics.median(map(sum, found[key])) for key in ("theirs", "ours")}
    kept |= {"both fps": request["frames"] / both["theirs"], "turns": len(found["theirs"])}
    return {**kept, "ratio": both["theirs"] / both["ours"]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of one size as Markdown, and what was noted."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    lines += ["| " + " | ".join([row["peer"], *cells(row)]) + " |" for row in rows]
    notes = [f"{row['peer']}: {row['note']}." for row in rows if row.get("note")]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def cells(row: dict[str, Any]) -> list[str]:
    """What a row says after the peer's name; empty where nothing is known."""
    parameters = f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else ""
    counted = all(f"{name} kMAC/px" in row for name in PASSES)
    macs = " + ".join(f"{row[f'{name} kMAC/px']:,.0f}" for name in PASSES) if counted else ""
    if "error" in row and not row["stopped"]:
        return [parameters, macs, *[""] * 7, row["error"]]
    stopped = "; ".join(f"{frames} frames: {why}" for frames, why in row["stopped"].items())
    if "error" in row:
        return [parameters, macs, *[""] * 7, stopped]
    speeds = [f"{row[f'{name} fps']:.3g}" for name in (*PASSES, "both")]
    ratio = "" if row["peer"] == OURS else f"{row['ratio']:.1f}x"
    sizes = [f"{row['peak mb']:,.0f}", str(row["frames"]), str(row["turns"])]
    return [parameters, macs, *speeds, ratio, *sizes, stopped]


def kept_rows(path: Path, machine: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of an earlier run, those without figures left out.

    Raises:
        SystemExit: if they are of another machine, version, number type or number of threads.
    """
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    other = [
        key for key in machine if key != "date" and earlier["machine"].get(key) != machine[key]
    ]
    if other:
        raise SystemExit(f"{path}: of another {', '.join(other)}: run without --resume")
    rows = earlier["rows"].items()
    return {size: [row for row in kept if "error" not in row] for size, kept in rows}


def say(text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", metavar="FOLDER", help="where packages were installed apart")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NEEDS, default=list(NEEDS))
    parser.add_argument("--sizes", nargs="+", metavar="WxH", default=list(SIZES))
    parser.add_argument("--frames", type=int, default=LENGTHS[0], choices=LENGTHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--limit", type=float, default=1800, help="seconds of one turn of a peer")
    parser.add_argument("--memory", type=float, help="GB of a peer [default: 70 %% of the free]")
    parser.add_argument("--budget", type=float, default=30, help="seconds after which turns end")
    parser.add_argument("--turns", type=int, default=3, help="at most, after one to warm up")
    parser.add_argument("--quick", action="store_true", help="a tiny clip once: does all this run?")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    parser.add_argument("--resume", action="store_true", help="keep the rows that FILE has")
    parser.add_argument("--debug", action="store_true", help="show what the peers print")
    args = parser.parse_args(arguments)
    if args.resume and not args.json:
        parser.error("--resume needs --json FILE")
    if args.quick:
        args.sizes, args.frames, args.turns = ["64x32"], LENGTHS[-1], 1
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Print Markdown, and write JSON row by row."""
    args = parse(arguments)
    if args.peers:
        sys.path.append(args.peers)  # for their versions
    machine = facts(args.threads, args.dtype, PACKAGES)
    rows = kept_rows(args.json, machine) if args.resume else {}
    ours, about = start(OURS, threads=args.threads, dtype=args.dtype, memory=FREE_SHARE * 8)
    if "error" in about:
        raise SystemExit(f"{OURS}: {about['error']}")
    try:
        for size in args.sizes:
            done = rows.setdefault(size, [])
            for name in args.only:
                if name not in [row["peer"] for row in done]:
                    done.append(measure(name, size, ours, args))
                    done.sort(key=lambda row: list(NEEDS).index(row["peer"]))
                    save(args, machine, rows)
    finally:
        ours.close()
    print(line(machine))
    for size in args.sizes:
        print(f"\n{size}, {args.frames} frames\n\n{table(rows[size])}")


def save(args: argparse.Namespace, machine: dict[str, str], rows: dict[str, Any]) -> None:
    """Write what is known so far."""
    if args.json is not None:
        told = {key: getattr(args, key) for key in SETTINGS}
        with atomic_output(args.json, overwrite=True) as unfinished:
            text = json.dumps({"machine": machine, "settings": told, "rows": rows}, indent=1)
            unfinished.write_text(text + "\n")


if __name__ == "__main__":
    main()
