"""Clips: windows of videos and moving views of photos, checked pixel by pixel."""

import numpy as np
import pytest
from numpy.random import default_rng

from vtok.errors import OptionError
from vtok.training.clips import ClipSpec, camera_path, middle_clip, random_clip, sample
from vtok.video.frames import Frames


def noise(*shape: int) -> Frames:
    return default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def spec_of(frames: int, crop: int) -> ClipSpec:
    return ClipSpec(frames=frames, crop=crop, photo_share=0.5, seed=0)


@pytest.mark.parametrize("kind", ["video", "photo"])
def test_clips_are_in_range_and_reproducible(kind: str) -> None:
    pixels = noise(24 if kind == "video" else 1, 80, 96, 3)
    spec = spec_of(5, 32)
    one, two, other = (random_clip(kind, pixels, spec, default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == spec.shape == (3, 5, 32, 32)
    assert one.dtype == np.float32
    assert -1 <= one.min() < -0.5
    assert 0.5 < one.max() <= 1
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_clips_are_windows_of_the_video() -> None:
    video = noise(24, 50, 60, 3)
    video[:, :, :, 2] = np.arange(24, dtype=np.uint8)[:, None, None]  # encodes the frame number
    found = 0
    for seed in range(40):
        clip = random_clip("video", video, spec_of(4, 20), default_rng(seed))
        back = ((clip + 1) * 127.5).round().astype(np.uint8).transpose(1, 2, 3, 0)
        numbers = back[:, 0, 0, 2].astype(int).tolist()
        stride = numbers[1] - numbers[0]
        assert stride in (1, 2)
        assert numbers == list(range(numbers[0], numbers[0] + 4 * stride, stride))
        first = video[numbers[0]]
        found += any(
            np.array_equal(first[top : top + 20, left : left + 20], seen)
            for seen in (back[0], back[0, :, ::-1])
            for top in range(31)
            for left in range(41)
        )
    assert 10 <= found <= 30  # about half are cut one to one, the others are scaled down


def test_video_as_long_as_a_clip_is_used_whole() -> None:
    video = np.zeros((4, 20, 20, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    for seed in range(20):
        clip = random_clip("video", video, spec_of(4, 20), default_rng(seed))
        assert ((clip[0, :, 0, 0] + 1) * 127.5).round().tolist() == [0, 1, 2, 3]


def test_sampling_equals_manual_interpolation() -> None:
    photo = noise(9, 7, 3)
    rng = default_rng(0)
    x, y = rng.uniform(0, 6, 50), rng.uniform(0, 8, 50)
    seen = sample(photo, np.stack((x, y))[:, None].astype(np.float32))
    for channel, row in enumerate(seen[:, 0]):
        by_hand = [
            sum(
                photo[int(b) + dy, int(a) + dx, channel]
                * (a % 1 if dx else 1 - a % 1) * (b % 1 if dy else 1 - b % 1)
                for dx in (0, 1) for dy in (0, 1)
            )
            for a, b in zip(x, y, strict=True)
        ]  # fmt: skip
        assert row == pytest.approx(by_hand, abs=0.01)


def test_photo_is_mirrored_beyond_its_edges() -> None:
    photo = noise(5, 4, 3)
    mirrored = np.pad(photo, ((15, 15), (12, 12), (0, 0)), mode="symmetric")
    y, x = np.mgrid[-15:20, -12:16].astype(np.float32)
    seen = sample(photo, np.stack((x, y))[:, None])
    assert np.array_equal(seen[:, 0], mirrored.transpose(2, 0, 1))


def test_camera_moves_smoothly() -> None:
    moved = 0
    for seed in range(20):
        places = camera_path(9, 16, (200, 300), default_rng(seed))
        assert places.shape == (2, 9, 16, 16)
        steps = places[:, 1:, 8, 8] - places[:, :-1, 8, 8]
        moved += bool(np.abs(steps).max() > 0.1)
        assert np.abs(steps[:, 1:] - steps[:, :-1]).max() < 8  # no jumps
        pixel = np.abs(places[:, :, 8, 9] - places[:, :, 8, 8])
        assert np.hypot(*pixel).min() > 0.6  # neither far away nor too near
        assert np.hypot(*pixel).max() < 2
    assert moved > 10


def test_middle_clip_is_the_centre() -> None:
    video = noise(3, 40, 64, 3)
    clip = middle_clip(video, spec_of(3, 40))
    assert np.allclose((clip + 1) * 127.5, video[:, :, 12:52].transpose(3, 0, 1, 2), atol=0.01)
    still = middle_clip(video[:1], spec_of(3, 40))
    assert np.array_equal(still[:, 0], still[:, 2])
    assert middle_clip(video, spec_of(3, 10)).shape == (3, 3, 10, 10)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 8, 0.5, 0), "frames=0: expected at least 1"),
        ((5, 0, 0.5, 0), "crop=0: expected at least 1"),
        ((5, 8, 1.5, 0), r"photo_share=1\.5: expected 0 to 1"),
        ((5, 8, 0.5, -1), "seed=-1: expected at least 0"),
    ],
)
def test_out_of_range_spec_is_refused(values: tuple[int, int, float, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ClipSpec(*values)
