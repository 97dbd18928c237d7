"""Optimizers, steps and saved states."""

from pathlib import Path

import pytest
import torch
from models import make_tokenizer
from torch import nn
from training import synthetic_clips, tiny_config

from vtok.errors import CheckpointError, InputError, OutputError
from vtok.models.checkpoint import load_checkpoint, save_checkpoint
from vtok.nn.config import PRESETS
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.learner import Learner, initialize_from
from vtok.training.optimizers import Muon, make_optimizers, orthogonalize, set_rates
from vtok.training.processes import Processes
from vtok.training.state import State, from_bytes, newest_state, save_state, state_files, to_bytes
from vtok.training.trainer import Progress

ALONE = Processes(torch.device("cpu"))
INDICES = [range(2)]
EVERYTHING = {
    "ema": 0.9, "adversarial": 0.1, "adversarial_from": 1, "weight_decay": 0.1, "ms_ssim": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalize(matrix)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    similarity = torch.nn.functional.cosine_similarity(
        result.flatten(), (left @ right).flatten(), dim=0
    )
    assert similarity > 0.95


def test_muon_learns_a_convolution() -> None:
    torch.manual_seed(0)
    target, learner = nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(4, 6, 3, bias=False)
    optimizer = Muon(learner.parameters(), lr=0.02)
    losses = []
    for step in range(150):
        x = torch.randn(16, 4, 6, 6)
        loss = (learner(x) - target(x)).square().mean()
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 150)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_muon_weight_decay_is_decoupled() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(weight, torch.full((4, 4), 0.95))


@pytest.mark.parametrize("kind", ["fast", "classic"])
def test_every_weight_has_one_optimizer(kind: str) -> None:
    model = make_tokenizer(kind)
    optimizers = make_optimizers(model, tiny_config(weight_decay=0.1))
    assert [type(o).__name__ for o in optimizers] == ["Muon", "AdamW"]
    named = {id(p): name for name, p in model.named_parameters()}
    owned = [named[id(p)] for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(owned) == sorted(named.values())
    muon = {named[id(p)] for p in optimizers[0].param_groups[0]["params"]}
    for name, parameter in model.named_parameters():
        end = any(name.startswith(f"{stack}.layers.0.") for stack in ("encoder", "decoder"))
        if parameter.ndim < 2 or parameter.shape[1] == 1 or end:
            assert name not in muon, name
    assert len(muon) > len(named) // 8
    for group in optimizers[1].param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_muon_trains_most_of_the_shipped_model() -> None:
    model = VideoTokenizer.from_preset("vtok-base")
    muon = make_optimizers(model, tiny_config())[0].param_groups[0]["params"]
    inside = sum(p.numel() for p in muon)
    assert inside > 0.9 * sum(p.numel() for p in model.parameters())


def test_linear_maps_learn_slowly_outside_muon() -> None:
    model = make_tokenizer("linear")
    muon, adamw = make_optimizers(model, tiny_config())
    slow = adamw.param_groups[-1]
    maps = [*model.encoder.linear.parameters(), *model.decoder.linear.parameters()]
    assert {id(p) for p in slow["params"]} == {id(p) for p in maps}
    assert (slow["lr"], slow["weight_decay"]) == (pytest.approx(0.0002), 0)
    trained = [p for o in (muon, adamw) for group in o.param_groups for p in group["params"]]
    assert len(trained) == len({id(p) for p in trained}) == len(list(model.parameters()))


def test_rates_are_shares_of_the_full_rates() -> None:
    optimizers = make_optimizers(make_tokenizer(), tiny_config())
    for share in (0.5, 0.1):
        set_rates(optimizers, share)
        rates = [o.param_groups[0]["lr"] for o in optimizers]
        assert rates == pytest.approx([0.01 * share, 0.002 * share])


def steps(progress: Progress, count: int) -> Progress:
    """Take steps on synthetic clips."""
    for _ in range(count):
        assert progress.take_step([synthetic_clips(progress.step, INDICES[0])], INDICES).finite
    return progress


def test_state_restores_everything(tmp_path: Path) -> None:
    config = tiny_config(**EVERYTHING)
    whole = steps(Progress(config, ALONE, "data"), 3)
    save_state(tmp_path, whole.state(), keep=3)
    other = Progress(config, ALONE, "data")
    assert other.restore(from_bytes(newest_state(tmp_path, pytest.fail), "here"))
    assert other.step == 3
    for progress in (whole, other):
        steps(progress, 3)
    ours, theirs = whole.state(), other.state()
    assert ours.facts == theirs.facts
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert {k.split(".")[0] for k in ours.tensors} == {
        "model", "averaged", "critic", "optimizer", "meters",
    }  # fmt: skip
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs.tensors[name]), name
    # without the states of the optimizers the weights differ
    fresh = Progress(config, ALONE, "data")
    fresh.restore(from_bytes((tmp_path / "step-00000003.safetensors").read_bytes(), "here"))
    for optimizer in fresh.learner.optimizers:
        optimizer.state.clear()
    steps(fresh, 1)
    assert not torch.equal(
        fresh.learner.model.decoder.layers[0].conv.weight,
        steps(Progress(config, ALONE, "data"), 4).learner.model.decoder.layers[0].conv.weight,
    )


def test_average_follows_the_weights() -> None:
    learner = Learner(tiny_config(ema=0.5), ALONE)
    expected = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    for step in range(5):
        learner.step(step, [synthetic_clips(step, range(2))], [torch.tensor([1, 3])])
        decay = min(0.5, (1 + step) / (10 + step))
        for name, parameter in learner.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    assert learner.best is learner.averaged
    for name, parameter in learner.best.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-6), name


def test_micro_batches_add_up_to_one_batch() -> None:
    """Without losses over a batch, two micro-batches of two clips equal one of four."""
    off = {"entropy": 0.0, "entropy_steps": 0}
    clips, used = synthetic_clips(0, range(4)), torch.tensor([1, 2, 3, 2])
    one = Learner(tiny_config(batch=4, **off), ALONE)
    two = Learner(tiny_config(batch=2, accumulate=2, **off), ALONE)
    a = one.step(0, [clips], [used])
    b = two.step(0, [clips[:2], clips[2:]], [used[:2], used[2:]])
    assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-4)
    assert a.psnr.keys() == b.psnr.keys() == {1, 2, 3}
    assert a.psnr[2] == pytest.approx(b.psnr[2], rel=1e-5)
    assert torch.equal(a.seen, b.seen)
    assert torch.allclose(a.bits, b.bits)


def test_bfloat16_is_for_model_calls_only() -> None:
    learner = Learner(tiny_config(precision="bfloat16", **EVERYTHING), ALONE)
    totals = learner.step(1, [synthetic_clips(0, range(2))], [torch.tensor([1, 3])])
    exact = Learner(tiny_config(**EVERYTHING), ALONE)
    expected = exact.step(1, [synthetic_clips(0, range(2))], [torch.tensor([1, 3])])
    assert totals.finite
    assert totals.loss != expected.loss
    assert totals.loss == pytest.approx(expected.loss, rel=0.02)
    floats = (t for t in learner.tensors().values() if t.is_floating_point())
    assert {t.dtype for t in floats} == {torch.float32}


def test_non_finite_step_changes_nothing() -> None:
    progress = steps(Progress(tiny_config(**EVERYTHING), ALONE, "data"), 2)
    before = {name: tensor.clone() for name, tensor in progress.state().tensors.items()}
    clips = synthetic_clips(2, range(2))
    clips[0, 0, 0, 0, 0] = float("nan")
    totals = progress.take_step([clips], INDICES)
    assert not totals.finite
    assert progress.step == 2
    after = progress.state().tensors
    for name, tensor in before.items():
        if not name.startswith("critic"):  # it learns before the failure shows
            assert torch.equal(tensor, after[name]), name


def test_state_with_a_non_finite_weight_is_none() -> None:
    progress = Progress(tiny_config(), ALONE, "data")
    assert progress.state() is not None
    with torch.no_grad():
        progress.learner.model.decoder.layers[0].conv.bias[0] = float("inf")
    assert progress.state() is None


def test_last_states_are_kept(tmp_path: Path) -> None:
    for step in (0, 5, 10, 100, 20):
        save_state(tmp_path, State(step, {"a": torch.zeros(1)}, {}), keep=3)
    assert [int(p.stem[5:]) for p in state_files(tmp_path)] == [100, 20, 10]


@pytest.mark.parametrize("damage", ["cut", "flipped", "edited", "empty", "text", "other"])
def test_damaged_state_is_replaced_by_the_one_before(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        save_state(tmp_path, State(step, {"a": torch.arange(64.0)}, {"step": step}), keep=3)
    newest = state_files(tmp_path)[0]
    data = bytearray(newest.read_bytes())
    content = {
        "cut": data[:-7],
        "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "edited": data.replace(b'{\\"step\\": 2}', b'{\\"step\\": 7}'),
        "empty": b"",
        "text": b"hello" * 99,
    }
    assert all(damaged != data for damaged in content.values())
    if damage == "other":
        save_checkpoint(newest, make_tokenizer(), "tiny")
    else:
        newest.write_bytes(content[damage])
    said: list[str] = []
    state = from_bytes(newest_state(tmp_path, said.append), "here")
    assert state.facts == {"step": 1}
    assert len(said) == 1
    assert "step-00000002.safetensors" in said[0]
    assert "the state before it" in said[0]
    state_files(tmp_path)[1].write_bytes(b"")
    with pytest.raises(CheckpointError, match="no valid state"):
        newest_state(tmp_path, said.append)


def test_state_of_another_version_is_refused() -> None:
    data = to_bytes(State(1, {"a": torch.zeros(1)}, {})).replace(b'version\\": 1', b'version\\": 2')
    with pytest.raises(CheckpointError, match="another version"):
        from_bytes(data, "here")


def test_full_disk_keeps_older_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, State(1, {"a": torch.zeros(1)}, {}), keep=1)

    def full(self: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"No space left on device.*free disk space") as caught:
        save_state(tmp_path, State(2, {"a": torch.zeros(1)}, {}), keep=1)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.safetensors"]


def test_narrower_checkpoint_is_widened(tmp_path: Path) -> None:
    narrow = VideoTokenizer.from_config(tiny_config().tokenizer)
    save_checkpoint(tmp_path / "narrow.safetensors", narrow, "narrow")
    model = {**tiny_config().model, "stage_plan": (0, 1, 2)}
    wide = VideoTokenizer.from_config(tiny_config(model=model).tokenizer)
    fresh = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    (remark,) = initialize_from(wide, str(tmp_path / "narrow.safetensors"))
    widened = remark.removeprefix("widened: ").split(", ")
    assert len(widened) == 3  # the encoder's last weight and bias, the decoder's first weight
    old = narrow.state_dict()
    for name, tensor in wide.state_dict().items():
        part = tuple(slice(size) for size in old[name].shape)
        assert torch.equal(tensor[part], old[name])
    decoder = "decoder.layers.0.conv.weight"
    assert torch.allclose(wide.state_dict()[decoder][:, 6:], 0.3 * fresh[decoder][:, 6:])
    encoder = next(name for name in widened if name.startswith("encoder"))
    assert torch.equal(wide.state_dict()[encoder][6:], fresh[encoder][6:])


def test_checkpoint_without_second_pass_starts_one(tmp_path: Path) -> None:
    first = VideoTokenizer.from_config(tiny_config().tokenizer)
    save_checkpoint(tmp_path / "first.safetensors", first, "first")
    model = {**tiny_config().model, "second_pass": (1, 2)}
    init = str(tmp_path / "first.safetensors")
    learner = Learner(tiny_config(model=model, init=init, only_second_pass=True, ema=0.5), ALONE)
    assert initialize_from(learner.model, init) == []
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    for step in range(3):
        learner.step(step, [synthetic_clips(step, range(2))], [torch.tensor([3, 3])])
    for name, tensor in learner.model.state_dict().items():
        is_second = name.startswith("second_pass.")
        assert torch.equal(tensor, before[name]) != is_second, name
    with torch.no_grad():  # the new weights are saved and read again
        save_checkpoint(tmp_path / "second.safetensors", learner.model, "second")
        again = load_checkpoint(tmp_path / "second.safetensors")[0]
        clip = synthetic_clips(0, range(1))
        assert torch.equal(again.encode(clip), learner.model.eval().encode(clip))
    # and left out where the model has none
    assert initialize_from(first, str(tmp_path / "second.safetensors")) == [
        "without its second pass"
    ]


def test_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "wide.safetensors", make_tokenizer(), "wide")
    narrow = {**tiny_config().model, "codebook_size": 16}
    model = VideoTokenizer.from_config(tiny_config(model=narrow).tokenizer)
    with pytest.raises(CheckpointError, match="does not fit into"):
        initialize_from(model, str(tmp_path / "wide.safetensors"))
    with pytest.raises(CheckpointError, match="its layers differ"):
        initialize_from(
            VideoTokenizer.from_config(PRESETS["vtok-base"]), str(tmp_path / "wide.safetensors")
        )
    with pytest.raises(InputError, match="no such checkpoint"):
        initialize_from(model, str(tmp_path / "none.safetensors"))
