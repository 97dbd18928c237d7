"""examples/token_loader.py: windows stay inside one item, each item comes once per epoch."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import encode, tiny_checkpoint
from datasets import FakeEngine, codes_of, fake_run, items
from torch.utils.data import DataLoader
from videos import make_video

from vtok.dataset.api import encode_dataset
from vtok.dataset.item import Record
from vtok.dataset.options import DatasetOptions
from vtok.dataset.worker import Task
from vtok.dataset.writers import read_npy
from vtok.errors import InputError, UsageError, VtokError
from vtok.models.load import load

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))

import token_loader  # noqa: E402

IDS = [f"c{number}" for number in range(10)]  # 3 latent steps each, 4 per shard
WINDOW = 2


def windows_of(id_: str) -> list[np.ndarray]:
    codes = read_npy(codes_of(id_))
    return [codes[:, begin : begin + WINDOW] for begin in range(codes.shape[1] - WINDOW + 1)]


def place(window: np.ndarray) -> tuple[str, int]:
    """Item and first step of a window."""
    found = [
        (id_, begin)
        for id_ in IDS
        for begin, known in enumerate(windows_of(id_))
        if np.array_equal(known, window)
    ]
    assert len(found) == 1, "not a window of one item"
    return found[0]


def epoch(loader: DataLoader) -> list[tuple[str, int]]:
    """Items and first steps of all windows of an epoch."""
    places = []
    for batch in loader:
        assert batch.dtype == torch.int64
        assert batch.shape[1:] == (2, WINDOW, 2, 2)
        places += [place(window.numpy()) for window in batch]
    return places


@pytest.fixture(params=["npy", "tar", "memmap"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    fake_run(tmp_path / "set", items(IDS), to=request.param)
    return tmp_path / "set"


def test_two_workers_give_each_item_once(folder: Path) -> None:
    windows = token_loader.open_windows(folder, WINDOW)
    every_window = isinstance(windows, token_loader.MemoryMap)
    shuffle = None if isinstance(windows, token_loader.TarShards) else True
    loader = DataLoader(windows, 3, shuffle=shuffle, num_workers=2, persistent_workers=True)
    torch.manual_seed(4)
    first, second = epoch(loader), epoch(loader)
    for places in (first, second):
        if every_window:
            assert sorted(places) == [(id_, begin) for id_ in IDS for begin in (0, 1)]
        else:
            assert sorted(id_ for id_, _ in places) == IDS
    assert first != second  # in their order, their first steps, or both


def test_same_seed_gives_the_same_windows(folder: Path) -> None:
    windows = token_loader.open_windows(folder, WINDOW)
    shuffle = None if isinstance(windows, token_loader.TarShards) else True
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(epoch(DataLoader(windows, 4, shuffle=shuffle, num_workers=2)))
    assert runs[0] == runs[1] != runs[2]


def test_workers_draw_different_windows(tmp_path: Path) -> None:
    fake_run(tmp_path / "set", items(IDS), to="npy")
    windows = token_loader.open_windows(tmp_path / "set", WINDOW)
    same = torch.utils.data.Subset(windows, [0] * 40)  # one item, twenty times per worker
    torch.manual_seed(0)
    begins = [begin for _, begin in epoch(DataLoader(same, 1, num_workers=2))]
    assert set(begins) == {0, 1}
    assert begins[::2] != begins[1::2]


def test_shards_and_windows_are_shuffled(tmp_path: Path) -> None:
    fake_run(tmp_path / "set", items(IDS), to="tar", shard_size=2)
    torch.manual_seed(0)
    orders = []
    for buffer in (0, 100):
        windows = token_loader.TarShards(tmp_path / "set", WINDOW, buffer)
        orders.append([place(window.numpy())[0] for window in windows])
    shards = [IDS.index(id_) // 2 for id_ in orders[0]]
    assert shards != sorted(shards)
    assert shards[::2] == shards[1::2]  # without a buffer, a shard is read in order
    assert orders[0] != orders[1]
    assert sorted(orders[1]) == IDS


class TimedEngine(FakeEngine):
    """An engine whose items with odd numbers are from sources at a variable rate."""

    def _encode(self, task: Task) -> Record:
        times = {"time_base": "1/10", "durations": [1, 2, 3, 4, 5, 6, 7, 8, 9]}
        record = super()._encode(task)
        return record | ({"frame_times": times} if int(task.item.id[1:]) % 2 else {})


@pytest.mark.parametrize("to", ["npy", "tar", "memmap"])
def test_times_of_windows(tmp_path: Path, to: str) -> None:
    fake_run(tmp_path / "set", items(IDS), TimedEngine(), to=to)
    windows = token_loader.open_windows(tmp_path / "set", WINDOW, frames_per_step=4)
    starts = {1: [0, 0.1, 1.5], 0: [0, 1 / 25, 5 / 25]}  # of frames 0, 1 and 5
    count = 0
    for codes, times in DataLoader(windows, 3, num_workers=1):
        assert times.dtype == torch.float64
        for window, found in zip(codes, times, strict=True):
            id_, begin = place(window.numpy())
            expected = starts[int(id_[1:]) % 2][begin : begin + WINDOW]
            assert found.tolist() == pytest.approx(expected)
            count += 1
    assert count == (20 if to == "memmap" else 10)


@pytest.mark.parametrize("to", ["npy", "tar", "memmap"])
def test_short_items_are_skipped(tmp_path: Path, to: str) -> None:
    fake_run(tmp_path / "set", items(IDS[:2]), to=to)
    windows = token_loader.open_windows(tmp_path / "set", 7)
    assert not list(DataLoader(windows, 2))


@pytest.mark.parametrize("to", ["vtok", "tar-vtok"])
def test_windows_of_code_files(tmp_path: Path, to: str) -> None:
    video = make_video(tmp_path / "a.mp4", 77, width=32, height=32)  # 20 latent steps: 3 chunks
    model = tiny_checkpoint(tmp_path)
    encode_dataset([video], tmp_path / "set", model=model, options=DatasetOptions(to=to))
    codes = np.load(encode(video, tmp_path / "a.npy", load(model), to="npy"))
    known = [codes[:, begin : begin + 5] for begin in range(codes.shape[1] - 4)]
    torch.manual_seed(0)
    begins = set()
    for _ in range(30):
        (window,) = DataLoader(token_loader.open_windows(tmp_path / "set", 5), None)
        (begin,) = (n for n, part in enumerate(known) if np.array_equal(part, window))
        begins.add(begin)
    assert len(begins) > 5


def test_unreadable_data_sets(tmp_path: Path) -> None:
    with pytest.raises(VtokError):
        token_loader.open_windows(tmp_path / "none", 2)
    fake_run(tmp_path / "set", items(IDS[:1]))
    with pytest.raises(UsageError, match="--window 0"):
        token_loader.open_windows(tmp_path / "set", 0)
    fake_run(tmp_path / "odd", items(IDS[:1]), recipe={"to": "safetensors"})
    with pytest.raises(InputError, match="safetensors"):
        token_loader.open_windows(tmp_path / "odd", 2)


def test_script_prints_a_summary(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["token_loader.py", str(folder), "--window", "2", "--batch", "4"]
    monkeypatch.setattr(sys, "argv", arguments)
    token_loader.main()
    first, second = capsys.readouterr().out.splitlines()
    assert "10 windows" in first or "20 windows" in first
    assert second == "the first is int64 [4, 2, 2, 2, 2]"
    monkeypatch.setattr(sys, "argv", ["token_loader.py", "nothing"])
    with pytest.raises(SystemExit) as ended:
        token_loader.main()
    assert ended.value.code == 5
    assert capsys.readouterr().err.startswith("error: nothing")
