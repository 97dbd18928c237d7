#!/usr/bin/env python
"""Train vtok-base: resumable, on frames that `scripts/prepare_corpus.py` made."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vtok.config import PRESETS
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.clips import ClipSampler
from vtok.training.muon import Muon


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser()
    p.add_argument("--data", type=Path, default=Path("runs/corpus"))
    p.add_argument("--out", type=Path, default=Path("runs/base"))
    p.add_argument("--steps", type=int, default=10**9)
    p.add_argument("--decay-from", type=int, default=10**9)
    p.add_argument("--minutes", type=float, default=0)
    p.add_argument("--batch", type=int, default=5)
    p.add_argument("--frames", type=int, default=13)
    p.add_argument("--crop", type=int, default=128)
    p.add_argument("--lr", type=float, default=0.01)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--l1", type=float, default=1.0)
    p.add_argument("--mse", type=float, default=1.0)
    p.add_argument("--entropy", type=float, default=0.02)
    p.add_argument("--commit", type=float, default=0.05)
    p.add_argument("--exclude", nargs="*", default=[])
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


def depths(batch: int, stages: int, rng: np.random.Generator) -> Tensor:
    """How many stages each sample uses: two of them (18 bits) 40 % of the time."""
    drawn = np.where(rng.random(batch) < 0.4, 2, rng.integers(1, stages + 1, batch))
    return torch.from_numpy(np.minimum(drawn, stages))


def optimizers(model: VideoTokenizer, lr: float) -> list[torch.optim.Optimizer]:
    ends = {
        id(p)
        for m in (
            model.encoder.layers[0],
            model.encoder.layers[-1],
            model.decoder.layers[0],
            model.decoder.layers[-1],
        )
        for p in m.parameters()
    }
    matrices, rest = [], []
    for p in model.parameters():
        inner = p.ndim >= 4 and p.shape[1] > 1 and id(p) not in ends
        (matrices if inner else rest).append(p)
    return [
        Muon(matrices, lr=lr),
        torch.optim.AdamW(rest, lr=lr / 5, betas=(0.9, 0.98), weight_decay=0),
    ]


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    model = VideoTokenizer.from_config(PRESETS["vtok-base"])
    opts = optimizers(model, args.lr)
    base = [g["lr"] for o in opts for g in o.param_groups]
    sampler = ClipSampler(
        args.data, frames=args.frames, crop=args.crop, exclude=tuple(args.exclude)
    )
    state_file = args.out / "state.pt"
    step, spent = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for o, s in zip(opts, state["opts"]):
            o.load_state_dict(s)
        step, spent = state["step"], state["spent"]
    log = (args.out / "log.csv").open("a")
    begin = time.time()
    stages = model.config.num_stages
    ema: dict[str, float] = {}
    while step < args.steps:
        elapsed = spent + time.time() - begin
        if args.minutes and elapsed > args.minutes * 60:
            break
        rng = np.random.default_rng((args.seed, step))
        if args.minutes:
            progress = elapsed / (args.minutes * 60)
            factor = min(1, (step + 1) / 50) * min(1, (1 - progress) / 0.3)
        else:
            left = (args.steps - step) / max(1, args.steps - args.decay_from)
            factor = min(1, (step + 1) / 50, left)
        for o, lr in zip(opts, base):
            for g in o.param_groups:
                g["lr"] = lr * max(factor, 0.002)
        clip = sampler.batch(args.batch, rng)
        used = depths(args.batch, stages, rng)
        latents = model.encode_latents(clip)
        recon = model.decode(model.quantizer(latents, used), num_frames=clip.shape[2])
        diff = recon - clip
        per_sample = diff.detach().square().mean((1, 2, 3, 4))
        aux = model.quantizer.losses(latents)
        loss = args.l1 * diff.abs().mean() + args.mse * diff.square().mean()
        loss = (
            loss
            + args.entropy * (aux.per_sample_entropy - aux.batch_entropy)
            + args.commit * aux.commitment
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise SystemExit(f"step {step}: gradient is not finite")
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        step += 1
        psnr = 10 * torch.log10(4 / per_sample)
        for k in range(stages):
            sel = psnr[used == k + 1]
            if len(sel):
                ema[f"{k + 1}"] = 0.97 * ema.get(f"{k + 1}", float(sel.mean())) + 0.03 * float(
                    sel.mean()
                )
        if step % 20 == 0:
            row = [
                step,
                round(elapsed),
                f"{loss.item():.4f}",
                f"{aux.batch_entropy.item():.3f}",
                f"{aux.per_sample_entropy.item():.3f}",
                f"{norm.item():.2f}",
                *(f"{k}:{v:.2f}" for k, v in sorted(ema.items())),
            ]
            log.write(",".join(map(str, row)) + "\n")
            log.flush()
        if step % 200 == 0:
            save(state_file, model, opts, step, spent + time.time() - begin)
    save(state_file, model, opts, step, spent + time.time() - begin)


def save(path: Path, model: VideoTokenizer, opts: list, step: int, spent: float) -> None:
    tmp = path.with_suffix(".tmp")
    torch.save(
        {
            "model": model.state_dict(),
            "opts": [o.state_dict() for o in opts],
            "step": step,
            "spent": spent,
        },
        tmp,
    )
    os.replace(tmp, path)


if __name__ == "__main__":
    main()
