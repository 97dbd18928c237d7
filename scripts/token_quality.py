#!/usr/bin/env python
"""Measure the mean PSNR after decoding from learned tokens, by learner and number of tokens.

The part of each video is that of the model cards: the first 33 frames, short side at most 384, the
centre 256x256 or the largest multiple of 16 that fits. The row `latents` is decoded from the
unquantized latents, an approximate upper limit.

    scripts/token_quality.py validation/* --learners runs/v11/tokens.safetensors v10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from vtok.evaluation.evaluate import CARD, open_clip
from vtok.evaluation.metrics import psnr
from vtok.models.load import LoadedTokenizer, load
from vtok.nn.config import LEARNERS
from vtok.pipeline.codec import Encoder, clip_to_frames
from vtok.tokens.model import STAGES, TokenModel, load_token_model
from vtok.video.frames import Frames

COUNTS = (4, 8, 16, 32, 64)


def show(model: LoadedTokenizer, latents: torch.Tensor, frames: Frames) -> float:
    """Measure the PSNR in dB of decoded latents [1, D, t, h, w]."""
    with torch.inference_mode():
        clip = model.tokenizer.decode(latents, num_frames=len(frames), size=frames.shape[1:3])
    return psnr(clip_to_frames(clip), frames)


def measure(
    model: TokenModel, latents: torch.Tensor, frames: Frames, counts: list[int], bits: bool
) -> list[float]:
    """Measure PSNR in dB by number of tokens; NaN if the frames are too small for a number."""
    found, grid = [], (latents.shape[3], latents.shape[4])
    for count in counts:
        if count > model.positions(frames.shape[1:3]):
            found.append(float("nan"))
            continue
        tokens = model.to_tokens(latents, count)
        if bits:
            with torch.inference_mode():
                tokens = model.pipeline.bits(tokens)
        found.append(show(model.model, model.to_latents(tokens, grid), frames))
    return found


def main() -> None:
    """Print a Markdown table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--learners", nargs="+", default=list(LEARNERS), help="names or files")
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--tokens", nargs="+", type=int, default=COUNTS, metavar="S")
    parser.add_argument("--bits", action="store_true", help="of quantized tokens")
    parser.add_argument("--clips", action="store_true", help="clip by clip, not only the mean")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = load(args.model, dtype="float32")
    learners = {name: load_token_model(name, model=model) for name in args.learners}
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in ("latents", *learners)}
    for video in args.videos:
        with open_clip(video, CARD) as clip:
            frames = np.concatenate(list(clip))
        calls = Encoder(model, STAGES).map_latents([frames], lambda latents: latents)
        latents = torch.cat([part for part, _ in calls], dim=2)
        rows["latents"][video.name] = [show(model, latents, frames)] * len(args.tokens)
        for name, learner in learners.items():
            rows[name][video.name] = measure(learner, latents, frames, args.tokens, args.bits)
    for found in rows.values():
        found["mean"] = np.mean(list(found.values()), axis=0).tolist()
    if args.json:
        print(json.dumps({"tokens": args.tokens, "psnr": rows}))
        return
    print("| learner | clip | " + " | ".join(f"{count} tokens" for count in args.tokens) + " |")
    print("|---|---|" + "---|" * len(args.tokens))
    for name, found in rows.items():
        label = name if name == "latents" else learners_label(learners[name])
        for clip_name, values in found.items():
            if args.clips or clip_name == "mean":
                cells = " | ".join(f"{value:.2f}" for value in values)
                print(f"| {label} | {clip_name} | {cells} |")


def learners_label(model: TokenModel) -> str:
    """Name a learner for the table."""
    return model.info.config.learner


if __name__ == "__main__":
    main()
