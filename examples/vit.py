"""Mini vision transformer that can reduce its tokens after one of its blocks.

Images [B, C, 48, 48] are cut into 8x8 patches of 6x6 pixels: 64 tokens of 128 channels, 4 blocks of
attention with 4 heads and an MLP 128-256-128. A `Variant` sets the number of tokens, the method and
the block after which tokens are reduced.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vtok import TokenLearner, TokenLearnerV10, TokenLearnerV11

SIDE, PATCH, WIDTH, HEADS, BLOCKS, HIDDEN, DROPOUT = 48, 6, 128, 4, 4, 256, 0.1
GRID = SIDE // PATCH
REDUCTIONS = ("v11", "average", "v10", "grouped", "linear")


@dataclass(frozen=True)
class Variant:
    """Architecture: `plain`, or with `tokens` made by `reduction` after block `after`."""

    reduction: str = "plain"
    tokens: int = GRID**2
    after: int = BLOCKS

    @property
    def name(self) -> str:
        """Name for the command line and result files."""
        if self.reduction == "plain":
            return "plain"
        return f"{self.reduction}-{self.tokens}-after{self.after}"


PLACES = ((2, 8), (3, 8), (2, 4), (3, 4))
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(),
        *(Variant(kind, tokens, after) for after, tokens in PLACES for kind in REDUCTIONS),
    )
}


class AveragePool(nn.Module):
    """Average pooling over equal rectangles, `[B, 64, dim]` -> `[B, tokens, dim]`."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        rows = max(n for n in range(1, GRID + 1) if tokens % n == 0 and n * n <= tokens)
        self.grid = (rows, tokens // rows)

    def forward(self, x: Tensor) -> Tensor:
        """Pool the tokens."""
        pooled = functional.adaptive_avg_pool2d(x.mT.unflatten(2, (GRID, GRID)), self.grid)
        return pooled.flatten(2).mT


class Grouped(nn.Module):
    """`TokenLearner` on a sequence, `[B, 64, dim]` -> `[B, tokens, dim]`."""

    def __init__(self, tokens: int, num_layers: int) -> None:
        super().__init__()
        self.learner = TokenLearner(dim=WIDTH, num_output_tokens=tokens, num_layers=num_layers)

    def forward(self, x: Tensor) -> Tensor:
        """Pool the tokens."""
        learned: Tensor = self.learner(x.mT.unflatten(2, (GRID, GRID)))
        return learned.mT


def make_reduction(variant: Variant) -> nn.Module:
    """Make the module that reduces `[B, 64, 128]` to `[B, tokens, 128]`."""
    match variant.reduction:
        case "v11":
            return TokenLearnerV11(variant.tokens, WIDTH)
        case "v10":  # the mean keeps the scale of the patches; a sum would be 64 times larger
            return TokenLearnerV10(variant.tokens, WIDTH, reduction="mean")
        case "grouped":
            return Grouped(variant.tokens, num_layers=2)
        case "linear":
            return Grouped(variant.tokens, num_layers=1)
        case "average":
            return AveragePool(variant.tokens)
    return nn.Identity()


class Dropout(nn.Module):
    """Dropout from 16 random bits per element, much faster on a CPU than torch's."""

    def forward(self, x: Tensor) -> Tensor:
        """Zero each element with probability 0.1 in training, and scale the others."""
        if not self.training:
            return x
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        halves = words.random_(-(2**63), None).view(torch.int16)[: x.numel()]
        keep = halves >= round(DROPOUT * 2**16) - 2**15
        return x * (keep.view_as(x) * (1 / (1 - DROPOUT)))


class Attention(nn.Module):
    """Self-attention of `HEADS` heads over `[B, N, WIDTH]`."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=HEADS)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(rearrange(mixed, "b h n d -> b n (h d)"))
        return out


class Block(nn.Module):
    """Transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(WIDTH), Attention(), Dropout())
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH),
            *(nn.Linear(WIDTH, HIDDEN), nn.GELU(), Dropout()),
            *(nn.Linear(HIDDEN, WIDTH), Dropout()),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        x = x + self.attend(x)
        return x + self.mlp(x)


class ViT(nn.Module):
    """Classifier of images [B, channels, 48, 48] in -1..1, with logits [B, classes].

    Shared weights of all variants start equal under the same seed, since modules of one variant
    are created last.
    """

    def __init__(self, variant: Variant, channels: int, classes: int) -> None:
        super().__init__()
        self.after = variant.after
        self.patches = nn.Conv2d(channels, WIDTH, PATCH, stride=PATCH)
        self.places = nn.Parameter(0.02 * torch.randn(GRID**2, WIDTH))
        self.dropout = Dropout()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, classes)
        self.reduce = make_reduction(variant)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images from the mean of the last tokens."""
        x = self.dropout(self.patches(images).flatten(2).mT + self.places)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number == self.after:
                x = self.reduce(x)
        logits: Tensor = self.head(self.norm(x).mean(dim=1))
        return logits


def operations(variant: Variant, channels: int, classes: int) -> int:
    """Count the multiply-adds of a forward pass of one image.

    Matrix products and convolutions count, including attention and token reduction; sums, norms
    and activations do not.
    """
    model = ViT(variant, channels, classes).eval()
    counter = FlopCounterMode(display=False)
    # fused attention would not be counted
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(torch.zeros(1, channels, SIDE, SIDE))
    return counter.get_total_flops() // 2
