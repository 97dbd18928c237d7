"""Latents -> a few learned tokens a latent step -> latents, without the latents at hand.

    latents [D, h, w] --lift--> features [W, h', w'] --maps, sums--> tokens [S, W]
    tokens [S, W] --attention from learned positions, blocks--> latents [D, h, w]

Each latent step goes through alone, so any stretch of a video gives the same tokens, and each
token stands for one step. The first S tokens are the same whatever S is: cutting tokens off the
end is all it takes to have fewer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from vtok.errors import ShapeError
from vtok.nn.blocks import Separable, norm_channels
from vtok.nn.config import BASELINES, TokenConfig
from vtok.nn.streaming import Context
from vtok.nn.token_maps import Basis, Positions, TokenMaps, Windows, cell_grid

BITS_PER_CODE = 8
CODEBOOK_SIZE = 1 << BITS_PER_CODE


class TokenBits(nn.Module):
    """Tokens to the signs of a few numbers, and back.

    A sign is one bit, and gradients pass it straight through, as in the tokenizer's own quantizer
    (LFQ, arXiv 2310.05737). Here a linear map chooses what is kept of a token and another one
    makes a token of it again.

    Args:
        dim: numbers in a token.
        bits: of a quantized token, a multiple of 8.
    """

    def __init__(self, dim: int, bits: int) -> None:
        super().__init__()
        self.num_codes = bits // BITS_PER_CODE
        self.down, self.up = nn.Linear(dim, bits), nn.Linear(bits, dim)
        place = torch.tensor([1 << bit for bit in reversed(range(BITS_PER_CODE))])
        self.register_buffer("place", place, persistent=False)
        self.place: Tensor

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [..., dim] as their bits give them back, the same shape."""
        soft = torch.tanh(self.down(tokens))
        out: Tensor = self.up(soft + (_signs(soft) - soft).detach())
        return out

    def to_codes(self, tokens: Tensor) -> Tensor:
        """Tokens [..., dim] to codes, int64 [..., bits / 8] in 0..255, the first bit highest."""
        bits = (self.down(tokens) > 0).unflatten(-1, (self.num_codes, BITS_PER_CODE))
        return (bits * self.place).sum(-1)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Codes, integers [..., bits / 8], to tokens [..., dim].

        Raises:
            ShapeError: for another number of codes, or codes that are none.
        """
        if codes.is_floating_point() or codes.shape[-1] != self.num_codes:
            raise ShapeError(
                f"codes {list(codes.shape)} of {codes.dtype}: expected integers "
                f"[..., {self.num_codes}]"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < CODEBOOK_SIZE):
            raise ShapeError(f"codes beyond 0 to {CODEBOOK_SIZE - 1}")
        bits = ((codes.long().unsqueeze(-1) & self.place) != 0).flatten(-2)
        out: Tensor = self.up(_signs(bits.to(self.up.weight.dtype) - 0.5))
        return out


def _signs(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


class TokenPipeline(nn.Module):
    """TokenLearner and a fuser on the latents of a tokenizer (after arXiv 2106.11297).

    The learner sums position-coded features under its maps. The fuser has no features of the
    original to start from, as the paper's has: its queries are learned functions of where a
    position is in the frame, so that it fills a grid of any size.

    Args:
        config: sizes and kind.

    Raises:
        UsageError: for a config that does not fit.
    """

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.config = config
        self.plain = config.learner == "average"
        self.lift = PlainLift(config) if self.plain else Lift(config)
        self.maps_of = TokenMaps(config)
        self.windows = Windows(config)
        self.bits = TokenBits(config.dim, config.token_bits)
        self.fuser = Fuser(config)

    def encode(self, latents: Tensor, num_tokens: int = 8) -> Tensor:
        """Latents to tokens, each of mean 0 and variance 1 over its numbers.

        Args:
            latents: float [B, D, t, h, w].
            num_tokens: S, of each step.

        Returns:
            Tokens, float [B, t, S, dim].

        Raises:
            ShapeError: no such latents, or more tokens than the checkpoint or the grid has.
        """
        return self.encode_with_maps(latents, num_tokens)[0]

    def encode_with_maps(self, latents: Tensor, num_tokens: int = 8) -> tuple[Tensor, Tensor]:
        """As `encode`, with the maps: float [B, t, S, h', w'], h' = h / fold rounded up."""
        frames = self._fold(latents)
        self._check_count(num_tokens, frames)
        features, values = self.lift(frames)
        grid = (frames.shape[-2], frames.shape[-1])
        maps = self.maps_of(features, self.windows(num_tokens, grid, features))
        tokens = einsum(maps, values, "n s h w, n c h w -> n s c")
        tokens = F.layer_norm(self.lift.project(tokens), (self.config.dim,))
        batch = len(latents)
        tokens = rearrange(tokens, "(b t) s c -> b t s c", b=batch)
        return tokens, rearrange(maps, "(b t) s h w -> b t s h w", b=batch)

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens to latents.

        Args:
            tokens: float [B, t, S, dim], S from 1 to `max_tokens`.
            grid: (h, w) of the latents.

        Returns:
            Latents, float [B, D, t, h, w].

        Raises:
            ShapeError: for tokens of another shape or type.
        """
        dim, most = self.config.dim, self.config.max_tokens
        if tokens.ndim != 4 or tokens.shape[3] != dim or not 1 <= tokens.shape[2] <= most:
            raise ShapeError(f"tokens {list(tokens.shape)}: expected [B, t, 1..{most}, {dim}]")
        if not tokens.is_floating_point():
            raise ShapeError(f"tokens of type {tokens.dtype}: expected floats")
        fold = self.config.fold
        folded = (-(-grid[0] // fold), -(-grid[1] // fold))
        windows = self.windows(tokens.shape[2], folded, tokens)
        frames = self.fuser(tokens.flatten(0, 1), windows)
        frames = F.pixel_shuffle(frames, fold)[..., : grid[0], : grid[1]]
        return rearrange(frames, "(b t) d h w -> b d t h w", b=len(tokens))

    def forward(self, latents: Tensor, num_tokens: int, quantized: Tensor | None = None) -> Tensor:
        """What is left of latents after so many tokens, in the same shape.

        Args:
            latents: float [B, D, t, h, w].
            num_tokens: of each step.
            quantized: which samples go through the bits, bool [B]; none of them if None.
        """
        tokens = self.encode(latents, num_tokens)
        if quantized is not None:
            through = rearrange(quantized, "b -> b 1 1 1")
            tokens = torch.where(through, self.bits(tokens), tokens)
        return self.decode(tokens, (latents.shape[3], latents.shape[4]))

    def _fold(self, latents: Tensor) -> Tensor:
        """[B, D, t, h, w] to [B*t, D * fold^2, h', w'], the edge repeated where it must be."""
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

    def _check_count(self, num_tokens: int, frames: Tensor) -> None:
        positions = frames.shape[-2:].numel()
        most = min(self.config.max_tokens, positions)
        if not 1 <= num_tokens <= most:
            raise ShapeError(
                f"{num_tokens} tokens: expected 1 to {most}, for a checkpoint of "
                f"{self.config.max_tokens} and frames of {positions} positions"
            )


class PlainLift(nn.Module):
    """The baseline: latents as they are; what a token is, is a linear map of their mean."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.latent_dim * config.fold**2, config.dim)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Folded latents [N, D * fold^2, h, w], as features and as values."""
        return frames, frames


class Lift(nn.Module):
    """Folded latents to features, and to the values that tokens are sums of.

    Values are multiplied by learned functions of the place. A sum over places then keeps where
    its parts were, as the coefficients of a transform do.
    """

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        dim = config.dim
        self.widen = nn.Conv2d(config.latent_dim * config.fold**2, dim, 1)
        self.where = Positions(dim)
        self.blocks = nn.ModuleList(Separable(dim) for _ in range(config.lift_blocks))
        self.value = nn.Conv2d(dim, dim, 1)
        self.basis = Basis(dim)
        self.project = nn.Linear(dim, dim, bias=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """[N, D * fold^2, h, w] to features and values, both [N, dim, h, w]."""
        grid = (frames.shape[-2], frames.shape[-1])
        x = (self.widen(frames) + self.where(grid)).unsqueeze(2)
        for block in self.blocks:
            x = block(x, Context())
        features = x.squeeze(2)
        return features, self.value(norm_channels(features)) * self.basis(grid)


class Fuser(nn.Module):
    """Tokens to folded latents: positions ask the tokens, then look at their neighbours."""

    def __init__(self, config: TokenConfig) -> None:
        super().__init__()
        dim = config.dim
        self.of_cells = config.learner in BASELINES
        self.query = Positions(dim)
        self.basis = Basis(dim)
        self.slots = nn.Parameter(0.02 * torch.randn(config.max_tokens, dim))
        self.ask = nn.ModuleList(Ask(dim, config.heads) for _ in range(config.fuser_blocks))
        self.blocks = nn.ModuleList(Separable(dim) for _ in range(config.fuser_blocks))
        self.out = nn.Conv2d(dim, config.latent_dim * config.fold**2, 1)

    def forward(self, tokens: Tensor, windows: Tensor) -> Tensor:
        """Tokens [N, S, dim] and logarithms of their windows [S, h, w] to [N, D * fold^2, h, w]."""
        count, grid = len(windows), (windows.shape[1], windows.shape[2])
        slots = self.slots[:count]
        if self.of_cells:  # which cell a number stands for depends on how many there are
            slots = self.query(cell_grid(count)).flatten(1).T
        tokens = tokens + slots
        x, basis = self.query(grid).expand(len(tokens), -1, -1, -1), self.basis(grid)
        for ask, block in zip(self.ask, self.blocks, strict=True):
            x = ask(x, tokens, basis, windows)
            x = block(x.unsqueeze(2), Context()).squeeze(2)
        out: Tensor = self.out(norm_channels(x))
        return out


class Ask(nn.Module):
    """Residual attention of positions to tokens; what comes back is multiplied by the place.

    Some heads begin with the tokens that have a position in their window, others with all alike.
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
        """x [N, dim, h, w], tokens [N, S, dim], basis [dim, h, w], windows [S, h, w]: as x."""
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
