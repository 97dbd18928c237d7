#!/usr/bin/env python
"""Measure `vtok dataset encode` against decoding alone and the model alone, in one run.

    scripts/benchmark_dataset.py [VIDEO ...] [--clips 500] [--workers N] [--json FILE]

It also measures memory for different numbers of videos, and the time of a run in which 10,000 items
are up to date. It takes about six minutes on two idle cores; on a busy machine the ratios are
meaningless.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from benchmark_tools import (
    BEE,
    crop_square,
    describe,
    make_parser,
    markdown_table,
    read_and_discard,
    read_frames,
    write_json,
    write_video,
)

from vtok.dataset.folder import WHOLE, DatasetFolder
from vtok.dataset.plan import read_journal
from vtok.models.load import load
from vtok.pipeline._runtime import many_videos
from vtok.pipeline.codec import Encoder
from vtok.video.decoder_process import Decoder

DISTINCT = 16  # videos with different frames; the others are copies
MODEL_CLIPS = 96
"""Videos for the speed of the model alone, which does not depend on their number."""
RUN = """
import json, re, sys, time
from pathlib import Path
begin = time.perf_counter()
from vtok import DatasetOptions, encode_dataset
folder, output, to, workers = sys.argv[1:]
totals = encode_dataset([folder], output, options=DatasetOptions(to=to, workers=int(workers)))
most = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
peak = int(most[1]) / 1024  # getrusage includes the memory of the parent
print(json.dumps([totals.frames / (time.perf_counter() - begin), peak]))
"""


def make_clips(folder: Path, videos: Sequence[Path], clips: int, frames: int, side: int) -> None:
    """Cut short square videos, a few distinct ones under many names."""
    folder.mkdir()
    for number in range(min(DISTINCT, clips)):
        shown = read_frames(videos[number % len(videos)], str(side))
        first = number * 7 % max(1, len(shown) - frames + 1)
        square = crop_square(shown[first : first + frames, :side])
        write_video(folder / f"{number:05d}.mp4", square)
    for number in range(DISTINCT, clips):
        shutil.copy(folder / f"{number % DISTINCT:05d}.mp4", folder / f"{number:05d}.mp4")


def rate(work: Callable[[Path], int], paths: Sequence[Path], workers: int) -> float:
    """Measure frames per second of `work` on every path, with a number of threads."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        frames = sum(pool.map(work, paths))
    return frames / (time.perf_counter() - begin)


def decode_rate(paths: Sequence[Path], workers: int) -> float:
    """Measure frames per second of decoding alone, with one decoder process per worker."""
    idle = [Decoder() for _ in range(workers)]
    for decoder in idle:  # start-up does not count: it happens once per run
        read_and_discard(paths[0], decoder)

    def work(path: Path) -> int:
        decoder = idle.pop()
        count = read_and_discard(path, decoder)
        idle.append(decoder)
        return count

    try:
        return rate(work, paths, workers)
    finally:
        for decoder in idle:
            decoder.close()


def model_rate(paths: Sequence[Path], workers: int) -> float:
    """Measure frames per second of the model alone, on frames in memory."""
    model = load()
    shown = [read_frames(path) for path in paths[:DISTINCT]]

    def work(path: Path) -> int:
        frames = shown[int(path.stem) % len(shown)]
        return sum(chunk.num_frames for chunk in Encoder(model).encode([frames]))

    with many_videos(model.device):
        work(paths[0])
        return rate(work, paths, workers)


def whole_run(folder: Path, output: Path, workers: int, to: str) -> tuple[float, float]:
    """Encode all videos in a separate process.

    Returns:
        Frames per second, including imports and the manifest; and peak memory in MB, without that
        of the decoder processes.
    """
    command = [sys.executable, "-c", RUN, folder, output, to, workers]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    speed, peak = json.loads(done.stdout.splitlines()[-1])
    return speed, peak


def resume_seconds(folder: Path, output: Path, clips: int) -> tuple[float, float]:
    """Measure wall and CPU seconds of the command if everything is up to date."""
    video = next(iter(sorted(folder.glob("*.mp4"))))
    many, done = output / "in", output / "out"
    many.mkdir(parents=True)
    os.link(video, many / "00000.mp4")
    command = [sys.executable, "-m", "vtok", "dataset", "encode", many, "-o", done, "-q"]
    subprocess.run(map(str, command), check=True)
    path = DatasetFolder(done).journal(WHOLE)
    record = next(record for _, record in read_journal(path) if record["kind"] == "item")
    with path.open("a") as file:
        for number in range(1, clips):
            id_ = f"{number:05d}"
            os.link(video, many / f"{id_}.mp4")
            os.link(done / "00000.vtok", done / f"{id_}.vtok")
            file.write(json.dumps({**record, "id": id_, "output": f"{id_}.vtok"}) + "\n")
    subprocess.run(map(str, command), check=True)  # writes the manifest
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(map(str, command), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begin, spent


def main() -> None:
    """Print a table and write JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("videos", nargs="*", type=Path, default=[BEE])
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--finished", type=int, default=10_000)
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_clips(folder / "in", args.videos, args.clips, args.frames, args.side)
        paths = sorted((folder / "in").glob("*.mp4"))
        figures["decoding alone (frames/s)"] = decode_rate(paths, args.workers)
        figures["model alone (frames/s)"] = model_rate(paths[:MODEL_CLIPS], args.workers)
        slower = min(figures.values())
        for to in ("tar", "vtok"):  # arrays, and entropy-coded files
            whole, peak = whole_run(folder / "in", folder / to, args.workers, to)
            figures[f"end to end, --to {to} (frames/s)"] = whole
            figures[f"end to end, --to {to} / slower of the two"] = whole / slower
        figures["memory of all clips (MB)"] = peak
        few = folder / "few"
        few.mkdir()
        for path in paths[: max(1, args.clips // 4)]:
            os.link(path, few / path.name)
        _, figures["memory of a quarter of the clips (MB)"] = whole_run(
            few, folder / "quarter", args.workers, "vtok"
        )
        wall, spent = resume_seconds(folder / "in", folder / "resume", args.finished)
        figures[f"finding {args.finished:,} items up to date (s)"] = wall
        figures[f"finding {args.finished:,} items up to date (CPU s)"] = spent
    about = {"clips": args.clips, "frames": args.frames, "side": args.side,
             "workers": args.workers, "cores": os.cpu_count()}  # fmt: skip
    write_json(args.json, {"about": about, "figures": figures})
    rows = [(name, f"{value:.3g}") for name, value in figures.items()]
    print(f"{describe(about)}\n\n{markdown_table(('figure', 'value'), rows)}")


if __name__ == "__main__":
    main()
