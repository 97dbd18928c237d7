"""Where a token looks: the maps of the three learners, and the fixed cells of the baselines."""

from __future__ import annotations

import math
from bisect import bisect
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtok.nn.blocks import norm_channels
from vtok.nn.config import BASELINES, TokenConfig
from vtok.nn.token_learner import TokenLearner, TokenLearnerV10, TokenLearnerV11

WAVES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Half periods of the sines and cosines over the frame, from edge to edge."""
USUAL_SIDE = 16.0
"""Positions along a side that count as neither many nor few."""
FASTEST = 8
"""Half periods along a side, of the cosines that a basis begins with, are below this."""
WHOLE, WIDE = 0.5, 0.35
"""Reach of the first token's window, and of that of token s > 0 by the square root of s."""
GOLDEN = (0.7548776662, 0.5698402910)
"""Steps of a sequence of points that fills a square evenly, however far it is followed."""


class Positions(nn.Module):
    """A small network of place and grid size: [dim, h, w] for any h and w.

    Places are relative to the frame, centres of positions, so a finer grid samples the same
    functions more densely. How many positions a side has is told too, within bounds that keep a
    grid larger than any seen in training from being something altogether new.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.told, self.made = nn.Linear(4 * len(WAVES) + 2, dim), nn.Linear(dim, dim)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The functions on a grid (h, w), float [dim, h, w]."""
        height, width = grid
        rows = self._sides(height)[:, None].expand(-1, width, -1)
        columns = self._sides(width)[None].expand(height, -1, -1)
        told = torch.cat([rows, columns], dim=-1).to(self.told.weight.dtype)
        out: Tensor = self.made(F.gelu(self.told(told)))
        return out.permute(2, 0, 1)

    def _sides(self, size: int) -> Tensor:
        """What is told of each place along one side, float32 [size, 2 * waves + 1]."""
        device = self.told.weight.device  # not its type: bfloat16 tells few places apart
        angles = math.pi * _places(size, device)[:, None] * torch.tensor(WAVES, device=device)
        length = max(-1.0, min(1.0, math.log2(size / USUAL_SIDE) / 2))
        return torch.cat([angles.sin(), angles.cos(), torch.full_like(angles[:, :1], length)], 1)


class Basis(Positions):
    """Functions of place that begin as the cosines of a transform, and learn to be others.

    Sums of values times these are what such a transform keeps, and values times these are what it
    gives back: learning starts from a codec of a kind that is known to work.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        nn.init.zeros_(self.made.weight)
        nn.init.zeros_(self.made.bias)
        self.rates = cosine_rates(dim)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """The functions on a grid (h, w), float [dim, h, w]."""
        learned = super().forward(grid)
        rates = torch.tensor(self.rates, device=learned.device)
        rows = (math.pi * rates[:, :1] * _places(grid[0], learned.device)).cos()
        columns = (math.pi * rates[:, 1:] * _places(grid[1], learned.device)).cos()
        return learned + (rows[:, :, None] * columns[:, None, :]).to(learned.dtype)


class Windows(nn.Module):
    """The part of the frame that each token begins with: a bell, its place and reach learned.

    Without them all tokens begin as the same mean of the frame. The first one spans the frame, the
    next ones less and less, at points that cover it evenly wherever the sequence is cut off. The
    baselines have bells too, fixed over their cells, for the fuser to begin with.
    """

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.of_cells = config.learner in BASELINES
        if self.of_cells:
            return
        number = torch.arange(config.max_tokens)[:, None]
        centres = (0.5 + number * torch.tensor(GOLDEN)) % 1
        reach = WIDE / number[:, 0].clamp(min=4).sqrt()
        reach[0] = WHOLE
        self.centres = nn.Parameter(centres)
        self.log_reach = nn.Parameter(reach.log())

    def forward(self, count: int, grid: tuple[int, int], like: Tensor) -> Tensor:
        """Logarithms of the first windows, of at most 0, [count, h, w], in the type of `like`."""
        centres, reach = self._of_cells(count) if self.of_cells else self._learned(count)
        rows = _places(grid[0], like.device) - centres[:, :1].to(like.device)
        columns = _places(grid[1], like.device) - centres[:, 1:].to(like.device)
        far = rows.square()[:, :, None] + columns.square()[:, None, :]
        return (-far / (2 * reach.to(like.device).square()[:, None, None])).to(like.dtype)

    def _learned(self, count: int) -> tuple[Tensor, Tensor]:
        return self.centres[:count].float(), self.log_reach[:count].float().exp()

    def _of_cells(self, count: int) -> tuple[Tensor, Tensor]:
        down, across = cell_grid(count)
        rows, columns = (torch.arange(n) for n in (down, across))
        centres = torch.cartesian_prod((rows + 0.5) / down, (columns + 0.5) / across)
        return centres.reshape(count, 2), torch.full((count,), WIDE / max(4, count) ** 0.5)


def cosine_rates(channels: int) -> list[tuple[int, int]]:
    """Half periods down and across of each channel's cosine, slow ones first.

    Most channels have none, which is a mean: pictures hold the less of a rate r the higher it is,
    about as 1 / (1 + r^2), and in this proportion it gets channels.
    """
    rates = [(down, across) for down in range(FASTEST) for across in range(FASTEST)]
    rates.sort(key=lambda rate: (rate[0] ** 2 + rate[1] ** 2, rate))
    shares = [1 / (1 + down**2 + across**2) for down, across in rates]
    ends = [end / sum(shares) for end in accumulate(shares)]
    return [rates[bisect(ends, (channel + 0.5) / channels)] for channel in range(channels)]


def _places(size: int, device: torch.device) -> Tensor:
    """Centres of positions along a side, float32 [size] in 0..1."""
    return (torch.arange(size, device=device) + 0.5) / size


class TokenMaps(nn.Module):
    """Maps of the first few tokens, which are the same however many are asked for.

    V1.1 spreads a sum of one over the positions. V1.0 and the grouped learner weigh each position
    alone, here as a share of a window whose sum is one: a token's scale does not depend on the
    size of the grid. Nor does that of the baselines, whose maps are cells of equal weights.
    """

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.learner: TokenLearner | TokenLearnerV10 | TokenLearnerV11 | None = None
        if config.learner in BASELINES:
            return
        most, dim = config.max_tokens, config.map_dim
        self.narrow = nn.Conv2d(config.dim, dim, 1)
        if config.learner == "v11":
            self.learner = TokenLearnerV11(most, dim)
        elif config.learner == "v10":
            self.learner = TokenLearnerV10(most, dim)
        else:
            self.learner = TokenLearner(dim=dim, num_output_tokens=most)

    def forward(self, features: Tensor, windows: Tensor) -> Tensor:
        """Maps of features.

        Args:
            features: [N, dim, h, w].
            windows: logarithms of what each token begins with, [S, h, w], S at most h * w.

        Returns:
            [N, S, h, w].
        """
        num_tokens = len(windows)
        height, width = features.shape[-2:]
        if self.learner is None:
            cells = cell_maps(num_tokens, height, width).to(features)
            return cells.expand(len(features), -1, -1, -1)
        seen = norm_channels(self.narrow(features))
        if isinstance(self.learner, TokenLearner):
            maps = self.learner.maps(seen)[:, :num_tokens]
        else:
            maps = self.learner.maps(seen, num_tokens)
        if isinstance(self.learner, TokenLearnerV11):  # as if they were added before the softmax
            weighted = maps * windows.exp()
            return weighted / weighted.sum((-2, -1), keepdim=True).clamp(min=1e-12)
        return maps * windows.flatten(1).softmax(-1).view_as(windows)


def cell_grid(num_tokens: int) -> tuple[int, int]:
    """Rows and columns of cells, as near to a square as the number allows: 8 are 2x4."""
    rows = max(n for n in range(1, math.isqrt(num_tokens) + 1) if num_tokens % n == 0)
    return rows, num_tokens // rows


def cell_maps(num_tokens: int, height: int, width: int) -> Tensor:
    """The maps of average pooling, float [num_tokens, height, width], each with the sum one."""
    rows, columns = cell_grid(num_tokens)
    down, across = _shares(rows, height), _shares(columns, width)
    return torch.einsum("ah,bw->abhw", down, across).flatten(0, 1)


def _shares(parts: int, size: int) -> Tensor:
    """Each part's share of each place along one side, [parts, size], as adaptive pooling has it."""
    places = torch.arange(size)
    part = torch.arange(parts)[:, None]
    begin, end = part * size // parts, -(-(part + 1) * size // parts)
    inside = ((places >= begin) & (places < end)).float()
    return inside / inside.sum(1, keepdim=True)
