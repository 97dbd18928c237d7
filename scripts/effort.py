#!/usr/bin/env python
"""Quality, size and time of encoding effort and hysteresis on videos: a row for each of them.

Each rate has the PSNR in dB and the bytes of the entropy-coded file; the seconds are the mean over
the rates.

The first frames, short side scaled down to at most 384, then the centre 256x256 or the largest
multiple of 16 that fits, as in the model cards. Every rate is encoded for itself.

    scripts/effort.py validation/*.mp4 --steps 0,2,8 --bits 18,72
    scripts/effort.py validation/*.mp4 --steps 0,8 --hysteresis 0,0.1,0.2,0.4
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from vtok.evaluation.evaluate import CARD, EvalOptions, evaluate_file
from vtok.models.load import LoadedTokenizer, load


@dataclass(frozen=True)
class Row:
    """Mean over the videos.

    Attributes:
        steps: gradient steps per model call.
        hysteresis: its width.
        bits: bits per position.
        psnr: in dB.
        bytes: size of a code file, entropy-coded.
        seconds: to encode a frame, decoding of the video and measurement left out.
    """

    steps: int
    hysteresis: float
    bits: int
    psnr: float
    bytes: float
    seconds: float


def measure(model: LoadedTokenizer, paths: Sequence[Path], options: EvalOptions) -> Row:
    """Encode videos with one effort and hysteresis at one rate."""
    results = [evaluate_file(path, model=model, options=options) for path in paths]
    points = [one.points[0] for one in results]
    return Row(
        options.effort,
        options.hysteresis,
        points[0].bits,
        float(np.mean([point.quality["psnr"] for point in points])),
        float(np.mean([point.bytes for point in points])),
        float(np.mean([1 / one.encode_fps for one in results])),
    )


def main() -> None:
    """Print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--steps", default="0,1,2,4,8,16,32", help="gradient steps, N,N,...")
    parser.add_argument("--hysteresis", default="0", help="widths of the hysteresis, D,D,...")
    parser.add_argument("--bits", default="9,18,36,72", help="bits per position, N,N,...")
    parser.add_argument("--frames", type=int, default=17, help="first frames of each video")
    parser.add_argument("--json", action="store_true", help="one JSON object per row")
    args = parser.parse_args()
    model = load(args.model, dtype="float32")
    rates = [int(bits) for bits in args.bits.split(",")]
    if not args.json:
        heads = ["steps", "hysteresis", *(f"{bits} bits" for bits in rates), "seconds per frame"]
        print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)
    part, widths = replace(CARD, frames=args.frames), map(float, args.hysteresis.split(","))
    for steps, width in itertools.product(map(int, args.steps.split(",")), widths):
        every = [EvalOptions(part, (b,), ("psnr",), effort=steps, hysteresis=width) for b in rates]
        rows = [measure(model, args.videos, options) for options in every]
        if args.json:
            print("\n".join(json.dumps(asdict(row)) for row in rows), flush=True)
            continue
        cells = [f"{row.psnr:.2f} dB, {row.bytes:,.0f}" for row in rows]
        seconds = np.mean([row.seconds for row in rows])
        print(f"| {steps} | {width:g} | {' | '.join(cells)} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
