"""VideoReader: exact frames of readable files, one-line errors for all others, no leaks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from videos import (
    LOSSLESS,
    Frames,
    barcode_frame,
    make_video,
    read_barcode,
    read_barcodes,
    run_ffmpeg,
)

from vtok.codefile import records
from vtok.errors import InputError, UsageError, VideoError
from vtok.video.reader import VideoReader, probe

VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-pix_fmt", "yuv420p")
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "10", "-pix_fmt", "yuv420p")
# a pause of half a second after every ten frames
UNEVEN = ("-vf", "settb=1/1000,setpts='(N*40+floor(N/10)*500)'", "-fps_mode", "passthrough")


@dataclass(frozen=True)
class Case:
    """File to make, and what must be read from it."""

    build: Callable[[Path], object]
    numbers: range | list[int]
    fps: Fraction | None = Fraction(30)
    size: tuple[int, int] = (64, 48)
    rotation: int = 0
    variable: bool = False


def encoded(num_frames: int = 30, **options: object) -> Callable[[Path], object]:
    return lambda path: make_video(path, num_frames, **options)


def rotated(transpose: str, degrees: str) -> Callable[[Path], object]:
    """Make a video that is upright only if its rotation tag is applied."""

    def build(path: Path) -> None:
        stored = path.with_name(f"stored_{path.name}")
        make_video(stored, 20, width=128, height=96, arguments=("-vf", transpose, *LOSSLESS))
        run_ffmpeg("-display_rotation", degrees, "-i", stored, "-c", "copy", path)

    return build


def trimmed(path: Path) -> None:
    """Cut inside a group of pictures without re-encoding, like editors do."""
    arguments = (*X264, "-g", "30", "-x264-params", "bframes=2:b-adapt=0:b-pyramid=0")
    source = make_video(path.with_name(f"long_{path.name}"), 150, arguments=arguments)
    run_ffmpeg("-ss", "0.5", "-i", source, "-t", "3.5", "-c", "copy", path)


def trimmed_plainly(path: Path) -> None:
    arguments = (*X264, "-g", "30", "-bf", "0")
    source = make_video(path.with_name(f"long_{path.name}"), 150, arguments=arguments)
    run_ffmpeg("-ss", "0.5", "-i", source, "-t", "3.5", "-c", "copy", path)


def with_cover(path: Path) -> None:
    picture = make_video(path.with_suffix(".png"), 1, arguments=())
    video = make_video(path.with_name("plain.mp4"), 30)
    run_ffmpeg(
        *("-i", picture, "-i", video, "-map", "0", "-map", "1", "-c", "copy"),
        *("-disposition:v:0", "attached_pic", path),
    )


def two_sizes(path: Path) -> None:
    parts = [
        make_video(path.with_name("small.ts"), 30).read_bytes(),
        make_video(path.with_name("large.ts"), 30, width=96, height=64).read_bytes(),
    ]
    path.write_bytes(b"".join(parts))


SOUND = ("-f", "lavfi", "-i", "sine=d=3")
CASES = {
    "h264.mp4": Case(encoded(), range(30)),
    "bframes.mp4": Case(encoded(60, arguments=(*X264, "-bf", "3")), range(60)),
    "odd.mp4": Case(
        encoded(
            20,
            width=69,
            height=47,
            arguments=("-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p"),
        ),
        range(20),
        size=(69, 47),
    ),
    "odd.webm": Case(encoded(20, width=69, height=47, arguments=VP9), range(20), size=(69, 47)),
    "narrow.mp4": Case(encoded(width=24, height=40), range(30), size=(24, 40)),
    "one.mp4": Case(encoded(1), range(1)),
    "two.mkv": Case(encoded(2), range(2)),
    "long_gop.mp4": Case(encoded(300, arguments=(*X264, "-g", "1000")), range(300)),
    "open_gop.mp4": Case(
        encoded(90, arguments=(*X264, "-x264-params", "open-gop=1:keyint=15:bframes=3")),
        range(90),
    ),
    "fragmented.mp4": Case(
        encoded(arguments=(*LOSSLESS, "-movflags", "frag_keyframe+empty_moov")),
        range(30),
    ),
    "ten_bit.mp4": Case(
        encoded(20, arguments=("-c:v", "libx264", "-pix_fmt", "yuv420p10le")), range(20)
    ),
    "hevc.mp4": Case(
        encoded(20, arguments=("-c:v", "libx265", "-x265-params", "log-level=error")),
        range(20),
    ),
    "av1.mkv": Case(encoded(20, arguments=("-c:v", "libsvtav1", "-preset", "12")), range(20)),
    "prores.mov": Case(encoded(10, arguments=("-c:v", "prores_ks")), range(10)),
    "lossless.mkv": Case(encoded(10, arguments=("-c:v", "ffv1")), range(10)),
    "sound.mp4": Case(encoded(inputs=SOUND, arguments=(*LOSSLESS, "-c:a", "aac")), range(30)),
    "cover.mp4": Case(with_cover, range(30)),
    "ntsc.mp4": Case(encoded(fps="30000/1001"), range(30), Fraction(30000, 1001)),
    "film.mkv": Case(encoded(fps="24000/1001"), range(30), Fraction(24000, 1001)),
    "fast.webm": Case(
        encoded(20, fps="60000/1001", arguments=VP9), range(20), Fraction(60000, 1001)
    ),
    "slow.mkv": Case(encoded(fps="25/2"), range(30), Fraction(25, 2)),
    "uneven.mp4": Case(
        encoded(60, arguments=(*UNEVEN, "-enc_time_base", "1/1000", *LOSSLESS)),
        range(60),
        None,
        variable=True,
    ),
    "uneven.mkv": Case(encoded(60, arguments=(*UNEVEN, *LOSSLESS)), range(60), None, variable=True),
    "right.mp4": Case(rotated("transpose=2", "-90"), range(20), size=(128, 96), rotation=90),
    "left.mp4": Case(rotated("transpose=1", "90"), range(20), size=(128, 96), rotation=270),
    "upside.mp4": Case(rotated("hflip,vflip", "180"), range(20), size=(128, 96), rotation=180),
    "trimmed.mp4": Case(trimmed_plainly, range(15, 120)),
    # A reference frame after the cut belongs to the stream, and players show it.
    "trimmed_b.mp4": Case(trimmed, [*range(15, 120), 122]),
    "gif.gif": Case(encoded(fps="25", arguments=()), range(30), Fraction(25)),
    "gif30.gif": Case(encoded(arguments=()), range(30)),
    "bframes.avi": Case(
        encoded(60, arguments=("-c:v", "mpeg4", "-bf", "2", "-q:v", "2")), range(60)
    ),
    "stream.ts": Case(encoded(60, arguments=(*X264, "-bf", "3")), range(60)),
    "stream.mpg": Case(encoded(60, arguments=("-c:v", "mpeg2video", "-q:v", "2")), range(60)),
    "two_sizes.ts": Case(two_sizes, [*range(30), *range(30)]),
    "live.webm": Case(encoded(60, arguments=(*VP9, "-live", "1")), range(60)),
    "live_uneven.mkv": Case(
        encoded(60, arguments=(*UNEVEN, *LOSSLESS, "-live", "1")),
        range(60),
        None,
        variable=True,
    ),
    "flash.flv": Case(encoded(arguments=("-c:v", "flv", "-q:v", "2")), range(30)),
    "animated.png": Case(encoded(5, arguments=("-f", "apng")), range(5)),
    "-dash.mp4": Case(encoded(5), range(5)),
    "%03d http: ü.mp4": Case(encoded(5), range(5)),
    os.fsdecode(b"latin\xfc.mp4"): Case(encoded(5), range(5)),
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make the file of a case on first use."""
    folder = tmp_path_factory.mktemp("videos")

    def build(name: str) -> Path:
        path = folder / name
        if not path.exists():
            CASES[name].build(path)
        return path

    return build


def read_all(path: Path, **options: object) -> Frames:
    with VideoReader(path, **options) as reader:
        return np.concatenate(list(reader))


def read_until_error(path: Path) -> tuple[list[int], str]:
    """Read a damaged file; return the numbers of the frames before the error, and the error."""
    numbers: list[int] = []
    with VideoReader(path) as reader:
        try:
            for frames in reader:
                numbers += read_barcodes(frames)
        except VideoError as exc:
            return numbers, str(exc)
    pytest.fail("no error")


@pytest.mark.parametrize("name", CASES)
def test_readable_file(name: str, built: Callable[[str], Path]) -> None:
    case = CASES[name]
    with VideoReader(built(name)) as reader:
        numbers = [number for frames in reader for number in read_barcodes(frames)]
        info = reader.info
    assert numbers == list(case.numbers)
    assert (reader.frames_read, info.num_frames) == (len(numbers), len(numbers))
    assert (info.width, info.height) == reader.output_size == case.size
    assert (info.rotation, info.variable_frame_rate) == (case.rotation, case.variable)
    assert info.reader == "av"
    assert info.codec
    if case.fps is not None:
        assert info.fps == reader.output_fps == case.fps
        assert info.duration_seconds == pytest.approx(len(numbers) / case.fps, abs=0.1)


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "live_uneven.mkv"])
def test_variable_frame_rate(name: str, built: Callable[[str], Path]) -> None:
    info = probe(built(name))
    assert info.duration_seconds == pytest.approx(4.9, abs=0.05)  # 60 * 0.04 + 5 * 0.5
    assert float(info.fps) == pytest.approx(60 / 4.9, rel=0.01)
    numbers = read_barcodes(read_all(built(name), fps=Fraction(10)))
    assert len(numbers) == 49
    if name == "uneven.mp4":  # the others round times to 1/30 s
        assert numbers[:10] == [0, 2, 5, 7, 9, 9, 9, 10, 10, 10]
    assert numbers.count(9) + numbers.count(10) >= 5  # the pause is kept


@pytest.mark.parametrize("size", [(160, 120), (80, 62)])
@pytest.mark.parametrize("colours", ["", "setparams=colorspace=bt709:range=pc"])
def test_pixels_are_those_of_ffmpeg(tmp_path: Path, size: tuple[int, int], colours: str) -> None:
    path, raw = tmp_path / "colours.mkv", tmp_path / "raw"
    filters = ("-vf", colours) if colours else ()
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=160x120:d=1:r=25", *filters, *X264, path)
    scale = f"scale={size[0]}:{size[1]}"
    run_ffmpeg("-i", path, "-vf", scale, "-f", "rawvideo", "-pix_fmt", "rgb24", raw)
    expected = np.fromfile(raw, np.uint8).reshape(25, size[1], size[0], 3)
    np.testing.assert_array_equal(read_all(path, size=size), expected)


@pytest.mark.parametrize(
    ("size", "expected"), [("24", (32, 24)), ((128, 80), (128, 80)), ("96x48", (96, 48))]
)
@pytest.mark.parametrize("name", ["h264.mp4", "stream.ts", "animated.png"])
def test_size(
    name: str, size: tuple[int, int] | str, expected: tuple[int, int], built: Callable[[str], Path]
) -> None:
    with VideoReader(built(name), size=size) as reader:
        frames = np.concatenate(list(reader))
        assert reader.output_size == expected
        assert (reader.info.width, reader.info.height) == (64, 48)
    assert frames.shape[1:] == (expected[1], expected[0], 3)
    assert read_barcodes(frames) == list(range(len(frames)))


def test_fps(built: Callable[[str], Path]) -> None:
    halved = read_all(built("ntsc.mp4"), fps=Fraction(15000, 1001))
    assert read_barcodes(halved) == list(range(0, 30, 2))
    doubled = read_all(built("stream.ts"), fps=Fraction(60))
    assert read_barcodes(doubled) == [number // 2 for number in range(120)]


@pytest.mark.parametrize("name", ["long_gop.mp4", "open_gop.mp4", "stream.ts", "bframes.avi"])
def test_start_and_duration(name: str, built: Callable[[str], Path]) -> None:
    part = read_all(built(name), start_seconds=0.7, duration_seconds=0.5)
    assert read_barcodes(part) == list(range(21, 36))


@pytest.mark.parametrize("gop", ["open-gop=1:keyint=50:bframes=3", "keyint=250"])
def test_late_start_is_exact(tmp_path: Path, gop: str) -> None:
    path = tmp_path / "long.mp4"
    make_video(path, 700, arguments=("-c:v", "libx264", "-x264-params", gop))
    with VideoReader(path, start_seconds=20.1, duration_seconds=1) as reader:
        assert read_barcodes(np.concatenate(list(reader))) == list(range(603, 633))


def test_start_beyond_the_end(built: Callable[[str], Path]) -> None:
    with pytest.raises(VideoError, match=r"no frame in the requested part \(the video is 1\.000 s"):
        read_all(built("h264.mp4"), start_seconds=30)


@pytest.mark.parametrize(
    "options",
    [
        {"start_seconds": -1.0},
        {"start_seconds": float("nan")},
        {"duration_seconds": float("inf")},
        {"duration_seconds": 0.0},
        {"fps": Fraction(0)},
        {"size": "big"},
        {"size": (0, 5)},
    ],
)
def test_arguments_out_of_range(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"start|duration|fps|size"):
        VideoReader(tmp_path / "never opened", **options)


def test_pictures_are_clips_of_one_frame(tmp_path: Path) -> None:
    upright = barcode_frame(5)
    iio.imwrite(tmp_path / "a.png", upright)
    iio.imwrite(tmp_path / "b.bmp", upright)
    mark = Image.Exif()
    mark[0x0112] = 6  # turn right by 90 degrees to view
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "c.jpg", exif=mark, quality=95)
    for path in sorted(tmp_path.iterdir()):
        with VideoReader(path) as reader:
            (frames,) = list(reader)
            assert (reader.info.num_frames, reader.info.reader) == (1, "pillow")
        assert frames.shape == (1, 48, 64, 3)
        assert read_barcodes(frames) == [5]
    assert read_all(tmp_path / "a.png", size="24").shape == (1, 24, 32, 3)


def build_broken(folder: Path) -> None:
    """Make files without any readable video."""
    (folder / "folder.mp4").mkdir()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video\n" * 500)
    (folder / "text.txt").write_text("no video\n" * 500)
    (folder / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(50_000))
    (folder / "zeros.mp4").write_bytes(bytes(50_000))
    (folder / "codes.vtok").write_bytes(records.MAGIC + bytes(50_000))
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=1", folder / "sound.m4a")
    picture = make_video(folder / "picture.png", 1, arguments=())
    run_ffmpeg(
        *("-i", folder / "sound.m4a", "-i", picture, "-map", "0", "-map", "1", "-c", "copy"),
        *("-disposition:v", "attached_pic", folder / "song.m4a"),
    )
    whole = make_video(folder / "whole.mp4", 60).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.png").write_bytes(picture.read_bytes()[:60])
    os.mkfifo(folder / "pipe.mp4")


BROKEN = {
    "missing.mp4": (InputError, "no such file"),
    "folder.mp4": (InputError, "is a folder, not a video file"),
    "pipe.mp4": (InputError, "is not a regular file"),
    "empty.mp4": (VideoError, r"empty file \(0 bytes\)"),
    "text.mp4": (VideoError, "not a video file"),
    "text.txt": (VideoError, "not a video file"),
    "noise.mkv": (VideoError, "not a.* video file"),
    "zeros.mp4": (VideoError, "not a video file"),
    "codes.vtok": (VideoError, "a code file of vtok, not a video: decode it first"),
    "sound.m4a": (VideoError, r"no video stream \(audio only\)"),
    "song.m4a": (VideoError, r"no video stream \(audio with a cover picture\)"),
    "cut.mp4": (VideoError, "cut short: .*moov atom not found"),
    "cut.png": (VideoError, "damaged picture"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    build_broken(folder)
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_unreadable_file(name: str, broken: Path) -> None:
    kind, message = BROKEN[name]
    with pytest.raises(kind, match=message) as caught:
        probe(broken / name)
    assert str(caught.value).startswith(f"{broken / name}: ")
    assert "\n" not in str(caught.value)


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4", 1)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.mp4: cannot be opened \(Permission denied\)"):
        VideoReader(path)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("front.mp4", (*LOSSLESS, "-movflags", "faststart")),
        ("fragmented.mp4", (*LOSSLESS, "-movflags", "frag_keyframe+empty_moov")),
        ("film.mkv", LOSSLESS),
        ("film.webm", VP9),
    ],
)
def test_cut_file(tmp_path: Path, name: str, arguments: tuple[str, ...]) -> None:
    whole = make_video(tmp_path / f"whole_{name}", 60, arguments=arguments).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) * 6 // 10])
    numbers, error = read_until_error(path)
    assert error.startswith(f"{path}: damaged or cut short: {len(numbers)} frames could be read (")
    assert 15 < len(numbers) < 45
    assert numbers == list(range(len(numbers)))


def test_damage_in_the_middle(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 200, arguments=(*LOSSLESS, "-g", "1000"))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(data)
    numbers, error = read_until_error(path)
    assert "damaged or cut short" in error
    # the decoder may have concealed errors in the last frames
    assert numbers[:90] == list(range(90))
    assert len(numbers) < 120
    before = read_all(path, duration_seconds=1)
    assert read_barcodes(before) == list(range(30))


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Video of more batches than the ring has slots."""
    folder = tmp_path_factory.mktemp("long")
    return make_video(folder / "long.mp4", 300, width=128, height=96)


def test_slow_consumer(long_video: Path) -> None:
    numbers: list[int] = []
    with VideoReader(long_video) as reader:
        for frames in reader:
            if len(numbers) < 100:
                time.sleep(0.02)
            numbers += read_barcodes(frames)
            frames[:] = 0  # frames are a copy of the ring
    assert numbers == list(range(300))


def test_hanging_decoder_is_stopped(long_video: Path) -> None:
    with VideoReader(long_video) as reader:
        next(reader)
        reader._timeout_seconds = 0.5  # short only now: starting a decoder may take longer
        pid = reader._child.pid
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(VideoError, match=r"did nothing for 0\.5 s after [0-9]+ frames"):
            list(reader)
        assert time.monotonic() - started < 30
        assert is_gone(pid)


def test_crashing_decoder_is_an_error(long_video: Path) -> None:
    with VideoReader(long_video) as reader:
        next(reader)
        os.kill(reader._child.pid, signal.SIGSEGV)
        with pytest.raises(VideoError, match=r"long\.mp4: the decoder crashed \(SIGSEGV\) after"):
            list(reader)


def test_closing_early(long_video: Path) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        with VideoReader(long_video) as reader:
            next(reader)
            pid = reader._child.pid
        assert is_gone(pid)
        assert list(reader) == []
    reader = VideoReader(long_video)  # never closed
    pid = reader._child.pid
    del reader
    assert is_gone(pid)
    assert len(list(descriptors.iterdir())) == before


def is_gone(pid: int, seconds: float = 3.0) -> bool:
    """Wait until a process and its group have ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        if all(state == "Z" for state in group_states(pid)):  # dead, but not yet reaped
            return True
        time.sleep(0.02)
    return False


def group_states(group: int) -> list[str]:
    states = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            states.append(fields[0])
    return states


READ_SLOWLY = """
import sys, time
from pathlib import Path
from vtok.video.reader import VideoReader
with VideoReader(Path(sys.argv[1])) as reader:
    next(reader)
    print(reader._child.pid, flush=True)
    time.sleep(60)
"""


def start_slow_reader(path: Path) -> tuple["subprocess.Popen[str]", int]:
    """Start a process that reads a video and sleeps; return it and the id of its decoder."""
    root = str(Path(__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", READ_SLOWLY, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_decoder_dies_with_its_parent(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"long{suffix}", 300, width=128, height=96)
    process, pid = start_slow_reader(path)
    assert group_states(pid)
    process.kill()
    process.communicate()
    assert is_gone(pid)


def test_interrupt_reaches_only_the_parent(long_video: Path) -> None:
    process, pid = start_slow_reader(long_video)
    os.killpg(process.pid, signal.SIGINT)  # like Ctrl-C in a terminal
    _, log = process.communicate(timeout=10)
    assert log.count("Traceback") == 1
    assert log.strip().endswith("KeyboardInterrupt")
    assert is_gone(pid)


HANG_WITH_LOCK = """
from multiprocessing.connection import Pipe
from vtok.video import ffmpeg, worker
ffmpeg.HANG_SECONDS = 0.2
ours, theirs = Pipe()
worker.Channel(theirs.fileno()).send("alive")
sum(range(10**12))  # holds the interpreter lock
"""


def test_decoder_that_hangs_with_the_interpreter_lock_ends() -> None:
    process = subprocess.run(
        [sys.executable, "-c", HANG_WITH_LOCK],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert process.returncode == 1
    assert b"Timeout (0:00:00.2" in process.stderr


def test_decoder_does_not_import_torch() -> None:
    code = "import sys, vtok.video.worker; print('torch' in sys.modules)"
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout == "False\n"


def test_working_folder_cannot_replace_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Callable[[str], Path]
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('wrong module')")
    path = built("h264.mp4")
    monkeypatch.chdir(tmp_path)
    if sys.version_info >= (3, 11):
        assert probe(path).num_frames == 30


def test_barcode() -> None:
    for number in (0, 1, 2047, 4095):
        assert read_barcode(barcode_frame(number, 21, 17)) == number
    with pytest.raises(AssertionError, match="not upright"):
        read_barcode(barcode_frame(9)[::-1])
