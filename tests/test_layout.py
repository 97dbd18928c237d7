"""Memory layout in the fast layers: channels last, no copies; and the pointwise convolution."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from models import make_clip, make_tokenizer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vtok.nn.layers import (
    SpaceTimePatchEmbed,
    SpaceTimePatchUnembed,
    as_clip,
    as_frames,
    channels_first,
    pointwise,
)
from vtok.nn.streaming import Context

ON_ONEDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def innermost(x: Tensor) -> Tensor:
    return channels_first(x.movedim(1, -1).contiguous())


class Convolved(TorchDispatchMode):
    """Records shapes and strides of the inputs of all convolutions while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[list[int], list[int]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in func.name():
            self.given.append((list(args[0].shape), list(args[0].stride())))
        return func(*args, **(kwargs or {}))


def test_layout_changes_are_views() -> None:
    clip = innermost(torch.randn(2, 8, 3, 4, 5))
    frames = as_frames(clip)
    assert frames.data_ptr() == clip.data_ptr()
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert as_clip(frames, 2).data_ptr() == clip.data_ptr()
    assert torch.equal(as_clip(frames, 2), clip)


@pytest.mark.parametrize("frames", [5, 9])  # of one small frame torch chooses otherwise
@torch.no_grad()
def test_convolutions_of_fast_layers_get_channels_last(frames: int) -> None:
    tokenizer = make_tokenizer("fast")
    with Convolved() as seen:
        tokenizer.decode(tokenizer.encode(make_clip(frames, 32, 48), quantize=True))
    assert len(seen.given) > 15
    for (_, channels, _, width), stride in seen.given:
        assert stride[1] == 1, "channels are not innermost"
        assert stride[2:] == [width * channels, channels], "rows are not dense"


def test_fold_and_unfold_are_matrix_products_of_pixel_blocks() -> None:
    fold, unfold = SpaceTimePatchEmbed(3, 5), SpaceTimePatchUnembed(5, 3)
    clip = innermost(torch.randn(1, 3, 5, 4, 6))
    folded = fold(clip, Context())
    block = (
        clip[0, :, 1:5, 2:4, 4:6].permute(1, 2, 3, 0).flatten()
    )  # frames, rows, columns, channels
    expected = F.linear(block, fold.project.weight[:, :, 0, 0], fold.project.bias)
    torch.testing.assert_close(folded[0, :, 1, 1, 2], expected)
    first = clip[0, :, [0, 0, 0, 0], :2, :2].permute(1, 2, 3, 0).flatten()
    expected = F.linear(first, fold.project.weight[:, :, 0, 0], fold.project.bias)
    torch.testing.assert_close(folded[0, :, 0, 0, 0], expected)

    unfolded = unfold(folded, Context())
    expected = F.linear(
        folded[0, :, 1, 1, 2], unfold.project.weight[:, :, 0, 0], unfold.project.bias
    )
    found = unfolded[0, :, 4:8, 2:4, 4:6].permute(1, 2, 3, 0).flatten()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lie", [innermost, Tensor.contiguous])
def test_pointwise_equals_matrix_product(dtype: torch.dtype, lie) -> None:
    conv = nn.Conv2d(32, 48, 1).to(dtype)
    frames = lie(torch.randn(3, 32, 20, 24, dtype=dtype))
    rows = frames.movedim(1, -1) @ conv.weight[:, :, 0, 0].T + conv.bias
    exact = 1e-2 if dtype == torch.bfloat16 else 1e-5
    found = pointwise(frames, conv.weight, conv.bias)
    torch.testing.assert_close(found, rows.movedim(-1, 1), rtol=exact, atol=exact)


def test_pointwise_gradients() -> None:
    conv = nn.Conv2d(4, 6, 1).double()
    frames = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(pointwise, (frames, conv.weight, conv.bias))
    weight = conv.weight.detach().float().requires_grad_()  # and in the type that goes to oneDNN
    pointwise(frames.detach().float(), weight, None).square().sum().backward()
    plain = weight.detach().clone().requires_grad_()
    F.conv2d(frames.detach().float(), plain).square().sum().backward()
    torch.testing.assert_close(weight.grad, plain.grad)


@ON_ONEDNN
def test_pointwise_is_independent_of_threads() -> None:
    conv = nn.Conv2d(256, 96, 1).requires_grad_(False)
    frames = innermost(torch.randn(2, 256, 32, 32))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(pointwise(frames, conv.weight, conv.bias))
    assert all(torch.equal(x, found[0]) for x in found)
