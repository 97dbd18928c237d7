#!/usr/bin/env python
"""CPU seconds of the parts of a training step, and of its kernels.

Each measurement is a process of its own, on one thread, with the memory settings of
`scripts/train_base`. CPU time is used, since other processes disturb it less than wall time. With
`--trees`, checkouts of the package take turns, to compare versions.

    scripts/profile_training.py videos/ photos/
    scripts/profile_training.py --trees ../before . --rounds 3 --set batch=2
    scripts/profile_training.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import process_time
from typing import Any
from unittest import mock

RECIPE = Path(__file__).parent / "recipes" / "base.toml"
MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
PARTS = ("clips", "encoder", "quantizer", "decoder", "losses", "backward", "optimizer", "rest")
KERNELS = 12

Row = dict[str, Any]


class Stopwatch:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the seconds that the block takes."""
        start = process_time()
        yield
        self.seconds[part] += process_time() - start

    def wrap(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed at each call."""

        def timed(*args: Any, **options: Any) -> Any:
            with self.timed(part):
                return call(*args, **options)

        return timed


def measure(data: Sequence[str], settings: Sequence[str], config: Path, steps: int) -> Row:
    """Measure some training steps in this process, on one thread.

    Returns:
        `seconds` of a step by part, `forward` seconds of the network alone, `pixels` of a step, and
        `kernels`: rows of name, share of the time (not CPU time) of a step, and calls.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    from vtok.training.clips import ClipSpec
    from vtok.training.config import TrainingConfig, merged, parse_settings, read_config
    from vtok.training.learner import Learner
    from vtok.training.losses import draw_stages
    from vtok.training.processes import Processes
    from vtok.training.sources import find_sources

    torch.set_num_threads(1)
    chosen = TrainingConfig.from_dict(merged(read_config(config), parse_settings(settings)))
    spec = ClipSpec(chosen.frames, chosen.crop, chosen.photo_share, chosen.seed)
    with tempfile.TemporaryDirectory(prefix="vtok-") as folder:
        clips = _dataset(find_sources(data), spec, Path(folder))
        watch = Stopwatch()
        batches = []
        for number in range(steps + 2):
            keys = [(number, index) for index in range(chosen.batch)]
            for key in keys:
                clips[key]  # decode what is not cached
            with watch.timed("clips"):
                batches.append(torch.stack([torch.from_numpy(clips[key]) for key in keys]))
        watch.seconds["clips"] *= steps / len(batches)
    learner = Learner(chosen, Processes(torch.device("cpu")))
    indices = range(chosen.batch)
    used = [
        draw_stages(indices, chosen.tokenizer.num_stages, n, chosen.seed, chosen)
        for n in range(steps + 2)
    ]
    learner.step(0, [batches[0]], [used[0]])  # creates states of optimizers and memory
    with _patched(learner, watch):
        for number in range(1, steps + 1):
            with watch.timed("all"):
                learner.step(number, [batches[number]], [used[number]])
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        learner.step(steps + 1, [batches[-1]], [used[-1]])
    seconds = {part: watch.seconds[part] / steps for part in PARTS}
    known = sum(seconds.values()) - seconds["clips"]
    seconds["rest"] = watch.seconds["all"] / steps - known
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {
        "seconds": seconds,
        "forward": _forward_seconds(learner.model, batches[1:-1], used[1:-1]),
        "pixels": batches[0][:, 0].numel(),
        "kernels": [
            {"name": e.key, "share": e.self_cpu_time_total / total, "calls": e.count}
            for e in events[:KERNELS]
        ],
    }


def _dataset(sources: Sequence[Any], spec: Any, folder: Path) -> Any:
    from vtok.training.decoding import FrameCache, PartStore
    from vtok.training.loader import ClipDataset, max_parts

    store = PartStore(spec, max_parts(sources), FrameCache(folder, 1 << 30), folder)
    return ClipDataset(sources, spec, store, {})


@contextmanager
def _patched(learner: Any, watch: Stopwatch) -> Iterator[None]:
    """Time the parts of the learner's steps."""
    import torch

    from vtok.training import learner as module

    model = learner.model
    targets = [
        ("encoder", model, "encode_latents"),
        ("quantizer", model.quantizer, "forward"),
        ("decoder", model, "decode"),
        ("losses", module, "loss_parts"),
        ("losses", model.quantizer, "losses"),
        ("backward", torch.Tensor, "backward"),
        *(("optimizer", optimizer, "step") for optimizer in learner.optimizers),
    ]
    with ExitStack() as stack:
        for part, owner, name in targets:
            timed = watch.wrap(part, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, timed))
        yield


def _forward_seconds(model: Any, batches: Sequence[Any], used: Sequence[Any]) -> float:
    """CPU seconds of encoding, quantizing and decoding a batch, without gradients."""
    import torch

    start = process_time()
    with torch.no_grad():
        for clip, stages in zip(batches, used, strict=True):
            model.decode(model.quantizer(model.encode_latents(clip), stages))
    return (process_time() - start) / len(batches)


def combine(rows: Sequence[Row]) -> Row:
    """Return the medians of several measurements, and the kernels of the first one."""
    seconds = {p: statistics.median(row["seconds"][p] for row in rows) for p in PARTS}
    step = statistics.median(sum(row["seconds"].values()) for row in rows)
    forward, pixels = statistics.median(row["forward"] for row in rows), rows[0]["pixels"]
    return {
        "seconds": seconds,
        "step": step,
        "step_pixels_per_second": pixels / step,
        "forward_pixels_per_second": pixels / forward,
        "kernels": rows[0]["kernels"],
    }


def print_tables(found: dict[str, Row]) -> None:
    """Print the parts of a step in Markdown, a column per tree, and the kernels of the last."""
    print("| part, CPU seconds per step | " + " | ".join(found) + " |")
    print("|---" + "|--:" * len(found) + "|")
    for part in PARTS:
        print(f"| {part} | " + " | ".join(f"{r['seconds'][part]:.3f}" for r in found.values()), "|")
    print("| all | " + " | ".join(f"{row['step']:.3f}" for row in found.values()) + " |")
    for name, key in (("step", "step_pixels_per_second"), ("forward", "forward_pixels_per_second")):
        values = " | ".join(f"{row[key] / 1e6:.3f}" for row in found.values())
        print(f"| Mpx/s of the {name} | {values} |")
    last = list(found.values())[-1]
    print("\n| kernel | share | calls |\n|---|--:|--:|")
    for row in last["kernels"]:
        print(f"| {row['name']} | {row['share']:.1%} | {row['calls']} |")


def main() -> None:
    """Measure each tree in turns and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", help="training videos and photos; default: made here")
    parser.add_argument("--config", type=Path, default=RECIPE)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=4, help="steps of each measurement")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trees", nargs="+", default=[str(Path(__file__).parent.parent)])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(measure(args.data, args.set, args.config, args.steps)))
        return
    rows: dict[str, list[Row]] = {tree: [] for tree in args.trees}
    with tempfile.TemporaryDirectory(prefix="vtok-") as folder:
        if not args.data:
            from rehearse_training import make_data

            args.data = [str(make_data(Path(folder)))]
        options = [f"--set={setting}" for setting in args.set]
        options += [f"--config={args.config}", f"--steps={args.steps}", "--once"]
        for number in range(args.rounds):
            for tree in args.trees:
                paths = {**os.environ, **MEMORY, "PYTHONPATH": tree, "OMP_NUM_THREADS": "1"}
                command = [sys.executable, __file__, *args.data, *options]
                done = subprocess.run(command, env=paths, check=True, stdout=subprocess.PIPE)
                rows[tree].append(json.loads(done.stdout))
                print(f"round {number + 1}: {tree} measured", file=sys.stderr)
    found = {tree: combine(measured) for tree, measured in rows.items()}
    if args.json:
        print(json.dumps(found))
    else:
        print_tables(found)


if __name__ == "__main__":
    main()
