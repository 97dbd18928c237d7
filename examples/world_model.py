"""Toy world model: train a transformer on codes, then sample continuations of clips.

    python examples/world_model.py                              # a few minutes on one core
    python examples/world_model.py --steps 30 --clips 32 --size 32 --width 32     # seconds

A disc and a square bounce off the walls. `vtok-base` turns every 4 frames into a grid of codes; a
small transformer (world_net.py) learns to predict them one by one. It then continues the first
frames of held-out clips, and the positions of its shapes are compared with the true ones. The
network knows nothing of shapes or walls and works on the codes of any video.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from bouncing import FPS, centres, draw_clips
from torch import Tensor
from world_net import WorldNet, bits_per_code, sample

from vtok import VideoTokenizer
from vtok.errors import UsageError, VtokError
from vtok.evaluation.pictures import draw_sheet
from vtok.training.optimizers import Muon
from vtok.video.frames import Frames
from vtok.video.images import write_png
from vtok.video.writer import VideoWriter

FRAMES = 33  # frames per clip: 9 latent steps
HELD_OUT = 16  # largest number of held-out clips
SHOWN = 4  # clips to continue


@dataclass(frozen=True)
class Baselines:
    """Bits per code of the held-out clips under models that count in the training clips.

    Attributes:
        frequency: Model of the frequency of a code at its stage.
        copying: Model conditioned on the code at the same position one step before.
    """

    frequency: float
    copying: float


def encode(tokenizer: VideoTokenizer, frames: Tensor, stages: int) -> Tensor:
    """Encode frames uint8 [B, T, H, W, 3] to codes [B, K, t, h, w] of the first K stages."""
    parts = []
    for batch in frames.split(8):
        clip = batch.permute(0, 4, 1, 2, 3).float() / 127.5 - 1  # [B, 3, T, H, W] in -1..1
        with torch.inference_mode():
            codes = tokenizer.encode(clip, quantize=True, num_stages=stages)
        parts.append(codes if codes.ndim == 5 else codes.unsqueeze(1))
    return torch.cat(parts).clone()  # a clone can be used for training


def decode(tokenizer: VideoTokenizer, codes: Tensor) -> Frames:
    """Decode codes [B, K, t, h, w] to frames uint8 [B, T, H, W, 3]."""
    with torch.inference_mode():
        clip = tokenizer.decode(codes)
    return ((clip + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1).numpy()


def measure_baselines(train: Tensor, held: Tensor, vocabulary: int, first: int) -> Baselines:
    """Measure the baselines over the steps of `held` from `first` on."""
    frequency, copying = [], []
    for stage in range(train.shape[1]):
        known, target = train[:, stage], held[:, stage]
        counts = torch.bincount(known.flatten(), minlength=vocabulary).double() + 0.1
        share = counts / counts.sum()
        pairs = (known[:, :-1] * vocabulary + known[:, 1:]).flatten()
        table = torch.bincount(pairs, minlength=vocabulary**2).double()
        table = table.view(vocabulary, vocabulary) + share  # rare pairs fall back to frequency
        table /= table.sum(1, keepdim=True)
        now, before = target[:, first:], target[:, first - 1 : -1]
        frequency.append(-share[now].log2().mean())
        copying.append(-table[before, now].log2().mean())
    return Baselines(float(torch.stack(frequency).mean()), float(torch.stack(copying).mean()))


def train_net(net: WorldNet, codes: Tensor, steps: int, batch: int, seed: int) -> None:
    """Train on random clips: Muon for the matrices of the blocks, AdamW for the rest."""
    matrices = [p for p in net.blocks.parameters() if p.ndim == 2]
    inner = {id(p) for p in matrices}
    others = [p for p in net.parameters() if id(p) not in inner]
    optimizers = (Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=2e-3, weight_decay=0.01))
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    begin, recent = time.perf_counter(), 0.0
    for step in range(steps):
        chosen = torch.randint(len(codes), (batch,), generator=generator)
        loss = bits_per_code(net, codes[chosen]).mean()
        for optimizer, rate in zip(optimizers, rates, strict=True):
            warmth = min(1.0, (step + 1) / 20) * min(1.0, 2 * (1 - step / steps))
            optimizer.param_groups[0]["lr"] = rate * warmth
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        recent = loss.item() if step == 0 else 0.9 * recent + 0.1 * loss.item()
        if (step + 1) % 20 == 0 or step + 1 == steps:
            rate = (step + 1) / (time.perf_counter() - begin)
            line = f"step {step + 1}/{steps}: {recent:.3f} bits per code, {rate:.2f} steps/s"
            print(f"{line}, {(steps - step - 1) / rate:.0f} s left", file=sys.stderr)


def held_out_bits(net: WorldNet, codes: Tensor, first: int) -> float:
    """Compute the mean bits per code over steps from `first` on."""
    with torch.inference_mode():
        return float(bits_per_code(net, codes)[:, :, first:].mean())


def errors(real: Frames, dreamed: Frames, first: int) -> tuple[float, float]:
    """Measure the mean distance of shapes to the truth in pixels: sampled, and if standing still.

    Args:
        real, dreamed: Frames uint8 [B, T, H, W, 3] decoded from real and from sampled codes.
        first: First sampled frame.
    """
    right, found = centres(real), centres(dreamed)  # [B, T, shapes, 2]
    still = right[:, first - 1 : first]
    off = [np.linalg.norm(right[:, first:] - guess, axis=-1) for guess in (found[:, first:], still)]
    return float(off[0].mean()), float(off[1].mean())


def draw_strip(real: Frames, dreamed: Frames, first: int, clips: int = 2) -> Frames:
    """Draw real clips above sampled ones, the prompt on the left."""
    numbers = [n for n in range(0, real.shape[1], 4) if n < first]
    numbers += list(range(first + 3, real.shape[1], 4))
    titles = [f"{n}" if n < first else f"{n}: sampled" for n in numbers]
    rows = [
        [side[clip, n].repeat(2, axis=0).repeat(2, axis=1) for n in numbers]
        for clip in range(min(clips, len(real)))
        for side in (real, dreamed)
    ]
    return draw_sheet(rows, titles=titles)


def write_video(path: Path, real: Frames, dreamed: Frames, first: int) -> None:
    """Write real clips above sampled ones; a bright edge marks the prompt."""
    both = np.concatenate([np.concatenate(list(side), axis=2) for side in (real, dreamed)], axis=1)
    both = both.repeat(4, axis=1).repeat(4, axis=2)
    both[:first, :4] = both[:first, -4:] = 235
    height, width = both.shape[1:3]
    with VideoWriter(path, width=width, height=height, fps=Fraction(FPS), overwrite=True) as writer:
        writer.write(both)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Run the experiment and return its figures."""
    torch.manual_seed(args.seed)
    tokenizer = VideoTokenizer.from_pretrained(args.model)
    frames = torch.from_numpy(draw_clips(args.clips, FRAMES, args.size, args.seed))
    codes = encode(tokenizer, frames, args.stages)
    bits = tokenizer.config.codebook_size.bit_length() - 1
    held_out = min(HELD_OUT, args.clips // 4)
    train, held = codes[held_out:], codes[:held_out]
    _, stages, steps, *grid = codes.shape
    if not 1 <= args.prompt < steps:
        raise UsageError(f"--prompt {args.prompt}: expected 1 to {steps - 1} latent steps")
    net = WorldNet(bits, stages, (grid[0], grid[1]), args.width)
    train_net(net, train, args.steps, args.batch, args.seed)
    marks = measure_baselines(train, held, 2**bits, args.prompt)
    learned = held_out_bits(net, held, args.prompt)
    prompt, true = held[:SHOWN, :, : args.prompt], held[:SHOWN]
    dreamed = sample(net, prompt, steps - args.prompt, args.temperature, args.seed)
    pictures = [decode(tokenizer, one) for one in (true, dreamed)]
    first = 1 + (args.prompt - 1) * tokenizer.temporal_compression
    args.out.mkdir(parents=True, exist_ok=True)
    write_png(args.out / "strip.png", draw_strip(*pictures, first), overwrite=True)
    write_video(args.out / "dream.mp4", *pictures, first)
    off, still = errors(*pictures, first)
    return {
        "clips": len(train), "codes": list(codes.shape[1:]), "bits": bits,
        "parameters": sum(p.numel() for p in net.parameters()), "held_out_clips": held_out,
        "frequency_bits": marks.frequency, "copying_bits": marks.copying, "model_bits": learned,
        "pixels_off": off, "pixels_off_still": still,
    }  # fmt: skip


def main() -> None:
    """Run the experiment and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("world"), help="folder to write to")
    parser.add_argument("--clips", type=int, default=512, metavar="N", help="number of clips")
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS", help="side of a frame")
    parser.add_argument("--stages", type=int, default=2, metavar="K", help="9 bits each")
    parser.add_argument("--prompt", type=int, default=3, metavar="T", help="latent steps")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="training steps")
    parser.add_argument("--batch", type=int, default=4, metavar="N")
    parser.add_argument("--width", type=int, default=128, metavar="N", help="channels")
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="vtok-base")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        found = run(args)
    except VtokError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if args.json:
        print(json.dumps(found))
        return
    print(f"{found['clips']} clips, codes {found['codes']} of {found['bits']} bits")
    print(f"bits per code on {found['held_out_clips']} held-out clips, after the prompt:")
    print(f"  frequency of each code       {found['frequency_bits']:.2f}")
    print(f"  given the previous code      {found['copying_bits']:.2f}")
    print(f"  the model                    {found['model_bits']:.2f}")
    print(
        f"distance of the shapes to the truth: {found['pixels_off']:.1f} pixels; "
        f"if they stood still: {found['pixels_off_still']:.1f}"
    )
    print(f"{args.out}/strip.png, {args.out}/dream.mp4: real clips above, sampled ones below")


if __name__ == "__main__":
    main()
