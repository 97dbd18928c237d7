"""Memory layout of the fast layers, patch embedding, and pointwise convolutions.

Convolutions are slow if channels are not innermost in memory, so the tests check strides.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from models import make_clip, make_tokenizer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vtok.nn.layers import (
    Context,
    SpaceTimePatchEmbed,
    SpaceTimePatchUnembed,
    as_clip,
    as_frames,
    channels_first,
    pointwise,
)

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


class RecordInputs(TorchDispatchMode):
    """Mode that records shapes and strides of the inputs of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[list[int], list[int]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in func.name():
            self.given.append((list(args[0].shape), list(args[0].stride())))
        return func(*args, **(kwargs or {}))


def test_frames_and_clips_are_views() -> None:
    clip = innermost(torch.randn(2, 8, 3, 4, 5))
    frames = as_frames(clip)
    assert frames.data_ptr() == clip.data_ptr()
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert as_clip(frames, 2).data_ptr() == clip.data_ptr()
    assert torch.equal(as_clip(frames, 2), clip)


@pytest.mark.parametrize("frames", [5, 9])
@torch.no_grad()
def test_inputs_of_convolutions_have_channels_innermost(frames: int) -> None:
    tokenizer = make_tokenizer("fast")
    with RecordInputs() as seen:
        tokenizer.decode(tokenizer.encode(make_clip(frames, 32, 48), quantize=True))
    assert len(seen.given) > 15
    for (_, channels, _, width), stride in seen.given:
        assert stride[1] == 1, "channels are not innermost"
        assert stride[2:] == [width * channels, channels], "rows are not dense"


def test_patch_embedding_is_a_matrix_per_block() -> None:
    embed, unembed = SpaceTimePatchEmbed(3, 5), SpaceTimePatchUnembed(5, 3)
    clip = innermost(torch.randn(1, 3, 5, 4, 6))
    patches = embed(clip, Context())
    block = (
        clip[0, :, 1:5, 2:4, 4:6].permute(1, 2, 3, 0).flatten()
    )  # frames, rows, columns, channels
    expected = F.linear(block, embed.project.weight[:, :, 0, 0], embed.project.bias)
    torch.testing.assert_close(patches[0, :, 1, 1, 2], expected)
    first = clip[0, :, [0, 0, 0, 0], :2, :2].permute(1, 2, 3, 0).flatten()
    expected = F.linear(first, embed.project.weight[:, :, 0, 0], embed.project.bias)
    torch.testing.assert_close(patches[0, :, 0, 0, 0], expected)

    pixels = unembed(patches, Context())
    expected = F.linear(
        patches[0, :, 1, 1, 2], unembed.project.weight[:, :, 0, 0], unembed.project.bias
    )
    found = pixels[0, :, 4:8, 2:4, 4:6].permute(1, 2, 3, 0).flatten()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lie", [innermost, Tensor.contiguous])
def test_pointwise_is_a_matrix_per_position(dtype: torch.dtype, lie) -> None:
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
    weight = conv.weight.detach().float().requires_grad_()  # float32 is computed by oneDNN
    pointwise(frames.detach().float(), weight, None).square().sum().backward()
    plain = weight.detach().clone().requires_grad_()
    F.conv2d(frames.detach().float(), plain).square().sum().backward()
    torch.testing.assert_close(weight.grad, plain.grad)


@ON_ONEDNN
def test_pointwise_does_not_depend_on_the_number_of_threads() -> None:
    conv = nn.Conv2d(256, 96, 1).requires_grad_(False)
    frames = innermost(torch.randn(2, 256, 32, 32))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(pointwise(frames, conv.weight, conv.bias))
    assert all(torch.equal(x, found[0]) for x in found)
