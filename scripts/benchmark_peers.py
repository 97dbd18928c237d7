#!/usr/bin/env python
"""vtok-base beside other video tokenizers: same machine, input, number type and threads, one run.

scripts/benchmark_peers.py [--peers FOLDER] [--threads 2] [--budget 25] [--json FILE]
docs/benchmarks.md says how to install the peers; a row says so where one is missing.

Each runs in a process of its own, so that its peak memory is its own; one after the other encodes
and decodes once, then they start over, so that what slows the machine slows all of them. Where a
peer would take longer than its budget of seconds, it gets fewer frames: the table says how many.
"""

from __future__ import annotations

import argparse
import json
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "peers"
SIZES = {"256x256": (256, 256), "832x480": (480, 832)}
LENGTHS = (17, 9, 1)  # that all of them take as they are: a step is 4 frames, or 8
PROBE = {"frames": 9, "height": 64, "width": 64, "count": False}
OURS = "vtok-base"
NAMES = (
    OURS, "magvit2-pytorch", "magvit2 in vtok", "Cosmos 4x8x8", "Wan", "CogVideoX", "LTX-Video",
    "HunyuanVideo",
)  # fmt: skip
VERSIONS = ("vtok", "torch", "magvit2-pytorch", "diffusers")
START_SECONDS = 300  # to import and to make random weights


@dataclass
class Child:
    """A peer in its process.

    Attributes:
        name: of the peer.
        process: answers a line of JSON with one.
        about: its first answer.
        failure: why it cannot go on; empty while it can.
        per_pixel: seconds a pixel of its latest run, for a guess at the next.
    """

    name: str
    process: subprocess.Popen[str]
    about: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    per_pixel: float = 0.0

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One request; an answer with `error` where it failed; one that hangs or dies is ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            ready = select.select([self.process.stdout], [], [], seconds)[0]
            line = self.process.stdout.readline() if ready else ""
        except OSError:
            ready, line = [self.process.stdout], ""
        if line:
            return dict(json.loads(line))
        self.failure = self._death() if ready else f"more than {seconds:.0f} s"
        self.process.kill()
        return {"error": self.failure}

    def _death(self) -> str:
        """What a process died of that closed its output."""
        try:
            code = self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if code >= 0:
            return f"ended with exit code {code}"
        hint = ", as when memory runs out" if -code in (signal.SIGKILL, signal.SIGABRT) else ""
        return f"died of {signal.Signals(-code).name}{hint}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def start(name: str, args: argparse.Namespace, memory: float) -> Child:
    """Start a peer and let it prove on a tiny clip that it runs."""
    command = [sys.executable, str(FOLDER / "measure.py"), name, "--threads", str(args.threads)]
    command += ["--dtype", args.dtype, "--memory", f"{memory:.1f}"]
    command += ["--peers", args.peers] if args.peers else []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    quiet = None if args.debug else subprocess.DEVNULL
    child = Child(name, subprocess.Popen(command, text=True, stderr=quiet, **pipes))
    child.about = child.ask({}, START_SECONDS)
    if "error" not in child.about:
        tried = child.ask(PROBE, START_SECONDS)
        if "error" in tried:
            child.about["error"] = tried["error"]
        else:
            child.per_pixel = (tried["encode"] + tried["decode"]) / pixels(PROBE)
    child.failure = child.about.get("error", "")
    say(f"{name}: {child.failure or 'ready'}")
    return child


def measure(
    children: list[Child], height: int, width: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row for each peer at this size."""
    rows = [plan(child, height, width, args) for child in children]
    for turn in range(args.repeats):
        for child, row in zip(children, rows, strict=True):
            if "error" in row or (turn and row["spent"] + row["last"] > args.budget):
                continue
            request = {key: row[key] for key in ("frames", "height", "width")}
            answer = child.ask({**request, "count": turn == 0}, max(60.0, 6 * args.budget))
            row |= {key: value for key, value in answer.items() if key not in ("encode", "decode")}
            if "error" in answer:
                continue
            row["last"] = answer["encode"] + answer["decode"]
            row["spent"] += row["last"]
            if turn == 1:  # the first turn was a warm-up, and was counted
                row["seconds"].clear()
            row["seconds"].append((answer["encode"], answer["decode"]))
            child.per_pixel = row["last"] / pixels(row)
            frames, spent = row["frames"], row["last"]
            say(f"{child.name} {width}x{height}: {frames} frames in {spent:.1f} s, turn {turn + 1}")
    return [summary(row) for row in rows]


def plan(child: Child, height: int, width: int, args: argparse.Namespace) -> dict[str, Any]:
    """The row of a peer before it runs: as many frames as its budget allows."""
    row: dict[str, Any] = {"peer": child.name, "height": height, "width": width}
    row |= {key: child.about[key] for key in ("parameters", "note") if key in child.about}
    if child.failure:
        return {**row, "error": child.failure}
    wanted = [n for n in LENGTHS if n <= args.frames]
    guesses = {n: child.per_pixel * n * height * width for n in wanted}
    fitting = [n for n, seconds in guesses.items() if seconds <= args.budget]
    frames = fitting[0] if fitting else wanted[-1]
    return {**row, "frames": frames, "seconds": [], "spent": 0.0, "last": guesses[frames]}


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Medians of what was timed."""
    kept = {k: row[k] for k in ("peer", "height", "width", "parameters", "note") if k in row}
    if "error" in row:
        return {**kept, "error": row["error"]}
    encode, decode = (statistics.median(column) for column in zip(*row["seconds"], strict=True))
    kept |= {"frames": row["frames"], "runs": len(row["seconds"]), "peak mb": row["peak mb"]}
    for name, seconds in (("encode", encode), ("decode", decode)):
        kept[f"{name} fps"] = row["frames"] / seconds
        kept[f"{name} kMAC/px"] = row[f"{name} macs"] / pixels(row) / 1000
        kept[f"{name} GMAC/s"] = row[f"{name} macs"] / seconds / 1e9
    return {**kept, "both fps": row["frames"] / (encode + decode)}


def pixels(request: dict[str, Any]) -> int:
    """Pixels of the clip of a request."""
    return int(request["frames"] * request["height"] * request["width"])


def table(rows: list[dict[str, Any]], frames: int) -> str:
    """The rows of one size as Markdown, and how many times slower than ours each is."""
    ours = next(
        (row["both fps"] for row in rows if row["peer"] == OURS and "both fps" in row), None
    )
    lines = [
        "| tokenizer | M parameters | kMAC/px enc + dec | frames/s enc | dec | both "
        "| vtok-base is faster by | peak MB | frames |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['peer']} | {row['error']} |" + " |" * 7)
            continue
        ratio = f"{ours / row['both fps']:.1f}x" if ours else ""
        less = "" if row["frames"] == frames else " (budget)"
        lines.append(
            f"| {row['peer']} | {row['parameters'] / 1e6:.1f} "
            f"| {row['encode kMAC/px']:.0f} + {row['decode kMAC/px']:.0f} "
            f"| {row['encode fps']:.3g} | {row['decode fps']:.3g} | {row['both fps']:.3g} "
            f"| {ratio} | {row['peak mb']:.0f} | {row['frames']}{less} |"
        )
    notes = [f"{row['peer']}: {row['note']}." for row in rows if row.get("note")]
    return "\n".join([*lines, "", *notes])


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    model = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    processor = model[0].partition(":")[2].strip() if model else platform.processor()
    today = datetime.now(timezone.utc).date().isoformat()
    facts = {"date": today, "processor": processor, "threads": args.threads, "dtype": args.dtype}
    return {**facts, "python": platform.python_version(), **found}


def available_gigabytes() -> float:
    """Memory that can be taken now."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable")) / 2**20


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", metavar="FOLDER", help="where packages were installed apart")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES, default=NAMES)
    parser.add_argument("--sizes", nargs="+", metavar="WxH", default=list(SIZES))
    parser.add_argument("--frames", type=int, default=17, choices=LENGTHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--budget", type=float, default=25.0, help="seconds of a peer and size")
    parser.add_argument("--repeats", type=int, default=4, help="runs, the first to warm up")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--debug", action="store_true", help="show what the peers print")
    return parser.parse_args()


def main() -> None:
    """Print Markdown, and write JSON."""
    args = parse()
    if args.peers:
        sys.path.append(args.peers)  # for their versions
    begin, memory = time.monotonic(), 0.7 * available_gigabytes()
    children = [start(name, args, memory) for name in NAMES if name in args.only]
    results, facts = {}, machine(args)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    try:
        for size in args.sizes:
            width, height = (int(n) for n in size.split("x"))
            results[size] = measure(children, height, width, args)
            print(f"\n{size}, {args.frames} frames\n\n{table(results[size], args.frames)}")
    finally:
        for child in children:
            child.close()
    say(f"{time.monotonic() - begin:.0f} s")
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": facts, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
