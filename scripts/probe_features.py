"""Numbers made of latents for `token_probe.py`: learned tokens, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vtok.nn.token_pipeline import TokenPipeline


@dataclass(frozen=True)
class Features:
    """A way to make numbers of latents.

    Attributes:
        name: in the table.
        make: latents [N, D, t, h, w] and a seed to [N, t, numbers].
    """

    name: str
    make: Callable[[Tensor, int], Tensor]


def learned(name: str, pipeline: TokenPipeline, count: int) -> Features:
    """Tokens of a trained pipeline."""
    return Features(name, lambda latents, _: pipeline.encode(latents, count).flatten(2))


def untrained(name: str, pipeline: TokenPipeline, count: int) -> Features:
    """Tokens of a pipeline of the same config, with fresh weights for each seed."""

    def make(latents: Tensor, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = TokenPipeline(pipeline.config).eval()
        return fresh.to(latents).encode(latents, count).flatten(2)

    return Features(f"{name}, fresh weights", make)


def pooled(name: str, choose: Callable[[tuple[int, int], int], tuple[int, int]]) -> Features:
    """Means over the cells of a grid, chosen from the size of the latents and their channels."""

    def make(latents: Tensor, _: int) -> Tensor:
        grid = choose((latents.shape[3], latents.shape[4]), latents.shape[1])
        frames = latents.transpose(1, 2).flatten(0, 1)
        means = functional.adaptive_avg_pool2d(frames, grid)
        return means.unflatten(0, (len(latents), -1)).flatten(2)

    return Features(name, make)


def scattered(numbers: int) -> Features:
    """Latents at random positions, the same for all windows of a seed."""

    def make(latents: Tensor, seed: int) -> Tensor:
        places = latents.flatten(3)  # [N, D, t, h * w]
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(places.shape[3], generator=generator)
        kept = places[..., chosen[: max(1, numbers // latents.shape[1])]]
        return kept.permute(0, 2, 1, 3).flatten(2)

    return Features("latents at random positions", make)


def widest_grid(size: tuple[int, int], most: int) -> tuple[int, int]:
    """The grid of the most cells, at most `most`, whose cells are no strips."""
    grids = [
        (rows, columns)
        for rows in range(1, min(size[0], most) + 1)
        for columns in range(1, min(size[1], most // rows) + 1)
        if max(rows, columns) <= 2 * min(rows, columns)
    ]
    return max(grids, key=lambda grid: (grid[0] * grid[1], -abs(grid[0] - grid[1])))
