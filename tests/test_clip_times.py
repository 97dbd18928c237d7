"""Clips by seconds and by frame numbers: the same frames however a time was printed."""

import csv
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from commands import rows, tiny_checkpoint, vtok
from videos import LOSSLESS, make_video, read_barcodes

from vtok._times import Part, frame_at
from vtok.dataset.sources import Inputs, find_items
from vtok.errors import OptionError, UsageError, VideoError
from vtok.video.reader import VideoReader
from vtok.video.timeline import Timeline, find_timeline

RATES = ("24", "25", "30000/1001", "30", "50", "60")
EPISODE, EPISODES = 17, 10
PRINTED: dict[str, Callable[[Fraction], str]] = {
    "float64": lambda time: str(float(time)),
    "float32": lambda time: str(np.float32(time)),
    "9 digits": lambda time: f"{float(time):.9f}",
    "6 digits": lambda time: f"{float(time):.6f}",
    "4 digits": lambda time: f"{float(time):.4f}",
    "3 digits": lambda time: f"{float(time):.3f}",
}


def find_frames(timeline: Timeline, part: Part) -> range:
    """Return the numbers of the frames in a part."""
    start, end = timeline.bounds(part)
    times = [timeline.time(number) for number in range(timeline.num_frames)]
    inside = [n for n, time in enumerate(times) if start <= time and (end is None or time < end)]
    return range(inside[0], inside[-1] + 1)


def stamps(rate: Fraction, tick: int) -> Timeline:
    """Return the timeline of 340 frames with time stamps in 1/`tick` s."""
    ticks = np.array([round(k * tick / rate) for k in range(340)], np.int64)
    durations = np.full(340, round(tick / rate))
    return find_timeline(ticks, durations, Fraction(1, tick), rate)


@pytest.mark.parametrize("printed", PRINTED)
@pytest.mark.parametrize("rate", RATES)
def test_every_episode_is_exact(rate: str, printed: str) -> None:
    fps, write = Fraction(rate), PRINTED[printed]
    for timeline in (stamps(fps, 90000), stamps(fps, 1000)):  # mp4 and mkv
        for first in range(EPISODES):
            number = first * EPISODE
            start, length = write(number / fps), write(EPISODE / fps)
            end = write((number + EPISODE) / fps)
            wanted = range(number, number + EPISODE)
            part = Part(float(start), float(length))
            assert find_frames(timeline, part) == wanted
            assert part.frames(340, fps) == (wanted.start, wanted.stop)
            between = Part(Fraction(start), Fraction(end) - Fraction(start))
            assert find_frames(timeline, between) == wanted
            by_frames = Part(start_frame=number, num_frames=EPISODE)
            assert find_frames(timeline, by_frames) == wanted
            assert by_frames.frames(340, fps) == (wanted.start, wanted.stop)


@pytest.mark.parametrize("printed", PRINTED)
def test_variable_rate(printed: str) -> None:
    write = PRINTED[printed]
    gaps = np.random.default_rng(3).integers(8, 120, 200)
    gaps[50] = 3000  # a pause
    ticks = np.concatenate([[0], np.cumsum(gaps)])
    timeline = find_timeline(ticks, np.append(gaps, 40), Fraction(1, 1000), None)
    assert timeline.variable
    for first in range(0, 180, 7):
        times = [timeline.time(first), timeline.time(first + 9)]
        start, end = (Fraction(write(time)) for time in times)
        assert find_frames(timeline, Part(start, end - start)) == range(first, first + 9)
        part = Part(start_frame=first, num_frames=9)
        assert find_frames(timeline, part) == range(first, first + 9)


def test_time_between_two_frames_selects_the_later() -> None:
    assert [frame_at(Fraction(k, 100), Fraction(25)) for k in (4, 5, 6, 7, 8)] == [1, 2, 2, 2, 2]
    assert find_frames(stamps(Fraction(25), 1000), Part(0.06, 0.08)) == range(2, 4)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return 60 frames at 30/s in three containers."""
    folder = tmp_path_factory.mktemp("films")
    mpeg4 = ("-c:v", "mpeg4", "-q:v", "2")
    kinds = {"a.mp4": LOSSLESS, "b.mkv": LOSSLESS, "c.avi": mpeg4}
    return [make_video(folder / name, 60, arguments=kinds[name]) for name in kinds]


def test_containers_read_the_same_part(films: list[Path]) -> None:
    for film in films:
        for start in ("0.5666666666666667", "0.566667", "0.567", "0.56666666"):
            with VideoReader(film, start_seconds=float(start), duration_seconds=17 / 30) as reader:
                assert read_barcodes(np.concatenate(list(reader))) == list(range(17, 34))
                assert reader.start_seconds == Fraction(17, 30)
        with VideoReader(film, start_frame=17, num_frames=17) as reader:
            assert read_barcodes(np.concatenate(list(reader))) == list(range(17, 34))
        with VideoReader(film, start_frame=17, num_frames=17, fps=Fraction(15)) as reader:
            assert read_barcodes(np.concatenate(list(reader))) == list(range(17, 34, 2))
        with pytest.raises(VideoError, match="no frame in the requested part"):
            list(VideoReader(film, start_frame=60))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"start_frame": -1}, "start_frame"),
        ({"num_frames": 0}, "num_frames"),
        ({"start_frame": 1, "start_seconds": 1.0}, "both set the start"),
        ({"num_frames": 1, "duration_seconds": 1.0}, "both set the length"),
    ],
)
def test_parts_that_do_not_fit(part: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Part(**part)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="start_frame=130: expected a time in the file"):
        Part(start_frame=130).frames(130, Fraction(25))


def test_encode_decode_and_cut_agree(films: list[Path], tmp_path: Path) -> None:
    model = ("--model", tiny_checkpoint(tmp_path), "--json")
    whole = tmp_path / "whole.vtok"
    assert vtok("encode", films[0], "-o", whole, *model).exit_code == 0
    for name, part in {
        "seconds": ("--start", "0.5666666666666667", "--duration", "0.566667"),
        "frames": ("--start-frame", "17", "--frames", "17"),
        "mixed": ("--start", "0.567", "--frames", "17"),
    }.items():
        encoded, film = tmp_path / f"{name}.vtok", tmp_path / f"{name}.mkv"
        for result in (
            vtok("encode", films[0], "-o", encoded, *part, *model),
            vtok("decode", whole, "-o", film, *part, *model),
            vtok("cut", whole, "-o", tmp_path / f"{name}.cut.vtok", *part, "--json"),
        ):
            assert (result.exit_code, rows(result)[0]["frames"]) == (0, 17), result.output
        again = vtok("encode", films[0], "-o", encoded, *part, *model, "--skip-existing")
        assert rows(again)[0]["status"] == "skipped"
        other = ("--start-frame", "18", "--frames", "17")
        changed = vtok("encode", films[0], "-o", encoded, *other, *model, "--skip-existing")
        assert rows(changed)[0]["status"] == "ok"
    both = vtok("encode", films[0], *model, "--start", "1", "--start-frame", "3")
    assert both.exit_code == 2
    assert "--start and --start-frame both set the start" in both.stderr


def test_columns_of_a_table(films: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    starts = np.arange(3, dtype=np.float32) * np.float32(17 / 30)
    with table.open("w") as file:
        csv.writer(file).writerows(
            [
                ("path", "start", "end"),
                *((films[0], start, start + np.float32(17 / 30)) for start in starts),
            ]
        )
    frames = tmp_path / "frames.csv"
    with frames.open("w") as file:
        csv.writer(file).writerows(
            [("path", "start_frame", "frames"), *((films[0], 17 * k, 17) for k in range(3))]
        )
    model = ("--model", tiny_checkpoint(tmp_path), "--workers", "1")
    for source in (table, frames):
        folder = tmp_path / source.stem
        result = vtok("dataset", "encode", source, "-o", folder, *model, "--json")
        assert result.exit_code == 0, result.output
        assert [row["frames"] for row in rows(result)[:3]] == [17, 17, 17]


def test_rows_with_frame_numbers(tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text(
        "path,start_frame,frames,start\n"
        "a.mp4,17,17,\n"
        "b.mp4,,9,1.5\n"
        "c.mp4,3,,\n"
        "d.mp4,3,,2\n"
        "e.mp4,-1,,\n"
        "f.mp4,1,0,\n"
    )
    found = list(find_items(Inputs([str(table)])))
    parts = [(item.start, item.start_frame, item.num_frames) for item in found[:3]]  # type: ignore[union-attr]
    assert parts == [(None, 17, 17), ("3/2", None, 9), (None, 3, None)]
    assert len({item.id for item in found}) == 6
    for fault, message in zip(found[3:], ("give one", "whole number", "from 1 on"), strict=True):
        assert message in fault.message  # type: ignore[union-attr]
    table.write_text("path,start,end,frames\na.mp4,1,2,300\n")  # such as a manifest
    (item,) = find_items(Inputs([str(table)]))
    assert item.num_frames is None  # type: ignore[union-attr]
    assert item.columns == {"frames": "300"}  # type: ignore[union-attr]
