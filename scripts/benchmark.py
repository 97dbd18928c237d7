#!/usr/bin/env python
"""Measure the speed of vtok on this machine; claims are ratios of figures of one run.

    scripts/benchmark.py [--threads 2] [--runs 3] [--dtype float32] [--json FILE]
    scripts/benchmark.py --model NAME [--device cuda] ...    speed and memory of models

Targets are in parentheses. Each row has the CPU milliseconds per frame, child processes included.
Rows of whole files also have the fraction of the slower stage's speed that they reach, and that
they would reach if no core were ever idle. Other benchmarks: scripts/benchmark_commands.py
(commands against ffmpeg), scripts/sizes.py (bytes, and time of the entropy coder) and
scripts/benchmark_memory.py.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
import benchmark_models
from benchmark_tools import (
    BEE,
    THREADS,
    add_quick,
    crop_square,
    describe,
    facts,
    make_parser,
    markdown_table,
    read_and_discard,
    read_frames,
    write_json,
    write_video,
)
from processes import VTOK, cpu_seconds, run_command

from vtok.models.load import ModelCache, load
from vtok.pipeline.codec import Decoder, Encoder
from vtok.pipeline.decode import decode_file
from vtok.pipeline.encode import encode_file
from vtok.pipeline.options import DecodeOptions, EncodeOptions
from vtok.video.decoder_process import Decoder as DecoderProcess

SIDE, FRAMES = 256, 121
OTHER_STAGE = {"encode": "reader", "decode": "writer"}
"""Stage that runs at the same time as the model."""
Speeds = dict[str, "Speed"]


class Speed(NamedTuple):
    """Speed of one kind of work."""

    rate: float  # frames per second of wall time
    cpu_ms: float  # CPU milliseconds per frame


def median_speeds(work: Mapping[str, tuple[int, Callable[[], Any]]], runs: int) -> Speeds:
    """Measure the median speed of each kind of work.

    The kinds take turns, so that other load on the machine affects all of them alike.

    Args:
        work: By name, number of frames and function to call.
        runs: Rounds, after a first one that warms up.
    """
    taken: dict[str, list[Speed]] = {name: [] for name in work}
    for number in range(runs + 1):
        for name, (frames, function) in work.items():
            begin, before = time.perf_counter(), cpu_seconds()
            function()
            seconds, spent = time.perf_counter() - begin, cpu_seconds() - before
            taken[name] += [Speed(frames / seconds, 1000 * spent / frames)] if number else []
    return {
        name: Speed(*map(statistics.median, zip(*rounds, strict=True)))
        for name, rounds in taken.items()
    }


def speeds_of(folder: Path, runs: int, most: int, dtype: str) -> Speeds:
    """Measure the model, the reader, the writer, and encoding and decoding of files.

    Args:
        folder: Folder for files.
        runs: Number of rounds.
        most: Frames of the clip; the 480p clip has about a quarter.
        dtype: As in `vtok.load`.
    """
    frames = crop_square(read_frames(BEE, str(SIDE)))[:most]
    wide = read_frames(BEE, "480")[: 1 + most // 16 * 4]
    video = folder / "bee.mp4"
    code_file, packed_file, decoded = (folder / name for name in ("a.vtok", "b.vtok", "a.mp4"))
    write_video(video, frames)
    model, models = load(dtype=dtype), ModelCache(dtype=dtype)
    models.get("vtok-base")
    chunks = list(Encoder(model).encode([frames]))
    entropy_coded, back = EncodeOptions(overwrite=True), DecodeOptions(overwrite=True)
    plain = replace(entropy_coded, compress=False)

    decoder = DecoderProcess()  # shared, since scripts/benchmark_commands.py measures its start

    def encode(output: Path, options: EncodeOptions) -> Callable[[], Any]:
        return lambda: encode_file(video, output, model=model, options=options, decoder=decoder)

    def decode(source: Path) -> Callable[[], Any]:
        return lambda: decode_file(source, decoded, model=models, options=back)

    work: dict[str, Callable[[], Any]] = {
        "model encode": lambda: list(Encoder(model).encode([frames])),
        "model encode, --fast": lambda: list(Encoder(model, fast=True).encode([frames])),
        "model decode": lambda: list(Decoder(model, (SIDE, SIDE)).decode(chunks)),
        "reader": lambda: read_and_discard(video, decoder),
        "writer": lambda: write_video(decoded, frames),
        "encode file": encode(code_file, entropy_coded),
        "decode file": decode(code_file),
        "encode file, --no-compress": encode(packed_file, plain),
        "decode file, packed": decode(packed_file),
    }
    counted = {name: (len(frames), function) for name, function in work.items()}
    counted["model encode, 480p"] = (len(wide), lambda: list(Encoder(model).encode([wide])))
    return median_speeds(counted, runs)


def shares(speeds: Speeds, threads: int) -> dict[str, tuple[float, float]]:
    """Compute speeds of whole files relative to the slower stage: measured, without idle cores."""
    found = {}
    for kind, other in OTHER_STAGE.items():
        slower = min(speeds[f"model {kind}"].rate, speeds[other].rate)
        for name in (name for name in speeds if name.startswith(f"{kind} file")):
            possible = min(slower, 1000 * threads / speeds[name].cpu_ms)
            found[name] = (speeds[name].rate / slower, possible / slower)
    return found


def table(speeds: Speeds, threads: int) -> str:
    """Format speeds as a Markdown table."""
    heads = ("work", "frames/s", "CPU ms per frame")
    heads += ("fraction of slower stage (0.85)", "without idle cores")
    found = shares(speeds, threads)
    rows = []
    for name, speed in speeds.items():
        cells = [name, f"{speed.rate:.3g}", f"{speed.cpu_ms:.3g}"]
        rows.append(cells + ([f"{share:.2f}" for share in found.get(name, ())] or ["", ""]))
    return markdown_table(heads, rows)


def operations() -> dict[str, float]:
    """Count multiply-adds per pixel of encoder and decoder, in thousands."""
    tokenizer = load(device="cpu", dtype="float32").tokenizer
    clip = torch.zeros(1, 3, 129, 64, 64)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        latents = tokenizer.encode(clip)
    encoding = counter.get_total_flops()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        tokenizer.decode(latents)
    flops = {"encoder": encoding, "decoder": counter.get_total_flops()}
    return {name: count / 2 / 1000 / (129 * 64 * 64) for name, count in flops.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print tables and write JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--runs", type=int, default=3, help="rounds of each measurement")
    benchmark_models.add_model_options(parser)
    add_quick(parser)
    args = parser.parse_args(arguments)
    if args.model:
        benchmark_models.run(args)
        return
    torch.set_num_threads(args.threads)
    runs, most = (1, 5) if args.quick else (args.runs, FRAMES)
    with tempfile.TemporaryDirectory(prefix="vtok-speed-") as name:
        speeds = speeds_of(Path(name), runs, most, args.dtype)
    help_seconds = [run_command([*VTOK, "--help"]).seconds for _ in range(runs + 1)]
    figures = {
        "model encode / 5 times real time (1)": speeds["model encode"].rate / 150,
        "model encode, 480p / real time (1)": speeds["model encode, 480p"].rate / 30,
        **{f"{key} (kMAC/pixel)": value for key, value in operations().items()},
        "vtok --help (s)": statistics.median(help_seconds[1:]),
    }
    model = load(dtype=args.dtype)
    machine = facts(args.threads, model.dtype_name) | {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": str(model.device),
        "weights": model.info.weights_sha256[:12],
    }
    named = {name: speed._asdict() for name, speed in speeds.items()}
    about = {"machine": machine, "speeds": named, "shares": shares(speeds, args.threads)}
    write_json(args.json, {**about, "figures": figures})
    print(describe(machine))
    print(f"{SIDE}x{SIDE} unless stated otherwise, medians of {runs} rounds\n")
    print(table(speeds, args.threads))
    rows = [(name, f"{value:.3g}") for name, value in figures.items()]
    print(f"\n{markdown_table(('figure', 'value'), rows)}")


if __name__ == "__main__":
    main()
