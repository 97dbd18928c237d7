"""TokenLearner and TokenFuser (arXiv 2106.11297): attention pooling of feature maps, and back."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from einops import einsum, rearrange
from torch import Size, Tensor, nn

from vtok.errors import OptionError, ShapeError

# The authors' code uses flax, whose LayerNorm adds 1e-6 and whose GELU is the tanh form.
_NORM_EPS = 1e-6
Reduction = Literal["sum", "mean"]


class TokenLearner(nn.Module):
    """Pool feature maps into `num_output_tokens` vectors, each by a separate attention map.

    With `S = num_output_tokens`, for token s and each leading index:

        map[s, h, w] = net_s(x[:, h, w])
        token[c, s]  = mean over h, w of map[s, h, w] * x[c, h, w]

    `net_s` is a stack of `num_layers` 1x1 convolutions, GELU between them, `dim * ff_mult`
    channels wide inside and one channel at its end; the maps are not normalized. The S stacks are
    computed as one grouped convolution per layer.

    Args:
        dim: Channels of the input.
        ff_mult: Width inside each stack, as a multiple of `dim`.
        num_output_tokens: S, the number of tokens.
        num_layers: Convolutions in each stack.

    Raises:
        ShapeError: An argument is missing or not a positive integer.
    """

    def __init__(
        self,
        *,
        dim: int | None = None,
        ff_mult: int = 2,
        num_output_tokens: int = 8,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        self.dim = _positive("TokenLearner: dim, the channels of its input,", dim)
        self.num_output_tokens = _positive("TokenLearner: num_output_tokens", num_output_tokens)
        inner = self.dim * _positive("TokenLearner: ff_mult", ff_mult) * num_output_tokens
        inners = [inner] * (_positive("TokenLearner: num_layers", num_layers) - 1)
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise([self.dim, *inners, num_output_tokens]):
            groups = num_output_tokens if layers else 1
            layers += [nn.Conv2d(width_in, width_out, 1, groups=groups), nn.GELU()]
        self.net = nn.Sequential(*layers[:-1])

    def maps(self, x: Tensor) -> Tensor:
        """Compute the attention maps, float `[*, S, H, W]` of any sign, for x as in `forward`."""
        _require_float("TokenLearner: x", x)
        if x.ndim < 3 or x.shape[-3] != self.dim or 0 in x.shape[-2:]:
            raise ShapeError(
                f"TokenLearner: x is {list(x.shape)}; pass [..., {self.dim}, H, W], H, W >= 1"
            )
        lead, grid = x.shape[:-3], x.shape[-2:]  # -1 in reshape would fail for an empty batch
        weights: Tensor = self.net(x.reshape(lead.numel(), self.dim, *grid))  # [n, S, H, W]
        return weights.reshape(*lead, self.num_output_tokens, *grid)

    def forward(self, x: Tensor) -> Tensor:
        """Pool x into tokens, averaged over space.

        Args:
            x: Float `[*, dim, H, W]` with any leading dimensions, or none.

        Returns:
            Tokens, float `[*, dim, S]`.

        Raises:
            ShapeError: x has another shape or type.
        """
        pooled = einsum(x, self.maps(x), "... c h w, ... s h w -> ... c s")
        return pooled / x.shape[-2:].numel()


class _PaperTokenLearner(nn.Module):
    """Base of V1.0 and V1.1: input layouts, and tokens as weighted sums of the raw input."""

    def __init__(self, num_tokens: int, dim: int, reduction: Reduction) -> None:
        super().__init__()
        self.num_tokens = _positive(f"{type(self).__name__}: num_tokens", num_tokens)
        self.dim = _positive(f"{type(self).__name__}: dim", dim)
        self.reduction = reduction
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)

    def maps(self, x: Tensor, first: int | None = None) -> Tensor:
        """Compute the weights of the positions, float in 0..1, for x as in `forward`.

        Returns `[B, S, N]`, `[B, S, H, W]` or `[B, T, S, H, W]`, S all tokens or the `first` few.
        """
        frames, grid = _sizes(x)
        weights = self._attend(x, first)[1]
        return weights.reshape(*frames, weights.shape[1], *grid)

    def forward(self, x: Tensor) -> Tensor:
        """Pool x into tokens; each frame of a video is pooled alone.

        Args:
            x: Float `[B, N, dim]`, `[B, dim, H, W]` or `[B, dim, T, H, W]`.

        Returns:
            Tokens, float `[B, S, dim]`, for video `[B, T, S, dim]`, `S = num_tokens`.

        Raises:
            ShapeError: x has another shape or type, or fewer positions than tokens.
        """
        positions, weights = self._attend(x)
        tokens = einsum(weights, positions, "n s p, n p c -> n s c")
        if self.reduction == "mean":
            tokens = tokens / positions.shape[1]
        return tokens.reshape(*_sizes(x)[0], self.num_tokens, self.dim)

    def _attend(self, x: Tensor, first: int | None = None) -> tuple[Tensor, Tensor]:
        """Return positions `[n, p, dim]` of x and their weights `[n, S, p]`."""
        positions = _to_positions(type(self).__name__, x, self.dim)
        if positions.shape[1] < (first or self.num_tokens):
            raise ShapeError(
                f"{type(self).__name__}: x {list(x.shape)} has {positions.shape[1]} positions "
                f"for {first or self.num_tokens} tokens; pass a larger grid or fewer tokens"
            )
        return positions, self._weights(positions, _sizes(x)[1])[:, :first]

    def _weights(self, positions: Tensor, grid: Size) -> Tensor:
        raise NotImplementedError


class TokenLearnerV10(_PaperTokenLearner):
    """TokenLearner V1.0 of "What Can 8 Learned Tokens Do for Images and Videos?".

    arXiv 2106.11297, equal to its authors' code. With p over the positions of one frame:

        map   = sigmoid(conv(gelu(conv(gelu(conv(gelu(conv(layer_norm(x)))))))))
        token = sum over p of map[p] * x[p], or the mean over p

    Each conv is 3x3, without bias, zero-padded, and gives S channels; the norm is over channels,
    GELU is its tanh form, and x in the sum is the input before the norm. A sequence is read as a
    square grid, row by row; any other length is a ShapeError.

    Args:
        num_tokens: S, tokens of each frame.
        dim: Channels of the input.
        reduction: Reduction over positions, `sum` or `mean`.

    Raises:
        ShapeError: A size is not a positive integer.
        OptionError: The reduction is unknown.
    """

    def __init__(self, num_tokens: int, dim: int, *, reduction: Reduction = "sum") -> None:
        if reduction not in ("sum", "mean"):
            raise OptionError("reduction", repr(reduction), '"sum" or "mean"')
        super().__init__(num_tokens, dim, reduction)
        layers: list[nn.Module] = []
        for width in (dim, num_tokens, num_tokens, num_tokens):
            conv = nn.Conv2d(width, num_tokens, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")  # variance 1 / fan_in
            layers += [conv, nn.GELU(approximate="tanh")]
        self.convs = nn.Sequential(*layers[:-1])

    def _weights(self, positions: Tensor, grid: Size) -> Tensor:
        height, width = grid if len(grid) == 2 else (math.isqrt(grid[0]),) * 2
        if height * width != grid.numel():
            raise ShapeError(
                f"TokenLearnerV10: {grid[0]} positions are no square, and its 3x3 convolutions "
                f"need a grid; pass [B, {self.dim}, H, W] instead, or use TokenLearnerV11"
            )
        normed = rearrange(self.norm(positions), "n (h w) c -> n c h w", h=height, w=width)
        return rearrange(torch.sigmoid(self.convs(normed)), "n s h w -> n s (h w)")


class TokenLearnerV11(_PaperTokenLearner):
    """TokenLearner V1.1, which its authors found better than V1.0 in general.

    arXiv 2106.11297, equal to its authors' code. With p over the positions of one frame:

        map   = softmax over p of linear(gelu(linear(layer_norm(x[p]))))
        token = sum over p of map[p] * x[p]

    The norm is over channels, the first linear gives `bottleneck_dim` channels, the second S;
    GELU is its tanh form, and x in the sum is the input before the norm. Tokens do not depend on
    the order of positions.

    Args:
        num_tokens: S, tokens of each frame.
        dim: Channels of the input.
        bottleneck_dim: Hidden channels.

    Raises:
        ShapeError: A size is not a positive integer.
    """

    def __init__(self, num_tokens: int, dim: int, *, bottleneck_dim: int = 64) -> None:
        super().__init__(num_tokens, dim, "sum")
        self.mlp = _mlp(dim, bottleneck_dim, num_tokens)

    def _weights(self, positions: Tensor, grid: Size) -> Tensor:
        logits: Tensor = self.mlp(self.norm(positions))
        return rearrange(logits, "n p s -> n s p").softmax(dim=-1)


class TokenFuser(nn.Module):
    """TokenFuser: spread tokens over the grid they were pooled from (arXiv 2106.11297).

    With s over tokens and p over the positions of one frame:

        mixed   = layer_norm(mix @ layer_norm(tokens) + bias), mix of [S, S] over the token axis
        gate[p] = sigmoid(linear(gelu(linear(layer_norm(x[p])))))
        out[p]  = sum over s of gate[p, s] * mixed[s]

    Norms are over channels. `mix` and its bias start at zero, so a new fuser returns zeros, and
    the residual `x + fuser(tokens, x)` starts as the identity. At zero the norm after `mix`
    multiplies gradients by 1000: clip them, or train with Adam. Arguments and errors are those of
    TokenLearnerV11.
    """

    def __init__(self, num_tokens: int, dim: int, *, bottleneck_dim: int = 64) -> None:
        super().__init__()
        self.num_tokens = _positive("TokenFuser: num_tokens", num_tokens)
        self.dim = _positive("TokenFuser: dim", dim)
        self.token_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.mix = nn.Linear(num_tokens, num_tokens)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)
        self.mixed_norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.mlp = _mlp(dim, bottleneck_dim, num_tokens)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Compute a mix of the tokens at each position of x.

        Args:
            tokens: Float `[B, S, dim]`, or `[B, T, S, dim]` for video.
            x: Float `[B, N, dim]`, `[B, dim, H, W]` or `[B, dim, T, H, W]`.

        Returns:
            Float, of the shape of x.

        Raises:
            ShapeError: tokens or x have another shape or type, or do not fit together.
        """
        positions = _to_positions("TokenFuser", x, self.dim)
        _require_float("TokenFuser: tokens", tokens)
        frames, grid = _sizes(x)
        expected = [*frames, self.num_tokens, self.dim]
        if list(tokens.shape) != expected:
            got = f"TokenFuser: tokens are {list(tokens.shape)} for x {list(x.shape)}"
            raise ShapeError(f"{got}; pass tokens {expected}")
        folded = tokens.reshape(len(positions), self.num_tokens, self.dim)  # time into batch
        mixed: Tensor = self.mix(rearrange(self.token_norm(folded), "n s c -> n c s"))
        mixed = self.mixed_norm(rearrange(mixed, "n c s -> n s c"))
        gate: Tensor = torch.sigmoid(self.mlp(self.norm(positions)))  # [n, p, S]
        spread = einsum(gate, mixed, "n p s, n s c -> n p c").reshape(*frames, *grid, self.dim)
        return spread if x.ndim == 3 else rearrange(spread, "b ... c -> b c ...")


def _mlp(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Make linear, GELU, linear with Xavier weights and zero biases, like the authors' code."""
    first, second = nn.Linear(dim, _positive("bottleneck_dim", hidden)), nn.Linear(hidden, out)
    for linear in (first, second):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(first, nn.GELU(approximate="tanh"), second)


def _to_positions(name: str, x: Tensor, dim: int) -> Tensor:
    """Check x and reshape it to `[n, p, dim]`: n batch and frames, p positions."""
    _require_float(f"{name}: x", x)
    if x.ndim not in (3, 4, 5) or x.shape[2 if x.ndim == 3 else 1] != dim:
        raise ShapeError(
            f"{name}: x is {list(x.shape)}; pass [B, N, {dim}], [B, {dim}, H, W] "
            f"or [B, {dim}, T, H, W], {dim} channels as its dim says"
        )
    frames, grid = _sizes(x)
    channels_last = x if x.ndim == 3 else rearrange(x, "b c ... -> b ... c")
    return channels_last.reshape(frames.numel(), grid.numel(), dim)


def _sizes(x: Tensor) -> tuple[Size, Size]:
    """Return the sizes kept, `(B,)` or `(B, T)`, and pooled, `(N,)` or `(H, W)`."""
    if x.ndim == 3:
        return x.shape[:1], x.shape[1:2]
    return x.shape[:1] + x.shape[2:-2], x.shape[-2:]


def _positive(what: str, value: int | None) -> int:
    if not isinstance(value, int) or value < 1:
        raise ShapeError(f"{what} is {value!r}; pass a positive integer")
    return value


def _require_float(what: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ShapeError(f"{what} is {x.dtype}; pass a float tensor")
