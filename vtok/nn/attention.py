"""Attention over the positions of a frame or over past frames, plain or conditioned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vtok.nn.layers import CausalLayer, Context, modulation, per_channel

DIM_HEAD, HEADS = 32, 8
LINEAR_DIM_HEAD, LINEAR_HEADS = 8, 16
NULL_KEYS = 4  # learned keys and values, so that a query can attend to nothing in the input


class Norm(nn.Module):
    """RMS norm over channels (arXiv 1910.07467) with a learned or conditioned gain."""

    def __init__(self, dim: int, dim_cond: int | None) -> None:
        super().__init__()
        self.conditioned = dim_cond is not None
        if dim_cond is None:
            self.gain = nn.Parameter(torch.ones(dim))
        else:
            self.to_gain = nn.Linear(dim_cond, dim)
            nn.init.zeros_(self.to_gain.weight)
            nn.init.ones_(self.to_gain.bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> the same shape."""
        gain = modulation(self.to_gain, context) if self.conditioned else self.gain[None]
        scaled = F.normalize(x, dim=1) * x.shape[1] ** 0.5
        return scaled * per_channel(gain)


class FeedForward(nn.Module):
    """Norm and gated feed-forward network of each position (GEGLU, arXiv 2002.05202)."""

    def __init__(self, dim: int, dim_cond: int | None) -> None:
        super().__init__()
        inner = int(dim * 8 / 3)
        self.norm = Norm(dim, dim_cond)
        self.expand = nn.Conv3d(dim, inner * 2, 1)
        self.project = nn.Conv3d(inner, dim, 1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> the same shape."""
        value, gate = self.expand(self.norm(x, context)).chunk(2, dim=1)
        return self.project(F.gelu(gate) * value)


class Attention(nn.Module):
    """Multi-head softmax attention over sequences [N, L, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = DIM_HEAD * HEADS
        self.to_qkv = nn.Linear(dim, inner * 3, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, HEADS, NULL_KEYS, DIM_HEAD))
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(
        self, x: Tensor, past: Tensor | None = None, *, causal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x: [N, L, dim].
            past: Keys and values of earlier positions, [2, N, heads, P, dim_head].
            causal: Let a position attend only to itself and earlier ones.

        Returns:
            The result [N, L, dim], and all keys and values so far, [2, N, heads, P + L, dim_head].
        """
        q, k, v = rearrange(self.to_qkv(x), "n l (three h d) -> three n h l d", three=3, h=HEADS)
        kv = torch.stack((k, v))
        if past is not None:
            kv = torch.cat((past, kv), dim=3)
        nulls = repeat(self.null_kv, "two h l d -> two n h l d", n=x.shape[0])
        keys, values = torch.cat((nulls, kv), dim=3)
        mask = _causal_mask(q.shape[2], keys.shape[2], x.device) if causal else None
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.to_out(rearrange(out, "n h l d -> n l (h d)")), kv


def _causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class LinearAttention(nn.Module):
    """Attention of linear cost: exp(q.k) by its second-order Taylor series (arXiv 2402.18668)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = LINEAR_DIM_HEAD * LINEAR_HEADS
        self.to_qkv = nn.Linear(dim, inner * 3, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, dim] -> the same shape."""
        q, k, v = rearrange(
            self.to_qkv(x), "n l (three h d) -> three n h l d", three=3, h=LINEAR_HEADS
        )
        q, k = _taylor(q * LINEAR_DIM_HEAD**-0.5), _taylor(k)
        mixed = q @ (k.mT @ v)
        total = q @ k.sum(-2, keepdim=True).mT
        return self.to_out(rearrange(mixed / total, "n h l d -> n l (h d)"))


def _taylor(x: Tensor) -> Tensor:
    """Compute features f with f(q).f(k) = 1 + q.k + (q.k)^2 / 2, always positive."""
    squares = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) * 0.5**0.5
    return torch.cat((torch.ones_like(x[..., :1]), x, squares), dim=-1)


class AttendSpace(CausalLayer):
    """Residual attention over the positions of each frame, then a residual feed-forward."""

    def __init__(self, dim: int, *, dim_cond: int | None = None, linear: bool = False) -> None:
        super().__init__()
        self.norm = Norm(dim, dim_cond)
        self.linear = linear
        self.attention: nn.Module = LinearAttention(dim) if linear else Attention(dim)
        self.feed_forward = FeedForward(dim, dim_cond)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> the same shape."""
        b, _, t, h, _ = x.shape
        rows = rearrange(self.norm(x, context), "b c t h w -> (b t) (h w) c")
        mixed = self.attention(rows) if self.linear else self.attention(rows)[0]
        x = x + rearrange(mixed, "(b t) (h w) c -> b c t h w", b=b, t=t, h=h)
        return x + self.feed_forward(x, context)


class TokenShift(CausalLayer):
    """Replace half of the channels by those of the previous frame (zeros before the first)."""

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> the same shape."""
        here, shifted = x.tensor_split(2, dim=1)
        past = context.past(self)
        first = torch.zeros_like(shifted[:, :, :1]) if past is None else past
        context.remember(self, shifted[:, :, -1:])
        return torch.cat((here, torch.cat((first, shifted[:, :, :-1]), dim=2)), dim=1)


class AttendTime(CausalLayer):
    """Residual attention of each position over its past, then a residual feed-forward.

    Every frame is remembered, so the memory of a stream grows with its length.
    """

    lookback = None

    def __init__(self, dim: int, *, dim_cond: int | None = None) -> None:
        super().__init__()
        self.shift = TokenShift()
        self.norm = Norm(dim, dim_cond)
        self.attention = Attention(dim)
        self.shift_feed_forward = TokenShift()
        self.feed_forward = FeedForward(dim, dim_cond)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> the same shape."""
        b, _, _, h, _ = x.shape
        rows = self.norm(self.shift(x, context), context)
        rows = rearrange(rows, "b c t h w -> (b h w) t c")
        mixed, seen = self.attention(rows, context.past(self), causal=True)
        context.remember(self, seen)
        x = x + rearrange(mixed, "(b h w) t c -> b c t h w", b=b, h=h)
        return x + self.feed_forward(self.shift_feed_forward(x, context), context)


class GateLoopTime(CausalLayer):
    """Residual gated linear recurrence over time (GateLoop, arXiv 2311.01927).

    h[t] = a[t] h[t-1] + kv[t]; the output is q[t] h[t], with a[t] in 0..1 from the input.
    """

    lookback = None

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = Norm(dim, None)
        self.to_qka = nn.Conv3d(dim, dim * 3, 1, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> the same shape."""
        q, kv, a = self.to_qka(self.norm(x, context)).chunk(3, dim=1)
        state = context.past(self)
        outputs = []
        for step, keep in zip(kv.unbind(2), a.sigmoid().unbind(2), strict=True):
            state = step if state is None else keep * state + step
            outputs.append(state)
        assert state is not None
        context.remember(self, state)
        return x + q * torch.stack(outputs, dim=2)
