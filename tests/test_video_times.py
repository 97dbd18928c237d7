"""Each frame at its own time: lost packets, jumping clocks, wall-clock and slow time stamps."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from commands import rows, tiny_checkpoint, vtok
from videos import later, make_video, read_barcodes, remux, run_ffmpeg, without

from vtok.pipeline.inspect import inspect_video
from vtok.video.reader import VideoReader
from vtok.video.timeline import MAX_GAP

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-g", "15", "-bf", "0")
OPEN_GOP = (*X264[:-2], "-x264-params", "open-gop=1:keyint=15:bframes=2:b-adapt=0:scenecut=0")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 60 frames at 30/s with a key frame every 15."""
    return make_video(tmp_path_factory.mktemp("films") / "a.mp4", 60, arguments=X264)


def read(path: Path, **options: object) -> tuple[list[int], VideoReader]:
    with VideoReader(path, **options) as reader:  # type: ignore[arg-type]
        return read_barcodes(np.concatenate(list(reader))), reader


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
@pytest.mark.parametrize("lost", [(15,), (15, 31), (7,)])
def test_lost_packets_do_not_shift_time(
    film: Path, tmp_path: Path, suffix: str, lost: tuple[int, ...]
) -> None:
    path = tmp_path / f"a{suffix}"
    lose = "+".join(f"eq(n,{number})" for number in lost)
    run_ffmpeg("-i", film, "-c", "copy", "-bsf:v", f"noise=drop='{lose}'", path)
    numbers, reader = read(path)
    assert reader.output_fps == 30
    assert not reader.info.variable_frame_rate
    assert reader.missing_frames == 60 - len(numbers) >= len(lost)
    late, reader = read(path, start_seconds=1.5)
    assert late == list(range(45, 60))
    assert reader.missing_frames == 0
    even, reader = read(path, fps=Fraction(30))
    assert len(even) == 60
    assert even[45:] == list(range(45, 60))
    assert reader.missing_frames == 60 - len(numbers)
    facts = inspect_video(path)
    assert (facts["frames"], facts["missing_frames"]) == (len(numbers), 60 - len(numbers))


@pytest.mark.parametrize("count", [10, 30, 60])
@pytest.mark.parametrize("lost", [2, 7])
def test_lost_frame_does_not_lower_the_rate(tmp_path: Path, count: int, lost: int) -> None:
    film = make_video(tmp_path / "film.mp4", count, arguments=(*X264, "-g", "1"))
    for suffix in (".mp4", ".mkv"):
        path = remux(film, tmp_path / f"a{suffix}", without(lost))
        numbers, reader = read(path)
        assert numbers == [number for number in range(count) if number != lost]
        assert (reader.output_fps, reader.missing_frames) == (30, 1)
        assert read(path, start_seconds=(lost + 1) / 30)[0] == list(range(lost + 1, count))


def test_missing_frames_in_json_and_manifest(film: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = remux(film, tmp_path / "in" / "a.mkv", without(15))
    count = len(read(path)[0])
    model = ("--model", tiny_checkpoint(tmp_path), "--json")
    result = vtok("encode", path, "-o", tmp_path / "a.vtok", *model)
    assert result.exit_code == 0, result.output
    (row,) = rows(result)
    assert (row["frames"], row["missing_frames"]) == (count, 60 - count)
    assert f"{60 - count} frames are missing" in row["note"]
    result = vtok("dataset", "encode", tmp_path / "in", "-o", tmp_path / "out", *model)
    assert result.exit_code == 0, result.output
    assert rows(result)[0]["missing_frames"] == 60 - count
    assert f'"missing_frames": {60 - count}' in (tmp_path / "out" / "manifest.jsonl").read_text()


@pytest.mark.parametrize("seconds", [100, 3600.5, 100_000, 30_000_000])
@pytest.mark.parametrize("packet", [15, 20, 37])
def test_jump_of_the_clock(film: Path, tmp_path: Path, seconds: float, packet: int) -> None:
    path = remux(film, tmp_path / "a.mkv", later(seconds, packet))
    numbers, reader = read(path)
    assert numbers == list(range(60))
    assert (reader.output_fps, reader.missing_frames) == (30, 0)
    assert reader.info.duration_seconds == pytest.approx(2, abs=0.1)
    assert any("time stamps jump by" in note for note in reader.notes)
    numbers, _ = read(path, fps=Fraction(10))
    assert numbers == list(range(0, 60, 3))


def test_pause_is_filled(film: Path, tmp_path: Path) -> None:
    pause = MAX_GAP - 10
    path = remux(film, tmp_path / "a.mkv", later(pause, 15))
    numbers, reader = read(path, fps=Fraction(1))
    assert len(numbers) == pause + 2
    assert reader.notes == []
    numbers, _ = read(path, start_seconds=pause + 1)
    assert numbers == list(range(30, 60))


@pytest.mark.parametrize("start", [1_700_000_000, 30_000_000])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_wall_clock_time_stamps(film: Path, tmp_path: Path, start: int, suffix: str) -> None:
    if suffix == ".ts" and start > 10**9:
        pytest.skip("time stamps of MPEG-TS have 33 bits")
    path = remux(film, tmp_path / f"a{suffix}", later(start))
    numbers, reader = read(path)
    assert numbers == list(range(60))
    assert reader.output_fps == 30
    assert read(path, start_frame=17, num_frames=17)[0] == list(range(17, 34))


def test_one_frame_an_hour(film: Path, tmp_path: Path) -> None:
    def hourly(number: int, packet: av.Packet) -> bool:
        packet.pts = packet.dts = round(3600 * number / packet.time_base)
        packet.duration = 0
        return True

    path = remux(film, tmp_path / "a.mkv", hourly)
    numbers, reader = read(path)
    assert numbers == list(range(60))
    assert reader.output_fps == Fraction(1, 3600)
    assert reader.notes == []
    assert read(path, start_seconds=7200, duration_seconds=7200)[0] == [2, 3]


def test_info_and_reading_count_an_open_gop_cut_alike(tmp_path: Path) -> None:
    film = make_video(tmp_path / "film.mkv", 60, arguments=OPEN_GOP)
    with av.open(str(film)) as container:
        keys = [n for n, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    for suffix in (".mkv", ".mp4"):
        path = remux(film, tmp_path / f"cut{suffix}", lambda number, _: number >= keys[1])
        numbers, reader = read(path)
        assert numbers == list(range(60 - len(numbers), 60))
        assert reader.info.num_frames == len(numbers) > 40
        assert reader.missing_frames == 0
        assert inspect_video(path)["frames"] == len(numbers)
        assert read(path, start_seconds=0.5)[0] == numbers[15:]


def test_change_of_size_is_said(tmp_path: Path) -> None:
    parts = [
        make_video(tmp_path / "small.ts", 30).read_bytes(),
        make_video(tmp_path / "large.ts", 30, width=96, height=64).read_bytes(),
    ]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    numbers, reader = read(path)
    assert len(numbers) == 60
    assert reader.notes[-1] == "the size changes to 96x64 at frame 30"
    assert "time stamps jump by -0.967 s before frame 30" in reader.notes[0]
    assert read(path, fps=Fraction(10))[0] == [*range(0, 30, 3)] * 2
