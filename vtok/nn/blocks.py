"""Residual blocks: depthwise ones for speed, and the units of MAGVIT-like tokenizers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.nn.layers import (
    CausalConv3d,
    CausalLayer,
    Context,
    as_clip,
    as_frames,
    convolve,
    modulation,
    norm_channels,
    per_channel,
    pointwise,
)


class DepthwiseBlock(CausalLayer):
    """Residual block of each frame: depthwise convolution, norm, two pointwise convolutions.

    The layout of ConvNeXt (arXiv 2201.03545), with a leaky ReLU, the cheapest activation on a CPU.
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
        layer = self.depthwise
        options = {"padding": layer.padding, "groups": layer.groups}
        return convolve(frames, layer.weight, layer.bias, **options)


class CausalDepthwiseBlock(DepthwiseBlock):
    """Depthwise block whose convolution also reads the previous frame.

    A second depthwise convolution of each frame is added to the result of the next frame. Its last
    output is all that a stream carries; at the start of a video there is nothing to add.
    """

    lookback = 1

    def __init__(self, dim: int, *, kernel_size: int = 5, expansion: int = 3) -> None:
        super().__init__(dim, kernel_size=kernel_size, expansion=expansion)
        self.recall = nn.Conv2d(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=False
        )

    def _mix(self, frames: Tensor, batch: int, context: Context) -> Tensor:
        mixed = super()._mix(frames, batch, context)
        if context.state is None and torch.is_grad_enabled():
            # the gradient of shifted input takes fewer copies than that of shifted output
            earlier = F.pad(as_clip(frames, batch)[:, :, :-1], (0, 0, 0, 0, 1, 0))
            return mixed.add_(self.recall(as_frames(earlier)))
        mixed = as_clip(mixed, batch)
        echo = as_clip(self.recall(frames), batch)
        mixed[:, :, 1:] += echo[:, :, :-1]
        past = context.past(self)
        if past is not None:
            mixed[:, :, :1] += past
        context.remember(self, echo[:, :, -1:])
        return as_frames(mixed)


class SqueezeExcite(nn.Module):
    """Scale each channel of a frame by a gate computed from attention over its positions.

    The global context block (arXiv 2012.13375). Gates start near 0, so a new residual unit is
    close to the identity. Each frame is gated alone, which keeps the layer causal.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_k = nn.Conv2d(dim, 1, 1)
        hidden = max(16, dim // 2)
        gate = nn.Conv2d(hidden, dim, 1)
        self.net = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.LeakyReLU(0.1), gate, nn.Sigmoid())
        nn.init.zeros_(gate.weight)
        nn.init.constant_(gate.bias, -10)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[B, dim, T, H, W] -> the same shape."""
        frames = as_frames(x)
        attention = self.to_k(frames).flatten(2).softmax(-1)  # [B*T, 1, H*W]
        gathered = frames.flatten(2) @ attention.mT  # [B*T, dim, 1]
        gates = self.net(gathered.unsqueeze(-1))
        return x * rearrange(gates, "(b t) c 1 1 -> b c t 1 1", b=x.shape[0])


class ResidualUnit(CausalLayer):
    """Residual unit of MAGVIT-like tokenizers: causal convolution, pointwise convolution, gate."""

    def __init__(self, dim: int, kernel_size: int, pad_mode: str) -> None:
        super().__init__()
        self.conv = CausalConv3d(dim, dim, (kernel_size,) * 3, pad_mode=pad_mode)
        self.pointwise = CausalConv3d(dim, dim, (1, 1, 1))
        self.gate = SqueezeExcite(dim)
        self.lookback = self.conv.lookback

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> the same shape."""
        hidden = F.elu(self.conv(x, context))
        hidden = F.elu(self.pointwise(hidden, context))
        gated: Tensor = self.gate(hidden)
        return x + gated


class CondResidualUnit(CausalLayer):
    """Residual unit whose convolution weights are modulated by the condition.

    Weight demodulation of StyleGAN2 (arXiv 1912.04958): scaling input channels by the condition
    and output channels by the inverse norm of the modulated weights equals modulating the weights
    of each sample.
    """

    def __init__(self, dim: int, kernel_size: int, pad_mode: str, dim_cond: int) -> None:
        super().__init__()
        self.to_scale = nn.Linear(dim_cond, dim)
        self.conv = CausalConv3d(dim, dim, (kernel_size,) * 3, pad_mode=pad_mode)
        self.pointwise = CausalConv3d(dim, dim, (1, 1, 1))
        self.lookback = self.conv.lookback

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> the same shape.

        Raises:
            ShapeError: There is no condition, or its width is wrong.
        """
        scale = modulation(self.to_scale, context) + 1  # [B, dim]
        power = self.conv.conv.weight.square().sum((2, 3, 4))  # [dim_out, dim]
        demodulate = (scale.square() @ power.T).clamp(min=1e-8).rsqrt()
        hidden = self.conv(x * per_channel(scale), context)
        bias = self.conv.conv.bias
        assert bias is not None
        hidden = (hidden - per_channel(bias[None])) * per_channel(demodulate)
        hidden = F.elu(hidden + per_channel(bias[None]))
        return x + F.elu(self.pointwise(hidden, context))
