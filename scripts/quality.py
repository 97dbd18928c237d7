#!/usr/bin/env python
"""Quality of a model on videos at every rate, measured as for the model cards.

The first 33 frames, short side scaled down to at most 384, then the centre 256x256 or the largest
multiple of 16 that fits: the part that `vtok eval --card` measures. Prints PSNR per video and rate,
or with --full also SSIM, MS-SSIM, VMAF, and the distance of PSNR to x264 with the same bytes.

    scripts/quality.py validation/*.mp4 --model vtok-base
    scripts/quality.py validation/*.mp4 --full --bits 18,72
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vtok.evaluation.classic import decode_stream, encode_stream, find_codec, make_master
from vtok.evaluation.curves import RatePoint, quality_at
from vtok.evaluation.evaluate import CARD, EvalOptions, Part, evaluate_file, open_clip, stages_of
from vtok.evaluation.metrics import METRICS, check_metrics, has_vmaf, psnr
from vtok.models.load import LoadedTokenizer, load

Row = dict[str, Any]
BELOW = {"below_x264_raw": "raw_bytes", "below_x264_coded": "coded_bytes"}
"""Columns of the distance to x264, and the bytes that x264 may take in each."""
HEADS = {
    "clip": ("clip", ""),
    "bits": ("bits", "d"),
    "raw_bytes": ("raw bytes", ",.0f"),
    "coded_bytes": ("coded bytes", ",.0f"),
    **{name: (metric.label, f".{metric.digits}f") for name, metric in METRICS.items()},
    "below_x264_raw": ("dB below x264, raw", ".2f"),
    "below_x264_coded": ("dB below x264, coded", ".2f"),
}
"""Heading and number format of each column."""
CRF_STEP = 2


def x264_curve(path: Path, part: Part, most_bytes: float) -> list[RatePoint]:
    """Encode a part with x264 from its lowest quality up until it twice exceeds a number of bytes.

    The second point beyond makes the interpolation independent of where the curve ends.

    Returns:
        Bytes of the elementary stream and mean PSNR in dB, at every second constant rate factor.
    """
    codec, curve = find_codec("x264"), []
    with tempfile.TemporaryDirectory(prefix="vtok-") as folder, open_clip(path, part) as clip:
        frames = np.concatenate(list(clip))
        master = make_master(Path(folder) / "master.mkv", [frames], clip.fps)
        stream = Path(folder) / "stream.h264"
        for crf in range(codec.highest, codec.lowest - 1, -CRF_STEP):
            count = encode_stream(master, codec, crf, stream)
            decoded = np.concatenate(list(decode_stream(master, stream)))
            curve.append((float(count), psnr(decoded, frames)))
            if len(curve) > 1 and curve[-2][0] > most_bytes:
                break
    return curve


def measure(
    model: LoadedTokenizer, path: Path, bits: Sequence[int], *, full: bool, part: Part = CARD
) -> list[Row]:
    """Measure one video; one row per rate: its PSNR, or with `full` all of `HEADS`.

    `raw_bytes` are those of the codes at their bits, without header; `coded_bytes` those of the
    code file. A distance to x264 is None if x264 cannot take as few bytes, VMAF if ffmpeg lacks it.
    """
    metrics = tuple(name for name in check_metrics(None) if full and name != "flicker")
    options = EvalOptions(part, tuple(bits), metrics or ("psnr",))
    result = evaluate_file(path, model=model, options=options)
    pixels = result.width * result.height * result.frames
    rows: list[Row] = [
        {
            "clip": path.name,
            "bits": point.bits,
            "raw_bytes": (point.raw_bpp or 0.0) * pixels / 8,
            "coded_bytes": point.bytes,
            **dict.fromkeys(("psnr", "ssim", "ms_ssim", "vmaf") if full else ("psnr",)),
            **point.quality,
        }
        for point in result.points
    ]
    if full:
        most = max(row[name] for row in rows for name in BELOW.values())
        curve = x264_curve(path, part, most)
        for row in rows:
            for name, size in BELOW.items():
                theirs = quality_at(row[size], curve)
                row[name] = None if theirs is None else theirs - row["psnr"]
    return rows


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Mean over the clips of each rate; a column's mean is over the clips that have a value."""
    means = []
    for bits in sorted({row["bits"] for row in rows}):
        mean: Row = {"clip": "mean", "bits": bits}
        same = [row for row in rows if row["bits"] == bits]
        for name in list(rows[0])[2:]:
            known = [row[name] for row in same if row[name] is not None]
            mean[name] = float(np.mean(known)) if known else None
        means.append(mean)
    return means


def print_table(rows: Sequence[Row]) -> None:
    """Print one line per clip and rate in Markdown."""
    print("| " + " | ".join(HEADS[name][0] for name in rows[0]) + " |")
    print("|---" + "|--:" * (len(rows[0]) - 1) + "|")
    for row in rows:
        cells = ["-" if x is None else format(x, HEADS[name][1]) for name, x in row.items()]
        print("| " + " | ".join(cells) + " |")


def print_psnr(by_clip: dict[str, dict[int, float]]) -> None:
    """Print PSNR in Markdown, one line per clip and one column per rate."""
    bits = list(by_clip["mean"])
    print("| clip | " + " | ".join(f"{b} bits" for b in bits) + " |")
    print("|---|" + "---|" * len(bits))
    for name, row in by_clip.items():
        print(f"| {name} | " + " | ".join(f"{row[b]:.2f}" for b in bits) + " |")


def main() -> None:
    """Print a Markdown table, JSON or CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--bits", help="rates such as 18,72; default: all")
    parser.add_argument("--full", action="store_true", help="all metrics, and distance to x264")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true")
    output.add_argument("--csv", action="store_true", help="one row per video and rate")
    args = parser.parse_args()
    model = load(args.model, dtype="float32")
    quantizer = model.tokenizer.quantizer
    bits = [quantizer.bits_per_stage * k for k in range(1, quantizer.num_stages + 1)]
    if args.bits is not None:
        wanted = tuple(int(number) for number in args.bits.split(","))
        bits = list(stages_of(model, EvalOptions(bits=wanted)))
    if args.full and not has_vmaf():
        print("VMAF is not available: this ffmpeg has no libvmaf", file=sys.stderr)
    rows: list[Row] = []
    for path in args.videos:
        rows += measure(model, path, bits, full=args.full)
        print(f"{path.name}: measured", file=sys.stderr)
    rows += mean_rows(rows)
    by_clip: dict[str, dict[int, float]] = {}
    for row in rows:
        by_clip.setdefault(row["clip"], {})[row["bits"]] = row["psnr"]
    if args.json:
        print(json.dumps(rows if args.full else by_clip))
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: round(x, 4) if isinstance(x, float) else x for k, x in row.items()})
    elif args.full:
        print_table(rows)
    else:
        print_psnr(by_clip)


if __name__ == "__main__":
    main()
