#!/usr/bin/env python
"""Mean PSNR of a model on videos, at each number of stages: the protocol of the model cards.

The first 33 frames, short side scaled down to at most 384, then the centre 256x256 or the largest
multiple of 16 that fits: what `vtok eval --card --metrics psnr` measures, at every rate.

    scripts/quality.py validation/*.mp4 --model vtok-base
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from vtok.evaluation.clips import CARD
from vtok.evaluation.evaluate import EvalOptions, evaluate_file
from vtok.models.load import LoadedTokenizer, load


def measure(model: LoadedTokenizer, path: Path) -> dict[int, float | None]:
    """Measure PSNR in dB by bits per latent position."""
    quantizer = model.tokenizer.quantizer
    bits = tuple(quantizer.bits_per_stage * k for k in range(1, quantizer.num_stages + 1))
    options = EvalOptions(CARD, bits, metrics=("psnr",))
    points = evaluate_file(path, model=model, options=options).points
    return {point.bits: point.quality["psnr"] for point in points}


def main() -> None:
    """Print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = load(args.model, dtype="float32")
    rows = {path.name: measure(model, path) for path in args.videos}
    rows["mean"] = {
        bits: float(np.mean([row[bits] for row in rows.values()]))
        for bits in next(iter(rows.values()))
    }
    if args.json:
        print(json.dumps(rows))
        return
    bits = list(rows["mean"])
    print("| clip | " + " | ".join(f"{b} bits" for b in bits) + " |")
    print("|---|" + "---|" * len(bits))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[b]:.2f}" for b in bits) + " |")


if __name__ == "__main__":
    main()
