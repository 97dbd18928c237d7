#!/usr/bin/env python
"""Where the processor time of `vtok encode` and `vtok decode` goes, and how well parts overlap.

    scripts/benchmark_overlap.py [--threads 2] [--times 4] [--runs 3] [--json FILE]

Milliseconds a frame of 256x256, medians of rounds in which each piece of work has its turn: by the
clock; of processors in this process (model, entropy coder, copies); and in its children (reader or
writer). All of it twice: with the model's threads spinning while they wait, as they do by default,
and sleeping, as `vtok` has them where cores are few. Files are at all bits a position. Processor
time means something on a busy machine too; the clock does not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where a test runs this by its path

WAIT = "OMP_WAIT_POLICY"
POLICIES = {"spinning": {}, "sleeping": {WAIT: "PASSIVE"}}
"""How threads wait; it is read when torch is imported, so each has a process of its own."""
KINDS = ("clock", "own", "children")
PAIRS = {
    "encode file": "model encode",
    "encode file, --no-compress": "model encode",
    "decode file": "model decode",
    "decode file, packed": "model decode",
}
"""Whole work, and the stage of it that takes longest."""
Figures = dict[str, dict[str, float]]


def processors(who: int) -> float:
    """Seconds of processors so far."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def now() -> tuple[float, float, float]:
    """Seconds so far, as `KINDS` has them."""
    own, children = map(processors, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return time.perf_counter(), own, children


def take(work: Mapping[str, Callable[[], Any]], frames: int, runs: int) -> Figures:
    """Milliseconds a frame of each piece of work, by kind."""
    taken: dict[str, list[list[float]]] = {name: [] for name in work}
    for number in range(runs + 1):
        for name, function in work.items():
            before = now()
            function()
            spent = [1000 * (b - a) / frames for a, b in zip(before, now(), strict=True)]
            taken[name] += [spent] if number else []  # the first round warms up
    return {
        name: dict(zip(KINDS, map(statistics.median, zip(*rounds, strict=True)), strict=True))
        for name, rounds in taken.items()
    }


def pieces(folder: Path, frames: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The model alone and whole files, on a clip of these frames."""
    from benchmark import make_video

    from vtok.codec.decode import DecodeOptions, decode_file
    from vtok.codec.encode import EncodeOptions, encode_file
    from vtok.codec.streams import decode_codes, encode_frames
    from vtok.model import Models, load_model

    video, coded, packed, back = (folder / name for name in ("a.mp4", "a.vtok", "b.vtok", "b.mp4"))
    make_video(video, frames)
    model, models = load_model(device="cpu", dtype="float32"), Models(dtype="float32")
    chunks, size = list(encode_frames([frames], model)), frames.shape[1:3]

    def encode(output: Path, compress: bool) -> Callable[[], Any]:
        how = EncodeOptions(overwrite=True, compress=compress)
        return lambda: encode_file(video, output, model=model, options=how)

    def decode(source: Path) -> Callable[[], Any]:
        how = DecodeOptions(overwrite=True)
        return lambda: decode_file(source, back, models=models, options=how)

    return {
        "model encode": lambda: list(encode_frames([frames], model)),
        "encode file": encode(coded, True),
        "encode file, --no-compress": encode(packed, False),
        "model decode": lambda: list(decode_codes(chunks, model, size)),
        "decode file": decode(coded),
        "decode file, packed": decode(packed),
    }


def measure(times: int, runs: int, *, quick: bool = False) -> Figures:
    """All figures, with the threads of this process as they are."""
    from benchmark import bee_square

    frames = np.concatenate([bee_square()] * times)
    if quick:
        frames = np.ascontiguousarray(frames[:9, :64, :64])
    with tempfile.TemporaryDirectory(prefix="vtok-overlap-") as name:
        return take(pieces(Path(name), frames), len(frames), runs)


def table(found: Mapping[str, Figures], threads: int) -> Iterable[str]:
    """Lines of Markdown."""
    yield "| threads | work | clock ms | own ms | children ms | of the model alone | could be |"
    yield "|---|---|---|---|---|---|---|"
    for policy, figures in found.items():
        for name, spent in figures.items():
            shares = ("", "")
            if name in PAIRS:
                alone = found["spinning"][PAIRS[name]]["clock"]
                needed = max(alone, (spent["own"] + spent["children"]) / threads)
                shares = (f"{alone / spent['clock']:.2f}", f"{alone / needed:.2f}")
            cells = [policy, name, *(f"{spent[kind]:.2f}" for kind in KINDS), *shares]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a table, or figures as JSON where this is one of the processes that measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--times", type=int, default=4, help="how often 121 frames are repeated")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="9 frames of 64x64, as a test does")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.times, args.runs, quick=args.quick)))
        return
    found = {}
    usual = {key: word for key, word in os.environ.items() if key != WAIT}
    for policy, waiting in POLICIES.items():
        threads = {**usual, **waiting, "OMP_NUM_THREADS": str(args.threads)}
        command = [sys.executable, __file__, "--measure", *sys.argv[1:]]
        ran = subprocess.run(command, env=threads, stdout=subprocess.PIPE, check=True)
        found[policy] = json.loads(ran.stdout)
    if args.json is not None:
        args.json.write_text(json.dumps({"threads": args.threads, "figures": found}, indent=1))
    print("\n".join(table(found, args.threads)))


if __name__ == "__main__":
    main()
