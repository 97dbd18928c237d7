#!/usr/bin/env python
"""How much of this machine's best rate of multiply-adds encoder and decoder reach, and where.

scripts/roofline.py [--threads 1 2] [--dtype float32 bfloat16] [--size 256] [--repeats 7]
    [--rates-only] [--json FILE]

The best rate is that of dense convolutions and matrix products of several shapes, measured in the
same run and in turn with the model: passes of a video as vtok runs them, one on each thread, and
one pass on all threads. Then the operations that the time of one goes to, by torch's profiler, and
the pages of memory that it takes anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vtok.models.load import DTYPES, LoadedTokenizer, load
from vtok.nn.layers import StreamState
from vtok.pipeline.codec import Decoder, Encoder, frames_to_clip, steps_per_call

Work = Callable[[], Any]
CONVOLUTIONS = ((64, 64, 16), (256, 32, 8), (512, 16, 8))  # channels, side, images
PRODUCTS = ((1024, 1024, 1024), (4096, 512, 512), (8192, 256, 768))  # rows, inner, columns
SHOWN = 10  # operations of a profile
PASSES = 8  # of a stretch of video


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


def model_work(model: LoadedTokenizer, side: int) -> dict[str, Work]:
    """One pass of encoder and decoder in the middle of a video, as `vtok` runs them."""
    tokenizer, before, behind = model.tokenizer, StreamState(), StreamState()
    count = steps_per_call(model, (side, side)) * tokenizer.temporal_compression
    noise = np.random.default_rng(0).integers(0, 256, (1 + count, side, side, 3), dtype=np.uint8)
    tokenizer.decode(
        tokenizer.encode(frames_to_clip(noise[:1], model), quantize=True, state=before),
        state=behind,
    )
    clip = frames_to_clip(noise[1:], model)
    codes = tokenizer.encode(clip, quantize=True, state=before.clone())
    return {
        "encoder": lambda: tokenizer.encode(clip, quantize=True, state=before.clone()),
        "decoder": lambda: tokenizer.decode(codes, state=behind.clone()),
    }


def count(work: Work) -> float:
    """Multiply-adds of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def stream_work(model: LoadedTokenizer, side: int, passes: int) -> dict[str, Work]:
    """So many passes from the start of a video, as `vtok` runs them: a thread takes a pass each."""
    steps = passes * steps_per_call(model, (side, side))
    frames = 1 + (steps - 1) * model.tokenizer.temporal_compression
    noise = np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    chunks = list(Encoder(model).encode([noise]))
    return {
        f"encoder, {passes} passes": lambda: list(Encoder(model).encode([noise])),
        f"decoder, {passes} passes": lambda: list(Decoder(model, (side, side)).decode(chunks)),
    }


def rates(works: dict[str, Work], counts: dict[str, float], repeats: int) -> dict[str, float]:
    """Median GMAC/s of each, all of them in turn, after one round to warm up."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            begin = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - begin)
    return {name: counts[name] / statistics.median(seconds[name]) / 1e9 for name in works}


def operations(work: Work, repeats: int) -> list[dict[str, Any]]:
    """Which operations take what share of the time, the largest first."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(repeats):
            work()
    spent: dict[str, float] = {}
    calls: dict[str, int] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        name = named(event.key, event.input_shapes)
        spent[name] = spent.get(name, 0) + event.self_cpu_time_total
        calls[name] = calls.get(name, 0) + event.count // repeats
    total = sum(spent.values())
    rows = [{"operation": x, "share": spent[x] / total, "calls": calls[x]} for x in spent]
    return sorted(rows, key=lambda row: -row["share"])[:SHOWN]


def named(operation: str, shapes: list[list[int]]) -> str:
    """An operation's name, that of a convolution with its kernel."""
    if "conv" not in operation or len(shapes) < 2 or len(shapes[1]) < 3:
        return operation
    _, width, *kernel = shapes[1]
    depthwise = ", depthwise" if width == 1 and shapes[0][1] > 1 else ""
    return f"{operation}, {'x'.join(map(str, kernel))}{depthwise}"


def pages(work: Work, repeats: int) -> float:
    """Pages of memory that the system hands out anew for each call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / repeats


@torch.inference_mode()
def measure(args: argparse.Namespace, threads: int, dtype_name: str) -> dict[str, Any]:
    """All figures on so many threads, in one number type."""
    torch.set_num_threads(threads)
    dtype = DTYPES[dtype_name]
    works = {f"convolution {x}": convolution(*x, dtype) for x in CONVOLUTIONS}
    works |= {f"product {x}": product(*x, dtype) for x in PRODUCTS}
    dense = list(works)
    model = load(args.model, device="cpu", dtype=dtype_name)
    ours = model_work(model, args.size)
    counts = {name: count(work) for name, work in {**works, **ours}.items()}
    for name, work in stream_work(model, args.size, PASSES).items():
        works[name], counts[name] = work, counts[name.split(",")[0]] * PASSES
    found = rates({**works, **ours}, counts, args.repeats)
    best = max(found[name] for name in dense)
    facts = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
    facts |= {"threads": threads, "dtype": dtype_name, "side": args.size}
    profiled = {} if args.rates_only else ours
    return {
        "machine": facts,
        "GMAC/s": found,
        "of the best": {name: found[name] / best for name in found},
        "pages": {name: pages(work, args.repeats) for name, work in profiled.items()},
        "operations": {name: operations(work, args.repeats) for name, work in profiled.items()},
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
        print(f"\nThe {name} takes {figures['pages'][name]:.0f} pages of memory anew in a pass.")


def main() -> None:
    """Print tables, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="one table for each")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES, help="likewise")
    parser.add_argument("--size", type=int, default=256, help="side of a frame")
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rates-only", action="store_true", help="no profile")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    figures = [measure(args, *which) for which in itertools.product(args.threads, args.dtype)]
    for number, some in enumerate(figures):
        print(end="\n" if number else "")
        show(some)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
