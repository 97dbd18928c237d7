"""Sampler: a clip depends on the files, the seed, the step and the index only."""

import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import vtok.training.decoding
import vtok.training.loader
from vtok.errors import InputError, VideoError
from vtok.training.clips import Clip, ClipSpec
from vtok.training.decoding import FrameCache, PartStore
from vtok.training.loader import ClipDataset, max_parts, note_skipped, steps_per_part
from vtok.training.sources import find_sources

SPEC = ClipSpec(frames=5, crop=32, photo_share=0.4, seed=3)


class FakeReader:
    """Replaces the decoder: a file with the text `frames width height` is a video of noise.

    A fourth number is the first damaged frame.
    """

    started: list[str]

    def __init__(self, path: Path, *, start_seconds: Fraction = Fraction(0), **_: Any) -> None:
        self.started.append(path.name)
        try:
            self.length, width, height, *damage = map(int, path.read_text().split())
        except ValueError:
            raise VideoError(f"{path}: not a video file") from None
        self.info = SimpleNamespace(
            width=width, height=height, num_frames=self.length, fps=Fraction(1)
        )
        self.path, self.first = path, -(-start_seconds // 1)
        self.damage = damage[0] if damage else self.length

    def __enter__(self) -> "FakeReader":
        return self

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        shape = 1, self.info.height, self.info.width, 3
        for number in range(self.first, self.length):
            if number >= self.damage:
                raise VideoError(f"{self.path}: damaged")
            rng = np.random.default_rng((zlib.crc32(self.path.name.encode()), number))
            yield rng.integers(0, 256, shape, dtype=np.uint8)

    def __next__(self) -> Any:
        return next(iter(self))


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the decoder; returns the names of decoded files."""
    monkeypatch.setattr(FakeReader, "started", [], raising=False)
    monkeypatch.setattr(vtok.training.decoding, "VideoReader", FakeReader)
    monkeypatch.setattr(
        vtok.training.decoding, "probe", lambda path, _: FakeReader(path).info
    )  # fmt: skip
    return FakeReader.started


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "long.mp4").write_text("130 64 48")
    (folder / "short.mp4").write_text("12 64 48")
    (folder / "photo.png").write_text("1 70 50")
    return folder


def make_dataset(
    source: Path,
    *,
    spec: ClipSpec = SPEC,
    cache: FrameCache | None = None,
    skipped: dict[str, str] | None = None,
) -> ClipDataset:
    store = PartStore(spec, 8, cache, source.parent)
    return ClipDataset(find_sources([source]), spec, store, {} if skipped is None else skipped)


def clips_of(dataset: ClipDataset, count: int = 40) -> list[Clip]:
    return [dataset[divmod(number, 4)] for number in range(count)]


def clips_backwards(dataset: ClipDataset, count: int = 40) -> list[Clip]:
    return [dataset[divmod(number, 4)] for number in reversed(range(count))][::-1]


def same(one: list[Clip], two: list[Clip]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_clips_do_not_depend_on_cache_or_order(
    corpus: Path, tmp_path: Path, started: list[str]
) -> None:
    plain = clips_of(make_dataset(corpus))
    folder = tmp_path / "cache"
    assert same(plain, clips_backwards(make_dataset(corpus, cache=FrameCache(folder, 10**9))))
    started.clear()
    assert same(plain, clips_of(make_dataset(corpus, cache=FrameCache(folder, 10**9))))
    assert started == []
    small = FrameCache(tmp_path / "small", 500_000)  # holds one part of three
    assert same(plain, clips_of(make_dataset(corpus, cache=small)))
    assert small.full
    assert same(plain, clips_of(make_dataset(corpus, cache=FrameCache(tmp_path / "none", 0))))


def test_other_seeds_steps_and_indices_give_other_clips(corpus: Path) -> None:
    other = make_dataset(corpus, spec=ClipSpec(5, 32, 0.4, 4))
    clips = [*clips_of(make_dataset(corpus)), *clips_of(other)]
    assert len({clip.tobytes() for clip in clips}) > 75  # of 80; few windows coincide


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.4, 60, 100), (1.0, 200, 200)])
def test_photo_share(corpus: Path, share: float, least: int, most: int) -> None:
    dataset = make_dataset(corpus, spec=ClipSpec(5, 32, share, 0))
    drawn = [dataset._draw(np.random.default_rng(seed))[0].kind for seed in range(200)]
    assert least <= drawn.count("photo") <= most
    only_photos = make_dataset(corpus / "photo.png", spec=ClipSpec(5, 32, share, 0))
    assert only_photos[0, 0].shape == (3, 5, 32, 32)


def test_sources_are_drawn_with_their_probabilities(corpus: Path) -> None:
    for number in range(9):
        (corpus / f"alike__{number}.mp4").write_text("12 64 48")
    dataset = make_dataset(corpus, spec=ClipSpec(5, 32, 0.0, 0))
    drawn = [dataset._draw(np.random.default_rng(seed))[0].path.name for seed in range(600)]
    alike = sum(name.startswith("alike") for name in drawn)
    expected = 600 * 3 / (3 + 2**0.5)  # families of 9 and of 2
    assert abs(alike - expected) < 5 * (600 * 0.25) ** 0.5


def test_unreadable_source_is_replaced_by_the_next_draw(corpus: Path) -> None:
    (corpus / "broken.mp4").write_text("no video")
    (corpus / "small.png").write_text("1 31 70")
    (corpus / "brief.mp4").write_text("4 64 48")
    (corpus / "cut.mp4").write_text("130 64 48 100")
    dataset = make_dataset(corpus)
    clips = clips_of(dataset)
    assert {Path(name).name: reason for name, reason in dataset.skipped.items()} == {
        "broken.mp4": "not a video file",
        "small.png": "smaller than the crop (31x70 < 32)",
        "brief.mp4": "shorter than a clip (4 of 5 frames)",
        "cut.mp4 (part 3 of 3)": "damaged",
    }
    # the same clips in another order, with known failures as after a resume, or from the cache
    assert same(clips, clips_backwards(make_dataset(corpus)))
    assert same(clips, clips_of(make_dataset(corpus, skipped=dict(dataset.skipped))))
    cache = FrameCache(corpus.parent / "cache", 10**9)
    assert same(clips, clips_of(make_dataset(corpus, cache=cache)))


def test_skipped_source_replaces_its_parts() -> None:
    skipped: dict[str, str] = {}
    for name in (
        "a (part 1 of 2)",
        "a (middle)",
        "a (part 2 of 2)",
        "b",
        "a",
        "b (part 1 of 3)",
        "b (middle)",
    ):
        note_skipped(skipped, name, "why")
    assert list(skipped) == ["b", "a"]


def test_video_without_a_readable_part_is_skipped(corpus: Path) -> None:
    (corpus / "cut.mp4").write_text("130 64 48 2")
    dataset = make_dataset(corpus / "cut.mp4")
    with pytest.raises(InputError, match=r"from 1 source: .*cut\.mp4: damaged$"):
        dataset[0, 0]
    assert list(dataset.skipped) == [str(corpus / "cut.mp4")]


def test_no_readable_source_is_an_input_error(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_text("no video")
    dataset = make_dataset(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"from 4 sources: .*0\.mp4: not a video .*; \.\.\.$"):
            dataset[0, 0]
    (tmp_path / "photo.png").write_text("1 64 64")  # not used with photo_share 0
    with pytest.raises(InputError, match="from 4 sources"):
        make_dataset(tmp_path, spec=ClipSpec(5, 32, 0.0, 0))[0, 0]
    assert make_dataset(tmp_path)[0, 0].shape == SPEC.shape


def test_steps_share_a_part_if_there_are_many_videos(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = find_sources([corpus / "long.mp4"])
    assert (steps_per_part(sources), max_parts(sources)) == (1, 256)
    assert (steps_per_part(sources * 256), max_parts(sources * 256)) == (4, 4)
    monkeypatch.setattr(vtok.training.loader, "MANY_VIDEOS", 1)
    dataset = make_dataset(corpus / "long.mp4")
    real, loaded = dataset._store.load, []

    def load(source: Any, number: int) -> Any:
        loaded.append(number)
        return real(source, number)

    monkeypatch.setattr(dataset._store, "load", load)
    clips = [dataset[step, 0] for step in range(24)]
    assert loaded == [loaded[step // 4 * 4] for step in range(24)]
    assert len(set(loaded)) == 3
    assert len({clip.tobytes() for clip in clips}) == 24
