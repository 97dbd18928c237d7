"""The fast layers: frames folded into channels, depthwise convolutions, one past frame of memory.

They keep the channels innermost in memory from the first to the last (see `vtok.nn.layers`).
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.nn.layers import as_clip, as_frames, channels_first, pointwise
from vtok.nn.streaming import CausalLayer, Context

FOLD_TIME, FOLD_SPACE = 4, 2


def norm_channels(frames: Tensor) -> Tensor:
    """Zero mean and unit variance over the channels of each position, [N, C, H, W].

    Per position, so that neither chunk nor tile borders can change it.
    """
    return F.layer_norm(frames.permute(0, 2, 3, 1), frames.shape[1:2]).permute(0, 3, 1, 2)


class Separable(CausalLayer):
    """Residual block of each frame: depthwise convolution, norm, two pointwise convolutions.

    The cut of ConvNeXt (arXiv 2201.03545), with a leaky ReLU, the cheapest activation on a CPU.
    """

    def __init__(self, dim: int, *, kernel_size: int = 5, expansion: int = 3) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.expand = nn.Conv2d(dim, dim * expansion, 1)
        self.project = nn.Conv2d(dim * expansion, dim, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> the same shape."""
        frames = as_frames(x)
        mixed = self._mix(frames, x.shape[0], context)
        hidden = pointwise(norm_channels(mixed), self.expand.weight, self.expand.bias)
        hidden = F.leaky_relu(hidden, 0.1, inplace=True)
        change = pointwise(hidden, self.project.weight, self.project.bias)
        return as_clip(frames + change, x.shape[0])

    def _mix(self, frames: Tensor, batch: int, context: Context) -> Tensor:
        mixed: Tensor = self.depthwise(frames)
        return mixed


class SeparableMemory(Separable):
    """A `Separable` block whose depthwise convolution also reads the frame before.

    A second depthwise convolution of each frame is added to the next frame's; its last output is
    all that a stream has to carry. At the start of a video there is nothing to add.
    """

    lookback = 1

    def __init__(self, dim: int, *, kernel_size: int = 5, expansion: int = 3) -> None:
        super().__init__(dim, kernel_size=kernel_size, expansion=expansion)
        self.recall = nn.Conv2d(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False
        )

    def _mix(self, frames: Tensor, batch: int, context: Context) -> Tensor:
        mixed = as_clip(self.depthwise(frames), batch)
        echo = as_clip(self.recall(frames), batch)
        mixed[:, :, 1:] += echo[:, :, :-1]
        past = context.past(self)
        if past is not None:
            mixed[:, :, :1] += past
        context.remember(self, echo[:, :, -1:])
        return as_frames(mixed)


class Fold(CausalLayer):
    """Fold 4 frames of 2x2 pixels into channels, then a pointwise convolution: 4x2x2 compression.

    The first frame of a video is a step of its own: it stands for the three before it as well.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(dim * FOLD_TIME * FOLD_SPACE**2, dim_out, 1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, 1 + 4n, 2h, 2w] (4n frames in a later chunk) -> [B, dim_out, 1 + n, h, w]."""
        if context.past(self) is None:
            x = F.pad(x, (0, 0, 0, 0, FOLD_TIME - 1, 0), mode="replicate")
        context.remember(self, x.new_zeros(()))
        folded = rearrange(
            x,
            "b c (t f) (h p) (w q) -> (b t) h w (f p q c)",
            f=FOLD_TIME, p=FOLD_SPACE, q=FOLD_SPACE,
        )  # fmt: skip
        rows = pointwise(channels_first(folded), self.project.weight, self.project.bias)
        return as_clip(rows, x.shape[0])


class Unfold(CausalLayer):
    """The mirror of `Fold`: a pointwise convolution, then channels unfold into 4 frames of 2x2.

    Three frames before the first one come out as well; the tokenizer drops them.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(dim, dim_out * FOLD_TIME * FOLD_SPACE**2, 1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, t, h, w] -> [B, dim_out, 4t, 2h, 2w]."""
        folded = pointwise(as_frames(x), self.project.weight, self.project.bias)
        unfolded = rearrange(
            folded,
            "(b t) (f p q c) h w -> b (t f) (h p) (w q) c",
            b=x.shape[0], f=FOLD_TIME, p=FOLD_SPACE, q=FOLD_SPACE,
        )  # fmt: skip
        return channels_first(unfolded)
