"""Causal convolutions, residual units, and the layers that compress space and time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vtok.errors import ShapeError
from vtok.nn.streaming import CausalLayer, Context

HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
ONEDNN_NUMBERS = 20480  # a single image of so many or fewer is not worth it to torch


def as_frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W]; a view where the channels lie innermost."""
    return rearrange(x, "b c t h w -> (b t) c h w")


def as_clip(frames: Tensor, batch: int) -> Tensor:
    """[B*T, C, H, W] -> [B, C, T, H, W]; the inverse of `as_frames`."""
    return rearrange(frames, "(b t) c h w -> b c t h w", b=batch)


def channels_first(x: Tensor) -> Tensor:
    """A view [N, C, ...] of [N, ..., C], to end a copy with that is to leave channels innermost.

    A copy lies in memory as it was asked for: asked for with channels second, it scatters them,
    and the next convolution gathers them again.
    """
    return x.movedim(-1, 1)


def pointwise(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of [N, C, H, W] with weight [C', C, 1, 1] -> [N, C', H, W].

    On one thread torch hands few images of a 1x1 convolution to a general matrix product, which
    takes a further pass over its output for the bias and rounds otherwise than oneDNN, to which
    it goes on several threads. Dilation means nothing to a 1x1 kernel, and with it torch takes
    oneDNN every time: as fast on one thread, and the same bits on any number of them.
    """
    dilation = 2 if goes_to_onednn(frames) else 1
    return F.conv2d(frames, weight, bias, dilation=dilation)


def goes_to_onednn(frames: Tensor) -> bool:
    """Whether torch hands a dilated convolution of [N, C, H, W] to oneDNN; no small image alone."""
    if frames.device.type != "cpu" or frames.dtype != torch.float32 or not HAS_ONEDNN:
        return False
    return len(frames) > 1 or frames.numel() > ONEDNN_NUMBERS


def pad_space(x: Tensor, amounts: tuple[int, int], mode: str) -> Tensor:
    """Pad height and width of [B, C, T, H, W] by `amounts` on both sides.

    A reflection needs more pixels than it adds; where there are fewer, the edge is repeated.
    """
    if amounts == (0, 0):
        return x
    if mode == "reflect" and (x.shape[-2] <= amounts[0] or x.shape[-1] <= amounts[1]):
        mode = "replicate"
    return F.pad(x, (amounts[1], amounts[1], amounts[0], amounts[0], 0, 0), mode=mode)


def crop(clip: Tensor, num_frames: int | None, size: tuple[int, int] | None) -> Tensor:
    """At most the first `num_frames` of [B, C, T, H, W], and the top left (height, width) of each.

    Raises:
        ShapeError: for a negative number of frames, or a size that the frames do not have.
    """
    if num_frames is not None and num_frames < 0:
        raise ShapeError(f"{num_frames} frames: expected 0 or more")
    height, width = size or clip.shape[-2:]
    if not (0 < height <= clip.shape[-2] and 0 < width <= clip.shape[-1]):
        most = " x ".join(map(str, clip.shape[-2:]))
        raise ShapeError(f"size {height} x {width}: expected 1 x 1 to {most}")
    return clip[:, :, :num_frames, :height, :width]


class CausalConv3d(CausalLayer):
    """3-D convolution that sees no later frame.

    Space is padded by `pad_mode`. Time is padded before the first frame only: by zeros where
    `pad_mode` is constant, else by repeating the first frame (a reflection would look ahead).

    Args:
        dim: input channels.
        dim_out: output channels.
        kernel_size: over time, height and width; odd in space.
        stride: over time, height and width; at most the kernel size.
        pad_mode: constant, reflect or replicate.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel_size: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        pad_mode: str = "constant",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(dim, dim_out, kernel_size, stride)
        self.pad_mode = pad_mode
        self.kernel_size = kernel_size
        self.lookback = kernel_size[0] - 1

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> [B, dim_out, T', H', W']."""
        x = self._pad_time(x, context)
        amounts = (self.kernel_size[1] // 2, self.kernel_size[2] // 2)
        if self.kernel_size[0] == 1:
            return self._each_frame(x, amounts)
        out: Tensor = self.conv(pad_space(x, amounts, self.pad_mode))
        return out

    def _pad_time(self, x: Tensor, context: Context) -> Tensor:
        keep = self.kernel_size[0] - self.conv.stride[0]
        if self.kernel_size[0] == 1:
            return x
        past = context.past(self)
        if past is None:
            mode = "constant" if self.pad_mode == "constant" else "replicate"
            x = F.pad(x, (0, 0, 0, 0, self.kernel_size[0] - 1, 0), mode=mode)
        else:
            x = torch.cat((past, x), dim=2)
        context.remember(self, x[:, :, x.shape[2] - keep :])
        return x

    def _each_frame(self, x: Tensor, amounts: tuple[int, int]) -> Tensor:
        """The same result by a 2-D convolution, which runs several times faster on a CPU."""
        weight, bias = self.conv.weight.squeeze(2), self.conv.bias
        if self.kernel_size == (1, 1, 1):
            return as_clip(pointwise(as_frames(x), weight, bias), x.shape[0])
        if self.pad_mode != "constant":
            x, amounts = pad_space(x, amounts, self.pad_mode), (0, 0)
        frames = F.conv2d(as_frames(x), weight, bias, self.conv.stride[1:], amounts)
        return as_clip(frames, x.shape[0])


class SqueezeExcite(nn.Module):
    """Gate each channel of a frame by what an attention over its positions gathers.

    The global context block (arXiv 2012.13375). Gates start near 0, so a fresh residual unit is
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
    """Residual unit whose convolution weights are modulated by the condition (StyleGAN2).

    Scaling input channels by the condition and output channels by the inverse norm of the
    modulated weights is the same as modulating the weights of each sample.
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
            ShapeError: where the tokenizer was given no condition, or one of another width.
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


def modulation(linear: nn.Linear, context: Context) -> Tensor:
    """What `linear` makes of the condition vectors [B, dim_cond]: one number a channel.

    Raises:
        ShapeError: where there are none, or of another width.
    """
    cond, expected = context.cond, f"a tensor [B, {linear.in_features}]"
    if cond is None:
        raise ShapeError(f"this tokenizer is conditioned: pass cond=, {expected}")
    if cond.ndim != 2 or cond.shape[1] != linear.in_features:
        raise ShapeError(f"cond of shape {list(cond.shape)}: expected {expected}")
    out: Tensor = linear(cond.to(linear.weight.dtype))
    return out


def per_channel(values: Tensor) -> Tensor:
    """[B, C] -> [B, C, 1, 1, 1], to multiply a clip by."""
    return rearrange(values, "b c -> b c 1 1 1")


class CompressSpace(CausalConv3d):
    """Halve height and width by a strided convolution of each frame."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(dim, dim_out, (1, 3, 3), stride=(1, 2, 2))


class ExpandSpace(CausalLayer):
    """Double height and width: pointwise convolution, SiLU, channels into 2x2 pixels."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(dim, dim_out * 4, (1, 1, 1))
        _start_as_repeat(self.conv.conv, 4)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, T, H, W] -> [B, dim_out, T, 2H, 2W]."""
        hidden = F.silu(self.conv(x, context))
        return rearrange(hidden, "b (c p q) t h w -> b c t (h p) (w q)", p=2, q=2)


class CompressTime(CausalConv3d):
    """Halve the frames by a strided causal convolution: 1 + 2n frames give 1 + n."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__(dim, dim_out, (3, 1, 1), stride=(2, 1, 1))


class ExpandTime(CausalLayer):
    """Double the frames: pointwise convolution, SiLU, channels into 2 frames.

    The frame before the first one comes out as well; the tokenizer drops it.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(dim, dim_out * 2, (1, 1, 1))
        _start_as_repeat(self.conv.conv, 2)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, dim, t, H, W] -> [B, dim_out, 2t, H, W]."""
        hidden = F.silu(self.conv(x, context))
        return rearrange(hidden, "b (c f) t h w -> b c (t f) h w", f=2)


@torch.no_grad()
def _start_as_repeat(conv: nn.Conv3d, times: int) -> None:
    """Initialise so that all pixels unfolded from one position start out equal: no checkerboard."""
    weight = torch.empty(conv.weight.shape[0] // times, *conv.weight.shape[1:])
    nn.init.kaiming_uniform_(weight)
    conv.weight.copy_(weight.repeat_interleave(times, dim=0))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
