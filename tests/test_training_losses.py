"""Losses equal independent implementations; weights and rates follow their schedules."""

import math

import numpy as np
import pytest
import torch
from models import make_clip
from training import tiny_config

from vtok.nn.quantize import LFQ
from vtok.training.losses import (
    SCALE_WEIGHTS,
    PatchDiscriminator,
    adversarial_weight,
    draw_stages,
    entropy_weight,
    hinge_loss,
    loss_parts,
    ms_ssim,
    num_scales,
    rate_share,
    weighted_sum,
    weights_at,
)


def slow_ms_ssim(x: np.ndarray, y: np.ndarray, scales: int) -> float:
    """Compute MS-SSIM of two pictures [H, W] in -1..1, window by window."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    result, share = 1.0, sum(SCALE_WEIGHTS[:scales])
    for scale in range(scales):
        luminance, structure = [], []
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                a, b = (z[top : top + 11, left : left + 11] for z in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a = (window * (a - mean_a) ** 2).sum()
                var_b = (window * (b - mean_b) ** 2).sum()
                both = (window * (a - mean_a) * (b - mean_b)).sum()
                c1, c2 = 0.02**2, 0.06**2
                luminance.append((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1))
                structure.append((2 * both + c2) / (var_a + var_b + c2))
        last = scale == scales - 1
        terms = np.multiply(luminance, structure) if last else np.array(structure)
        result *= terms.mean() ** (SCALE_WEIGHTS[scale] / share)
        x, y = (z.reshape(len(z) // 2, 2, len(z) // 2, 2).mean((1, 3)) for z in (x, y))
    return float(result)


def test_ms_ssim_follows_the_paper() -> None:
    rng = np.random.default_rng(0)
    clip = make_clip(1, 32, 32, batch=2, seed=1)
    noise = torch.from_numpy(rng.normal(0, 0.1, clip.shape)).float()
    expected = np.mean(
        [
            slow_ms_ssim(
                (clip + noise)[b, c, 0].double().numpy(), clip[b, c, 0].double().numpy(), 2
            )
            for b in range(2)
            for c in range(3)
        ]
    )
    assert float(ms_ssim(clip + noise, clip)) == pytest.approx(expected, abs=1e-4)
    assert expected < 0.95


def test_ms_ssim_is_one_for_equal_clips_and_falls_with_noise() -> None:
    clip = make_clip(3, 48, 40, seed=2)
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    values = [float(ms_ssim(clip + share * noise, clip)) for share in (0, 0.02, 0.1, 0.5)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True)
    assert [num_scales(size) for size in (11, 21, 22, 44, 88, 128, 176, 500)] == [
        1, 1, 2, 3, 4, 4, 5, 5,
    ]  # fmt: skip


def test_ms_ssim_has_finite_gradients_for_inverted_clips() -> None:
    clip = make_clip(2, 24, 24, seed=3)
    for recon in (-clip, clip.clone(), torch.zeros_like(clip)):
        recon.requires_grad_()
        ms_ssim(recon, clip).backward()
        assert recon.grad.isfinite().all()


def test_parts_are_means_over_clips() -> None:
    clip, recon = make_clip(5, batch=3, seed=0), make_clip(5, batch=3, seed=1)
    latents = torch.randn(3, 6, 2, 4, 4)
    quantizer = LFQ(64, num_stages=2).losses(latents)
    weights = {"l1": 1.0, "mse": 2.0, "rmse": 3.0, "entropy": 4.0, "commitment": 5.0}
    parts = loss_parts(recon, clip, quantizer, 0.5, weights)
    error = (recon - clip).double()
    assert float(parts["l1"]) == pytest.approx(float(error.abs().mean()), rel=1e-5)
    assert float(parts["mse"]) == pytest.approx(float(error.square().mean()), rel=1e-5)
    roots = [float(e.square().mean().sqrt()) for e in error]
    assert float(parts["rmse"]) == pytest.approx(sum(roots) / 3, rel=1e-3)
    entropy = float(quantizer.per_sample_entropy) - 0.5 * float(quantizer.batch_entropy)
    assert float(parts["entropy"]) == pytest.approx(entropy, rel=1e-5)
    expected = sum(weights[name] * float(part) for name, part in parts.items())
    assert float(weighted_sum(parts, weights)) == pytest.approx(expected, rel=1e-5)
    assert set(loss_parts(recon, clip, quantizer, 1.0, {"rmse": 1.0})) == {"rmse"}


def test_perfect_reconstruction_has_finite_gradients() -> None:
    clip = make_clip(5)
    recon = clip.clone().requires_grad_()
    quantizer = LFQ(64).losses(torch.randn(1, 6, 2, 4, 4))
    loss_parts(recon, clip, quantizer, 1.0, {"rmse": 1.0})["rmse"].backward()
    assert recon.grad.isfinite().all()


def test_entropy_weight_is_annealed() -> None:
    config = tiny_config(entropy=0.02, entropy_start=0.1, entropy_steps=4)
    weights = [entropy_weight(step, config) for step in range(6)]
    assert weights == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.02])
    assert weights_at(1, config)["entropy"] == pytest.approx(0.08)
    constant = tiny_config(entropy=0.02, entropy_start=0.1, entropy_steps=0)
    assert entropy_weight(0, constant) == 0.02
    assert "entropy" not in weights_at(0, tiny_config(entropy=0, entropy_steps=0))


def test_adversarial_loss_starts_late() -> None:
    config = tiny_config(adversarial=0.4, adversarial_from=100)
    weights = [adversarial_weight(step, config) for step in (0, 100, 200, 300, 1000)]
    assert weights == pytest.approx([0, 0, 0.2, 0.4, 0.4])
    assert "adversarial" not in weights_at(100, config)


def test_discriminator_learns() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(dim=8)
    clip = make_clip(5, 32, 32, batch=2)
    fake = torch.nn.functional.avg_pool3d(clip, (1, 9, 9), 1, (0, 4, 4))
    assert critic(clip).shape == (2, 1, 3, 4, 4)
    assert critic(clip[:, :, :1]).shape == (2, 1, 1, 4, 4)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = hinge_loss(critic(clip), critic(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.2)
    assert losses[-1] < 0.5 * losses[0]
    assert float(hinge_loss(torch.full((2,), 5.0), torch.full((2,), -5.0))) == 0


def test_learning_rates_rise_stay_and_decay() -> None:
    base = {"steps": 100, "warm_up": 10, "final_rate": 0.1}
    linear = tiny_config(schedule="linear", decay_from=60, **base)
    shares = [rate_share(step, linear) for step in range(100)]
    assert shares[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert set(shares[10:61]) == {1.0}
    assert shares[80] == pytest.approx(0.55)
    assert shares[99] == pytest.approx(0.1 + 0.9 / 40)
    cosine = tiny_config(schedule="cosine", **base)
    assert rate_share(50, cosine) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert rate_share(100, cosine) == rate_share(500, cosine) == pytest.approx(0.1)


def test_stages_are_drawn_per_clip() -> None:
    config = tiny_config(base_stages=2, base_share=0.4, all_share=0.2)
    drawn = draw_stages(range(2000), 4, 0, 0, config)
    counts = torch.bincount(drawn, minlength=5)[1:]
    assert counts.tolist() == pytest.approx([200, 1000, 200, 600], abs=80)
    for step, seed in ((1, 0), (0, 1)):
        assert not torch.equal(draw_stages(range(2000), 4, step, seed, config), drawn)
    parts = [draw_stages(r, 4, 0, 0, config) for r in (range(0, 900), range(900, 2000))]
    assert torch.equal(torch.cat(parts), drawn)  # with any number of processes
    assert draw_stages(range(50), 1, 0, 0, config).tolist() == [1] * 50
