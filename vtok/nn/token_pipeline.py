"""Learned tokens of a tokenizer's latents: a few tokens per latent step, and back to latents.

    latents [D, h, w] -> Lift -> features [W, h', w'] -> maps, weighted sums -> tokens [S, W]
    tokens [S, W] -> Fuser: cross-attention from learned positions -> latents [D, h, w]

Every latent step is processed alone, so any part of a video gives the same tokens. The first S
tokens do not depend on S, so dropping tokens from the end gives fewer.
"""

from __future__ import annotations

import math
from bisect import bisect
from itertools import accumulate

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from vtok.errors import ShapeError
from vtok.nn.blocks import DepthwiseBlock
from vtok.nn.config import BASELINES, TokenConfig
from vtok.nn.layers import Context, norm_channels
from vtok.nn.token_learner import TokenLearner, TokenLearnerV10, TokenLearnerV11

BITS_PER_CODE = 8
CODEBOOK_SIZE = 1 << BITS_PER_CODE
WAVES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)  # half periods of the position encoding over the frame
USUAL_SIDE = 16.0  # side of a grid, in positions, whose size is encoded as zero
FASTEST = 8  # upper bound of the half periods over a side of the initial cosines of a basis
WHOLE, WIDE = 0.5, 0.35  # reach of the first window; of window s > 0 times the root of s
GOLDEN = (0.7548776662, 0.5698402910)  # steps of a sequence of points that fills a square evenly


class TokenPipeline(nn.Module):
    """TokenLearner and a fuser on the latents of a tokenizer (after arXiv 2106.11297).

    The learner computes weighted sums of position-coded features. Unlike the paper's fuser, this
    one has no features of the original: its queries are learned functions of the position in the
    frame, so it fills a grid of any size.

    Args:
        config: Sizes and kind of learner.
    """

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.config = config
        self.lift = PlainLift(config) if config.learner == "average" else Lift(config)
        self.maps_of = TokenMaps(config)
        self.windows = Windows(config)
        self.bits = TokenBits(config.dim, config.token_bits)
        self.fuser = Fuser(config)

    def encode(self, latents: Tensor, num_tokens: int = 8) -> Tensor:
        """Encode latents as tokens, each of mean 0 and variance 1 over its channels.

        Args:
            latents: Float [B, D, t, h, w].
            num_tokens: S, tokens of each latent step.

        Returns:
            Tokens, float [B, t, S, dim].

        Raises:
            ShapeError: The latents have another shape or type, or the checkpoint or the grid has
                fewer tokens.
        """
        return self.encode_with_maps(latents, num_tokens)[0]

    def encode_with_maps(self, latents: Tensor, num_tokens: int = 8) -> tuple[Tensor, Tensor]:
        """Return the tokens, and their maps [B, t, S, h', w'] with h' = h / fold rounded up."""
        frames = self._merge(latents)
        grid = (frames.shape[-2], frames.shape[-1])
        most = min(self.config.max_tokens, math.prod(grid))
        if not 1 <= num_tokens <= most:
            raise ShapeError(
                f"{num_tokens} tokens: expected 1 to {most}, for a checkpoint of "
                f"{self.config.max_tokens} and frames of {math.prod(grid)} positions"
            )
        features, values = self.lift(frames)
        maps = self.maps_of(features, self.windows(num_tokens, grid, features))
        tokens = einsum(maps, values, "n s h w, n c h w -> n s c")
        tokens = F.layer_norm(self.lift.project(tokens), (self.config.dim,))
        batch = len(latents)
        tokens = rearrange(tokens, "(b t) s c -> b t s c", b=batch)
        return tokens, rearrange(maps, "(b t) s h w -> b t s h w", b=batch)

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode tokens to latents.

        Args:
            tokens: Float [B, t, S, dim], S from 1 to `max_tokens`.
            grid: (h, w) of the latents.

        Returns:
            Latents, float [B, D, t, h, w].

        Raises:
            ShapeError: The tokens have another shape or type.
        """
        dim, most = self.config.dim, self.config.max_tokens
        if tokens.ndim != 4 or tokens.shape[3] != dim or not 1 <= tokens.shape[2] <= most:
            raise ShapeError(f"tokens {list(tokens.shape)}: expected [B, t, 1..{most}, {dim}]")
        if not tokens.is_floating_point():
            raise ShapeError(f"tokens of type {tokens.dtype}: expected floats")
        fold = self.config.fold
        merged = (-(-grid[0] // fold), -(-grid[1] // fold))
        windows = self.windows(tokens.shape[2], merged, tokens)
        frames = self.fuser(tokens.flatten(0, 1), windows)
        frames = F.pixel_shuffle(frames, fold)[..., : grid[0], : grid[1]]
        return rearrange(frames, "(b t) d h w -> b d t h w", b=len(tokens))

    def forward(self, latents: Tensor, num_tokens: int, quantized: Tensor | None = None) -> Tensor:
        """Encode and decode latents; same shape.

        Args:
            latents: Float [B, D, t, h, w].
            num_tokens: Tokens of each latent step.
            quantized: Samples whose tokens are quantized, bool [B]; default: none.
        """
        tokens = self.encode(latents, num_tokens)
        if quantized is not None:
            through = rearrange(quantized, "b -> b 1 1 1")
            tokens = torch.where(through, self.bits(tokens), tokens)
        return self.decode(tokens, (latents.shape[3], latents.shape[4]))

    def _merge(self, latents: Tensor) -> Tensor:
        """Merge squares of latents, [B, D, t, h, w] -> [B*t, D * fold^2, h', w'], padded."""
        dim, fold = self.config.latent_dim, self.config.fold
        if latents.ndim != 5 or latents.shape[1] != dim or not latents.is_floating_point():
            raise ShapeError(
                f"latents {list(latents.shape)} of {latents.dtype}: expected floats "
                f"[B, {dim}, t, h, w]"
            )
        frames = rearrange(latents, "b d t h w -> (b t) d h w")
        height, width = frames.shape[-2:]
        frames = F.pad(frames, (0, -width % fold, 0, -height % fold), mode="replicate")
        return F.pixel_unshuffle(frames, fold)


class TokenBits(nn.Module):
    """Quantizer of tokens: a linear map to a few numbers, their signs, and a linear map back.

    A sign is one bit, with a straight-through gradient, as in LFQ (arXiv 2310.05737).

    Args:
        dim: Channels of a token.
        bits: Bits of a quantized token, a multiple of 8.
    """

    def __init__(self, dim: int, bits: int) -> None:
        super().__init__()
        self.num_codes = bits // BITS_PER_CODE
        self.down, self.up = nn.Linear(dim, bits), nn.Linear(bits, dim)
        place = torch.tensor([1 << bit for bit in reversed(range(BITS_PER_CODE))])
        self.register_buffer("place", place, persistent=False)
        self.place: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Quantize and dequantize tokens [..., dim]; same shape."""
        soft = torch.tanh(self.down(tokens))
        return self.up(soft + (_signs(soft) - soft).detach())

    def to_codes(self, tokens: Tensor) -> Tensor:
        """Convert tokens [..., dim] to codes, int64 [..., bits / 8]; the first bit is highest."""
        bits = (self.down(tokens) > 0).unflatten(-1, (self.num_codes, BITS_PER_CODE))
        return (bits * self.place).sum(-1)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Convert codes, integers [..., bits / 8], to tokens [..., dim].

        Raises:
            ShapeError: The type or number of codes is wrong, or a code is out of range.
        """
        if codes.is_floating_point() or codes.shape[-1] != self.num_codes:
            raise ShapeError(
                f"codes {list(codes.shape)} of {codes.dtype}: expected integers "
                f"[..., {self.num_codes}]"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < CODEBOOK_SIZE):
            raise ShapeError(f"codes beyond 0 to {CODEBOOK_SIZE - 1}")
        bits = ((codes.long().unsqueeze(-1) & self.place) != 0).flatten(-2)
        return self.up(_signs(bits.to(self.up.weight.dtype) - 0.5))


def _signs(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


class PlainLift(nn.Module):
    """Baseline without a network: tokens are a linear map of the mean of the latents."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.latent_dim * config.fold**2, config.dim)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return merged latents [N, D * fold^2, h, w] as features and as values."""
        return frames, frames


class Lift(nn.Module):
    """Map merged latents to features and to the values that tokens are sums of.

    Values are multiplied by learned functions of the position, so a sum over positions keeps
    spatial information, like the coefficients of a transform.
    """

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        dim = config.dim
        self.widen = nn.Conv2d(config.latent_dim * config.fold**2, dim, 1)
        self.where = Positions(dim)
        self.blocks = nn.ModuleList(DepthwiseBlock(dim) for _ in range(config.lift_blocks))
        self.value = nn.Conv2d(dim, dim, 1)
        self.basis = Basis(dim)
        self.project = nn.Linear(dim, dim, bias=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[N, D * fold^2, h, w] -> features and values, both [N, dim, h, w]."""
        grid = (frames.shape[-2], frames.shape[-1])
        x = (self.widen(frames) + self.where(grid)).unsqueeze(2)
        for block in self.blocks:
            x = block(x, Context())
        features = x.squeeze(2)
        return features, self.value(norm_channels(features)) * self.basis(grid)


class Fuser(nn.Module):
    """Map tokens to merged latents: cross-attention and depthwise blocks in turns."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        dim = config.dim
        self.of_cells = config.learner in BASELINES
        self.query = Positions(dim)
        self.basis = Basis(dim)
        self.slots = nn.Parameter(0.02 * torch.randn(config.max_tokens, dim))
        self.ask = nn.ModuleList(
            CrossAttention(dim, config.heads) for _ in range(config.fuser_blocks)
        )
        self.blocks = nn.ModuleList(DepthwiseBlock(dim) for _ in range(config.fuser_blocks))
        self.out = nn.Conv2d(dim, config.latent_dim * config.fold**2, 1)

    def forward(self, tokens: Tensor, windows: Tensor) -> Tensor:
        """Tokens [N, S, dim] and log windows [S, h, w] -> merged latents [N, D * fold^2, h, w]."""
        count, grid = len(windows), (windows.shape[1], windows.shape[2])
        slots = self.slots[:count]
        if self.of_cells:  # the cell of a token depends on the number of tokens
            slots = self.query(cell_grid(count)).flatten(1).T
        tokens = tokens + slots
        x, basis = self.query(grid).expand(len(tokens), -1, -1, -1), self.basis(grid)
        for ask, block in zip(self.ask, self.blocks, strict=True):
            x = ask(x, tokens, basis, windows)
            x = block(x.unsqueeze(2), Context()).squeeze(2)
        return self.out(norm_channels(x))


class CrossAttention(nn.Module):
    """Residual cross-attention from positions to tokens, gated by functions of the position.

    Some heads start by preferring tokens whose window covers the position, others treat all alike.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.keys_values = nn.Linear(dim, 2 * dim)
        self.gate = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.gate.weight)
        self.nearness = nn.Parameter(torch.linspace(0, 2, heads))
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor, basis: Tensor, windows: Tensor) -> Tensor:
        """x [N, dim, h, w], tokens [N, S, dim], basis [dim, h, w], windows [S, h, w] -> like x."""
        height = x.shape[2]
        rows = rearrange(norm_channels(x), "n c h w -> n (h w) c")
        query = rearrange(self.query(rows), "n p (k d) -> n k p d", k=self.heads)
        key, value = rearrange(
            self.keys_values(tokens), "n s (two k d) -> two n k s d", two=2, k=self.heads
        )
        near = rearrange(windows, "s h w -> (h w) s") * rearrange(self.nearness, "k -> k 1 1")
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=near)
        gate = self.gate(rearrange(basis, "c h w -> (h w) c"))
        mixed = self.out(rearrange(found, "n k p d -> n p (k d)") * gate)
        return x + rearrange(mixed, "n (h w) c -> n c h w", h=height)


class Positions(nn.Module):
    """Learned position encoding [dim, h, w] for any h and w.

    Positions are relative to the frame, so a finer grid samples the same functions more densely.
    The size of the grid is an input too, clamped so that grids larger than any seen in training
    stay within the known range.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.told, self.made = nn.Linear(4 * len(WAVES) + 2, dim), nn.Linear(dim, dim)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Evaluate on a grid (h, w), float [dim, h, w]."""
        height, width = grid
        rows = self._sides(height)[:, None].expand(-1, width, -1)
        columns = self._sides(width)[None].expand(height, -1, -1)
        told = torch.cat([rows, columns], dim=-1).to(self.told.weight.dtype)
        out: Tensor = self.made(F.gelu(self.told(told)))
        return out.permute(2, 0, 1)

    def _sides(self, size: int) -> Tensor:
        """Encode the positions along one side, float32 [size, 2 * waves + 1]."""
        device = self.told.weight.device  # in float32: bfloat16 distinguishes few positions
        angles = math.pi * _centres(size, device)[:, None] * torch.tensor(WAVES, device=device)
        length = max(-1.0, min(1.0, math.log2(size / USUAL_SIDE) / 2))
        return torch.cat([angles.sin(), angles.cos(), torch.full_like(angles[:, :1], length)], 1)


class Basis(Positions):
    """Learned functions of the position that start as the cosines of a DCT.

    Training therefore starts from transform coding: weighted sums compute coefficients, and the
    same functions turn coefficients back into values.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        nn.init.zeros_(self.made.weight)
        nn.init.zeros_(self.made.bias)
        self.rates = cosine_rates(dim)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """Evaluate on a grid (h, w), float [dim, h, w]."""
        learned = super().forward(grid)
        rates = torch.tensor(self.rates, device=learned.device)
        rows = (math.pi * rates[:, :1] * _centres(grid[0], learned.device)).cos()
        columns = (math.pi * rates[:, 1:] * _centres(grid[1], learned.device)).cos()
        return learned + (rows[:, :, None] * columns[:, None, :]).to(learned.dtype)


class Windows(nn.Module):
    """Gaussian windows, one per token, with learned centres and widths.

    Without them all tokens start as the same mean of the frame. The first window spans the frame;
    later ones are narrower, at points that cover the frame evenly for any number of tokens. The
    baselines have fixed windows over their cells, used by the fuser.
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
        """Compute log windows, at most 0, [count, h, w], in the type of `like`."""
        if self.of_cells:
            down, across = cell_grid(count)
            sides = ((torch.arange(n) + 0.5) / n for n in (down, across))
            centres = torch.cartesian_prod(*sides).reshape(count, 2)
            reach = torch.full((count,), WIDE / max(4, count) ** 0.5)
        else:
            centres = self.centres[:count].float()
            reach = self.log_reach[:count].float().exp()
        rows = _centres(grid[0], like.device) - centres[:, :1].to(like.device)
        columns = _centres(grid[1], like.device) - centres[:, 1:].to(like.device)
        far = rows.square()[:, :, None] + columns.square()[:, None, :]
        return (-far / (2 * reach.to(like.device).square()[:, None, None])).to(like.dtype)


def cosine_rates(channels: int) -> list[tuple[int, int]]:
    """Choose half periods (down, across) of each channel's initial cosine, slow ones first.

    Energy in pictures falls with the rate r about as 1 / (1 + r^2); channels follow that share.
    """
    rates = [(down, across) for down in range(FASTEST) for across in range(FASTEST)]
    rates.sort(key=lambda rate: (rate[0] ** 2 + rate[1] ** 2, rate))
    shares = [1 / (1 + down**2 + across**2) for down, across in rates]
    ends = [end / sum(shares) for end in accumulate(shares)]
    return [rates[bisect(ends, (channel + 0.5) / channels)] for channel in range(channels)]


def _centres(size: int, device: torch.device) -> Tensor:
    """Compute centres of the positions along a side, float32 [size] in 0..1."""
    return (torch.arange(size, device=device) + 0.5) / size


class TokenMaps(nn.Module):
    """Attention maps of the first tokens, independent of how many tokens are requested.

    Maps of V1.1 and of the baselines sum to one over the positions. V1.0 and the grouped learner
    weigh each position alone, here relative to a window that sums to one. The scale of a token
    therefore never depends on the size of the grid.
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
        """Compute maps [N, S, h, w].

        Args:
            features: [N, dim, h, w].
            windows: Log windows of the tokens, [S, h, w], S at most h * w.
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
        if isinstance(self.learner, TokenLearnerV11):  # equals adding logs before the softmax
            weighted = maps * windows.exp()
            return weighted / weighted.sum((-2, -1), keepdim=True).clamp(min=1e-12)
        return maps * windows.flatten(1).softmax(-1).view_as(windows)


def cell_grid(num_tokens: int) -> tuple[int, int]:
    """Choose rows and columns of cells, as close to a square as possible: 8 cells are 2x4."""
    rows = max(n for n in range(1, math.isqrt(num_tokens) + 1) if num_tokens % n == 0)
    return rows, num_tokens // rows


def cell_maps(num_tokens: int, height: int, width: int) -> Tensor:
    """Compute maps of average pooling, float [num_tokens, height, width], each of sum one."""
    rows, columns = cell_grid(num_tokens)
    down, across = _shares(rows, height), _shares(columns, width)
    return torch.einsum("ah,bw->abhw", down, across).flatten(0, 1)


def _shares(parts: int, size: int) -> Tensor:
    """Compute the weights of adaptive average pooling along one side, [parts, size]."""
    positions = torch.arange(size)
    part = torch.arange(parts)[:, None]
    begin, end = part * size // parts, -(-(part + 1) * size // parts)
    inside = ((positions >= begin) & (positions < end)).float()
    return inside / inside.sum(1, keepdim=True)
