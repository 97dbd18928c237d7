"""Causal transformer over codes: logits of each code given all codes before it.

Codes [B, K, t, h, w] are ordered by step, then row, column and stage. The input of a position is
its neighbourhood in the two previous steps and the four previous positions of the same step.
Attention covers the whole previous step and the earlier positions of the same step, so a few
layers reach back several steps. Each stage has a separate head, which also sees the earlier stages
at its position.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

PAST, REACH = 2, 5  # previous steps in the input, and width of the neighbourhood


class Attention(nn.Module):
    """Attention to all of the previous step, and to the same step up to each position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, t, positions, width] -> the same shape."""
        batch, places = x.shape[0], x.shape[2]
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b t p (n h d) -> n b t h p d", n=3, h=self.heads
        )
        k, v = (torch.cat([shift(one, 1, dim=1), one], dim=3) for one in (k, v))
        seen = x.new_ones(places, places, dtype=torch.bool)
        seen = torch.cat([seen, seen.tril()], dim=1)  # zeros before the first step
        q, k, v = (one.flatten(0, 1) for one in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(rearrange(mixed, "(b t) h p d -> b t p (h d)", b=batch))


class Block(nn.Module):
    """Transformer block: x + attention(x), then x + mlp(x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            *(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.attend(x)
        return x + self.mlp(x)


class WorldNet(nn.Module):
    """Model of codes [B, K, t, h, w].

    Args:
        bits: Bits per code; the vocabulary has 2**bits entries.
        stages: K.
        grid: (h, w).
        width, depth, heads: Size of the transformer.
    """

    def __init__(
        self,
        bits: int,
        stages: int,
        grid: tuple[int, int],
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.bits, self.stages, self.grid = bits, stages, grid
        self.past = nn.Conv2d(PAST * stages * bits, width, REACH, padding=REACH // 2)
        self.near = nn.Linear(4 * stages * bits, width)
        self.place = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.told = nn.ModuleList(nn.Linear(stage * bits, width) for stage in range(1, stages))
        self.heads = nn.ModuleList(nn.Linear(width, 2**bits) for _ in range(stages))

    def forward(self, codes: Tensor) -> Tensor:
        """Compute logits [B, K, t, h, w, 2**bits] of codes int64 [B, K, t, h, w]."""
        x = self.trunk(codes)
        logits = [self.head(x, codes[:, :stage]) for stage in range(self.stages)]
        return torch.stack(logits, dim=1)

    def trunk(self, codes: Tensor) -> Tensor:
        """Compute features of each position from all codes before it, [B, t, h, w, width]."""
        x = self._embed(self._signs(codes))
        for block in self.blocks:
            x = block(x)
        return rearrange(self.norm(x), "b t (h w) c -> b t h w c", h=self.grid[0])

    def head(self, x: Tensor, earlier: Tensor) -> Tensor:
        """Compute the logits of the stage after the `earlier` ones, int64 [B, stages, t, h, w]."""
        stage = earlier.shape[1]
        if stage:
            x = functional.gelu(x + self.told[stage - 1](self._signs(earlier)))
        logits: Tensor = self.heads[stage](x)
        return logits

    def _signs(self, codes: Tensor) -> Tensor:
        """Convert codes to bits as -1 and 1, [B, t, h, w, K * bits].

        Each bit is the sign of a latent dimension, so similar codes share most bits.
        """
        places = torch.arange(self.bits, device=codes.device)
        bits = codes.unsqueeze(-1).bitwise_right_shift(places).bitwise_and(1)
        return rearrange(bits, "b k t h w n -> b t h w (k n)").float() * 2 - 1

    def _embed(self, signs: Tensor) -> Tensor:
        """Compute the input features, [B, t, h * w, width]."""
        before = torch.cat([shift(signs, n, dim=1) for n in range(1, PAST + 1)], dim=-1)
        past = self.past(rearrange(before, "b t h w c -> (b t) c h w"))
        own, row = signs.flatten(2, 3), self.grid[1]
        near = [shift(own, n, dim=2) for n in (1, max(row - 1, 1), row, row + 1)]
        past = rearrange(past, "(b t) c h w -> b t (h w) c", b=len(signs))
        return past + self.near(torch.cat(near, dim=-1)) + self.place


def shift(x: Tensor, count: int, dim: int) -> Tensor:
    """Shift x by `count` along `dim`, padded with zeros."""
    kept = x.narrow(dim, 0, max(x.shape[dim] - count, 0))
    gone = x.new_zeros(*x.shape[:dim], x.shape[dim] - kept.shape[dim], *x.shape[dim + 1 :])
    return torch.cat([gone, kept], dim=dim)


def bits_per_code(net: WorldNet, codes: Tensor) -> Tensor:
    """Compute the cross-entropy of each code in bits, [B, K, t, h, w]."""
    logits = net(codes)
    nats = functional.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none")
    return nats.view(codes.shape) / torch.log(torch.tensor(2.0))


@torch.inference_mode()
def sample(net: WorldNet, prompt: Tensor, steps: int, temperature: float, seed: int) -> Tensor:
    """Continue a prompt, code by code.

    Args:
        net: Trained model.
        prompt: Codes [B, K, t, h, w].
        steps: Latent steps to add.
        temperature: Values below 1 prefer likely codes.
        seed: Seed of the samples.

    Returns:
        Codes [B, K, t + steps, h, w], starting with the prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = prompt
    for _ in range(steps):
        codes = torch.cat([codes, torch.zeros_like(codes[:, :, :1])], dim=2)
        # earlier steps are outside the reach of the layers
        recent = codes[:, :, -(len(net.blocks) + PAST + 1) :]
        for row in range(net.grid[0]):
            for column in range(net.grid[1]):
                x = net.trunk(recent)[:, -1:, row : row + 1, column : column + 1]
                here = recent[:, :, -1:, row : row + 1, column : column + 1]
                for stage in range(net.stages):
                    logits = net.head(x, here[:, :stage]).flatten(0, -2) / temperature
                    drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
                    here[:, stage] = drawn.view_as(here[:, stage])  # a view of codes
    return codes
