"""The convolution of wide layers equals a plain one up to rounding."""

import pytest
import torch
import torch.nn.functional as F

from vtok.nn.winograd import LEAST_CHANNELS, LEAST_POSITIONS, convolve_3x3


@pytest.mark.parametrize(
    ("count", "height", "width"),
    [(1, 32, 32), (3, 21, 33), (1, 45, 80), (40, 6, 7), (1, 1, 1100), (5, 64, 8)],
)
def test_convolution_equals_a_plain_one(count: int, height: int, width: int) -> None:
    assert count * height * width >= LEAST_POSITIONS
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(count, LEAST_CHANNELS, height, width, generator=generator)
    weight = torch.randn(LEAST_CHANNELS + 3, LEAST_CHANNELS, 3, 3, generator=generator) / 40
    bias = torch.randn(LEAST_CHANNELS + 3, generator=generator)
    exact = F.conv2d(frames.double(), weight.double(), bias.double(), padding=1)
    frames = frames.contiguous(memory_format=torch.channels_last)
    found = convolve_3x3(frames, weight, bias)
    assert not torch.equal(found, F.conv2d(frames, weight, bias, padding=1))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_gradients_and_narrow_layers_take_the_plain_convolution() -> None:
    weight = torch.zeros(LEAST_CHANNELS, LEAST_CHANNELS, 3, 3, requires_grad=True)
    frames, bias = torch.ones(1, LEAST_CHANNELS, 32, 32), torch.zeros(LEAST_CHANNELS)
    convolve_3x3(frames, weight, bias).sum().backward()
    assert weight.grad is not None
    narrow = torch.rand(2, 4, 3, 3)
    expected = F.conv2d(frames[:, :4], narrow, bias[:2], padding=1)
    assert torch.equal(convolve_3x3(frames[:, :4], narrow, bias[:2]), expected)
