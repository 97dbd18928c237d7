#!/usr/bin/env python
"""Mean PSNR of a model on videos, at each number of stages: the protocol of the model cards.

The first 33 frames, short side scaled down to at most 384, then the centre 256x256 or the largest
multiple of 16 that fits.

    scripts/quality.py validation/*.mp4 --model vtok-base
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from vtok.codec.streams import clip_to_frames, frames_to_clip
from vtok.evaluation.metrics import Frames, psnr
from vtok.media.reader import VideoReader, probe
from vtok.model import Model, load_model

FRAMES, CROP, SHORT_SIDE = 33, 256, 384


def read_crop(path: Path) -> Frames:
    """The frames that are measured, uint8 [T, H, W, 3]."""
    info = probe(path)
    size = str(SHORT_SIDE) if min(info.width, info.height) > SHORT_SIDE else None
    with VideoReader(path, size=size) as reader:
        held: list[Frames] = []
        for batch in reader:
            held.append(batch)
            if reader.frames_read >= FRAMES:
                break
    frames = np.concatenate(held)[:FRAMES]
    height, width = (min(CROP, side // 16 * 16) for side in frames.shape[1:3])
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])


def measure(model: Model, frames: Frames) -> dict[int, float]:
    """PSNR in dB by bits a position."""
    tokenizer = model.tokenizer
    result = {}
    with torch.inference_mode():
        codes = tokenizer.encode(frames_to_clip(frames, model), quantize=True)
        books = tokenizer.config.num_codebooks
        for stages in range(1, tokenizer.config.num_stages + 1):
            clip = tokenizer.decode(
                codes[:, : stages * books] if codes.ndim == 5 else codes,
                num_frames=len(frames),
                size=frames.shape[1:3],
            )
            result[stages * tokenizer.quantizer.bits_per_stage] = psnr(clip_to_frames(clip), frames)
    return result


def main() -> None:
    """Print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = load_model(args.model, dtype="float32")
    rows = {path.name: measure(model, read_crop(path)) for path in args.videos}
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
