#!/usr/bin/env python
"""Speed of `vtok dataset encode` against decoding alone and the model alone, in one run.

scripts/benchmark_dataset.py [VIDEO ...] [--clips 500] [--workers N] [--json]

Also memory for one and four times the clips, and how long it takes to find that 10,000 clips are
done. How runs that are killed end is tested: VTOK_KILLS=50 scripts/test -m slow -k killed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vtok.codec.batches import share_model
from vtok.codec.streams import encode_frames
from vtok.dataset.api import DatasetOptions, encode_dataset
from vtok.dataset.folder import WHOLE, DatasetFolder
from vtok.dataset.journal import read_journal
from vtok.evaluation.metrics import Frames
from vtok.media.decoder import Decoder
from vtok.media.reader import VideoReader
from vtok.media.writer import VideoWriter
from vtok.model import load_model

BEE = Path(__file__).resolve().parent.parent / "examples" / "bee.mp4"
DISTINCT = 16
PEAK = """
import resource, sys
from vtok.dataset.api import DatasetOptions, encode_dataset
from vtok.dataset.sources import Inputs
encode_dataset(Inputs([sys.argv[1]]), sys.argv[2], options=DatasetOptions(workers=int(sys.argv[3])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def make_clips(folder: Path, videos: Sequence[Path], clips: int, frames: int, side: int) -> None:
    """Short clips of the centre of videos, in turn; a few distinct ones under many names."""
    folder.mkdir()
    for number in range(min(DISTINCT, clips)):
        with VideoReader(videos[number % len(videos)], size=str(side)) as reader:
            shown = np.concatenate(list(reader))
        first = number * 7 % max(1, len(shown) - frames + 1)
        left = (shown.shape[2] - side) // 2
        square = np.ascontiguousarray(shown[first : first + frames, :side, left : left + side])
        path = folder / f"{number:05d}.mp4"
        with VideoWriter(path, width=side, height=side, fps=Fraction(30)) as writer:
            writer.write(square)
    for number in range(DISTINCT, clips):
        shutil.copy(folder / f"{number % DISTINCT:05d}.mp4", folder / f"{number:05d}.mp4")


def rate(work: Callable[[Path], int], paths: Sequence[Path], workers: int) -> float:
    """Frames a second of `work` on every path, in so many threads."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        frames = sum(pool.map(work, paths))
    return frames / (time.perf_counter() - begin)


def decode_rate(paths: Sequence[Path], workers: int) -> float:
    """Frames a second of decoding alone, by as many decoding processes."""
    idle = [Decoder() for _ in range(workers)]
    for decoder in idle:  # their start is paid once in a long run
        with VideoReader(paths[0], decoder=decoder) as reader:
            list(reader)

    def work(path: Path) -> int:
        decoder = idle.pop()
        with VideoReader(path, decoder=decoder) as reader:
            count = sum(map(len, reader))
        idle.append(decoder)
        return count

    try:
        return rate(work, paths, workers)
    finally:
        for decoder in idle:
            decoder.close()


def model_rate(paths: Sequence[Path], workers: int) -> float:
    """Frames a second of the model alone, on frames that are in memory."""
    model = share_model(load_model(), 1)
    held: dict[str, Frames] = {}
    for path in paths[:DISTINCT]:
        with VideoReader(path) as reader:
            held[path.name] = np.concatenate(list(reader))
    shown = [held[path.name] for path in paths[:DISTINCT]]

    def work(path: Path) -> int:
        frames = shown[int(path.stem) % len(shown)]
        return sum(chunk.num_frames for chunk in encode_frames([frames], model))

    work(paths[0])
    return rate(work, paths, workers)


def whole_rate(folder: Path, output: Path, workers: int, to: str) -> float:
    """Frames a second of a run over all clips, from the first to the last."""
    options = DatasetOptions(to=to, workers=workers)
    totals = encode_dataset([folder], output / to, options=options)
    return totals.frames / totals.seconds


def peak_mb(folder: Path, output: Path, workers: int) -> float:
    """Peak memory of a process that encodes all clips, in MB; its decoders not counted."""
    command = [sys.executable, "-c", PEAK, folder, output, workers]
    done = subprocess.run(map(str, command), capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def resume_seconds(folder: Path, output: Path, clips: int) -> float:
    """Wall seconds of the command on a folder where everything is done already."""
    video = next(iter(sorted(folder.glob("*.mp4"))))
    many, done = output / "in", output / "out"
    many.mkdir(parents=True)
    os.link(video, many / "00000.mp4")
    command = [sys.executable, "-m", "vtok", "dataset", "encode", many, "-o", done, "-q"]
    subprocess.run(map(str, command), check=True)
    path = DatasetFolder(done).journal(WHOLE)
    record = next(record for _, record in read_journal(path) if record["kind"] == "clip")
    with path.open("a") as file:
        for number in range(1, clips):
            id_ = f"{number:05d}"
            os.link(video, many / f"{id_}.mp4")
            os.link(done / "00000.vtok", done / f"{id_}.vtok")
            file.write(json.dumps({**record, "id": id_, "output": f"{id_}.vtok"}) + "\n")
    begin = time.perf_counter()
    subprocess.run(map(str, command), check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="*", type=Path, default=[BEE])
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--finished", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_clips(folder / "in", args.videos, args.clips, args.frames, args.side)
        paths = sorted((folder / "in").glob("*.mp4"))
        figures["decoding alone (frames/s)"] = decode_rate(paths, args.workers)
        figures["model alone (frames/s)"] = model_rate(paths, args.workers)
        slower = min(figures.values())
        for to in ("tar", "vtok"):  # arrays, and entropy-coded files: coding takes its time too
            whole = whole_rate(folder / "in", folder / "out", args.workers, to)
            figures[f"end to end, --to {to} (frames/s)"] = whole
            figures[f"end to end, --to {to} / slower of the two"] = whole / slower
        few = folder / "few"
        few.mkdir()
        for path in paths[: max(1, args.clips // 4)]:
            os.link(path, few / path.name)
        figures["memory of a quarter of the clips (MB)"] = peak_mb(few, folder / "a", args.workers)
        figures["memory of all clips (MB)"] = peak_mb(folder / "in", folder / "b", args.workers)
        resumed = resume_seconds(folder / "in", folder / "resume", args.finished)
        figures[f"finding {args.finished:,} clips done (s)"] = resumed
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    about = {"clips": args.clips, "frames": args.frames, "side": args.side,
             "workers": args.workers, "cores": os.cpu_count(), "own_mb": round(own)}  # fmt: skip
    if args.json:
        print(json.dumps({"about": about, "figures": figures}))
        return
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("\n| figure | value |\n|---|---|")
    for key, value in figures.items():
        print(f"| {key} | {value:.3g} |")


if __name__ == "__main__":
    main()
