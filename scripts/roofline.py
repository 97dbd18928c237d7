#!/usr/bin/env python
"""Compare the speed of encoder and decoder with the highest multiply-add rate of this machine.

scripts/roofline.py [--threads 1 2] [--dtype float32 bfloat16] [--size 256] [--repeats 7]
    [--rates-only] [--json FILE]

The highest rate is that of dense convolutions and matrix products of several shapes, measured in
turn with the model: model calls of a video as vtok runs them, one per thread, and one model call on
all threads. Then torch's profiler lists the operations that take the time of one model call, and
the page faults of a call are counted.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from benchmark_tools import describe, make_parser, markdown_table, write_json

from vtok.models.load import DTYPES, LoadedTokenizer, load
from vtok.nn.interface import StreamState
from vtok.pipeline.codec import Decoder, Encoder, frames_to_clip, steps_per_call

Work = Callable[[], Any]
CONVOLUTIONS = ((64, 64, 16), (256, 32, 8), (512, 16, 8))  # channels, side, images
PRODUCTS = ((1024, 1024, 1024), (4096, 512, 512), (8192, 256, 768))  # rows, inner, columns
TOP_OPERATIONS = 10  # rows of a profile
CALLS = 8  # model calls of the clip


def convolution(channels: int, side: int, images: int, dtype: torch.dtype) -> Work:
    """Make a dense 3x3 convolution in channels-last layout."""
    x = torch.randn(images, channels, side, side, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, weight, padding=1)


def product(rows: int, inner: int, columns: int, dtype: torch.dtype) -> Work:
    """Make a product of two matrices."""
    a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
    return lambda: a @ b


def model_work(model: LoadedTokenizer, side: int) -> dict[str, Work]:
    """Make one model call of encoder and decoder, after the start of a video."""
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
    """Count the multiply-adds of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def stream_work(model: LoadedTokenizer, side: int) -> dict[str, Work]:
    """Make `CALLS` pipelined model calls from the start of a video, one per thread at a time."""
    steps = CALLS * steps_per_call(model, (side, side))
    frames = 1 + (steps - 1) * model.tokenizer.temporal_compression
    noise = np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)
    chunks = list(Encoder(model).encode([noise]))
    return {
        f"encoder, {CALLS} model calls": lambda: list(Encoder(model).encode([noise])),
        f"decoder, {CALLS} model calls": lambda: list(Decoder(model, (side, side)).decode(chunks)),
    }


def rates(works: dict[str, Work], counts: dict[str, float], repeats: int) -> dict[str, float]:
    """Measure median GMAC/s; the kinds of work take turns, after one round to warm up."""
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
    """List operations by their fraction of the time, the largest first."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(repeats):
            work()
    spent: dict[str, float] = {}
    calls: dict[str, int] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        name = label(event.key, event.input_shapes)
        spent[name] = spent.get(name, 0) + event.self_cpu_time_total
        calls[name] = calls.get(name, 0) + event.count // repeats
    total = sum(spent.values())
    rows = [{"operation": x, "share": spent[x] / total, "calls": calls[x]} for x in spent]
    return sorted(rows, key=lambda row: -row["share"])[:TOP_OPERATIONS]


def label(operation: str, shapes: list[list[int]]) -> str:
    """Name an operation, with the kernel size of a convolution."""
    if "conv" not in operation or len(shapes) < 2 or len(shapes[1]) < 3:
        return operation
    _, width, *kernel = shapes[1]
    depthwise = ", depthwise" if width == 1 and shapes[0][1] > 1 else ""
    return f"{operation}, {'x'.join(map(str, kernel))}{depthwise}"


def page_faults(work: Work, repeats: int) -> float:
    """Count the memory pages that the system maps during a call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / repeats


@torch.inference_mode()
def measure(args: argparse.Namespace, threads: int, dtype_name: str) -> dict[str, Any]:
    """Measure with a number of threads and a number type."""
    torch.set_num_threads(threads)
    dtype = DTYPES[dtype_name]
    works = {f"convolution {x}": convolution(*x, dtype) for x in CONVOLUTIONS}
    works |= {f"product {x}": product(*x, dtype) for x in PRODUCTS}
    dense = list(works)
    model = load(args.model, device="cpu", dtype=dtype_name)
    ours = model_work(model, args.size)
    counts = {name: count(work) for name, work in {**works, **ours}.items()}
    for name, work in stream_work(model, args.size).items():
        works[name], counts[name] = work, counts[name.split(",")[0]] * CALLS
    found = rates({**works, **ours}, counts, args.repeats)
    highest = max(found[name] for name in dense)
    facts = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
    facts |= {"threads": threads, "dtype": dtype_name, "side": args.size}
    profiled = {} if args.rates_only else ours
    return {
        "machine": facts,
        "GMAC/s": found,
        "fraction": {name: found[name] / highest for name in found},
        "page faults": {name: page_faults(work, args.repeats) for name, work in profiled.items()},
        "operations": {name: operations(work, args.repeats) for name, work in profiled.items()},
    }


def show(figures: dict[str, Any]) -> None:
    """Print Markdown tables."""
    rows = [
        (name, f"{rate:.1f}", f"{figures['fraction'][name]:.0%}")
        for name, rate in figures["GMAC/s"].items()
    ]
    print(describe(figures["machine"]))
    print(f"\n{markdown_table(('work', 'GMAC/s', 'of the highest rate'), rows)}")
    for name, profiled in figures["operations"].items():
        rows = [(x["operation"], f"{x['share']:.1%}", str(x["calls"])) for x in profiled]
        print(f"\n{markdown_table((f'{name} operation', 'of its time', 'calls'), rows)}")
        print(f"\nPage faults per model call of the {name}: {figures['page faults'][name]:.0f}")


def main() -> None:
    """Print tables and write JSON."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[2], help="numbers of threads, one table for each"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        default=["float32"],
        choices=DTYPES,
        help="number types, one table for each",
    )
    parser.add_argument("--size", type=int, default=256, help="side of a frame")
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rates-only", action="store_true", help="skip the profiles")
    args = parser.parse_args()
    figures = [measure(args, *which) for which in itertools.product(args.threads, args.dtype)]
    for number, table in enumerate(figures):
        print(end="\n" if number else "")
        show(table)
    write_json(args.json, figures)


if __name__ == "__main__":
    main()
