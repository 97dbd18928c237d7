#!/usr/bin/env python
"""Measure `vtok encode` and `vtok decode` as commands, against their parts and against ffmpeg.

    scripts/benchmark_commands.py [--threads 2] [--runs 3] [--json FILE]

A short and a long clip separate start-up time from speed. x264, x265 and AV1 encode to about as
many bytes as the code file; their decoders discard the RGB frames, while `vtok decode` writes an
mp4. All processes are bound to as many cores as there are threads. PSNR compares the frames of the
clip with those decoded from the file that the command wrote.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
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
    crop_square,
    describe,
    facts,
    log,
    make_parser,
    markdown_table,
    read_and_discard,
    read_frames,
    write_json,
    write_video,
)
from processes import VTOK, run_command

from vtok.errors import UsageError
from vtok.evaluation.classic import CODECS, Codec, RateMatcher, find_codec
from vtok.evaluation.metrics import psnr
from vtok.models.load import LoadedTokenizer, load
from vtok.pipeline.codec import Decoder, Encoder
from vtok.video.ffmpeg import ffmpeg_path
from vtok.video.frames import Frames

# the quality settings of vtok.evaluation.classic, without its limit on threads
QUALITY = {
    "libx264": ("-preset", "medium", "-crf", "{crf}"),
    "libx265": ("-preset", "medium", "-crf", "{crf}", "-x265-params", "log-level=error"),
    "libsvtav1": ("-preset", "6", "-svtav1-params", "crf={crf}"),
    "libaom-av1": ("-cpu-used", "6", "-crf", "{crf}", "-b:v", "0"),
}
QUIET = ("-hide_banner", "-nostdin", "-loglevel", "error", "-y")
DEFAULT_CRF = 30.0  # if bytes are not matched
HEADS = (
    "coder", "bytes", "bits per pixel", "PSNR dB", "encode frames/s", "decode frames/s",
    "encode MB", "decode MB",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Time and memory of one run."""

    seconds: float
    peak_mb: float | None = None  # for a command; None for a call in this process


@dataclass(frozen=True)
class Row:
    """Coder to measure, or a part of one."""

    name: str
    encode: Callable[[], Cost]
    decode: Callable[[], Cost]
    coded: Path | None = None  # file that `encode` writes; None for a part
    back: Path | None = None  # video to compare with the clip; None for a part


def measure_command(*words: str | Path) -> Callable[[], Cost]:
    """Make a function that measures a command, start-up included."""

    def work() -> Cost:
        result = run_command(words)
        return Cost(result.seconds, result.peak_mb)

    return work


def measure_call(function: Callable[[], Any]) -> Callable[[], Cost]:
    """Make a function that measures a call in this process."""

    def work() -> Cost:
        begin = time.perf_counter()
        function()
        return Cost(time.perf_counter() - begin)

    return work


def vtok_rows(folder: Path, clip: Path, frames: Frames, model: LoadedTokenizer) -> list[Row]:
    """List the commands, the model alone, and reading and writing videos alone."""
    coded, back, spare = (folder / name for name in ("a.vtok", "a.mp4", "spare.mp4"))
    chunks, size = list(Encoder(model).encode([frames])), frames.shape[1:3]
    return [
        Row(
            "`vtok encode`, `vtok decode`",
            measure_command(*VTOK, "encode", clip, "-o", coded, "-q", "--overwrite"),
            measure_command(*VTOK, "decode", coded, "-o", back, "-q", "--overwrite"),
            coded,
            back,
        ),
        Row(
            "model only",
            measure_call(lambda: list(Encoder(model).encode([frames]))),
            measure_call(lambda: list(Decoder(model, size).decode(chunks))),
        ),
        Row(
            "video reader and writer only",
            measure_call(lambda: read_and_discard(clip)),
            measure_call(lambda: write_video(spare, frames)),
        ),
    ]


def classic_row(folder: Path, clip: Path, codec: Codec, crf: float) -> Row:
    """Describe ffmpeg with one codec."""
    coded = folder / f"{codec.encoder}.mkv"
    return Row(
        f"ffmpeg, {codec.description}",
        measure_command(*encoding(clip, coded, codec, crf)),
        measure_command(
            *(ffmpeg_path(), *QUIET, "-i", coded, "-pix_fmt", "rgb24", "-f", "rawvideo", os.devnull)
        ),
        coded,
        coded,
    )


def encoding(clip: Path, coded: Path, codec: Codec, crf: float) -> list[str | Path]:
    """Make the ffmpeg command that encodes a clip."""
    quality = [word.format(crf=f"{crf:g}") for word in QUALITY[codec.encoder]]
    return [ffmpeg_path(), *QUIET, "-i", clip, "-an", "-c:v", codec.encoder, *quality, coded]


def match_bytes(folder: Path, clip: Path, codec: Codec, target: int) -> float:
    """Find the constant rate factor at which a codec needs about `target` bytes for a clip."""
    trial = folder / "trial.mkv"

    def bytes_at(crf: float) -> int:
        run_command(encoding(clip, trial, codec, crf))
        return trial.stat().st_size

    return RateMatcher(codec, bytes_at).match(target)[0]


def measure_rows(rows: Sequence[Row], frames: Frames, runs: int) -> list[dict[str, Any]]:
    """Measure the rows in turn; times are medians over rounds."""
    taken: dict[str, list[tuple[Cost, Cost]]] = {row.name: [] for row in rows}
    for number in range(runs):
        for row in rows:
            taken[row.name].append((row.encode(), row.decode()))
            log(f"round {number + 1} of {runs}, {len(frames)} frames: {row.name}")
    found = []
    for row in rows:
        figures: dict[str, Any] = {"coder": row.name}
        for index, name in enumerate(("encode", "decode")):
            costs = [pair[index] for pair in taken[row.name]]
            figures[f"{name} s"] = statistics.median(cost.seconds for cost in costs)
            figures[f"{name} fps"] = len(frames) / figures[f"{name} s"]
            if costs[0].peak_mb is not None:
                figures[f"{name} MB"] = max(cost.peak_mb or 0 for cost in costs)
        if row.coded is not None and row.back is not None:
            figures["bytes"] = row.coded.stat().st_size
            figures["bpp"] = 8 * figures["bytes"] / (frames.size / 3)
            figures["psnr"] = psnr(read_frames(row.back), frames)
        found.append(figures)
    return found


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Measure a short and a long clip; returns rows by number of frames."""
    model = load(device="cpu", dtype="float32")
    frames = crop_square(read_frames(BEE, "256"))
    if args.quick:
        frames = np.ascontiguousarray(frames[:9, :64, :64])
    factors: dict[Codec, float] = {}
    found = {}
    for times in (1, args.times):
        clip = folder / f"clip{times}.mp4"
        write_video(clip, np.concatenate([frames] * times))
        seen = read_frames(clip)
        ours = vtok_rows(folder, clip, seen, model)
        if not factors:
            ours[0].encode()
            target = ours[0].coded.stat().st_size if ours[0].coded else 0
            for codec in codecs():
                factors[codec] = DEFAULT_CRF
                if not args.quick:
                    factors[codec] = match_bytes(folder, clip, codec, target)
                log(f"{codec.description}: crf {factors[codec]:g}")
        classic = [classic_row(folder, clip, codec, crf) for codec, crf in factors.items()]
        found[str(len(seen))] = measure_rows(
            [*ours, *classic], seen, args.runs if times == 1 else 1
        )
    return found


def codecs() -> list[Codec]:
    """List the codecs that this ffmpeg supports."""
    found = []
    for name in CODECS:
        try:
            found.append(find_codec(name))
        except UsageError as error:
            log(str(error))
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of one clip as a Markdown table."""
    forms = {
        "bytes": ",", "bpp": ".4f", "psnr": ".2f", "encode fps": ".3g", "decode fps": ".3g",
        "encode MB": ",.0f", "decode MB": ",.0f",
    }  # fmt: skip
    cells = [
        [format(row[key], form) if key in row else "" for key, form in forms.items()]
        for row in rows
    ]
    return markdown_table(
        HEADS, [[row["coder"], *rest] for row, rest in zip(rows, cells, strict=True)]
    )


def start_and_rate(found: dict[str, list[dict[str, Any]]]) -> str:
    """Estimate start-up seconds and frames/s from both clips, by a straight line."""
    (few, short), (many, long) = found.items()
    rows = []
    for a, b in zip(short, long, strict=True):
        if "bytes" not in a:
            continue
        cells = [a["coder"]]
        for name in ("encode", "decode"):
            each = (b[f"{name} s"] - a[f"{name} s"]) / (int(many) - int(few))
            start = max(0.0, a[f"{name} s"] - int(few) * each)
            cells += [f"{start:.2f}", f"{1 / each:.3g}"] if each > 0 else ["", ""]
        rows.append(cells)
    heads = (
        "coder",
        "encode start-up s",
        "encode frames/s",
        "decode start-up s",
        "decode frames/s",
    )
    return markdown_table(heads, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print tables and write JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--runs", type=int, default=3, help="rounds with the short clip")
    parser.add_argument(
        "--times", type=int, default=10, help="length of the long clip, in short clips"
    )
    add_quick(parser)
    args = parser.parse_args(arguments)
    if args.quick:
        args.runs, args.times = 1, 2
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="vtok-commands-") as name:
        found = measure(args, Path(name))
    machine = facts(args.threads, "float32") | {"ffmpeg": Path(ffmpeg_path()).name}
    write_json(args.json, {"machine": machine, "rows": found})
    print(describe(machine))
    for frames, rows in found.items():
        print(f"\n{frames} frames\n\n{table(rows)}")
    print(f"\nStart-up time and speed, from both clips:\n\n{start_and_rate(found)}")


if __name__ == "__main__":
    main()
