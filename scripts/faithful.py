#!/usr/bin/env python
"""Measure how codes depend on the computation: model calls, threads, batches, number type.

scripts/faithful.py [--frames 49] [--size 256] [--model NAME] [--json FILE]

Each row encodes the same clip in another way and compares with `vtok encode` in float32 on one
thread. Codes of all stages are compared, so one flipped bit of a latent counts as one code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from benchmark_tools import BEE, make_parser, markdown_table, read_frames, write_json

from vtok.evaluation.metrics import psnr
from vtok.models.load import LoadedTokenizer, load
from vtok.nn.interface import StreamState
from vtok.pipeline.codec import Encoder, clip_to_frames, frames_to_clip
from vtok.video.frames import Frames

NUM_RANDOM = 5  # random divisions of the clip
Way = Callable[[], Tensor]


def by_command(frames: Frames, model: LoadedTokenizer, batches: list[int]) -> Tensor:
    """Compute latents like `vtok encode`, from frames that arrive in batches of these lengths."""
    parts = np.split(frames, np.cumsum(batches)[:-1])
    return torch.cat(
        [latents for latents, _ in Encoder(model).map_latents(parts, lambda latents: latents)],
        dim=2,
    ).float()


def by_model_calls(
    frames: Frames, model: LoadedTokenizer, steps: list[int], copies: int = 1
) -> Tensor:
    """Compute latents in model calls of `steps` latent steps, with `copies` of the clip a batch."""
    tokenizer, state = model.tokenizer, StreamState()
    clip = frames_to_clip(frames, model).repeat(copies, 1, 1, 1, 1)
    lengths = [n * tokenizer.temporal_compression for n in steps]
    lengths[0] -= tokenizer.temporal_compression - 1
    parts = [tokenizer.encode(part, state=state) for part in clip.split(lengths, dim=2)]
    return torch.cat(parts, dim=2)[:1].float()


def random_sum(total: int, generator: np.random.Generator) -> list[int]:
    """Draw positive integers with this sum."""
    cuts = np.flatnonzero(generator.random(total - 1) < 0.3) + 1
    return np.diff([0, *cuts.tolist(), total]).tolist()


def with_threads(count: int, work: Way) -> Way:
    """Wrap `work` to use `count` threads."""

    def run() -> Tensor:
        torch.set_num_threads(count)
        try:
            return work()
        finally:
            torch.set_num_threads(1)

    return run


def ways(frames: Frames, model: LoadedTokenizer, name: str) -> Iterator[tuple[str, Way]]:
    """List names of ways to encode the clip, and functions that do it."""
    count = len(frames)
    steps = 1 + (count - 1) // model.tokenizer.temporal_compression
    generator = np.random.default_rng(0)
    for plan in (random_sum(count, generator) for _ in range(NUM_RANDOM)):
        yield "frames in other batches", lambda plan=plan: by_command(frames, model, plan)
    for threads in (2, 4, 8):
        plain = lambda: by_command(frames, model, [count])  # noqa: E731
        yield f"{threads} threads", with_threads(threads, plain)
    yield "one model call", lambda: by_model_calls(frames, model, [steps])
    yield "one step per model call", lambda: by_model_calls(frames, model, [1] * steps)
    for plan in (random_sum(steps, generator) for _ in range(NUM_RANDOM)):
        yield "random model calls", lambda plan=plan: by_model_calls(frames, model, plan)
    for copies in (2, 5):
        yield (
            f"{copies} clips in a batch",
            lambda n=copies: by_model_calls(frames, model, [steps], n),
        )
    for dtype in ("bfloat16", "float16"):
        other = load(name, device="cpu", dtype=dtype)
        yield dtype, lambda other=other: by_command(frames, other, [count])
    exact = replace(load(name, device="cpu"), dtype=torch.float64)
    exact.tokenizer.double()
    yield "float64", lambda: by_command(frames, exact, [count])


@torch.inference_mode()
def compare(frames: Frames, name: str) -> list[dict[str, Any]]:
    """Compare each way with the reference; ways of the same name give one row, the worst."""
    torch.set_num_threads(1)
    model = load(name, device="cpu", dtype="float32")
    quantizer = model.tokenizer.quantizer
    reference = by_command(frames, model, [len(frames)])
    codes = quantizer.latents_to_codes(reference)
    quality = psnr_of(codes, frames, model)
    rows: dict[str, dict[str, Any]] = {}
    for way, encode in ways(frames, model, name):
        latents = encode()
        found = quantizer.latents_to_codes(latents)
        row = {
            "encoded": way,
            "equal codes": (found == codes).double().mean().item(),
            "latents differ": (latents - reference).abs().max().item(),
            "PSNR change dB": psnr_of(found, frames, model) - quality,
        }
        if way not in rows or _badness(row) > _badness(rows[way]):
            rows[way] = row
    return list(rows.values())


def _badness(row: dict[str, Any]) -> tuple[float, float]:
    return -row["equal codes"], row["latents differ"]


def psnr_of(codes: Tensor, frames: Frames, model: LoadedTokenizer) -> float:
    """Compute the mean PSNR of the decoded codes in float32."""
    clip = model.tokenizer.decode(codes, num_frames=len(frames), size=frames.shape[1:3])
    return psnr(clip_to_frames(clip), frames)


def main() -> None:
    """Print a table and write JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--size", default="256")
    parser.add_argument("--model", default="vtok-base")
    args = parser.parse_args()
    frames = read_frames(BEE, args.size)[: args.frames]
    rows = compare(frames, args.model)
    write_json(args.json, {"torch": torch.__version__, "shape": frames.shape, "rows": rows})
    capability = torch.backends.cpu.get_cpu_capability()
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    print(f"torch {torch.__version__}, {capability}: {len(frames)} frames of {size}\n")
    cells = [
        (
            row["encoded"], f"{row['equal codes']:.6f}", f"{row['latents differ']:.1e}",
            f"{row['PSNR change dB']:+.4f}",
        )
        for row in rows
    ]  # fmt: skip
    heads = ("encoded with", "equal codes", "largest latent difference", "PSNR change, dB")
    print(markdown_table(heads, cells))


if __name__ == "__main__":
    main()
