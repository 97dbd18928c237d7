#!/usr/bin/env python
"""Speed and memory of vtok on this machine, in one run: what is claimed is a ratio of these.

scripts/benchmark.py [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import vtok
from vtok.codec.decode import DecodeOptions, decode_file
from vtok.codec.encode import EncodeOptions, encode_file
from vtok.codec.streams import decode_codes, encode_frames
from vtok.codefile import CodeFileReader, encode_parts, packed_length
from vtok.codefile.parts import decode_parts
from vtok.evaluation.metrics import Frames
from vtok.media.reader import VideoReader
from vtok.media.writer import VideoWriter
from vtok.model import Models, load_model

BEE = Path(__file__).resolve().parent.parent / "examples" / "bee.mp4"
SIDE, FRAMES = 256, 241  # 60 latent steps and the first frame's
PEAK = """
import resource
from vtok.cli.app import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make_video(path: Path, frames: Frames, repeats: int = 1) -> None:
    """Write frames, forth and back, as an mp4 of 30 frames a second."""
    with VideoWriter(path, width=SIDE, height=SIDE, fps=Fraction(30), overwrite=True) as writer:
        for number in range(repeats):
            writer.write(frames if number % 2 == 0 else frames[::-1].copy())


def bee_frames() -> Frames:
    """The centre square of the example, uint8 [FRAMES, SIDE, SIDE, 3]."""
    with VideoReader(BEE, size=str(SIDE)) as reader:
        frames = np.concatenate(list(reader))
    left = (frames.shape[2] - SIDE) // 2
    square = frames[:, :, left : left + SIDE]
    return np.ascontiguousarray(np.concatenate((square, square[::-1]))[:FRAMES])


def median_rate(work: Callable[[], Any], runs: int) -> float:
    """Median frames a second of `work` on FRAMES frames, after one warm-up."""
    work()
    rates = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        rates.append(FRAMES / (time.perf_counter() - begin))
    return statistics.median(rates)


def rates(folder: Path, runs: int) -> dict[str, float]:
    """Frames a second of the model alone, the reader alone, and whole commands."""
    frames, video = bee_frames(), folder / "bee.mp4"
    code_file, decoded = folder / "bee.vtok", folder / "bee.decoded.mp4"
    make_video(video, frames)
    model, models = load_model(), Models()
    models.get("vtok-base")
    chunks = list(encode_frames([frames], model))
    how, back = EncodeOptions(overwrite=True), DecodeOptions(overwrite=True)
    packed_file, plain = folder / "packed.vtok", replace(how, compress=False)
    encode_file(video, code_file, model=model, options=how)
    encode_file(video, packed_file, model=model, options=plain)

    def read() -> None:
        with VideoReader(video) as reader:
            for _ in reader:
                pass

    def write() -> None:
        make_video(decoded, frames)

    work: dict[str, Callable[[], Any]] = {
        "model encode": lambda: list(encode_frames([frames], model)),
        "model decode": lambda: list(decode_codes(chunks, model, (SIDE, SIDE))),
        "reader": read,
        "writer": write,
        "encode file": lambda: encode_file(video, code_file, model=model, options=how),
        "decode file": lambda: decode_file(code_file, decoded, models=models, options=back),
        "encode file, --no-compress": lambda: encode_file(
            video, packed_file, model=model, options=plain
        ),
        "decode file, packed": lambda: decode_file(
            packed_file, decoded, models=models, options=back
        ),
    }
    return {name: median_rate(function, runs) for name, function in work.items()}


def coder_costs(folder: Path) -> dict[str, float]:
    """Processor seconds of entropy coding and decoding over the model's own, and bytes over packed.

    Of the codes of `bee_frames`, on one thread, by how many stages are coded; after `rates`.
    """
    torch.set_num_threads(1)
    frames, model = bee_frames(), load_model()
    with (folder / "bee.vtok").open("rb") as stream:
        layout = CodeFileReader(stream).header.format
    costs = {}
    for stages in sorted({1, 2, 4, layout.num_stages} & set(range(1, layout.num_stages + 1))):
        begin = time.process_time()
        chunks = list(encode_frames([frames], model, stages))
        for _ in decode_codes(chunks, model, (SIDE, SIDE)):
            pass
        model_seconds = time.process_time() - begin
        begin = time.process_time()
        coded = [encode_parts(chunk.codes, layout, compress=True) for chunk in chunks]
        for parts, chunk in zip(coded, chunks, strict=True):
            decode_parts(parts, chunk.codes.shape[2], layout)
        seconds = time.process_time() - begin
        plain = sum(packed_length(layout.bits_per_code, chunk.codes.size) for chunk in chunks)
        size = sum(len(part.data) for parts in coded for part in parts)
        costs[f"coder / model seconds, {stages} stages"] = seconds / model_seconds
        costs[f"coded / packed bytes, {stages} stages"] = size / plain
    return costs


def peak_memory(folder: Path) -> dict[str, float]:
    """Peak megabytes of `vtok encode` on a clip, and on one ten times as long."""
    frames = bee_frames()[:97]
    peaks = {}
    for name, repeats in (("encode 97 frames", 1), ("encode 970 frames", 10)):
        video = folder / "long.mp4"
        make_video(video, frames, repeats)
        command = [sys.executable, "-c", PEAK, "encode", video, "-q", "--overwrite"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = int(done.stdout.split()[-1]) / 1024
    return peaks


def operations() -> dict[str, float]:
    """Multiply-adds a pixel of the encoder and the decoder, in thousands."""
    tokenizer = load_model(device="cpu", dtype="float32").tokenizer
    clip = torch.zeros(1, 3, 129, 64, 64)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        latents = tokenizer.encode(clip)
    encoding = counter.get_total_flops()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        tokenizer.decode(latents)
    flops = {"encoder": encoding, "decoder": counter.get_total_flops()}
    return {name: count / 2 / 1000 / (129 * 64 * 64) for name, count in flops.items()}


def help_seconds(runs: int) -> float:
    """Median wall seconds of `vtok --help`."""
    seconds = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "vtok", "--help"], stdout=subprocess.DEVNULL, check=True
        )
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = load_model()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": model.dtype_name,
        "device": str(model.device),
        "torch": torch.__version__,
        "vtok": vtok.__version__,
        "weights": model.info.weights_sha256[:12],
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        speeds = rates(Path(name), args.runs)
        costs = coder_costs(Path(name))
        peaks = peak_memory(Path(name))
    slower_encode = min(speeds["model encode"], speeds["reader"])
    slower_decode = min(speeds["model decode"], speeds["writer"])
    short, long = peaks.values()
    figures = {
        **{f"{key} (frames/s)": value for key, value in speeds.items()},
        "encode file / slower of model and reader": speeds["encode file"] / slower_encode,
        "decode file / slower of model and writer": speeds["decode file"] / slower_decode,
        "encode file / the same, --no-compress": speeds["encode file"]
        / speeds["encode file, --no-compress"],
        "decode file / the same, packed": speeds["decode file"] / speeds["decode file, packed"],
        **costs,
        **{f"{key} (peak MB)": value for key, value in peaks.items()},
        "memory of ten times the length": long / short,
        **{f"{key} (kMAC/pixel)": value for key, value in operations().items()},
        "vtok --help (s)": help_seconds(args.runs),
    }
    if args.json:
        print(json.dumps({"machine": machine(), "figures": figures}))
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(f"{SIDE}x{SIDE}, {FRAMES} frames, median of {args.runs} runs\n")
    print("| figure | value |\n|---|---|")
    for key, value in figures.items():
        print(f"| {key} | {value:.3g} |")


if __name__ == "__main__":
    main()
