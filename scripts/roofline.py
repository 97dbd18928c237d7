#!/usr/bin/env python
"""How much of this machine's best rate of multiply-adds encoder and decoder reach, and where.

scripts/roofline.py [--threads 2] [--dtype float32] [--size 256] [--repeats 7] [--json FILE]

The best rate is that of dense convolutions and matrix products of several shapes, measured in the
same run and in turn with the model. Then the operations that the time goes to, by torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vtok.codec.streams import steps_per_pass
from vtok.model import DTYPES, Model, load_model

Work = Callable[[], Any]
CONVOLUTIONS = ((64, 64, 16), (256, 32, 8), (512, 16, 8))  # channels, side, images
PRODUCTS = ((1024, 1024, 1024), (4096, 512, 512), (8192, 256, 768))  # rows, inner, columns
SHOWN = 10  # operations of a profile


def convolution(channels: int, side: int, images: int, dtype: torch.dtype) -> Work:
    """A dense 3x3 convolution, channels innermost in memory."""
    x = torch.randn(images, channels, side, side, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=1)


def product(rows: int, inner: int, columns: int, dtype: torch.dtype) -> Work:
    """A product of two matrices."""
    a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
    return lambda: a @ b


def model_work(model: Model, side: int) -> dict[str, Work]:
    """One pass of encoder and decoder, as `vtok encode` and `vtok decode` run them."""
    tokenizer = model.tokenizer
    steps = steps_per_pass(model, (side, side))
    frames = 1 + (steps - 1) * tokenizer.temporal_compression
    clip = (torch.rand(1, 3, frames, side, side) * 2 - 1).to(model.dtype)
    codes = tokenizer.encode(clip, quantize=True)
    return {
        "encoder": lambda: tokenizer.encode(clip, quantize=True),
        "decoder": lambda: tokenizer.decode(codes),
    }


def count(work: Work) -> float:
    """Multiply-adds of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def rates(works: dict[str, Work], repeats: int) -> dict[str, float]:
    """Median GMAC/s of each, all of them in turn, after one round to warm up."""
    counts = {name: count(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    return {name: counts[name] / statistics.median(seconds[name]) / 1e9 for name in works}


def operations(work: Work, repeats: int) -> list[dict[str, Any]]:
    """Which operations take what share of the time, the largest first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            work()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    rows = [
        {
            "operation": event.key,
            "share": event.self_cpu_time_total / total,
            "calls": event.count // repeats,
        }
        for event in events
    ]
    return sorted(rows, key=lambda row: -row["share"])[:SHOWN]


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    dtype = DTYPES[args.dtype]
    works = {f"convolution {x}": convolution(*x, dtype) for x in CONVOLUTIONS}
    works |= {f"product {x}": product(*x, dtype) for x in PRODUCTS}
    model = load_model(args.model, device="cpu", dtype=args.dtype)
    ours = model_work(model, args.size)
    found = rates({**works, **ours}, args.repeats)
    best = max(found[name] for name in works)
    facts = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
    facts |= {"threads": args.threads, "dtype": args.dtype, "side": args.size}
    return {
        "machine": facts,
        "GMAC/s": found,
        "of the best": {name: found[name] / best for name in found},
        "operations": {name: operations(work, args.repeats) for name, work in ours.items()},
    }


def show(figures: dict[str, Any]) -> None:
    """Print Markdown tables."""
    print(", ".join(f"{key} {value}" for key, value in figures["machine"].items()))
    print("\n| what | GMAC/s | of the best |\n|---|---|---|")
    for name, rate in figures["GMAC/s"].items():
        print(f"| {name} | {rate:.1f} | {figures['of the best'][name]:.0%} |")
    for name, rows in figures["operations"].items():
        print(f"\n| {name}: operation | of its time | calls |\n|---|---|---|")
        for row in rows:
            print(f"| {row['operation']} | {row['share']:.1%} | {row['calls']} |")


def main() -> None:
    """Print tables, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--size", type=int, default=256, help="side of a frame")
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = measure(args)
    show(figures)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
