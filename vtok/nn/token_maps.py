"""Where a token looks: the maps of the three learners, and the fixed cells of the baselines."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vtok.nn.separable import norm_channels
from vtok.nn.token_config import BASELINES, TokenConfig
from vtok.nn.token_learner import TokenLearner, TokenLearnerV10, TokenLearnerV11


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
