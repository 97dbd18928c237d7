"""LFQ: codes, stages, groups, gradients, losses, invalid inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok.errors import ShapeError
from vtok.nn.quantize import LFQ


@pytest.mark.parametrize(
    ("size", "books", "stages", "plan"),
    [
        (16, 1, 1, None),
        (8, 2, 1, None),
        (4, 1, 3, None),
        (4, 2, 2, None),
        (4, 2, 6, (0, 0, 1, 2, 1, 0)),
        (4, 1, 3, (0, 1, 2)),
    ],
)
def test_codes_round_trip(size: int, books: int, stages: int, plan: tuple[int, ...] | None) -> None:
    quantizer = LFQ(size, books, stages, plan)
    every = torch.arange(size).expand(1, books * stages, 1, 1, size)
    shuffled = torch.stack(
        [every[0, k, ..., torch.randperm(size)] for k in range(books * stages)]
    ).unsqueeze(0)
    codes = shuffled.squeeze(1) if books * stages == 1 else shuffled
    assert torch.equal(quantizer.latents_to_codes(quantizer.codes_to_quantized(codes)), codes)


def test_bits_are_signs_most_significant_first() -> None:
    quantizer = LFQ(8)
    latents = torch.tensor([0.3, -0.2, 0.9]).view(1, 3, 1, 1, 1)
    assert quantizer.latents_to_codes(latents).item() == 0b101
    quantized = quantizer.codes_to_quantized(torch.tensor([0b101]).view(1, 1, 1, 1))
    assert quantized.flatten().tolist() == pytest.approx([0.8, -0.8, 0.8])


def test_stages_are_bit_planes() -> None:
    quantizer = LFQ(2, num_stages=3)
    latents = torch.tensor(0.9).view(1, 1, 1, 1, 1)  # 0.8, then 0.1 -> 0.4, then -0.3 -> -0.2
    assert quantizer.latents_to_codes(latents).flatten().tolist() == [1, 1, 0]
    assert quantizer(latents).item() == pytest.approx(0.8 + 0.4 - 0.2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_each_stage_reduces_the_error(seed: int, used: int) -> None:
    torch.manual_seed(seed)
    quantizer = LFQ(8, num_stages=5)
    latents = quantizer.normalize(torch.randn(1, 3, 2, 3, 3))
    fewer, more = (
        (quantizer(latents, torch.tensor([n])) - latents).abs().max() for n in (used, used + 1)
    )
    assert more <= fewer
    assert fewer <= 0.8 / 2 ** (used - 1) + 1e-6


def test_groups_use_separate_dimensions() -> None:
    quantizer = LFQ(4, num_stages=4, stage_plan=(0, 0, 1, 1))
    assert (quantizer.dim, quantizer.bits_per_stage, quantizer.codes_per_position) == (4, 2, 4)
    latents = torch.tensor([0.9, -0.5, -1.3, 0.1]).view(1, 4, 1, 1, 1)
    assert quantizer.latents_to_codes(latents).flatten().tolist() == [0b10, 0b11, 0b01, 0b00]
    by_stages = [
        [0.8, -0.8, 0, 0],
        [1.2, -0.4, 0, 0],
        [1.2, -0.4, -0.8, 0.8],
        [1.2, -0.4, -1.2, 0.4],
    ]
    for stages, expected in enumerate(by_stages, start=1):
        codes = quantizer.latents_to_codes(latents, stages)
        assert quantizer.codes_to_quantized(codes).flatten().tolist() == pytest.approx(expected)
        used = quantizer(latents, torch.tensor([stages]))
        assert used.flatten().tolist() == pytest.approx(expected)


def test_plan_with_interleaved_groups() -> None:
    quantizer = LFQ(2, num_stages=4, stage_plan=(0, 1, 0, 0))
    assert quantizer.dim == 2
    latents = torch.tensor([0.9, -0.5]).view(1, 2, 1, 1, 1)
    assert quantizer.latents_to_codes(latents).flatten().tolist() == [1, 0, 1, 0]
    by_stages = [[0.8, 0], [0.8, -0.8], [1.2, -0.8], [1.0, -0.8]]
    for stages, expected in enumerate(by_stages, start=1):
        used = quantizer(latents, torch.tensor([stages]))
        assert used.flatten().tolist() == pytest.approx(expected)


def test_bit_plan_refines_a_dimension_several_times_in_a_stage() -> None:
    quantizer = LFQ(8, num_stages=2, bit_plan=(0, 0, 1, 2, 0, 1))
    assert (quantizer.dim, quantizer.bits_per_stage) == (3, 3)
    latents = torch.tensor([0.9, -0.5, -1.3]).view(1, 3, 1, 1, 1)
    assert quantizer.latents_to_codes(latents).flatten().tolist() == [0b110, 0b001]
    for stages, expected in enumerate(([1.2, -0.8, 0], [1.0, -0.4, -0.8]), start=1):
        codes = quantizer.latents_to_codes(latents, stages)
        assert quantizer.codes_to_quantized(codes).flatten().tolist() == pytest.approx(expected)
        used = quantizer(latents, torch.tensor([stages]))
        assert used.flatten().tolist() == pytest.approx(expected)


def test_bit_plan_of_equal_planes_is_the_default() -> None:
    plain, planned = LFQ(4, 2, 3), LFQ(4, 2, 3, bit_plan=(0, 1, 2, 3) * 3)
    latents = torch.randn(2, 4, 2, 3, 3)
    assert torch.equal(plain.latents_to_codes(latents), planned.latents_to_codes(latents))
    assert torch.equal(plain.quantize(latents), planned.quantize(latents))
    assert plain.losses(latents) == planned.losses(latents)


def test_unused_groups_get_no_gradient() -> None:
    quantizer = LFQ(4, num_stages=4, stage_plan=(0, 0, 1, 1))
    latents = torch.randn(2, 4, 1, 2, 2, requires_grad=True)
    quantizer(latents, torch.tensor([2, 3])).sum().backward()
    assert latents.grad is not None
    assert latents.grad[0, :2].eq(1).all()
    assert latents.grad[0, 2:].eq(0).all()
    assert latents.grad[1].eq(1).all()


def test_losses_are_the_mean_over_groups() -> None:
    latents = torch.randn(3, 4, 2, 2, 2)
    grouped = LFQ(4, num_stages=4, stage_plan=(0, 0, 1, 1)).losses(latents)
    apart = [LFQ(4, num_stages=2).losses(part) for part in latents.split(2, dim=1)]
    for name in ("per_sample_entropy", "batch_entropy", "commitment"):
        mean = sum(getattr(part, name) for part in apart) / 2
        torch.testing.assert_close(getattr(grouped, name), mean)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64]
)
def test_codes_of_any_integer_type(dtype: torch.dtype) -> None:
    codes = torch.arange(64).view(1, 1, 1, 8, 8)
    quantizer = LFQ(64)
    expected = quantizer.codes_to_quantized(codes)
    assert torch.equal(quantizer.codes_to_quantized(codes.to(dtype)), expected)


def test_prefix_of_codes_is_fewer_stages() -> None:
    quantizer = LFQ(16, num_codebooks=2, num_stages=3)
    latents = quantizer.normalize(torch.randn(2, 8, 2, 3, 3))
    codes = quantizer.latents_to_codes(latents)
    for stages in (1, 2, 3):
        fewer = quantizer.latents_to_codes(latents, stages)
        assert torch.equal(fewer, codes[:, : 2 * stages])
        expected = quantizer(latents, torch.tensor([stages, stages]))
        torch.testing.assert_close(quantizer.codes_to_quantized(fewer), expected)


def test_straight_through_gradient() -> None:
    quantizer = LFQ(8, num_stages=2)
    latents = torch.randn(1, 3, 1, 2, 2, requires_grad=True)
    weight = torch.randn(1, 3, 1, 2, 2)
    (quantizer(latents) * weight).sum().backward()
    torch.testing.assert_close(latents.grad, weight)


def test_number_of_stages_per_sample() -> None:
    quantizer = LFQ(8, num_stages=3)
    latents = quantizer.normalize(torch.randn(3, 3, 1, 2, 2))
    mixed = quantizer(latents, torch.tensor([1, 3, 2]))
    for sample, stages in enumerate((1, 3, 2)):
        alone = quantizer(latents[sample : sample + 1], torch.tensor([stages]))
        torch.testing.assert_close(mixed[sample : sample + 1], alone)


def test_entropies() -> None:
    quantizer = LFQ(2)
    half = torch.tensor([5.0, -5.0]).view(2, 1, 1, 1, 1)
    losses = quantizer.losses(half)
    assert losses.per_sample_entropy.item() == pytest.approx(0, abs=1e-4)  # each bit is decided
    assert losses.batch_entropy.item() == pytest.approx(math.log(2), abs=1e-4)  # both are used
    assert losses.commitment.item() == pytest.approx(4.2**2)
    collapsed = quantizer.losses(half.abs())
    assert collapsed.batch_entropy.item() == pytest.approx(0, abs=1e-4)
    undecided = quantizer.losses(torch.zeros(4, 1, 1, 1, 1))
    assert undecided.per_sample_entropy.item() == pytest.approx(math.log(2), abs=1e-4)


def test_commitment_gradient() -> None:
    quantizer = LFQ(8, num_stages=2)
    latents = quantizer.normalize(torch.randn(2, 3, 1, 2, 2)).requires_grad_()
    quantizer.losses(latents).commitment.backward()
    quantized = quantizer(latents).detach()
    torch.testing.assert_close(latents.grad, 2 * (latents - quantized).detach() / latents.numel())


def test_losses_are_finite_in_half_precision() -> None:
    losses = LFQ(8, num_stages=2).losses(torch.full((1, 3, 1, 1, 1), 60.0, dtype=torch.float16))
    assert torch.isfinite(losses.per_sample_entropy)
    assert torch.isfinite(losses.batch_entropy)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 5, 1, 1, 1, dtype=torch.long), "K a multiple of 2 up to 4"),
        (torch.zeros(1, 6, 1, 1, 1, dtype=torch.long), "K a multiple of 2 up to 4"),
        (torch.zeros(1, 1, 1, dtype=torch.long), r"expected \[B, K, t, h, w\]"),
        (torch.full((1, 2, 1, 1, 1), 8), "expected 0 to 7"),
        (torch.full((1, 2, 1, 1, 1), -1), "expected 0 to 7"),
        (torch.zeros(1, 2, 1, 1, 1), "codes of type torch.float32: expected integers"),
    ],
)
def test_wrong_codes(codes: torch.Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        LFQ(8, num_codebooks=2, num_stages=2).codes_to_quantized(codes)


def test_wrong_number_of_stages() -> None:
    with pytest.raises(ShapeError, match="3 stages: expected 1 to 2"):
        LFQ(8, num_stages=2).latents_to_codes(torch.zeros(1, 3, 1, 1, 1), 3)
