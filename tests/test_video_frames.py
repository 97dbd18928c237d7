"""Sizes, frame rates, timelines, resizing and resampling."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtok.errors import OptionError
from vtok.video.frames import (
    BATCH_BYTES,
    frames_per_batch,
    parse_fps,
    parse_size,
    resample,
    resize_frames,
    snap_fps,
)
from vtok.video.timeline import find_timeline

UNSET = np.iinfo(np.int64).min


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("256", (1280, 720), (456, 256)),
        ("256", (720, 1280), (256, 456)),
        ("256", (300, 300), (256, 256)),
        ("48", (64, 48), (64, 48)),
        ("17", (34, 17), (34, 17)),
        ("100", (101, 100), (101, 100)),
        ("50", (101, 100), (50, 50)),
        ("1", (1000, 3), (334, 1)),
        ("640x360", (10, 10), (640, 360)),
        (" 8x8 ", (10, 10), (8, 8)),
    ],
)
def test_parse_size(text: str, source: tuple[int, int], expected: tuple[int, int]) -> None:
    assert parse_size(text, *source) == expected


@pytest.mark.parametrize(
    "text",
    ["", "0", "-5", "12x", "x12", "0x5", "1.5", "axb", "99999x99999", "9" * 40, "٣"],
)
def test_parse_size_refuses_invalid_text(text: str) -> None:
    with pytest.raises(OptionError, match=r"^size="):
        parse_size(text, 64, 48)


@given(
    st.integers(2, 500), st.integers(1, 4000), st.integers(1, 4000).filter(lambda side: side > 0)
)
def test_short_side_is_exact_and_aspect_is_kept(short: int, width: int, height: int) -> None:
    if max(width, height) > 50 * min(width, height):
        return
    new_width, new_height = parse_size(str(short), width, height)
    assert min(new_width, new_height) == short
    exact = short * max(width, height) / min(width, height)
    assert abs(max(new_width, new_height) - exact) <= 1
    assert (new_width > new_height) <= (width > height)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("25", Fraction(25)),
        ("29.97", Fraction(30000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("12.5", Fraction(25, 2)),
        ("30.0", Fraction(30)),
        ("24000/1001", Fraction(24000, 1001)),
        ("0.1", Fraction(1, 10)),
    ],
)
def test_parse_fps(text: str, expected: Fraction) -> None:
    assert parse_fps(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "1/0", "30/", "inf", "nan", "1e9", "1001", "1_0"])
def test_parse_fps_refuses_invalid_text(text: str) -> None:
    with pytest.raises(OptionError, match=r"^fps="):
        parse_fps(text)


@given(st.integers(1, 240), st.booleans())
def test_snap_fps_recovers_rounded_rates(whole: int, broadcast: bool) -> None:
    exact = Fraction(whole * 1000, 1001) if broadcast else Fraction(whole)
    if broadcast and whole < 12:
        return  # too close to a whole rate
    printed = Fraction(f"{float(exact):.2f}")
    assert snap_fps(printed, Fraction(6, 1000)) == exact


def test_resize_is_antialiased_and_exact() -> None:
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255  # one pixel wide: an aliased resize would keep black or white
    small = resize_frames(stripes, 16, 20)
    assert small.shape == (2, 20, 16, 3)
    assert small.dtype == np.uint8
    assert np.abs(small[:, 2:-2, 2:-2].astype(int) - 127).max() <= 2
    flat = np.full((1, 9, 7, 3), (10, 200, 77), np.uint8)
    assert (resize_frames(flat, 13, 5) == (10, 200, 77)).all()
    assert resize_frames(flat, 7, 9) is flat


def plan(num_frames: int, source: Fraction, target: Fraction) -> list[int]:
    timed = ((position / source, position) for position in range(num_frames))
    return list(resample(timed, target, num_frames / source))


rates = st.sampled_from([Fraction(n, d) for n in (1, 12, 24, 25, 30, 60) for d in (1, 2)]) | (
    st.sampled_from([Fraction(n * 1000, 1001) for n in (24, 30, 60)])
)


@given(st.integers(1, 200), rates, rates)
def test_resampling_takes_the_nearest_frame(
    num_frames: int, source: Fraction, target: Fraction
) -> None:
    ratio = source / target
    count = math.ceil(num_frames / ratio)  # outputs that begin before the last frame ends
    nearest = [min(math.ceil(k * ratio - Fraction(1, 2)), num_frames - 1) for k in range(count)]
    assert plan(num_frames, source, target) == nearest


def test_resampling_halves_doubles_and_keeps() -> None:
    assert plan(6, Fraction(30), Fraction(15)) == [0, 2, 4]
    assert plan(3, Fraction(15), Fraction(30)) == [0, 0, 1, 1, 2, 2]
    assert plan(4, Fraction(24), Fraction(24)) == [0, 1, 2, 3]
    assert list(resample(iter([]), Fraction(30), Fraction(1))) == []


def test_resampling_does_not_drift() -> None:
    many = plan(30 * 600, Fraction(30), Fraction(30000, 1001))
    assert len(many) == math.ceil(30 * 600 * Fraction(1000, 1001))
    errors = [abs(k * Fraction(1001, 1000) - i) for k, i in enumerate(many[:-1])]
    assert max(errors) <= Fraction(1, 2)


def test_resampling_of_uneven_frames() -> None:
    times = [Fraction(0), Fraction(1, 10), Fraction(5, 10), Fraction(6, 10)]
    timed = zip(times, "abcd", strict=True)
    assert "".join(resample(timed, Fraction(10), Fraction(7, 10))) == "abbbccd"


def ticks(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_exact_rate_from_exact_time_stamps() -> None:
    stamps = np.arange(50) * 1001
    timeline = find_timeline(stamps, stamps * 0 + 1001, Fraction(1, 30000), Fraction("29.97"))
    assert (timeline.fps, timeline.variable) == (Fraction(30000, 1001), False)
    assert timeline.duration_seconds == 50 * Fraction(1001, 30000)
    assert timeline.time(7) == 7 * Fraction(1001, 30000)
    odd = find_timeline(
        np.arange(40) * 384, np.full(40, 384), Fraction(1, 11456), Fraction("29.83")
    )
    assert odd.fps == Fraction(11456, 384)


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(60000, 1001)])
def test_exact_rate_from_rounded_milliseconds(rate: Fraction) -> None:
    stamps = np.array([round(k * 1000 / rate) for k in range(90)], np.int64)
    stated = Fraction(f"{float(rate):.2f}")
    for known in (stated, Fraction("33.33") if rate == 30 else stated):
        timeline = find_timeline(stamps, np.diff(stamps, append=3000), Fraction(1, 1000), known)
        assert (timeline.fps, timeline.variable) == (rate, False)
    assert timeline.time(2) == 2 / rate  # not 0.067


def test_time_stamps_in_decoding_order() -> None:
    timeline = find_timeline(ticks(0, 3, 1, 2), ticks(1, 1, 1, 1), Fraction(1, 25), None)
    assert timeline.ticks is not None
    assert timeline.ticks.tolist() == [0, 1, 2, 3]
    assert timeline.fps == 25


def test_one_lost_frame_does_not_change_the_rate() -> None:
    stamps = np.array([k * 512 for k in range(100) if k != 98], np.int64)
    timeline = find_timeline(stamps, stamps * 0 + 512, Fraction(1, 15360), Fraction(30))
    assert (timeline.fps, timeline.variable) == (Fraction(30), False)
    assert timeline.time(98) == Fraction(99, 30)


def test_variable_rate_is_the_mean() -> None:
    stamps = ticks(0, 40, 80, 1000, 1040, 2000)
    timeline = find_timeline(stamps, stamps * 0 + 40, Fraction(1, 1000), Fraction(30))
    assert timeline.variable
    assert timeline.duration_seconds == Fraction(2040, 1000)
    assert timeline.fps == Fraction(6000, 2040).limit_denominator(1001)
    assert timeline.time(3) == 1


@pytest.mark.parametrize(("stated", "expected"), [(Fraction(30), 30), (None, 25)])
def test_stated_rate_is_used_without_time_stamps(stated: Fraction | None, expected: int) -> None:
    timeline = find_timeline(ticks(0, UNSET, 2), ticks(1, 1, 1), Fraction(1, 30), stated)
    assert (timeline.fps, timeline.num_frames, timeline.ticks) == (expected, 3, None)


def test_single_frame_has_a_rate() -> None:
    assert find_timeline(ticks(7), ticks(512), Fraction(1, 15360), None).fps == 30
    assert find_timeline(ticks(7), ticks(0), Fraction(1, 15360), None).fps == 25


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_batches_have_bounded_size(width: int, height: int) -> None:
    count = frames_per_batch(width, height)
    assert 1 <= count <= 16
    assert count * width * height * 3 <= BATCH_BYTES or count == 1
