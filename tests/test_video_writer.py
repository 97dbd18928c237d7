"""VideoWriter: written files hold exactly the frames, and failures leave no file."""

import io
import os
import resource
import signal
import threading
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from videos import Frames, barcode_frames, read_barcodes

from vtok.errors import OutputError, ShapeError, UsageError
from vtok.video.container import read_index
from vtok.video.images import write_png
from vtok.video.reader import VideoReader
from vtok.video.writer import Encoder, VideoWriter

FPS = Fraction(30000, 1001)
COLOURS = np.array(
    [
        *([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]),
        *([255, 255, 255], [0, 0, 0], [128, 128, 128], [200, 100, 50]),
    ],
    np.uint8,
)


def colour_bars(width: int = 32) -> Frames:
    """Ten upright bars, uint8 [3, 64, 10 * width, 3]."""
    return np.tile(np.repeat(COLOURS, width, axis=0), (3, 64, 1, 1))


def write(output: Path | BinaryIO, frames: Frames, **options: object) -> None:
    height, width = frames.shape[1:3]
    with VideoWriter(output, width=width, height=height, **{"fps": FPS, **options}) as writer:
        for start in range(0, len(frames), 7):
            writer.write(frames[start : start + 7])


def read(path: Path) -> Frames:
    with VideoReader(path) as reader:
        return np.concatenate(list(reader))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm", ".gif"])
@pytest.mark.parametrize("size", [(64, 48), (67, 41)])
def test_round_trip(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"clip{suffix}"
    frames = barcode_frames(range(20), *size)
    write(path, frames)
    with VideoReader(path) as reader:
        back = np.concatenate(list(reader))
        info = reader.info
    assert read_barcodes(back) == list(range(20))
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() <= 2
    assert (info.fps, info.variable_frame_rate) == (30 if suffix == ".gif" else FPS, False)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "fps", [Fraction(24000, 1001), Fraction(25), Fraction(25, 2), Fraction(60000, 1001)]
)
def test_rate_is_exact(tmp_path: Path, fps: Fraction) -> None:
    write(tmp_path / "a.mp4", barcode_frames(range(40)), fps=fps)
    assert read_index(tmp_path / "a.mp4").timeline.fps == fps


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
@pytest.mark.parametrize("width", [32, 33])
def test_colours_are_kept(tmp_path: Path, suffix: str, width: int) -> None:
    path = tmp_path / f"bars{suffix}"
    bars = colour_bars(width)[:, :, : 10 * width - width % 2]  # an odd and an even width
    write(path, bars)
    errors = np.abs(read(path).astype(int) - bars)[:, :, width // 2 :: width]
    assert errors.max() <= 5


def test_colour_tags(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", colour_bars())
    data = (tmp_path / "a.mp4").read_bytes()
    tag = data.index(b"colrnclx") + 8
    assert data[tag : tag + 6] == bytes([0, 1, 0, 1, 0, 1])  # bt709 primaries, curve, matrix
    assert data[tag + 6] >> 7 == 0  # limited range
    assert data.index(b"moov") < data.index(b"mdat")  # the index is in front


def test_lower_crf_is_closer(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8)
    noise = noise.repeat(2, axis=1).repeat(2, axis=2)
    errors = {}
    for crf in (0, 18, 40):
        write(tmp_path / f"{crf}.mp4", noise, crf=crf)
        errors[crf] = np.abs(read(tmp_path / f"{crf}.mp4").astype(int) - noise).mean()
    assert errors[0] < errors[18] < errors[40]


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write(tmp_path / name, colour_bars())
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_picture_takes_one_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, barcode_frames(range(9, 10)))
    assert read_barcodes(read(path)) == [9]
    with pytest.raises(OutputError, match="holds one frame, this video has more"):
        write(tmp_path / f"b{suffix}", barcode_frames(range(2)))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_write_png_is_exact(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 7, 3), np.uint8)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read(tmp_path / "a.png")[0], image)
    with pytest.raises(OutputError, match="exists already"):
        write_png(tmp_path / "a.png", image)
    write_png(tmp_path / "a.png", image, overwrite=True)
    with pytest.raises(UsageError, match=r"ends in \.png"):
        write_png(tmp_path / "a.jpg", image)


def test_write_to_stream(tmp_path: Path) -> None:
    stream = io.BytesIO()
    write(stream, barcode_frames(range(30)))
    (tmp_path / "a.mp4").write_bytes(stream.getvalue())
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert read_barcodes(np.concatenate(list(reader))) == list(range(30))
        assert reader.info.fps == FPS


def test_failing_stream() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 96, 128, 3), np.uint8)
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OutputError, match=r"<stream>: cannot be written \(No space left"),
    ):
        write(full, noise)
    taken, given = os.pipe()
    os.close(taken)
    with (
        os.fdopen(given, "wb", buffering=0) as closed,
        pytest.raises(OutputError, match=r"cannot be written \(Broken pipe\)"),
    ):
        write(closed, noise)


@pytest.mark.parametrize("name", ["a.avi", "a", "a.mp4.txt"])
def test_unknown_format_lists_known_formats(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown video format .*\.mp4, .*\.gif, .*\.png"):
        VideoWriter(tmp_path / name, width=64, height=48, fps=FPS)


@pytest.mark.parametrize(
    "options", [{"width": 0}, {"height": -1}, {"fps": Fraction(0)}, {"crf": 52}, {"crf": -1}]
)
def test_numbers_out_of_range(tmp_path: Path, options: dict[str, object]) -> None:
    usual = {"width": 64, "height": 48, "fps": FPS}
    with pytest.raises(UsageError, match="cannot write"):
        VideoWriter(tmp_path / "a.mp4", **{**usual, **options})
    with pytest.raises(UsageError, match="at most 100 frames/s"):
        VideoWriter(tmp_path / "a.gif", **{**usual, "fps": Fraction(120)})


def failing(tmp_path: Path, message: str, frames: Frames, **options: object) -> None:
    """Expect an error while overwriting, after which only the old file is left."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=message) as caught:
        write(path, frames, **{"overwrite": True, **options})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_existing_file_is_refused(tmp_path: Path) -> None:
    failing(tmp_path, r"a\.mp4: exists already", barcode_frames(range(3)), overwrite=False)


def test_unknown_encoder(tmp_path: Path) -> None:
    frames = barcode_frames(range(300))
    failing(tmp_path, r"cannot be written \(Unknown encoder 'nosuch'\)", frames, codec="nosuch")


def test_no_frames(tmp_path: Path) -> None:
    failing(tmp_path, "there is no frame to write", barcode_frames(range(3))[:0])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 48, 63, 3), np.uint8),
        np.zeros((2, 48, 64, 3), np.float32),
        np.zeros((48, 64, 3), np.uint8),
    ],
)
def test_wrong_frames(tmp_path: Path, frames: np.ndarray) -> None:
    with (
        pytest.raises(ShapeError, match=r"do not fit uint8 \[T, 48, 64, 3\]"),
        VideoWriter(tmp_path / "a.mp4", width=64, height=48, fps=FPS) as writer,
    ):
        writer.write(frames)
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 128, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        failing(tmp_path, r"cannot be written \(ffmpeg was stopped by SIGXFSZ\)", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_writing_is_asynchronous(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", width=640, height=480, fps=FPS)
    process = writer._encoder._process
    os.kill(process.pid, signal.SIGSTOP)
    frames = np.zeros((1, 480, 640, 3), np.uint8)  # more than a pipe holds
    writer.write(frames)  # taken by the thread
    writer.write(frames)  # queued
    third = threading.Thread(target=writer.write, args=(frames,))
    third.start()
    third.join(0.3)
    assert third.is_alive()  # blocks until there is room
    os.kill(process.pid, signal.SIGCONT)
    third.join(30)
    writer.close()
    assert read_index(tmp_path / "a.mp4").timeline.num_frames == 3
    assert not [thread for thread in threading.enumerate() if thread.name == "vtok-writer"]


def test_abort_hanging_encoder(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", width=640, height=480, fps=FPS)
    os.kill(writer._encoder._process.pid, signal.SIGSTOP)
    for _ in range(2):
        writer.write(np.zeros((1, 480, 640, 3), np.uint8))
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "vtok-writer"]


def test_killed_encoder(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", width=64, height=48, fps=FPS)
    writer.write(barcode_frames(range(3)))
    os.kill(writer._encoder._process.pid, signal.SIGKILL)
    with pytest.raises(OutputError, match="ffmpeg was stopped by SIGKILL"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_written_file_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Encoder.finish

    def finish_and_damage(self: Encoder) -> None:
        finish(self)
        (part,) = tmp_path.glob(".vtok-*.part")
        part.write_bytes(part.read_bytes()[: keep(part)])

    monkeypatch.setattr(Encoder, "finish", finish_and_damage)
    keep = lambda part: part.stat().st_size * 3 // 4  # noqa: E731
    failing(tmp_path, "holds [0-9]+ frames of 64x48 instead of 30", barcode_frames(range(30)))
    keep = lambda _: 20  # noqa: E731
    failing(tmp_path, "the written file is not a video", barcode_frames(range(30)))


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_exception_in_the_block(tmp_path: Path, failure: type[BaseException]) -> None:
    def write_and_stop() -> None:
        with VideoWriter(tmp_path / "a.mp4", width=64, height=48, fps=FPS) as writer:
            writer.write(barcode_frames(range(30)))
            raise failure("stop")

    with pytest.raises(failure, match="stop"):
        write_and_stop()
    assert list(tmp_path.iterdir()) == []
