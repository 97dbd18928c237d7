"""Times of frames at a variable rate: kept in code files, restored in videos, cut and joined."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_edit import Pipe
from videos import make_timed_video, make_video

from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import Damage
from vtok.codefile.sections import FrameDurations, Section, find_times
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.decode import decode_file
from vtok.pipeline.edit import cut_file, join_files
from vtok.pipeline.encode import encode_file
from vtok.pipeline.options import CutOptions, DecodeOptions, EncodeOptions

BASE = Fraction(1, 90_000)
TICKS = np.cumsum([0, *np.random.default_rng(0).integers(1500, 9000, 59)]).tolist()


def times_of(path: Path) -> list[float]:
    """Seconds from the first frame to each frame, as ffmpeg decodes them."""
    with av.open(path) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    return [time - times[0] for time in times]


def seconds(ticks: list[int]) -> list[float]:
    """Times from the first frame in seconds."""
    return [(tick - ticks[0]) / 90_000 for tick in ticks]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_timed_video(tmp_path_factory.mktemp("clip") / "a.mkv", TICKS, BASE)


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory, model: LoadedTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    source = make_timed_video(folder / "a.mp4", TICKS, BASE)
    encode_file(source, folder / "a.vtok", model=model)
    return folder / "a.vtok"


def decoded(codes: Path, output: Path, model: LoadedTokenizer, **options: object) -> list[float]:
    decode_file(codes, output, model=model, options=DecodeOptions(**options))  # type: ignore[arg-type]
    return times_of(output)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_decoded_frames_have_the_times_of_the_source(
    suffix: str, codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    times = decoded(codes, tmp_path / f"a{suffix}", model)
    assert times == pytest.approx(seconds(TICKS), abs=1e-3)


def test_gif_has_the_times_of_the_source_to_its_10_ms(
    codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    times = decoded(codes, tmp_path / "a.gif", model)
    assert times == pytest.approx(seconds(TICKS), abs=0.0101)


def test_constant_rate(codes: Path, model: LoadedTokenizer, tmp_path: Path) -> None:
    times = decoded(codes, tmp_path / "a.mp4", model, constant_rate=True)
    assert np.ptp(np.diff(times)) < 1e-3


def test_streams(codes: Path, model: LoadedTokenizer, tmp_path: Path) -> None:
    for source in (codes.open("rb"), Pipe(codes.read_bytes())):
        with source, (tmp_path / "a.mp4").open("wb") as output:
            decode_file(source, output, model=model)  # type: ignore[arg-type]
        assert times_of(tmp_path / "a.mp4") == pytest.approx(seconds(TICKS), abs=1e-3)


@pytest.mark.parametrize("place", [0, 7, 31, 58])
def test_parts_start_at_the_times_of_frames(
    place: int, codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    end = min(place + 13, 59)
    start, length = (TICKS[place] / 90_000, (TICKS[end] - TICKS[place]) / 90_000)
    part = {"start_seconds": start, "duration_seconds": length}
    expected = pytest.approx(seconds(TICKS[place:end]), abs=1e-3)
    assert decoded(codes, tmp_path / "a.mp4", model, **part) == expected
    cut_file(codes, tmp_path / "cut.vtok", options=CutOptions(**part))  # type: ignore[arg-type]
    assert decoded(tmp_path / "cut.vtok", tmp_path / "b.mp4", model) == expected


def test_joined_files_keep_the_times_of_each(
    codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    cut_file(codes, tmp_path / "a.vtok", options=CutOptions(start_frame=5, num_frames=20))
    join_files([codes, tmp_path / "a.vtok", codes], tmp_path / "b.vtok")
    times = decoded(tmp_path / "b.vtok", tmp_path / "b.mp4", model)
    steps = np.diff(TICKS) / 90_000
    assert len(times) == 60 + 20 + 60
    assert np.diff(times[:60]) == pytest.approx(steps, abs=1e-3)
    assert np.diff(times[60:80]) == pytest.approx(steps[5:24], abs=1e-3)
    assert np.diff(times[80:]) == pytest.approx(steps, abs=1e-3)
    assert times[60] > times[59]


def test_no_times_are_kept_at_an_even_rate(model: LoadedTokenizer, tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", fps="30000/1001")
    encode_file(source, tmp_path / "a.vtok", model=model)
    with (tmp_path / "a.vtok").open("rb") as stream:
        assert not list(CodeFileReader(stream).sections())


def test_no_times_are_kept_after_resampling(
    clip: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    options = EncodeOptions(fps=Fraction(10))
    encode_file(clip, tmp_path / "a.vtok", model=model, options=options)
    with (tmp_path / "a.vtok").open("rb") as stream:
        assert not list(CodeFileReader(stream).sections())


def test_arrays_without_times_are_reported(
    clip: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    left_out = "times of frames are left out: npy files have one rate"
    for to, note in (("npy", left_out), ("safetensors", None)):
        options = EncodeOptions(to=to)
        assert encode_file(clip, tmp_path / f"a.{to}", model=model, options=options).note == note


def test_decoded_arrays_without_times_are_reported(
    clip: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    encode_file(clip, tmp_path / "a.vtok", model=model)
    result = decode_file(tmp_path / "a.vtok", tmp_path / "a.npy", model=model)
    assert result.note == "times of frames are left out: pictures and arrays hold none"


def test_missing_frames_leave_a_gap(model: LoadedTokenizer, tmp_path: Path) -> None:
    ticks = [3000 * number for number in range(60) if number != 21]
    source = make_timed_video(tmp_path / "a.mp4", ticks, BASE)
    encode_file(source, tmp_path / "a.vtok", model=model)
    times = decoded(tmp_path / "a.vtok", tmp_path / "b.mp4", model)
    assert times == pytest.approx(seconds(ticks), abs=1e-3)


@given(st.lists(st.integers(1, 2**40), min_size=1), st.fractions(Fraction(1, 10**6), 1000))
def test_sections_of_times_read_back(ticks: list[int], base: Fraction) -> None:
    base = base.limit_denominator(1_000_000) or Fraction(1)
    durations = FrameDurations(3, base, np.array(ticks, np.int64))
    (section,) = durations.to_sections()
    found = FrameDurations.from_section(section)
    assert (found.first_frame, found.time_base) == (3, base)
    assert found.ticks.tolist() == ticks


@given(st.binary(max_size=40), st.integers(0, 2**32 - 1))
def test_damaged_sections_of_times_are_refused_or_consistent(data: bytes, count: int) -> None:
    try:
        found = FrameDurations.from_section(Section(b"time", 0, count, (data,)))
    except Damage:
        return
    assert len(found.ticks) == count
    assert found.ticks.min() >= 1


def test_frames_without_durations_have_the_rate_of_the_file() -> None:
    spans = [FrameDurations(2, Fraction(1, 10), np.array([3, 1], np.int64))]
    found = find_times(spans, 6, Fraction(25))
    assert found is not None
    times = [float(found.seconds(frame)) for frame in range(7)]
    assert times == pytest.approx([0, 0.04, 0.08, 0.38, 0.48, 0.52, 0.56])
