"""The pool: the same clips from any number of processes, whichever of them are killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_media_reader import is_gone
from test_training_sources import make_shard
from videos import make_video, read_barcodes

from vtok.errors import InputError, UsageError, VtokError
from vtok.training.decoding import PartStore
from vtok.training.frame_cache import Cache
from vtok.training.sampler import ClipMaker
from vtok.training.sources import Source, find_sources
from vtok.training.workers import ClipPool, ClipSpec
from vtok.video.images import write_png

SPEC = ClipSpec(frames=5, crop=32, photo_share=0.4, seed=3)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, ...]:
    """Two videos, one of several parts, a photo, and a file that is none of these."""
    folder = tmp_path_factory.mktemp("corpus")
    make_video(folder / "long.mp4", 130)
    make_video(folder / "short.mp4", 12)
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    write_png(folder / "photo.png", photo)
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return find_sources([folder])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, sources: tuple[Source, ...]) -> Path:
    """A cache that holds all parts, and the proof that preparing fills it."""
    folder = tmp_path_factory.mktemp("cache")
    with ClipPool(sources, SPEC, workers=1, cache=folder, cache_bytes=10**9) as pool:
        assert list(pool.prepare()) == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert list(pool.skipped) == [sources[0].name]
    assert len(list(folder.glob("*.npy"))) == 3 + 1 + 1
    return folder


@pytest.fixture(scope="module")
def expected(sources: tuple[Source, ...], cache: Path) -> list[torch.Tensor]:
    """Five steps of four clips, made in this process."""
    store = PartStore(SPEC, 256 // 3, Cache(cache, 10**9), cache)
    maker = ClipMaker(sources, SPEC, store, {})
    return [
        torch.from_numpy(np.stack([maker.clip(step, index) for index in range(4)]))
        for step in range(5)
    ]


def make_pool(sources: tuple[Source, ...], workers: int = 1, cache: Path | None = None) -> ClipPool:
    return ClipPool(sources, SPEC, workers=workers, cache=cache, cache_bytes=10**9)


def test_clips_do_not_depend_on_the_processes_that_make_them(
    sources: tuple[Source, ...], cache: Path, expected: list[torch.Tensor]
) -> None:
    with make_pool(sources, workers=2, cache=cache) as pool:
        batches = list(pool.batches(range(5), [range(3), range(3, 4)]))
        assert pool.waited_seconds > 0
        assert list(pool.skipped) == [sources[0].name]
        # a process that has its share of every step only, and begins in the middle
        share = list(pool.batches(range(3, 5), [range(1, 3), range(0)]))
    for step, whole in enumerate(expected):
        assert batches[2 * step].dtype == torch.float32
        assert torch.equal(torch.cat(batches[2 * step : 2 * step + 2]), whole)
    assert torch.equal(torch.stack(share[::2]), torch.stack([whole[1:3] for whole in expected[3:]]))
    assert share[1].shape == (0, 3, 5, 32, 32)


def test_a_killed_worker_changes_nothing(
    sources: tuple[Source, ...], cache: Path, expected: list[torch.Tensor]
) -> None:
    with make_pool(sources, cache=cache) as pool:
        for number, batch in enumerate(pool.batches(range(3), [range(4)])):
            assert torch.equal(batch, expected[number])
            os.kill(worker_of(pool), signal.SIGKILL)


def test_workers_that_keep_dying_are_one_line(
    sources: tuple[Source, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with make_pool(sources) as pool, pytest.raises(VtokError, match="died 3 times in a row") as why:
        next(pool.batches(range(1), [range(1)]))
    assert "exit status 1" in str(why.value)
    assert "\n" not in str(why.value)


def test_nothing_readable_is_one_line(sources: tuple[Source, ...]) -> None:
    with (
        make_pool(sources[:1]) as pool,
        pytest.raises(InputError, match=r"from 1 source: .*broken\.mp4: not a video file$"),
    ):
        next(pool.batches(range(9), [range(4)]))
    with pytest.raises(InputError, match="nothing to train on"):
        make_pool(())
    with pytest.raises(UsageError, match="workers 0: must be at least 1"):
        make_pool(sources, workers=0)


def test_fixed_clips_are_the_middles(sources: tuple[Source, ...]) -> None:
    spec = ClipSpec(frames=5, crop=48, photo_share=0.4, seed=0)
    with ClipPool(sources, spec, workers=1, cache=None, cache_bytes=0) as pool:
        clips = pool.fixed(sources[:3], 9)  # broken, a long video, a photo
        assert clips.shape == (2, 3, 5, 48, 48)
        frames = ((clips[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
        with_sides = np.pad(frames, ((0, 0), (0, 0), (8, 8), (0, 0)), mode="edge")
        assert read_barcodes(with_sides) == list(range(62, 67))
        assert torch.equal(clips[1][:, 0], clips[1][:, 4])  # a photo stands still
        assert list(pool.skipped) == [f"{sources[0].name} (middle)"]
        with pytest.raises(InputError, match=r"1 source: .*broken\.mp4: not a video file"):
            pool.fixed(sources[:1], 3)


def worker_of(pool: ClipPool) -> int:
    return pool._lanes[0]._process._process.pid


def children_of(pid: int) -> list[int]:
    """Processes that a process has started and that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(folder.name))
    return found


DECODE = """
import sys
from vtok.training.workers import ClipPool, ClipSpec
from vtok.training.sources import find_sources
spec = ClipSpec(frames=5, crop=32, photo_share=0.0, seed=0)
with ClipPool(find_sources(sys.argv[1:]), spec, workers=1, cache=None, cache_bytes=0) as pool:
    assert "decord" not in sys.modules
    print(pool._lanes[0]._process._process.pid, flush=True)
    list(pool.batches(range(100000), [range(4)]))
"""


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_nothing_outlives_the_parent(
    sources: tuple[Source, ...], tmp_path: Path, number: int
) -> None:
    for name in range(30):  # so many that a decoder is at work all the time
        shutil.copy(sources[1].path, tmp_path / f"{name}.mp4")
    with subprocess.Popen(
        [sys.executable, "-c", DECODE, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        deadline = time.monotonic() + 60
        while not (decoders := children_of(worker)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert decoders
        os.killpg(parent.pid, number)  # as Ctrl-C does; the worker is in a group of its own
        parent.communicate(timeout=60)
    assert all(is_gone(pid, 10) for pid in (worker, *decoders))


def test_closing_while_clips_are_made_leaves_nothing(
    sources: tuple[Source, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shard = make_shard(tmp_path / "0.tar", {"a.mp4": sources[1].path.read_bytes()})
    before = len(list(Path("/proc/self/fd").iterdir()))
    with make_pool(find_sources([shard])) as pool:
        batches = pool.batches(range(100), [range(4)])
        next(batches)
        pid = worker_of(pool)
        batches.close()
    assert is_gone(pid)
    assert list(tmp_path.iterdir()) == [shard]
    pool.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_workers_import_no_torch_and_no_decord() -> None:
    code = "import sys, vtok.training.worker; print({'torch', 'decord'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.stdout == "set()\n"
