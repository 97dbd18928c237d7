"""Draws: which clip comes when depends on nothing but the files, the seed, the step and number."""

import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import vtok.training.decoding
import vtok.training.sampler
from vtok.errors import InputError, VideoError
from vtok.training.clips import Clip, ClipSpec
from vtok.training.decoding import PartStore
from vtok.training.frame_cache import Cache
from vtok.training.sampler import ClipMaker, most_parts, note_skipped, steps_a_part
from vtok.training.sources import find_sources

SPEC = ClipSpec(frames=5, crop=32, photo_share=0.4, seed=3)


class FakeReader:
    """Stands in for a decoder: a file that says `frames width height` is a video of noise.

    A fourth number is the frame from which on it is damaged.
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
    """No decoder runs in these tests; returns the names of the files that one would run for."""
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


def make_maker(
    source: Path,
    *,
    spec: ClipSpec = SPEC,
    cache: Cache | None = None,
    skipped: dict[str, str] | None = None,
) -> ClipMaker:
    store = PartStore(spec, 8, cache, source.parent)
    return ClipMaker(find_sources([source]), spec, store, {} if skipped is None else skipped)


def clips_of(maker: ClipMaker, count: int = 40) -> list[Clip]:
    return [maker.clip(*divmod(number, 4)) for number in range(count)]


def clips_backwards(maker: ClipMaker, count: int = 40) -> list[Clip]:
    return [maker.clip(*divmod(number, 4)) for number in reversed(range(count))][::-1]


def same(one: list[Clip], two: list[Clip]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_clips_do_not_depend_on_the_cache_or_on_what_came_before(
    corpus: Path, tmp_path: Path, started: list[str]
) -> None:
    plain = clips_of(make_maker(corpus))
    folder = tmp_path / "cache"
    assert same(plain, clips_backwards(make_maker(corpus, cache=Cache(folder, 10**9))))
    started.clear()
    assert same(plain, clips_of(make_maker(corpus, cache=Cache(folder, 10**9))))
    assert started == []
    small = Cache(tmp_path / "small", 500_000)  # takes one part of three
    assert same(plain, clips_of(make_maker(corpus, cache=small)))
    assert small.full
    assert same(plain, clips_of(make_maker(corpus, cache=Cache(tmp_path / "none", 0))))


def test_other_seeds_steps_and_numbers_give_other_clips(corpus: Path) -> None:
    other = make_maker(corpus, spec=ClipSpec(5, 32, 0.4, 4))
    clips = [*clips_of(make_maker(corpus)), *clips_of(other)]
    assert len({clip.tobytes() for clip in clips}) > 75  # of 80: there are only so many windows


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.4, 60, 100), (1.0, 200, 200)])
def test_photo_share(corpus: Path, share: float, least: int, most: int) -> None:
    maker = make_maker(corpus, spec=ClipSpec(5, 32, share, 0))
    drawn = [maker._draw(np.random.default_rng(seed))[0].kind for seed in range(200)]
    assert least <= drawn.count("photo") <= most
    only_photos = make_maker(corpus / "photo.png", spec=ClipSpec(5, 32, share, 0))
    assert only_photos.clip(0, 0).shape == (3, 5, 32, 32)


def test_sources_are_drawn_by_their_chances(corpus: Path) -> None:
    for number in range(9):
        (corpus / f"alike__{number}.mp4").write_text("12 64 48")
    maker = make_maker(corpus, spec=ClipSpec(5, 32, 0.0, 0))
    drawn = [maker._draw(np.random.default_rng(seed))[0].path.name for seed in range(600)]
    alike = sum(name.startswith("alike") for name in drawn)
    expected = 600 * 3 / (3 + 2**0.5)  # families of 9 and of 2
    assert abs(alike - expected) < 5 * (600 * 0.25) ** 0.5


def test_what_is_broken_is_replaced_by_the_next_draw(corpus: Path) -> None:
    (corpus / "broken.mp4").write_text("no video")
    (corpus / "small.png").write_text("1 31 70")
    (corpus / "brief.mp4").write_text("4 64 48")
    (corpus / "cut.mp4").write_text("130 64 48 100")
    maker = make_maker(corpus)
    clips = clips_of(maker)
    assert {Path(name).name: reason for name, reason in maker.skipped.items()} == {
        "broken.mp4": "not a video file",
        "small.png": "smaller than the crop (31x70 < 32)",
        "brief.mp4": "shorter than a clip (4 of 5 frames)",
        "cut.mp4 (part 3 of 3)": "damaged",
    }
    # found in another order, known from the beginning as after a resume, or cached: the same clips
    assert same(clips, clips_backwards(make_maker(corpus)))
    assert same(clips, clips_of(make_maker(corpus, skipped=dict(maker.skipped))))
    cache = Cache(corpus.parent / "cache", 10**9)
    assert same(clips, clips_of(make_maker(corpus, cache=cache)))


def test_a_source_counts_once() -> None:
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


def test_a_video_without_a_sound_part_is_broken(corpus: Path) -> None:
    (corpus / "cut.mp4").write_text("130 64 48 2")
    maker = make_maker(corpus / "cut.mp4")
    with pytest.raises(InputError, match=r"from 1 source: .*cut\.mp4: damaged$"):
        maker.clip(0, 0)
    assert list(maker.skipped) == [str(corpus / "cut.mp4")]


def test_nothing_readable_is_one_line(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_text("no video")
    maker = make_maker(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"from 4 sources: .*0\.mp4: not a video .*; \.\.\.$"):
            maker.clip(0, 0)
    (tmp_path / "photo.png").write_text("1 64 64")  # a photo is no help where none is asked for
    with pytest.raises(InputError, match="from 4 sources"):
        make_maker(tmp_path, spec=ClipSpec(5, 32, 0.0, 0)).clip(0, 0)
    assert make_maker(tmp_path).clip(0, 0).shape == SPEC.shape


def test_preparing_fills_the_cache_as_far_as_it_goes(corpus: Path, started: list[str]) -> None:
    cache = Cache(corpus.parent / "cache", 10**9)
    maker = make_maker(corpus, cache=cache)
    for position in range(3):
        maker.prepare(position)
    assert len(list(cache.folder.glob("*.npy"))) == 3 + 1 + 1
    started.clear()
    clips_of(make_maker(corpus, cache=cache))
    assert started == []
    make_maker(corpus).prepare(0)  # without a cache there is nothing to do
    assert started == ["long.mp4"]


def test_many_videos_share_a_part_over_some_steps(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = find_sources([corpus / "long.mp4"])
    assert (steps_a_part(sources), most_parts(sources)) == (1, 256)
    assert (steps_a_part(sources * 256), most_parts(sources * 256)) == (4, 4)
    monkeypatch.setattr(vtok.training.sampler, "MANY_VIDEOS", 1)
    maker = make_maker(corpus / "long.mp4")
    real, loaded = maker.store.load, []

    def load(source: Any, number: int) -> Any:
        loaded.append(number)
        return real(source, number)

    monkeypatch.setattr(maker.store, "load", load)
    clips = [maker.clip(step, 0) for step in range(24)]
    assert loaded == [loaded[step // 4 * 4] for step in range(24)]
    assert len(set(loaded)) == 3
    assert len({clip.tobytes() for clip in clips}) == 24
