#!/usr/bin/env python
"""Make the checkpoint that training of a linear-path model starts from.

Its networks add nothing yet; its linear maps are the principal components of the blocks of training
clips: latents are the first components in units of their standard deviation times GAIN, and frames
are the inverse. Model and sampling are those of a training configuration. Called by
`scripts/train_base`; by itself:

    scripts/fit_components.py corpus/video corpus/photo -o start.safetensors
    vtok train corpus/video corpus/photo --init start.safetensors \\
        --config scripts/recipes/base.toml
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from vtok.models.checkpoint import save_checkpoint
from vtok.nn.layers import Context
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.clips import ClipSpec
from vtok.training.config import TrainingConfig, merged, parse_settings, read_config
from vtok.training.loader import ClipLoader
from vtok.training.sources import find_sources

RECIPE = Path(__file__).parent / "recipes" / "base.toml"
FRAMES = 5  # of a sampled clip: the first frame and a latent step
GAIN = 0.6  # keeps most components in the range where tanh is nearly linear
LEAST_VARIANCE = 1e-8


def blocks_of(tokenizer: VideoTokenizer, clip: Tensor) -> Tensor:
    """Return the blocks [N, n] of a clip [B, 3, 1 + 4t, H, W] that the linear path maps.

    The first latent step is left out: its frames are copies of the first frame.
    """
    side = tokenizer.config.patch_size
    patches = rearrange(clip, "b c t (h p) (w q) -> b (p q c) t h w", p=side, q=side)
    rows = tokenizer.encoder.linear.patches(patches, Context())
    return rearrange(rows, "(b t) n h w -> b t h w n", b=len(clip))[:, 1:].flatten(0, 3)


def components(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean [n], basis [n, n] (columns by falling variance) and variances [n] of blocks."""
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for some in blocks:
        rows = some.double()
        count, total, square = count + len(rows), total + rows.sum(0), square + rows.T @ rows
    mean = total / count
    variance, basis = torch.linalg.eigh(square / count - mean.outer(mean))
    return mean, basis.flip(1), variance.flip(0).clamp(min=LEAST_VARIANCE)


@torch.no_grad()
def set_components(
    tokenizer: VideoTokenizer, mean: Tensor, basis: Tensor, variance: Tensor
) -> None:
    """Set the linear maps of a tokenizer to the first components."""
    first = basis[:, : tokenizer.quantizer.dim]
    deviation = variance[: tokenizer.quantizer.dim].sqrt() / GAIN
    analysis = first.T / deviation[:, None]
    into, out = tokenizer.encoder.linear.project, tokenizer.decoder.linear.project
    into.weight.copy_(analysis[..., None, None])
    into.bias.copy_(-(analysis @ mean))
    out.weight.copy_((first * deviation)[..., None, None])
    out.bias.copy_(mean)


def main() -> None:
    """Fit and write a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path, help="training videos and photos")
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--config", type=Path, default=RECIPE, help="configuration of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--clips", type=int, default=400, help="clips to sample")
    args = parser.parse_args()
    over = parse_settings(args.set)
    config = TrainingConfig.from_dict(merged(read_config(args.config), over))
    torch.manual_seed(config.seed)
    tokenizer = VideoTokenizer.from_config(config.tokenizer)
    if not tokenizer.config.linear_path:
        parser.error(f"{args.config}: the model has no linear path")
    spec = ClipSpec(FRAMES, config.crop, config.photo_share, config.seed)
    loader = ClipLoader(find_sources(args.data), spec, workers=1, cache=None, cache_bytes=0)
    clips = loader.batches(range(args.clips), [range(1)])
    found = components(blocks_of(tokenizer, clip) for clip in clips)
    set_components(tokenizer, *found)
    save_checkpoint(args.output, tokenizer, config.preset)
    explained = found[2][: tokenizer.quantizer.dim].sum() / found[2].sum()
    print(f"{args.output}: {tokenizer.quantizer.dim} components, {explained:.1%} of the variance")


if __name__ == "__main__":
    main()
