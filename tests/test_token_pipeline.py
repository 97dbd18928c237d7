"""The token pipeline: prefixes, steps on their own, any grid, bits, the baselines."""

import pytest
import torch
import torch.nn.functional as F
from token_models import LATENT_DIM, SMALL, make_latents, make_pipeline

from vtok.errors import ShapeError, UsageError
from vtok.nn.config import BASELINES, LEARNERS, TokenConfig
from vtok.nn.token_pipeline import Basis, TokenPipeline, Windows, cell_grid, cell_maps

KINDS = (*LEARNERS, *BASELINES)


@pytest.mark.parametrize("learner", KINDS)
def test_shapes_for_any_grid(learner: str) -> None:
    pipeline = make_pipeline(learner)
    for height, width in ((6, 8), (7, 5), (13, 4)):
        latents = make_latents(2, LATENT_DIM, 3, height, width)
        tokens, maps = pipeline.encode_with_maps(latents, 8)
        assert tokens.shape == (2, 3, 8, SMALL["dim"])
        assert maps.shape == (2, 3, 8, -(-height // 2), -(-width // 2))
        back = pipeline.decode(tokens, (height, width))
        assert back.shape == latents.shape
        assert back.isfinite().all()


@pytest.mark.parametrize("learner", LEARNERS)
def test_fewer_tokens_are_the_first_of_more(learner: str) -> None:
    pipeline, latents = make_pipeline(learner), make_latents(1, LATENT_DIM, 2, 12, 10)
    many = pipeline.encode(latents, 16)
    few = pipeline.encode(latents, 5)
    torch.testing.assert_close(few, many[:, :, :5], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(many[:, :, 0], many[:, :, 1], atol=1e-2)


@pytest.mark.parametrize("learner", KINDS)
def test_each_step_goes_through_alone(learner: str) -> None:
    pipeline, latents = make_pipeline(learner), make_latents(1, LATENT_DIM, 4, 8, 8)
    whole = pipeline(latents, 8)
    parts = [pipeline(step, 8) for step in latents.split(1, dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("learner", KINDS)
def test_every_weight_learns(learner: str) -> None:
    pipeline = make_pipeline(learner)
    latents = make_latents(2, LATENT_DIM, 1, 16, 16)
    (pipeline(latents, 64, torch.tensor([True, False])) - latents).square().mean().backward()
    still = [
        name
        for name, weight in pipeline.named_parameters()
        if weight.grad is None or not weight.grad.abs().sum()
    ]
    unused = {"fuser.slots"} if learner in BASELINES else set()
    assert set(still) == unused


def test_tokens_have_one_scale() -> None:
    for size in (6, 30):
        tokens = make_pipeline().encode(make_latents(1, LATENT_DIM, 2, size, size), 4)
        torch.testing.assert_close(tokens.mean(-1), torch.zeros(1, 2, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            tokens.var(-1, correction=0), torch.ones(1, 2, 4), atol=0.05, rtol=0
        )


def test_maps_of_v11_say_where_each_token_looks() -> None:
    maps = make_pipeline("v11").encode_with_maps(make_latents(1, LATENT_DIM, 1, 12, 12), 4)[1]
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(1, 1, 4))
    assert (maps >= 0).all()


def test_a_token_is_blind_where_its_map_is_zero() -> None:
    pipeline, latents = make_pipeline("average_lifted"), make_latents(1, LATENT_DIM, 1, 32, 32)
    changed = latents.clone()
    changed[..., 24:, 24:] += 1  # in the last of 2x4 cells, beyond the reach of the convolution
    before, after = pipeline.encode(latents, 8), pipeline.encode(changed, 8)
    torch.testing.assert_close(before[:, :, :3], after[:, :, :3])
    assert not torch.allclose(before[:, :, 7], after[:, :, 7])


def test_cells_are_those_of_average_pooling() -> None:
    assert [cell_grid(n) for n in (4, 7, 8, 64)] == [(2, 2), (1, 7), (2, 4), (8, 8)]
    values = make_latents(1, 3, 5, 9)
    for count in (4, 6, 8):
        pooled = F.adaptive_avg_pool2d(values, cell_grid(count)).flatten(2)
        ours = torch.einsum("shw,nchw->ncs", cell_maps(count, 5, 9), values)
        torch.testing.assert_close(ours, pooled)


def test_bits_come_back_as_they_were_learned() -> None:
    pipeline = make_pipeline()
    tokens = pipeline.encode(make_latents(1, LATENT_DIM, 3, 8, 8), 8)
    codes = pipeline.bits.to_codes(tokens)
    assert codes.shape == (1, 3, 8, 3)
    assert codes.min() >= 0
    assert codes.max() <= 255
    assert len(codes.unique()) > 10
    torch.testing.assert_close(pipeline.bits.from_codes(codes), pipeline.bits(tokens))


def test_bits_pass_gradients_straight_through() -> None:
    pipeline = make_pipeline()
    tokens = pipeline.encode(make_latents(1, LATENT_DIM, 1, 8, 8), 8).detach().requires_grad_(True)
    pipeline.bits(tokens).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().sum() > 0


def test_wrong_input_is_refused_by_name() -> None:
    pipeline = make_pipeline()
    with pytest.raises(ShapeError, match="49 tokens: expected 1 to 48"):
        pipeline.encode(make_latents(1, LATENT_DIM, 1, 12, 16), 49)
    with pytest.raises(ShapeError, match="65 tokens: expected 1 to 64"):
        pipeline.encode(make_latents(1, LATENT_DIM, 1, 32, 32), 65)
    with pytest.raises(ShapeError, match="0 tokens"):
        pipeline.encode(make_latents(1, LATENT_DIM, 1, 8, 8), 0)
    with pytest.raises(ShapeError, match=r"expected floats \[B, 6, t, h, w\]"):
        pipeline.encode(make_latents(1, LATENT_DIM + 1, 1, 8, 8))
    with pytest.raises(ShapeError, match="expected"):
        pipeline.decode(torch.zeros(1, 2, 8, 15), (8, 8))
    with pytest.raises(ShapeError, match="floats"):
        pipeline.decode(torch.zeros(1, 2, 8, 16, dtype=torch.int64), (8, 8))
    with pytest.raises(ShapeError, match=r"codes .* expected integers"):
        pipeline.bits.from_codes(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="beyond 0 to 255"):
        pipeline.bits.from_codes(torch.full((1, 3), 256))


@pytest.mark.parametrize(
    ("key", "value"),
    [("learner", "v12"), ("heads", 3), ("token_bits", 12), ("dim", 0), ("max_tokens", 65)],
)
def test_config_names_what_is_wrong(key: str, value: object) -> None:
    good = TokenConfig(LATENT_DIM, **SMALL).to_dict()
    assert TokenConfig.from_dict(good).to_dict() == good
    with pytest.raises(UsageError, match=f"{key}="):
        TokenConfig.from_dict({**good, key: value})
    with pytest.raises(UsageError, match="unknown config keys: colour"):
        TokenConfig.from_dict({**good, "colour": 1})


def test_bfloat16_gives_nearly_the_same() -> None:
    pipeline, latents = make_pipeline(), make_latents(1, LATENT_DIM, 2, 20, 30)
    exact = pipeline.encode(latents, 8)
    rough = pipeline.bfloat16().encode(latents.bfloat16(), 8).float()
    assert (rough - exact).square().mean() < 0.01
    assert pipeline.decode(rough.bfloat16(), (20, 30)).isfinite().all()


def test_windows_begin_apart_and_cover_the_frame() -> None:
    windows = Windows(TokenConfig(LATENT_DIM, **SMALL))(64, (24, 32), torch.zeros(1)).exp()
    assert windows.max() <= 1
    peaks = windows.flatten(1).argmax(1)
    assert len(peaks.unique()) > 50
    for count in (8, 16, 64):  # wherever the sequence is cut off, little is left out
        assert windows[1:count].amax(0).mean() > 0.5
        assert windows[:count].amax(0).min() > 0.3
    assert windows[0].min() > windows[9].min()


@pytest.mark.parametrize("learner", LEARNERS)
def test_new_tokens_look_at_different_places(learner: str) -> None:
    torch.manual_seed(0)
    pipeline = TokenPipeline(TokenConfig(LATENT_DIM, learner, **SMALL))
    maps = pipeline.encode_with_maps(make_latents(1, LATENT_DIM, 1, 32, 32), 8)[1][0, 0]
    shares = maps.abs().flatten(1)
    shares = shares / shares.sum(1, keepdim=True)
    for first in range(1, 8):
        for second in range(first):
            assert (shares[first] - shares[second]).abs().sum() > 0.2


def test_basis_begins_as_cosines() -> None:
    patterns = Basis(64)((16, 16)).detach()
    assert torch.equal(patterns[0], torch.ones(16, 16))
    assert 8 < sum(torch.equal(pattern, patterns[0]) for pattern in patterns) < 24
    flat = patterns.unique(dim=0).flatten(1)
    assert len(flat) > 20
    products = flat @ flat.T
    off = products - torch.diag(products.diagonal())
    assert off.abs().max() < 1e-2  # orthogonal, as those of a transform are
    assert products.diagonal().min() > 10
