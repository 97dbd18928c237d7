#!/usr/bin/env python
"""Speed of vtok on this machine, in one run: what is claimed is a ratio of these figures.

    scripts/benchmark.py [--threads 2] [--runs 3] [--json FILE]

In parentheses is what a ratio is to reach. Of each piece of work there are the milliseconds of
processors that a frame takes, in this process and those below it; of whole files also the share of
the slower stage's speed that they would reach if no core were ever idle. Elsewhere: commands as
processes, beside ffmpeg, are scripts/benchmark_commands.py; bytes, and the entropy coder's time
over the model's, are scripts/sizes.py; memory is scripts/benchmark_memory.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where a test runs this by its path
from machine import facts, line
from processes import cpu_seconds

from vtok.models.load import ModelCache, load
from vtok.pipeline.codec import Decoder, Encoder
from vtok.pipeline.decode import decode_file
from vtok.pipeline.encode import encode_file
from vtok.pipeline.options import DecodeOptions, EncodeOptions
from vtok.video.decoder_process import Decoder as DecoderProcess
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader
from vtok.video.writer import VideoWriter

BEE = Path(__file__).resolve().parent.parent / "examples" / "bee.mp4"
SIDE, FRAMES = 256, 121
OTHER_STAGE = {"encode": "reader", "decode": "writer"}
"""What works beside the model."""
Speeds = dict[str, "Speed"]


def make_video(path: Path, frames: Frames) -> None:
    """Write frames as an mp4 of 30 frames a second."""
    size = {"width": frames.shape[2], "height": frames.shape[1]}
    with VideoWriter(path, **size, fps=Fraction(30), overwrite=True) as writer:
        writer.write(frames)


def read_all(path: Path, decoder: DecoderProcess | None = None) -> None:
    """Read a video, and keep nothing of it."""
    with VideoReader(path, decoder=decoder) as reader:
        for _ in reader:
            pass


def bee_frames(size: str) -> Frames:
    """The example at a size, uint8 [121, H, W, 3]."""
    with VideoReader(BEE, size=size) as reader:
        return np.concatenate(list(reader))


def bee_square() -> Frames:
    """Its centre square, uint8 [121, SIDE, SIDE, 3]."""
    frames = bee_frames(str(SIDE))
    left = (frames.shape[2] - SIDE) // 2
    return np.ascontiguousarray(frames[:, :, left : left + SIDE])


class Speed(NamedTuple):
    """Of a piece of work: frames a second by the clock, milliseconds of processors a frame."""

    rate: float
    spent: float


def median_speeds(work: Mapping[str, tuple[int, Callable[[], Any]]], runs: int) -> Speeds:
    """The speed of each piece of work, the median over rounds in which each has its turn.

    What else a machine does comes and goes, so in turn it meets all of them alike.

    Args:
        work: by name, frames that it handles, and what to call.
        runs: rounds after a first one, which warms up.
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


def speeds_of(folder: Path, runs: int, most: int) -> Speeds:
    """Speeds of the model alone, the reader alone, the writer alone, whole commands.

    Args:
        folder: for files.
        runs: rounds of which to take the median.
        most: frames of the clip; of large ones a quarter of it, or a little more.
    """
    frames, wide = bee_square()[:most], bee_frames("480")[: 1 + most // 16 * 4]
    video = folder / "bee.mp4"
    code_file, packed_file, decoded = (folder / name for name in ("a.vtok", "b.vtok", "a.mp4"))
    make_video(video, frames)
    model, models = load(), ModelCache()
    models.get("vtok-base")
    chunks = list(Encoder(model).encode([frames]))
    how, back = EncodeOptions(overwrite=True), DecodeOptions(overwrite=True)
    plain = replace(how, compress=False)

    decoder = DecoderProcess()  # as for many files: starting one is scripts/benchmark_commands.py's

    def encode(output: Path, options: EncodeOptions) -> Callable[[], Any]:
        return lambda: encode_file(video, output, model=model, options=options, decoder=decoder)

    def decode(source: Path) -> Callable[[], Any]:
        return lambda: decode_file(source, decoded, model=models, options=back)

    work: dict[str, Callable[[], Any]] = {
        "model encode": lambda: list(Encoder(model).encode([frames])),
        "model decode": lambda: list(Decoder(model, (SIDE, SIDE)).decode(chunks)),
        "reader": lambda: read_all(video, decoder),
        "writer": lambda: make_video(decoded, frames),
        "encode file": encode(code_file, how),
        "decode file": decode(code_file),
        "encode file, --no-compress": encode(packed_file, plain),
        "decode file, packed": decode(packed_file),
    }
    counted = {name: (len(frames), function) for name, function in work.items()}
    counted["model encode, 480p"] = (len(wide), lambda: list(Encoder(model).encode([wide])))
    return median_speeds(counted, runs)


def shares(speeds: Speeds, threads: int) -> dict[str, tuple[float, float]]:
    """Of whole files: the speed over that of the slower stage, and the same were no core idle."""
    found = {}
    for kind, other in OTHER_STAGE.items():
        slower = min(speeds[f"model {kind}"].rate, speeds[other].rate)
        for name in (name for name in speeds if name.startswith(f"{kind} file")):
            there = min(slower, 1000 * threads / speeds[name].spent)
            found[name] = (speeds[name].rate / slower, there / slower)
    return found


def table(speeds: Speeds, threads: int) -> Iterator[str]:
    """Lines of Markdown, a piece of work each."""
    yield "| work | frames/s | processor ms a frame | of the slower stage (0.85) | no core idle |"
    yield "|---|---|---|---|---|"
    found = shares(speeds, threads)
    for name, speed in speeds.items():
        cells = [name, f"{speed.rate:.3g}", f"{speed.spent:.3g}"]
        cells += [f"{share:.2f}" for share in found[name]] if name in found else ["", ""]
        yield f"| {' | '.join(cells)} |"


def operations() -> dict[str, float]:
    """Multiply-adds a pixel of the encoder and the decoder, in thousands."""
    tokenizer = load(device="cpu", dtype="float32").tokenizer
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


def machine(threads: int) -> dict[str, str]:
    """What the figures were measured on, and with which weights."""
    model = load()
    return facts(threads, model.dtype_name) | {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": str(model.device),
        "weights": model.info.weights_sha256[:12],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few frames: does all this run?")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    runs, most = (1, 5) if args.quick else (args.runs, FRAMES)
    with tempfile.TemporaryDirectory(prefix="vtok-speed-") as name:
        speeds = speeds_of(Path(name), runs, most)
    figures = {
        "model encode / 5 times real time (1)": speeds["model encode"].rate / 150,
        "model encode, 480p / real time (1)": speeds["model encode, 480p"].rate / 30,
        **{f"{key} (kMAC/pixel)": value for key, value in operations().items()},
        "vtok --help (s)": help_seconds(runs),
    }
    found = machine(args.threads)
    if args.json:
        every = {name: speed._asdict() for name, speed in speeds.items()}
        about = {"machine": found, "speeds": every, "shares": shares(speeds, args.threads)}
        args.json.write_text(json.dumps({**about, "figures": figures}, indent=1) + "\n")
    print(line(found))
    print(f"{SIDE}x{SIDE} where nothing else is said, medians of {runs} rounds\n")
    print("\n".join(table(speeds, args.threads)))
    print("\n| figure | value |\n|---|---|")
    for key, value in figures.items():
        print(f"| {key} | {value:.3g} |")


if __name__ == "__main__":
    main()
