"""Training of token learners: losses, resuming, and the metric of latent errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import rows, tiny_checkpoint, vtok
from safetensors.numpy import load_file
from token_models import LATENT_DIM, SMALL, make_pipeline
from training import SyntheticLoader, synthetic_clips, tiny_data

from vtok.errors import CheckpointError, InputError, UsageError
from vtok.models.load import LoadedTokenizer, load
from vtok.nn.config import TokenConfig
from vtok.tokens.model import load_tokens
from vtok.training import token_trainer
from vtok.training.token_trainer import (
    TokenLearnerRun,
    TokenTraining,
    draw_count,
    encode_clips,
    latent_loss,
    make_token_optimizers,
    measure_metric,
    pixel_loss,
    token_rate_share,
    train_tokens,
)

QUICK = {
    "steps": 6, "pixel_steps": 2, "batch": 4, "pixel_batch": 1, "bank": 32, "frames": 5, "crop": 48,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> LoadedTokenizer:
    return load(tiny_checkpoint(tmp_path), dtype="float32")


@pytest.fixture
def synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace decoded clips by synthetic ones, and save often."""
    loader = SyntheticLoader(crop=48)
    monkeypatch.setattr(token_trainer, "ClipLoader", lambda *args, **options: loader)
    monkeypatch.setattr(token_trainer, "SAVE_EVERY", 2)
    monkeypatch.setattr(token_trainer, "REPORT_EVERY", 1)


def quick(learner: str = "v11", **fields: Any) -> TokenTraining:
    return TokenTraining(TokenConfig(LATENT_DIM, learner, **SMALL), **{**QUICK, **fields})


class Killed(BaseException):
    """Stands for a kill: no handler catches it."""


@pytest.mark.parametrize("at", [3, 7])
def test_killed_run_resumes_to_the_same_bytes(
    tmp_path: Path, model: LoadedTokenizer, synthetic: None, at: int
) -> None:
    data, config = [tiny_data(tmp_path / "data")], quick()
    whole = train_tokens(data, tmp_path / "whole", config, model, say=lambda line: None)

    def kill(line: str) -> None:
        if line.startswith(f"step {at} "):
            raise Killed

    with pytest.raises(Killed):
        train_tokens(data, tmp_path / "part", config, model, say=kill)
    assert not (tmp_path / "part" / "tokens.safetensors").exists()
    heard: list[str] = []
    part = train_tokens(data, tmp_path / "part", config, model, say=heard.append)
    assert any(f"resuming at step {at // 2 * 2} of 8" in line for line in heard)
    assert part.read_bytes() == whole.read_bytes()
    with pytest.raises(UsageError, match="started with another config"):
        train_tokens(data, tmp_path / "part", quick(seed=1), model, say=heard.append)


def test_starts_from_a_learner_of_another_tokenizer(
    tmp_path: Path, model: LoadedTokenizer, synthetic: None
) -> None:
    data, silent = [tiny_data(tmp_path / "data")], {"say": lambda line: None}
    first = train_tokens(data, tmp_path / "first", quick(), model, **silent)
    other = load(tiny_checkpoint(tmp_path, "other", seed=5), dtype="float32")
    run = TokenLearnerRun(quick(), other, first)
    made = run.pipeline.state_dict()
    assert all(
        torch.equal(made[key], t) for key, t in load_tokens(first, None)[0].state_dict().items()
    )
    still = quick(muon_rate=0.0, adamw_rate=0.0)
    second = train_tokens(data, tmp_path / "second", still, other, init=first, **silent)
    kept, given = load_tokens(second, other.info)[0].state_dict(), load_tokens(first, None)[0]
    assert all(torch.equal(kept[key], tensor) for key, tensor in given.state_dict().items())
    with pytest.raises(UsageError, match="another config, tokenizer or `init`"):
        train_tokens(data, tmp_path / "second", still, other, **silent)
    with pytest.raises(CheckpointError, match="learner v11 instead of v10"):
        train_tokens(data, tmp_path / "third", quick("v10"), other, init=first, **silent)
    with pytest.raises(InputError, match="no such checkpoint"):
        train_tokens(data, tmp_path / "third", quick(), other, init=tmp_path / "no", **silent)


@pytest.mark.parametrize("learner", ["v11", "average"])
def test_learns_to_reconstruct_latents(model: LoadedTokenizer, learner: str) -> None:
    config = quick(learner, steps=60, muon_rate=0.02)
    torch.manual_seed(0)
    run = token_trainer.TokenLearnerRun(config, model)
    latents = encode_clips(model, synthetic_clips(0, range(4), crop=48))[:, :, 1:]
    metric, losses = torch.eye(LATENT_DIM), []
    while run.step < config.steps:
        loss = latent_loss(run.pipeline, latents, metric, np.random.default_rng(run.step))
        assert run.learn(loss)
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_non_finite_step_changes_nothing(model: LoadedTokenizer) -> None:
    run = token_trainer.TokenLearnerRun(quick(), model)
    before = [p.detach().clone() for p in run.pipeline.parameters()]
    bad = next(run.pipeline.parameters()).sum() * float("nan")
    assert not run.learn(bad)
    assert all(torch.equal(a, b) for a, b in zip(before, run.pipeline.parameters(), strict=True))


def test_pixel_loss_trains_the_pipeline_only(model: LoadedTokenizer) -> None:
    pipeline = make_pipeline()
    clips = synthetic_clips(0, range(2), crop=48)
    loss = pixel_loss(pipeline, model, clips, np.random.default_rng(0))
    loss.backward()
    assert pipeline.lift.widen.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.tokenizer.parameters())


def test_metric_predicts_pixel_errors(model: LoadedTokenizer) -> None:
    clips = synthetic_clips(3, range(3), crop=48)
    metric = measure_metric(model, clips)
    assert torch.equal(metric, metric.triu())
    values, vectors = torch.linalg.eigh(metric.T @ metric)
    latents = encode_clips(model, clips)
    recon = model.tokenizer.decode(latents)
    seen = []
    for vector in (vectors[:, -1], vectors[:, 0]):
        signs = torch.randn(latents[:, :1].shape, generator=torch.Generator().manual_seed(1)).sign()
        moved = latents + 0.01 * signs * vector.view(1, -1, 1, 1, 1)
        seen.append(float((model.tokenizer.decode(moved) - recon).square().mean()))
    assert seen[0] > 1.5 * seen[1]
    assert values[-1] > values[0] > 0


def test_muon_trains_inner_matrices(model: LoadedTokenizer) -> None:
    for learner in ("v10", "v11", "grouped", "average", "average_lifted"):
        pipeline = make_pipeline(learner)
        muon, adamw = make_token_optimizers(pipeline, quick(learner))
        names = {id(p): name for name, p in pipeline.named_parameters()}
        ours = {names[id(p)] for p in muon.param_groups[0]["params"]}
        others = {names[id(p)] for g in adamw.param_groups for p in g["params"]}
        assert ours | others == set(names.values())
        assert not ours & others
        assert "fuser.ask.0.query.weight" in ours
        assert {"fuser.out.weight", "bits.down.weight", "fuser.slots"} <= others
        assert not any("depthwise" in name for name in ours)


def test_draws_at_most_as_many_tokens_as_fit() -> None:
    rng = np.random.default_rng(0)
    small = {draw_count(make_pipeline(), (8, 8), rng) for _ in range(50)}
    assert small == {4, 8, 16}
    assert 64 in {draw_count(make_pipeline(), (32, 32), rng) for _ in range(50)}
    assert draw_count(make_pipeline(), (2, 2), rng) == 1


def test_learning_rates_end_at_zero() -> None:
    config = quick(steps=100, pixel_steps=10)
    shares = [token_rate_share(step, config) for step in range(config.all_steps)]
    assert max(shares) == 1
    assert shares[0] == pytest.approx(0.05)
    assert shares[99] < 0.02
    assert shares[100] == pytest.approx(0.1)
    assert 0 < shares[109] < 0.02


@pytest.mark.parametrize(
    "settings",
    [{"colour": 1}, {"batch": 2.5}, {"batch": 0}, {"pipeline": {"learner": "v10"}},
     {"pipeline": {"dim": 0}}, {"pixel_steps": -1}, {"pipeline": 3}],
)  # fmt: skip
def test_invalid_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TokenTraining.from_settings(LATENT_DIM, "v11", settings)
    fine = TokenTraining.from_settings(LATENT_DIM, "v10", {"pipeline": {"dim": 32}, "batch": 3})
    assert (fine.pipeline.dim, fine.pipeline.learner, fine.batch) == (32, "v10", 3)


def test_damaged_latents_are_named(tmp_path: Path, model: LoadedTokenizer, synthetic: None) -> None:
    data, cache = [tiny_data(tmp_path / "data")], tmp_path / "cache"
    train_tokens(data, tmp_path / "a", quick(), model, cache=cache, say=lambda line: None)
    (shard,) = cache.glob("latents-*.npy")
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(InputError, match="remove it, and it is created again"):
        train_tokens(data, tmp_path / "b", quick(), model, cache=cache, say=lambda line: None)


@pytest.mark.slow
def test_command_trains_a_learner_that_encodes(tmp_path: Path) -> None:
    data, model = tiny_data(tmp_path / "data"), tiny_checkpoint(tmp_path)
    shape = [f"--set=pipeline.{key}={value}" for key, value in SMALL.items()]
    rest = [f"--set={key}={value}" for key, value in QUICK.items()]
    done = vtok(
        "tokens", "train", data, "--out", tmp_path / "run", "--model", model, *shape, *rest,
        "--set=crop=32",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "8 of 8" in done.stderr
    weights = tmp_path / "run" / "tokens.safetensors"
    (facts,) = rows(vtok("info", weights, "--json"))
    assert (facts["kind"], facts["learner"]) == ("token learner", "v11")
    done = vtok(
        "encode", data / "0.mp4", "--to", "tokens", "--model", model, "--token-learner", weights,
        "--num-tokens", "4",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert load_file(data / "0.tokens.safetensors")["tokens"].shape == (4, 4, 16)
