#!/usr/bin/env python
"""Train vtok-base on what `scripts/prepare_corpus.py` wrote; started again, it goes on.

    scripts/train_base.py --out runs/base --steps 3000
    scripts/train_base.py --out runs/base --export vtok/weights/vtok-base.safetensors

What is random depends on the seed and the step only, so a resumed run sees the same clips.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from vtok.checkpoint import save_checkpoint
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.clips import ClipSampler
from vtok.training.muon import Muon

WARM_UP, SAVE_EVERY, LOG_EVERY = 50, 200, 20
Optimizers = list[torch.optim.Optimizer]


def parse() -> argparse.Namespace:
    """The options; their defaults are the recipe of the second phase of the card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--out", type=Path, default=Path("runs/base"))
    parser.add_argument("--export", type=Path, help="write the weights so far here, and stop")
    parser.add_argument("--preset", default="vtok-base")
    parser.add_argument("--steps", type=int, default=2900)
    parser.add_argument(
        "--decay-from", type=int, default=1200, help="step where the rate starts to fall"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.01, help="of Muon; AdamW has a fifth of it")
    parser.add_argument("--l1", type=float, default=0.25, help="weight of the mean absolute error")
    parser.add_argument("--mse", type=float, default=0.0, help="of the mean squared error")
    parser.add_argument("--rmse", type=float, default=1.0, help="of its root, clip by clip")
    parser.add_argument("--entropy", type=float, default=0.02)
    parser.add_argument("--commitment", type=float, default=0.05)
    parser.add_argument("--two-stages", type=float, default=0.6, help="share trained at two stages")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def draw_stages(batch: int, stages: int, two: float, rng: np.random.Generator) -> Tensor:
    """How many stages each sample uses: two of them with probability `two`, else any number."""
    drawn = np.where(rng.random(batch) < two, 2, rng.integers(1, stages + 1, batch))
    return torch.from_numpy(np.minimum(drawn, stages))


def make_optimizers(model: VideoTokenizer, lr: float) -> Optimizers:
    """Muon for the matrices inside; AdamW for depthwise weights, biases, and both ends."""
    ends = {
        id(parameter)
        for stack in (model.encoder, model.decoder)
        for layer in (stack.layers[0], stack.layers[-1])
        for parameter in layer.parameters()
    }
    inside = [p for p in model.parameters() if p.ndim >= 4 and p.shape[1] > 1 and id(p) not in ends]
    taken = {id(parameter) for parameter in inside}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        Muon(inside, lr=lr),
        torch.optim.AdamW(rest, lr=lr / 5, betas=(0.9, 0.98), weight_decay=0),
    ]


def set_rates(optimizers: Optimizers, args: argparse.Namespace, step: int) -> None:
    """Linear warm-up, constant, linear decay to nearly zero."""
    left = (args.steps - step) / max(1, args.steps - args.decay_from)
    factor = max(0.002, min(1.0, (step + 1) / WARM_UP, left))
    for optimizer, rate in zip(optimizers, (args.lr, args.lr / 5), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def loss_of(
    model: VideoTokenizer, clip: Tensor, used: Tensor, args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """The loss, and the PSNR of each sample in dB."""
    latents = model.encode_latents(clip)
    recon = model.decode(model.quantizer(latents, used), num_frames=clip.shape[2])
    mse = (recon - clip).square().mean((1, 2, 3, 4))
    parts = model.quantizer.losses(latents)
    loss = args.l1 * (recon - clip).abs().mean() + args.mse * mse.mean()
    loss = loss + args.rmse * (mse + 1e-5).sqrt().mean()
    loss = loss + args.entropy * (parts.per_sample_entropy - parts.batch_entropy)
    return loss + args.commitment * parts.commitment, 10 * torch.log10(4 / mse.detach())


def save(path: Path, model: VideoTokenizer, optimizers: Optimizers, step: int) -> None:
    """Write the state of the run, atomically."""
    state = {
        "model": model.state_dict(),
        "opts": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def resume(path: Path, model: VideoTokenizer, optimizers: Optimizers) -> int:
    """Load the state of the run if there is one; returns the step to go on with."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["opts"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def train(
    args: argparse.Namespace, model: VideoTokenizer, optimizers: Optimizers, first: int
) -> None:
    """Run from step `first` to the last one."""
    sampler = ClipSampler(args.data, frames=args.frames, crop=args.crop)
    means: dict[int, float] = {}
    begin = perf_counter()
    for step in range(first, args.steps):
        rng = np.random.default_rng((args.seed, step))
        set_rates(optimizers, args, step)
        clip = sampler.batch(args.batch, rng)
        used = draw_stages(args.batch, model.config.num_stages, args.two_stages, rng)
        loss, psnr = loss_of(model, clip, used, args)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise SystemExit(f"step {step}: the gradient is not finite; the last state is kept")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for stages, value in zip(used.tolist(), psnr.tolist(), strict=True):
            means[stages] = 0.97 * means.get(stages, value) + 0.03 * value
        if (step + 1) % LOG_EVERY == 0:
            shown = " ".join(f"{k}:{means[k]:.2f}" for k in sorted(means))
            seconds = perf_counter() - begin
            print(
                f"{step + 1} {seconds:.0f}s loss {loss.item():.4f} dB by stages {shown}", flush=True
            )
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == args.steps:
            save(args.out / "state.pt", model, optimizers, step + 1)


def main() -> None:
    """Train, or export what was trained."""
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    model = VideoTokenizer.from_preset(args.preset)
    optimizers = make_optimizers(model, args.lr)
    step = resume(args.out / "state.pt", model, optimizers)
    if args.export is None:
        train(args, model, optimizers, step)
        return
    # float16 halves the file and changes the mean PSNR by less than 0.01 dB
    save_checkpoint(args.export, model, args.export.stem, torch.float16)
    print(f"{args.export}: the weights of step {step}")


if __name__ == "__main__":
    main()
