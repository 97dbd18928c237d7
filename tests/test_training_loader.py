"""Loader: the same clips with any number of worker processes, even if workers are killed."""

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
from test_training_sources import make_shard
from test_video_reader import is_gone
from videos import make_video, read_barcodes

from vtok.errors import InputError, OptionError, VtokError
from vtok.training import loader as loader_module
from vtok.training.clips import ClipSpec
from vtok.training.decoding import FrameCache, PartStore
from vtok.training.loader import ClipDataset, ClipLoader
from vtok.training.sources import Source, find_sources
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
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(sources: tuple[Source, ...], cache: Path) -> list[torch.Tensor]:
    """Five steps of four clips, sampled in this process."""
    store = PartStore(SPEC, 256 // 3, FrameCache(cache, 10**9), cache)
    dataset = ClipDataset(sources, SPEC, store, {})
    return [
        torch.from_numpy(np.stack([dataset[step, index] for index in range(4)]))
        for step in range(5)
    ]


def make_loader(
    sources: tuple[Source, ...], workers: int = 1, cache: Path | None = None
) -> ClipLoader:
    return ClipLoader(sources, SPEC, workers=workers, cache=cache, cache_bytes=10**9)


def test_clips_are_sent_as_arrays_if_shared_memory_is_full(
    sources: tuple[Source, ...], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    store = PartStore(SPEC, 256 // 3, FrameCache(cache, 10**9), cache)
    answers = loader_module._AnswerDataset(ClipDataset(sources, SPEC, store, {}))
    shared = answers[[(0, 0), (0, 1)]]
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    sent = answers[[(0, 0), (0, 1)]]
    assert isinstance(sent.clips, np.ndarray)
    assert sent.error is None
    assert np.array_equal(sent.clips, shared.clips)


@pytest.mark.parametrize("workers", [1, 2])
def test_clips_do_not_depend_on_workers_or_resume_point(
    sources: tuple[Source, ...], cache: Path, expected: list[torch.Tensor], workers: int
) -> None:
    loader = make_loader(sources, workers, cache)
    batches = list(loader.batches(range(5), [range(3), range(3, 4)]))
    assert loader.waited_seconds > 0
    assert list(loader.skipped) == [sources[0].name]
    for step, whole in enumerate(expected):
        assert batches[2 * step].dtype == torch.float32
        assert torch.equal(torch.cat(batches[2 * step : 2 * step + 2]), whole)
    # a resumed process that loads its share of every step
    share = list(make_loader(sources, workers).batches(range(3, 5), [range(1, 3), range(0)]))
    assert torch.equal(torch.stack(share[::2]), torch.stack([whole[1:3] for whole in expected[3:]]))
    assert share[1].shape == (0, 3, 5, 32, 32)


def test_clips_of_a_shared_part_do_not_depend_on_the_resume_point(
    sources: tuple[Source, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # workers have their own copy of the module, so that only the grouping of steps changes
    monkeypatch.setattr(loader_module, "steps_per_part", lambda sources: 4)
    loader = make_loader(sources)
    whole = list(loader.batches(range(1, 10), [range(2), range(2, 3)]))
    rest = list(loader.batches(range(6, 10), [range(2), range(2, 3)]))
    assert len(whole) == 18
    assert all(torch.equal(a, b) for a, b in zip(whole[10:], rest, strict=True))


def test_killed_worker_is_replaced(
    sources: tuple[Source, ...], cache: Path, expected: list[torch.Tensor]
) -> None:
    before = workers_now()
    loader, killed = make_loader(sources, cache=cache), 0
    # more steps than are loaded ahead
    for number, batch in enumerate(loader.batches(range(20), [range(4)])):
        if number < len(expected):
            assert torch.equal(batch, expected[number])
        if number in (0, 8):
            for pid in workers_now() - before:
                os.kill(pid, signal.SIGKILL)
                killed += 1
    assert number == 19
    assert killed == 2


def kill_itself(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_workers_that_keep_dying_are_an_error(
    sources: tuple[Source, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_init_worker", kill_itself)
    with pytest.raises(VtokError, match=r"died 3 times in a row \(.*exited unexpectedly") as why:
        next(make_loader(sources).batches(range(1), [range(1)]))
    assert "\n" not in str(why.value)


def test_no_readable_source_is_an_input_error(sources: tuple[Source, ...]) -> None:
    with pytest.raises(InputError, match=r"from 1 source: .*broken\.mp4: not a video file$"):
        next(make_loader(sources[:1]).batches(range(9), [range(4)]))
    with pytest.raises(InputError, match="nothing to train on"):
        make_loader(())
    with pytest.raises(OptionError, match="workers=0: expected 1 or more"):
        make_loader(sources, workers=0)


def test_unexpected_failure_is_one_line(sources: tuple[Source, ...]) -> None:
    spec = ClipSpec(frames=5, crop=32, photo_share=0.4, seed=3)
    object.__setattr__(spec, "seed", "none")
    loader = ClipLoader(sources, spec, workers=1, cache=None, cache_bytes=0)
    with pytest.raises(VtokError, match=r"^making a clip failed \(ValueError: .*\)$"):
        next(loader.batches(range(1), [range(1)]))


def test_middle_clips_are_the_middles(sources: tuple[Source, ...]) -> None:
    spec = ClipSpec(frames=5, crop=48, photo_share=0.4, seed=0)
    loader = ClipLoader(sources, spec, workers=1, cache=None, cache_bytes=0)
    clips = loader.middle_clips(sources[:3], 9)  # broken, a long video, a photo
    assert clips.shape == (2, 3, 5, 48, 48)
    frames = ((clips[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
    with_sides = np.pad(frames, ((0, 0), (0, 0), (8, 8), (0, 0)), mode="edge")
    assert read_barcodes(with_sides) == list(range(62, 67))
    assert torch.equal(clips[1][:, 0], clips[1][:, 4])  # a photo stands still
    assert list(loader.skipped) == [f"{sources[0].name} (middle)"]
    with pytest.raises(InputError, match=r"1 source: .*broken\.mp4: not a video file"):
        loader.middle_clips(sources[:1], 3)


def processes_where(field: int, value: object) -> set[int]:
    """Return the live processes with a value in a field of /proc/PID/stat, from the state on."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
        except OSError:
            continue
        fields = [name.partition("(")[2], *rest.split()]
        if fields[field] == str(value) and fields[1] != "Z":
            found.add(int(folder.name))
    return found


def descendants(pid: int) -> set[int]:
    children = processes_where(2, pid)
    return children.union(*map(descendants, children))


def workers_now() -> set[int]:
    """Return the worker processes that descend from this process."""
    return descendants(os.getpid()) & processes_where(0, "pt_data_worker")


LOAD = """
import sys
from vtok.training.clips import ClipSpec
from vtok.training.loader import ClipLoader
from vtok.training.sources import find_sources
if __name__ == "__main__":
    spec = ClipSpec(frames=5, crop=32, photo_share=0.0, seed=0)
    loader = ClipLoader(find_sources(sys.argv[1:]), spec, workers=1, cache=None, cache_bytes=0)
    for batch in loader.batches(range(100000), [range(4)]):
        print(flush=True)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_workers_and_decoders_end_with_the_parent(
    sources: tuple[Source, ...], tmp_path: Path, number: int
) -> None:
    for name in range(30):  # so that a decoder is always running
        shutil.copy(sources[1].path, tmp_path / f"{name}.mp4")
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    with subprocess.Popen(
        [sys.executable, script, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        deadline = time.monotonic() + 60
        while len(pids := descendants(parent.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)  # the fork server, the resource tracker, the worker and its decoder
        assert len(pids) >= 4
        os.killpg(parent.pid, number)
        parent.communicate(timeout=60)
    assert all(is_gone(pid, 10) for pid in pids)


def test_closing_while_loading_leaves_nothing(
    sources: tuple[Source, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shard = make_shard(tmp_path / "0.tar", {"a.mp4": sources[1].path.read_bytes()})
    running = workers_now()
    loader = make_loader(find_sources([shard]))
    batches = loader.batches(range(100), [range(4)])
    next(batches)
    (worker,) = workers_now() - running
    batches.close()
    del loader, batches
    assert is_gone(worker)
    assert list(tmp_path.glob("vtok-*")) == []


def test_loading_leaves_random_state_and_threads_alone(sources: tuple[Source, ...]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), torch.get_num_threads()
    list(make_loader(sources).batches(range(1), [range(1)]))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
