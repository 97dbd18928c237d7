#!/usr/bin/env python
"""Compare the speed of vtok-base with other video tokenizers on the same machine and input.

    scripts/benchmark_peers.py --json peers.json             writes each row when it is measured
    scripts/benchmark_peers.py --json peers.json --resume    measures only rows that FILE lacks
    scripts/benchmark_peers.py --only Wan --sizes 256x256 --limit 300

docs/benchmarks.md tells how to install the peers. Each peer runs in a separate process with a limit
on time and memory. vtok-base runs after each turn of a peer, with the same clip, so that both meet
the same load. A peer that exceeds a limit gets fewer frames, and the table names the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from benchmark_tools import (
    add_quick,
    describe,
    facts,
    log,
    make_parser,
    markdown_table,
    memory_gigabytes,
    write_json,
)
from peers.child import START_SECONDS, Child, start

SIZES = ("256x256", "832x480")
LENGTHS = (17, 9, 1)  # numbers of frames that need no padding in any of the tokenizers
OURS = "vtok-base"
NEEDS = {  # module that a peer needs
    OURS: "vtok", f"{OURS} --fast": "vtok",
    "magvit2-pytorch": "magvit2_pytorch", "magvit2 in vtok": "magvit2_pytorch",
    "Cosmos 4x8x8": "diffusers", "LTX-Video": "diffusers", "Wan": "diffusers",
    "CogVideoX": "diffusers", "HunyuanVideo": "diffusers",
}  # fmt: skip
PACKAGES = ("vtok", "torch", "magvit2-pytorch", "diffusers")
DIRECTIONS = ("encode", "decode")
FREE_SHARE = 0.7  # default memory limit of a peer, as a fraction of the available memory
SETTINGS = ("frames", "limit", "memory", "budget", "turns")  # options saved in the JSON
HEADS = (
    "tokenizer", "M parameters", "encode + decode kMAC/px", "encode frames/s", "decode frames/s",
    "both frames/s", "vtok-base speed-up", "peak MB", "frames", "turns", "exceeded limits",
)  # fmt: skip


def measure(name: str, size: str, ours: Child, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a peer at a size, with the longest clip within the limits."""
    width, height = (int(side) for side in size.split("x"))
    row: dict[str, Any] = {"peer": name, "height": height, "width": width, "exceeded": {}}
    if find_spec(NEEDS[name]) is None:
        return {**row, "error": f"{NEEDS[name]} is not installed"}
    for frames in (n for n in LENGTHS if n <= args.frames):
        request = {"frames": frames, "height": height, "width": width}
        found = attempt(name, request, ours, args)
        row = {**found, **row} if "error" in found else {**row, **found}
        if "error" not in found:
            return {**row, "frames": frames}
        error = row.pop("error")
        log(f"{name} {size}, {frames} frames: {error}")
        if found.get("broken"):  # not a limit, so fewer frames would not help
            return {**row, "error": error}
        row["exceeded"][str(frames)] = error
    return {**row, "error": error}


def attempt(
    name: str, request: dict[str, Any], ours: Child, args: argparse.Namespace
) -> dict[str, Any]:
    """Measure a peer with one clip; the result has an `error` if it failed."""
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
        turns = take_turns(child, ours, request, macs, args)
    finally:
        child.close()
    about = {"parameters": found["parameters"], "note": found["note"]}
    return {**about, **summary(request, turns)}


def take_turns(
    child: Child, ours: Child, request: dict[str, Any], macs: dict[str, float],
    args: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Time the peer and vtok-base in turn; a first turn within the budget only warms up."""
    found: dict[str, Any] = {**macs, "theirs": [], "ours": []}
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
        seconds, found["peak mb"] = answer["encode"] + answer["decode"], answer["peak mb"]
        log(f"{child.name}: {request['frames']} frames in {seconds:.1f} s, turn {turn}")
        if turn == 0 and seconds <= args.budget:
            continue
        found["theirs"].append([answer[key] for key in DIRECTIONS])
        found["ours"].append([mine[key] for key in DIRECTIONS])
        if sum(map(sum, found["theirs"])) > args.budget:
            break
    return found


def pixels(request: dict[str, Any]) -> int:
    """Count the pixels of the clip of a request."""
    return int(request["frames"] * request["height"] * request["width"])


def summary(request: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Compute the figures of a row: medians over turns."""
    kept = {key: found[key] for key in ("error", "broken", "peak mb") if key in found}
    for name in DIRECTIONS:
        if f"{name} macs" in found:
            kept[f"{name} kMAC/px"] = found[f"{name} macs"] / pixels(request) / 1000
    if "error" in found:
        return kept
    for index, name in enumerate(DIRECTIONS):
        seconds = statistics.median(turn[index] for turn in found["theirs"])
        kept[f"{name} fps"] = request["frames"] / seconds
        kept[f"{name} GMAC/s"] = found[f"{name} macs"] / seconds / 1e9
    both = {key: statistics.median(map(sum, found[key])) for key in ("theirs", "ours")}
    kept |= {"both fps": request["frames"] / both["theirs"], "turns": len(found["theirs"])}
    return {**kept, "ratio": both["theirs"] / both["ours"]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of one size as Markdown, with notes."""
    lines = [markdown_table(HEADS, [[row["peer"], *cells(row)] for row in rows])]
    notes = [f"{row['peer']}: {row['note']}." for row in rows if row.get("note")]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def cells(row: dict[str, Any]) -> list[str]:
    """Format the cells after the peer's name; unknown figures are empty."""
    parameters = f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else ""
    counted = all(f"{name} kMAC/px" in row for name in DIRECTIONS)
    macs = " + ".join(f"{row[f'{name} kMAC/px']:,.0f}" for name in DIRECTIONS) if counted else ""
    if "error" in row and not row["exceeded"]:
        return [parameters, macs, *[""] * 7, row["error"]]
    exceeded = "; ".join(f"{frames} frames: {why}" for frames, why in row["exceeded"].items())
    if "error" in row:
        return [parameters, macs, *[""] * 7, exceeded]
    speeds = [f"{row[f'{name} fps']:.3g}" for name in (*DIRECTIONS, "both")]
    ratio = "" if row["peer"] == OURS else f"{row['ratio']:.1f}x"
    sizes = [f"{row['peak mb']:,.0f}", str(row["frames"]), str(row["turns"])]
    return [parameters, macs, *speeds, ratio, *sizes, exceeded]


def kept_rows(path: Path, machine: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Read the rows of an earlier run that have figures.

    Raises:
        SystemExit: The run had another machine, version, number type or number of threads.
    """
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    other = [
        key for key in machine if key != "date" and earlier["machine"].get(key) != machine[key]
    ]
    if other:
        raise SystemExit(f"{path}: measured with another {', '.join(other)}: omit --resume")
    rows = earlier["rows"].items()
    return {size: [row for row in kept if "error" not in row] for size, kept in rows}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--peers", metavar="FOLDER", help="folder with the packages of the peers")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NEEDS, default=list(NEEDS))
    parser.add_argument("--sizes", nargs="+", metavar="WxH", default=list(SIZES))
    parser.add_argument("--frames", type=int, default=LENGTHS[0], choices=LENGTHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--limit", type=float, default=1800, help="longest turn of a peer in s")
    parser.add_argument(
        "--memory",
        type=float,
        help="GB for a peer, weights excluded [70 %% of the available memory]",
    )
    parser.add_argument("--budget", type=float, default=30, help="no turn starts after this many s")
    parser.add_argument("--turns", type=int, default=3, help="most turns, after one that warms up")
    add_quick(parser)
    parser.add_argument("--resume", action="store_true", help="skip the rows that FILE has")
    parser.add_argument("--debug", action="store_true", help="show the output of the peers")
    args = parser.parse_args(arguments)
    if args.resume and not args.json:
        parser.error("--resume needs --json FILE")
    if args.quick:
        args.sizes, args.frames, args.turns = ["64x32"], LENGTHS[-1], 1
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Print Markdown; write JSON after each row."""
    args = parse(arguments)
    if args.peers:
        sys.path.append(args.peers)  # to find the versions of the packages
    machine = facts(args.threads, args.dtype, PACKAGES)
    settings = {name: getattr(args, name) for name in SETTINGS}
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
                    write_json(args.json, {"machine": machine, "settings": settings, "rows": rows})
    finally:
        ours.close()
    print(describe(machine))
    for size in args.sizes:
        print(f"\n{size}, {args.frames} frames\n\n{table(rows[size])}")


if __name__ == "__main__":
    main()
