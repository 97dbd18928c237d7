"""Parts of videos, and the cache of decoded frames."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_training_sources import make_shard
from videos import barcode_frames, make_video, read_barcodes

import vtok.training.decoding
from vtok.errors import InputError
from vtok.training.clips import ClipSpec
from vtok.training.decoding import FrameCache, PartStore
from vtok.training.sources import Source, find_sources
from vtok.video.images import write_png
from vtok.video.reader import VideoReader

SPEC = ClipSpec(frames=5, crop=32, photo_share=0.5, seed=0)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 130 numbered frames of 64x48."""
    return make_video(tmp_path_factory.mktemp("videos") / "video.mp4", 130)


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    return FrameCache(tmp_path / "cache", 10**9)


def make_store(scratch: Path, cache: FrameCache | None = None, parts: int = 8) -> PartStore:
    return PartStore(SPEC, parts, cache, scratch)


def source_of(path: Path) -> Source:
    (source,) = find_sources([path])
    return source


def count_decoders(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the files for which decoders are started."""
    started: list[Path] = []

    class Counted(VideoReader):
        def __init__(self, path: Path, **options: Any) -> None:
            started.append(path)
            super().__init__(path, **options)

    monkeypatch.setattr(vtok.training.decoding, "VideoReader", Counted)
    return started


@pytest.mark.parametrize("whole_frames", [480, 0])
def test_parts_have_the_right_frames(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_frames: int
) -> None:
    monkeypatch.setattr(vtok.training.decoding, "WHOLE_FRAMES", whole_frames)
    source, store = source_of(video), make_store(tmp_path)
    assert store.count(source) == 3
    for number, start in enumerate((0, 41, 82)):
        part = store.load(source, number)
        assert part.shape == (48, 48, 64, 3)
        assert read_barcodes(part) == list(range(start, start + 48))
    assert read_barcodes(store.middle(source)) == list(range(62, 67))


def test_short_video_is_decoded_once_for_all_parts(
    video: Path, tmp_path: Path, cache: FrameCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, store = source_of(video), make_store(tmp_path, cache)
    started = count_decoders(monkeypatch)
    parts = [store.load(source, number) for number in (1, 0, 2)]
    assert started == [video]
    for part, start in zip(parts, (41, 0, 82), strict=True):
        assert read_barcodes(part) == list(range(start, start + 48))
    again = make_store(tmp_path, cache)
    assert all(np.array_equal(again.load(source, n), parts[i]) for i, n in enumerate((1, 0, 2)))
    assert started == [video]


def test_large_videos_and_photos_are_scaled_down(tmp_path: Path) -> None:
    large = make_video(tmp_path / "large.mp4", 6, width=960, height=540)
    write_png(tmp_path / "large.png", barcode_frames(range(1), 1600, 900)[0])
    store = make_store(tmp_path)
    assert store.load(source_of(large), 0).shape == (6, 384, 682, 3)
    assert store.load(source_of(tmp_path / "large.png"), 0).shape == (1, 640, 1138, 3)


def test_member_of_a_shard_is_read_like_a_file(
    video: Path, tmp_path: Path, cache: FrameCache
) -> None:
    shard = make_shard(tmp_path / "0.tar", {"x.mp4": video.read_bytes()})
    part = make_store(tmp_path / "cache", cache).load(source_of(shard), 2)
    assert read_barcodes(part) == list(range(82, 130))
    assert not list((tmp_path / "cache").glob("member-*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.mp4", b"no video" * 100, "not a video file"),
        ("empty.png", b"", r"empty file \(0 bytes\)"),
        ("cut.png", b"\x89PNG\r\n\x1a\n", "damaged picture"),
        ("gone.mp4", None, r"cannot be opened \(No such file or directory\)"),
    ],
)
def test_unreadable_source_is_named_once(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content or b"")
    source = source_of(path)
    if content is None:
        path.unlink()
    with pytest.raises(InputError, match=message) as caught:
        make_store(tmp_path).load(source, 0)
    assert str(caught.value).count(name) == 1
    assert "\n" not in str(caught.value)


def test_source_that_is_too_small_or_too_short_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "small.png", barcode_frames(range(1), 31, 70)[0])
    with pytest.raises(InputError, match=r"small\.png: smaller than the crop \(31x70 < 32\)"):
        make_store(tmp_path).load(source_of(tmp_path / "small.png"), 0)
    brief = make_video(tmp_path / "brief.mp4", 4)
    with pytest.raises(InputError, match=r"brief\.mp4: shorter than a clip \(4 of 5 frames\)"):
        make_store(tmp_path).count(source_of(brief))


@pytest.mark.parametrize("deaths", [1, 2])
def test_killed_decoder_is_retried_once(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    killed: list[int] = []

    class Killed(VideoReader):
        def __next__(self) -> Any:
            if len(killed) < deaths:
                killed.append(self._child.pid)
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child._process.wait()
                with suppress(EOFError, ConnectionError):  # drop what it had sent
                    while True:
                        self._child._connection.recv_bytes()
            return super().__next__()

    monkeypatch.setattr(vtok.training.decoding, "VideoReader", Killed)
    source, store = source_of(video), make_store(tmp_path, parts=1)
    if deaths == 1:
        assert read_barcodes(store.load(source, 0)) == list(range(48))
    else:
        with pytest.raises(InputError, match=r"video\.mp4: the decoder crashed \(SIGKILL\)"):
            store.load(source, 0)
    assert len(killed) == deaths


def test_damaged_cache_is_ignored(video: Path, tmp_path: Path, cache: FrameCache) -> None:
    source = source_of(video)
    part = make_store(tmp_path, cache, parts=1).load(source, 0)
    (path,) = cache.folder.glob("*.npy")
    (note,) = cache.folder.glob("*.json")
    whole = path.read_bytes()
    for bad in (whole[:-1], whole[:50], b"", b"\x80\x04N.", b"PK\x03\x04" + bytes(99)):
        path.write_bytes(bad)
        assert cache.frames(path.stem) is None
        assert not path.exists()
    for bad in (b"", b"[", b"{}", b"[1, 2, 3]", b"[64, 48, 12, 30, 0]", b'["64", 1, 1, 1, 1]'):
        note.write_bytes(bad)
        assert vtok.training.decoding.Outline.from_note(cache.note(note.stem)) is None
    assert np.array_equal(make_store(tmp_path, cache, parts=1).load(source, 0), part)
    assert path.read_bytes() == whole
    assert note.read_text() == "[64, 48, 130, 30, 1]"


def test_replaced_file_is_decoded_again(tmp_path: Path, cache: FrameCache) -> None:
    path = make_video(tmp_path / "a.mp4", 6)
    assert len(make_store(tmp_path, cache).load(source_of(path), 0)) == 6
    make_video(path, 7)
    assert len(make_store(tmp_path, cache).load(source_of(path), 0)) == 7


def noise(frames: int = 2) -> Any:
    return np.random.default_rng(0).integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)


def test_cache_respects_its_size_limit(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path, 3 * (128 + 384))
    for number in range(5):
        cache.store(f"vtok-{number}", noise())
    assert cache.full
    assert len(list(tmp_path.glob("*.npy"))) == 3
    assert np.array_equal(cache.frames("vtok-2"), noise())
    assert cache.frames("vtok-3") is None


def test_full_disk_is_a_full_cache(cache: FrameCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(file: Any, array: Any, **options: Any) -> None:
        file.write(bytes(100))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", no_space)
    cache.store("vtok-1", noise())
    assert cache.full
    assert [path.name for path in cache.folder.iterdir()] == [".lock"]


def test_tidy_removes_only_unneeded_files(tmp_path: Path, cache: FrameCache) -> None:
    source = Source("a", tmp_path / "a.mp4", None, "video")
    source.path.write_bytes(b"a")
    keep = f"{make_store(tmp_path)._key(source)}-384-0-48"
    for name in (keep, keep.replace("-0-", "-41-"), f"vtok-{'0' * 24}-384-0-48", "mine"):
        cache.store(name, noise())
    half, fresh = (cache.folder / f".vtok-{digit * 16}.part" for digit in "01")
    for path in (half, fresh, cache.folder / "vtok-notes.npy"):
        path.write_bytes(b"x")
    os.utime(half, (0, 0))
    cache.tidy([source])
    assert {path.name for path in cache.folder.iterdir()} == {
        ".lock", fresh.name, "vtok-notes.npy", "mine.npy",
        f"{keep}.npy", f"{keep.replace('-0-', '-41-')}.npy",
    }  # fmt: skip
    FrameCache(cache.folder, 1200).tidy([source])  # a lower limit than before
    assert len(list(cache.folder.glob(f"{keep[:29]}*.npy"))) == 1
    assert (cache.folder / "mine.npy").exists()
