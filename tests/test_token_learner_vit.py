"""examples/token_learner_vit.py: architectures, operation counts, splits, resumed results."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))

import image_sets  # noqa: E402
import token_learner_vit as experiment  # noqa: E402
import vit  # noqa: E402
from vit_results import Results, Run, markdown, rows  # noqa: E402

from vtok.errors import InputError, UsageError  # noqa: E402

PATCHES, WIDTH, HIDDEN = 64, 128, 256


def make_set(count: int = 40, classes: int = 2, channels: int = 1) -> image_sets.ImageSet:
    """Make noise images whose brightness depends on the class."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % classes
    noise = torch.randint(60, (count, channels, 52, 52), generator=generator)
    images = (noise + 190 // (classes - 1) * labels[:, None, None, None]).byte()
    return image_sets.ImageSet("made", images, labels, tuple(str(n) for n in range(classes)))


def block_operations(tokens: int) -> int:
    projections = tokens * (3 * WIDTH * WIDTH + WIDTH * WIDTH + 2 * WIDTH * HIDDEN)
    return projections + 2 * tokens * tokens * WIDTH  # queries by keys, weights by values


def reduction_operations(kind: str, tokens: int) -> int:
    weighted_sum = PATCHES * tokens * WIDTH
    maps = {
        "average": -weighted_sum,  # sums alone
        "v11": PATCHES * (WIDTH * 64 + 64 * tokens),
        "v10": PATCHES * 9 * (WIDTH * tokens + 3 * tokens * tokens),
        "grouped": PATCHES * (WIDTH * 2 * WIDTH * tokens + 2 * WIDTH * tokens),
        "linear": PATCHES * WIDTH * tokens,
    }
    return maps[kind] + weighted_sum


@pytest.mark.parametrize("name", vit.VARIANTS)
def test_operation_counts(name: str) -> None:
    variant = vit.VARIANTS[name]
    expected = PATCHES * 3 * 36 * WIDTH + WIDTH * 7  # 6x6 pixels of 3 colours; 7 classes
    expected += variant.after * block_operations(PATCHES)
    expected += (4 - variant.after) * block_operations(variant.tokens)
    if name != "plain":
        expected += reduction_operations(variant.reduction, variant.tokens)
    assert vit.operations(variant, channels=3, classes=7) == expected


def test_variants() -> None:
    names = set(vit.VARIANTS) - {"plain"}
    expected = {
        f"{kind}-{tokens}-after{after}"
        for kind in ("v10", "v11", "grouped", "linear", "average")
        for tokens in (4, 8)
        for after in (2, 3)
    }
    assert names == expected


@pytest.mark.parametrize("name", vit.VARIANTS)
def test_reduction_after_block(name: str) -> None:
    variant = vit.VARIANTS[name]
    model = vit.ViT(variant, 1, 3).eval()
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    assert model(torch.zeros(2, 1, 48, 48)).shape == (2, 3)
    assert seen == [64] * variant.after + [variant.tokens] * (4 - variant.after)


@pytest.mark.parametrize(("tokens", "grid"), [(8, (2, 4)), (4, (2, 2))])
def test_average_pool(tokens: int, grid: tuple[int, int]) -> None:
    x = torch.randn(2, 64, 5)
    rows_of, columns = 8 // grid[0], 8 // grid[1]
    cells = x.reshape(2, grid[0], rows_of, grid[1], columns, 5)
    torch.testing.assert_close(
        vit.AveragePool(tokens)(x), cells.mean(dim=(2, 4)).reshape(2, tokens, 5)
    )


def test_shared_weights_start_equal() -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return vit.ViT(vit.VARIANTS[name], 1, 3).state_dict()

    plain, other = weights("plain", 1), weights("plain", 2)
    assert not torch.equal(plain["patches.weight"], other["patches.weight"])
    for name in vit.VARIANTS:
        own = weights(name, 1)
        assert plain.keys() <= own.keys()
        assert all(torch.equal(value, own[key]) for key, value in plain.items()), name


def test_dropout() -> None:
    dropout, x = vit.Dropout(), torch.ones(999, 333)  # not a multiple of four elements
    dropped = dropout.train()(x)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.9])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert torch.equal(dropout.eval()(x), x)


def test_five_seeds_are_a_cross_validation() -> None:
    labels = torch.tensor([0] * 40 + [1] * 13 + [2] * 7)
    tested = []
    for seed in range(5):
        train_on, test_on = experiment.split(labels, seed)
        assert sorted([*train_on.tolist(), *test_on.tolist()]) == list(range(60))
        shares = torch.bincount(labels[test_on], minlength=3) / torch.tensor([40, 13, 7])
        assert float((shares - 0.2).abs().max()) < 0.12
        tested += test_on.tolist()
    assert sorted(tested) == list(range(60))
    first, again, sixth = (experiment.split(labels, seed)[1] for seed in (0, 0, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, sixth)


def test_augmentation() -> None:
    rows_at, columns_at = torch.meshgrid(torch.arange(52), torch.arange(52), indexing="ij")
    images = torch.stack([rows_at, columns_at]).byte().expand(50, 2, 52, 52)
    plain = experiment.augment(images, False, torch.Generator().manual_seed(3))
    assert plain.shape == (50, 2, 48, 48)
    corners = plain[:, :, :1, :1]
    assert torch.equal(plain, images[:, :, :48, :48] + corners)
    assert set(corners.flatten().tolist()) == set(range(5))
    flipped = experiment.augment(images, True, torch.Generator().manual_seed(3))
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], plain[~mirrored])
    assert 10 < int(mirrored.sum()) < 40


def test_batches_do_not_depend_on_global_random_state() -> None:
    images, setting = make_set(), experiment.Setting(epochs=2, batch=16)
    chosen = torch.arange(3, 38)
    first = list(experiment.batches(images, chosen, setting, seed=4))
    torch.rand(1000)
    again = list(experiment.batches(images, chosen, setting, seed=4))
    assert [len(labels) for _, labels in first] == [16, 16, 3] * 2
    for (inputs, labels), (other, names) in zip(first, again, strict=True):
        assert torch.equal(inputs, other)
        assert torch.equal(labels, names)
    epoch = torch.cat([labels for _, labels in first[:3]])
    assert torch.equal(epoch.sort().values, images.labels[chosen].sort().values)


def test_training_is_repeatable() -> None:
    images = make_set()
    setting = experiment.Setting(epochs=4, batch=8)
    variant = vit.VARIANTS["v11-8-after2"]
    runs = [experiment.train(variant, 1, images, setting) for _ in range(2)]
    assert [(run.correct, run.tested) for run in runs] == [(8, 8)] * 2


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[tuple]]:
    """Run the script on synthetic images with a fake training that records its calls."""
    monkeypatch.setattr(experiment, "load_images", lambda folder, size: make_set(count=42))
    monkeypatch.setattr(experiment, "SPEED_ROUNDS", 1)

    def call(*arguments: str, fail_at: int = 1000) -> list[tuple]:
        trained: list[tuple] = []

        def train(variant: vit.Variant, seed: int, *_: object) -> Run:
            if len(trained) == fail_at:
                raise KeyboardInterrupt
            trained.append((variant.name, seed))
            return Run(variant.name, seed, 5 + seed, 8, 1.5)

        monkeypatch.setattr(experiment, "train", train)
        monkeypatch.setattr(sys, "argv", ["vit", "--results", str(tmp_path / "r.json"), *arguments])
        experiment.main()
        return trained

    return call


TWO = ("--variants", "plain", "v10-4-after3", "--seeds", "2")


def test_interrupted_experiment_resumes(
    command: Callable[..., list[tuple]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(*TWO, fail_at=3)
    assert stopped.value.code == 130
    assert "resumes" in capsys.readouterr().err
    command("--table")
    assert "| plain | 38.0 | 100.0% | 1.00 | 2 | 68.75 ± 6.25 | - |" in capsys.readouterr().out
    assert command(*TWO) == [("v10-4-after3", 1)]  # a seed of all variants before the next seed
    assert command(*TWO) == []
    capsys.readouterr()
    command("--table", "--json")
    shown = json.loads(capsys.readouterr().out)
    assert [(row["variant"], row["seeds"], row["difference"]) for row in shown] == [
        ("plain", 2, None), ("v10-4-after3", 2, 0.0),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_no_seeds_measure_operations_and_speeds(
    command: Callable[..., list[tuple]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--variants", "linear-4-after2", "--seeds", "0", "--json") == []
    plain, linear = json.loads(capsys.readouterr().out)
    assert (plain["variant"], linear["variant"]) == ("plain", "linear-4-after2")
    assert linear["operations"] < plain["operations"]
    assert linear["speed_of_plain"] > 0
    assert (linear["seeds"], linear["accuracy"]) == (0, None)


def test_settings_are_not_mixed(
    command: Callable[..., list[tuple]], capsys: pytest.CaptureFixture[str]
) -> None:
    command(*TWO)
    capsys.readouterr()
    for change in (("--epochs", "3"), ("--flip",), ("--batch", "8")):
        with pytest.raises(SystemExit) as stopped:
            command(*TWO, *change)
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "give another --results" in line
    with pytest.raises(SystemExit) as stopped:
        command("--variants", "v12")
    assert stopped.value.code == 2
    assert "v12: unknown variant" in capsys.readouterr().err


def test_table(tmp_path: Path) -> None:
    results = Results(tmp_path / "none.json", list(vit.VARIANTS))
    for name, correct in {"plain": (90, 92, 97), "v11-8-after2": (91, 90)}.items():
        results.runs += [Run(name, seed, right, 100, 1.0) for seed, right in enumerate(correct)]
    results.operations = {"plain": 200, "v11-8-after2": 90}
    plain, learned = rows(results)
    assert plain["accuracy"] == pytest.approx(93)
    assert plain["accuracy_error"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2 / 3))
    errors = (learned["difference"], learned["difference_error"])
    assert errors == pytest.approx((-0.5, 1.5))  # of +1 and -2
    assert learned["operations_of_plain"] == 0.45
    assert "| -0.50 ± 1.50 |" in markdown(results)


HEAD = b'{"setting": {}, "operations": {}, "speeds": {}, "runs": '
RUN = b'[{"variant": "%s", "seed": 0, "correct": %d, "tested": %d, "seconds": 1}]}'


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b'{"setting": {}}', b'{"setting": 1, "operations": {}, "runs": []}',
     HEAD + b'[{"variant": "plain"}]}', HEAD + RUN % (b"plain", 1, 0),
     HEAD + RUN % (b"plain", 1, -2), HEAD + RUN % (b"v99", 1, 2)],
)  # fmt: skip
def test_foreign_results_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="experiment"):
        Results(path, list(vit.VARIANTS))


def test_results_of_other_images(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.json", ["plain"])
    results.begin({"data": "a", "fingerprint": "1"})
    results.begin({"data": "moved", "fingerprint": "1"})
    with pytest.raises(UsageError, match="fingerprint"):
        results.begin({"data": "moved", "fingerprint": "2"})


def test_speeds_are_relative_to_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "SPEED_ROUNDS", 1)
    speeds = experiment.measure_speed([vit.VARIANTS["average-4-after2"]], 1, 2)
    assert speeds["plain"] == 1
    assert speeds["average-4-after2"] > 0
