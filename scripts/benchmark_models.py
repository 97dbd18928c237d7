#!/usr/bin/env python
"""Measure frames per second and peak memory of models, shipped or imported, at several sizes.

    scripts/benchmark_models.py [--device cuda] [--dtype bfloat16] [--model NAME ...]
        [--size 256x256 ...] [--frames 33] [--runs 3] [--json FILE]

Frames in memory are encoded and decoded as `vtok encode` and `vtok decode` do, without files. Each
model and size has a process to itself. Its peak memory is that of torch on CUDA, and of the whole
process on a CPU. `scripts/benchmark.py --model NAME` prints the same table.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from benchmark_tools import (
    BEE,
    THREADS,
    add_quick,
    describe,
    facts,
    make_parser,
    markdown_table,
    read_frames,
    write_json,
)

from vtok.models.load import LoadedTokenizer, load
from vtok.pipeline.codec import Decoder, Encoder
from vtok.video.frames import Frames

SIZES = ("256x256", "854x480", "1280x720")


@dataclass(frozen=True)
class Setting:
    """Work of one measuring process.

    Attributes:
        model: name or path.
        device, dtype: as in `vtok.load`.
        size: (width, height) of the frames.
        frames: number of frames.
        threads: threads of torch.
        runs: timed runs, after one that warms up.
    """

    model: str
    device: str
    dtype: str
    size: tuple[int, int]
    frames: int
    threads: int
    runs: int


@dataclass(frozen=True)
class Row:
    """Figures of a model at one size.

    Attributes:
        model: name or path.
        size: width x height.
        encode, decode: frames per second, median of the runs.
        peak_mb: peak memory in MiB.
        device, dtype: where and in what type the model ran.
        error: reason that there are no figures, such as too little memory.
    """

    model: str
    size: str
    encode: float = 0.0
    decode: float = 0.0
    peak_mb: float = 0.0
    device: str = ""
    dtype: str = ""
    error: str = ""


def make_frames(size: tuple[int, int], count: int) -> Frames:
    """Cut frames of (width, height) out of the example video, mirrored where it is too small."""
    frames = read_frames(BEE, "360")[:count]
    tall, wide = (
        -(-side // have) for side, have in zip(size[::-1], frames.shape[1:3], strict=True)
    )
    width, height = size
    while len(frames) < count:
        frames = np.concatenate((frames, frames[::-1]))
    tiled = np.tile(frames[:count], (1, tall, wide, 1))
    return np.ascontiguousarray(tiled[:, :height, :width])


def measure(setting: Setting) -> Row:
    """Measure a model in this process."""
    width, height = setting.size
    name = f"{width}x{height}"
    try:
        torch.set_num_threads(setting.threads)
        model = load(setting.model, device=setting.device, dtype=setting.dtype)
        frames = make_frames(setting.size, setting.frames)
        chunks = list(Encoder(model).encode([frames]))
        encode = rate(lambda: list(Encoder(model).encode([frames])), setting, model)
        decoder = Decoder(model, (height, width))
        decode = rate(lambda: sum(map(len, decoder.decode(chunks))), setting, model)
    except torch.OutOfMemoryError:
        return Row(setting.model, name, error="not enough memory")
    return Row(
        setting.model, name, encode, decode, peak_mb(model), str(model.device), model.dtype_name
    )


def rate(function: Callable[[], Any], setting: Setting, model: LoadedTokenizer) -> float:
    """Return frames per second of a function that takes all frames; its result is on the CPU."""
    seconds = []
    for _ in range(setting.runs + 1):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return setting.frames / statistics.median(seconds[1:] or seconds)


def peak_mb(model: LoadedTokenizer) -> float:
    """Return the peak memory so far in MiB."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure_all(settings: Sequence[Setting]) -> list[Row]:
    """Measure each setting in a process to itself."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for setting in settings:
        with context.Pool(1) as pool:
            rows.append(pool.apply(measure, (setting,)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown table."""
    heads = ("model", "size", "device", "encode, frames/s", "decode, frames/s", "peak memory, MB")
    cells = []
    for row in rows:
        figures = (f"{row.encode:.3g}", f"{row.decode:.3g}", f"{row.peak_mb:,.0f}")
        where = f"{row.device}, {row.dtype}" if row.device else ""
        cells.append((row.model, row.size, where, *((row.error, "", "") if row.error else figures)))
    return markdown_table(heads, cells)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark, which scripts/benchmark.py has too."""
    parser.add_argument("--model", action="append", help="name or file; may be repeated")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument(
        "--size", action="append", metavar="WxH", help=f"may be repeated; {', '.join(SIZES)}"
    )
    parser.add_argument("--frames", type=int, default=33)


def run(args: argparse.Namespace) -> None:
    """Measure what the options ask for, print a table and write JSON."""
    sizes = ["64x64"] if args.quick else (args.size or SIZES)
    frames, runs = (5, 1) if args.quick else (args.frames, args.runs)
    settings = [
        Setting(
            model, args.device, args.dtype, (int(width), int(height)), frames, args.threads, runs
        )
        for model in args.model or ["vtok-base"]
        for width, height in (size.split("x") for size in sizes)
    ]
    rows = measure_all(settings)
    machine = facts(args.threads, args.dtype)
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    write_json(args.json, {"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]})
    print(describe(machine))
    print(f"{frames} frames, medians of {runs} runs\n")
    print(table(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table and write JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--runs", type=int, default=3)
    add_model_options(parser)
    add_quick(parser)
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
