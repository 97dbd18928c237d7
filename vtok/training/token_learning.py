"""How a token pipeline learns: its config, its optimizers, its two losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtok.errors import UsageError
from vtok.model import Model
from vtok.nn.token_config import TokenConfig
from vtok.nn.token_maps import cell_grid
from vtok.nn.token_pipeline import Lift, TokenPipeline
from vtok.training.muon import Muon
from vtok.training.optimizers import ADAMW_BETAS, BASE_RATE
from vtok.training.token_bank import encode_clips

COUNTS = (4, 8, 8, 8, 16, 16, 32, 64)
"""Numbers of tokens that batches draw from: 8 is what most will use."""
LEAST_SIDE = 12  # latents along a side of a batch, cut out of those of a clip
WHOLE_SHARE, BITS_SHARE = 0.5, 0.25
"""Shares of batches that are not cut, and of samples whose tokens go through the bits."""


@dataclass(frozen=True)
class TokenTraining:
    """A run.

    Attributes:
        pipeline: what is trained.
        steps: of learning to give back latents, a batch each.
        pixel_steps: after those, of learning to give back pixels through the frozen decoder.
        batch: latent steps in a batch.
        pixel_batch: clips in a batch of pixels.
        bank: clips whose latents are kept to learn from.
        frames, crop: of a clip, crop in pixels.
        photo_share: of clips that are made from photos.
        muon_rate, adamw_rate: full learning rates of inner matrices, and of all else.
        seed: of everything random.
    """

    pipeline: TokenConfig
    steps: int = 3000
    pixel_steps: int = 150
    batch: int = 8
    pixel_batch: int = 2
    bank: int = 768
    frames: int = 9
    crop: int = 256
    photo_share: float = 0.4
    muon_rate: float = 0.01
    adamw_rate: float = 0.002
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: naming the field.
        """
        for name in ("steps", "batch", "pixel_batch", "bank", "frames", "crop"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.pixel_steps < 0:
            raise UsageError(f"pixel_steps {self.pixel_steps}: must be at least 0")

    @classmethod
    def from_settings(
        cls, latent_dim: int, learner: str, settings: dict[str, Any]
    ) -> TokenTraining:
        """A run from settings as a command line gives them, `pipeline` a table of its own.

        Raises:
            UsageError: for an unknown key, or a value that cannot be.
        """
        shape = settings.get("pipeline", {})
        rest = {key: value for key, value in settings.items() if key != "pipeline"}
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        for key, value in rest.items():
            kinds = (int, float) if isinstance(known.get(key), float) else (int,)
            if key not in known or type(value) not in kinds:
                raise UsageError(f"{key}={str(value)[:40]}: no setting of a token learner's run")
        keys = {field.name for field in dataclasses.fields(TokenConfig)} - {"latent_dim", "learner"}
        if not isinstance(shape, dict) or set(shape) - keys:
            raise UsageError(f"pipeline: expected keys among {', '.join(sorted(keys))}")
        return cls(TokenConfig(latent_dim, learner, **shape), **rest)

    @property
    def all_steps(self) -> int:
        """Steps of both kinds."""
        return self.steps + self.pixel_steps

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)


def make_token_optimizers(
    pipeline: TokenPipeline, config: TokenTraining
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside; AdamW for what maps latents, places and bits, and the rest."""
    matrices = list(_inner_matrices(pipeline))
    taken = set(map(id, matrices))
    rest = [p for p in pipeline.parameters() if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.adamw_rate, betas=ADAMW_BETAS, weight_decay=0.0)
    ]
    if matrices:
        optimizers.insert(0, Muon(matrices, lr=config.muon_rate))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group[BASE_RATE] = group["lr"]
    return optimizers


def rate_share_of(step: int, config: TokenTraining) -> float:
    """Learning rates of a step as a share of the full ones: up, level, and down to zero twice."""
    if step >= config.steps:  # a tenth of the rates for what is nearly learned
        return 0.1 * (config.all_steps - step) / config.pixel_steps
    left = (config.steps - step) / (0.6 * config.steps)
    return min(1.0, (step + 1) / 20, left)


def latent_loss(
    pipeline: TokenPipeline, latents: Tensor, metric: Tensor, rng: np.random.Generator
) -> Tensor:
    """Root of the mean square error of each sample's latents, in what it costs in pixels.

    Args:
        pipeline: learns.
        latents: float [B, D, 1, h, w].
        metric: float [D, D], see `measure_metric`.
        rng: cuts the latents, and draws how many tokens are used and which go through the bits.
    """
    latents = _cut(latents, rng)
    count = draw_count(pipeline, (latents.shape[3], latents.shape[4]), rng)
    quantized = torch.from_numpy(rng.random(len(latents)) < BITS_SHARE).to(latents.device)
    found = pipeline(latents, count, quantized)
    errors = torch.einsum("ij,bjthw->bithw", metric, found - latents)
    return errors.square().mean((1, 2, 3, 4)).add(1e-8).sqrt().mean()


def pixel_loss(
    pipeline: TokenPipeline, model: Model, clips: Tensor, rng: np.random.Generator
) -> Tensor:
    """Root of the mean square error of each clip's pixels, as the frozen decoder shows them.

    Args:
        pipeline: learns.
        model: the tokenizer.
        clips: float [B, 3, T, H, W] in -1..1.
        rng: draws how many tokens are used and which samples go through the bits.
    """
    clips = clips.to(model.device)
    latents = encode_clips(model, clips)
    count = draw_count(pipeline, (latents.shape[3], latents.shape[4]), rng)
    quantized = torch.from_numpy(rng.random(len(latents)) < BITS_SHARE).to(latents.device)
    found = pipeline(latents, count, quantized)
    size = (clips.shape[3], clips.shape[4])
    recon = model.tokenizer.decode(found, num_frames=clips.shape[2], size=size)
    return (recon - clips).square().mean((1, 2, 3, 4)).add(1e-8).sqrt().mean()


def draw_count(pipeline: TokenPipeline, grid: tuple[int, int], rng: np.random.Generator) -> int:
    """How many tokens a batch uses, no more than its grid (h, w) of latents can give."""
    fold = pipeline.config.fold
    height, width = -(-grid[0] // fold), -(-grid[1] // fold)
    most = min(pipeline.config.max_tokens, height * width)
    fitting = [n for n in COUNTS if n <= most and _has_cells(n, height, width)] or [1]
    return int(rng.choice(fitting))


def _has_cells(count: int, height: int, width: int) -> bool:
    rows, columns = cell_grid(count)  # for learned tokens too: all learners draw alike
    return rows <= height and columns <= width


def _cut(latents: Tensor, rng: np.random.Generator) -> Tensor:
    """A random part of the grid, or all of it: frames come in many sizes and shapes."""
    if rng.random() < WHOLE_SHARE:
        return latents
    for side in (3, 4):
        size = latents.shape[side]
        length = int(rng.integers(min(LEAST_SIDE, size), size + 1))
        start = int(rng.integers(0, size - length + 1))
        latents = latents.narrow(side, start, length)
    return latents


def _inner_matrices(pipeline: TokenPipeline) -> Iterator[Tensor]:
    """Weights of layers from features to features; not depthwise ones, and none of the ends."""
    fuser, lift = pipeline.fuser, pipeline.lift
    ends: list[nn.Module] = [fuser.out, fuser.query, fuser.basis, pipeline.bits]
    ends += [lift.widen, lift.where, lift.basis] if isinstance(lift, Lift) else [lift]
    outside = {inner for module in ends for inner in module.modules()}
    for module in pipeline.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module not in outside:
            weight = module.weight
            if weight.shape[0] > 1 and weight.shape[1] > 1 and getattr(module, "groups", 1) == 1:
                yield weight
