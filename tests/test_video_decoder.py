"""Decoder: one process for many videos, replaced after crashes, with limited memory."""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from videos import make_video, read_barcodes

from vtok._times import Part
from vtok.errors import InputError, VideoError
from vtok.video import decoder_process
from vtok.video.decoder_process import Decoder
from vtok.video.reader import VideoReader, make_request


def numbers_in(path: Path, decoder: Decoder, **options: object) -> list[int]:
    with VideoReader(path, decoder=decoder, **options) as reader:  # type: ignore[arg-type]
        return [number for frames in reader for number in read_barcodes(frames)]


@pytest.fixture
def decoder() -> object:
    decoder = Decoder()
    yield decoder
    decoder.close()


def test_one_process_reads_many_videos(tmp_path: Path, decoder: Decoder) -> None:
    small = make_video(tmp_path / "small.mp4", 70)
    large = make_video(tmp_path / "large.mkv", 20, width=160, height=120)
    assert numbers_in(small, decoder) == list(range(70))
    process = decoder._child
    for _ in range(3):
        assert numbers_in(small, decoder) == list(range(70))
        assert numbers_in(large, decoder, duration_seconds=0.5) == list(range(15))
    assert decoder._child is process


def test_reader_closed_early(tmp_path: Path, decoder: Decoder) -> None:
    path = make_video(tmp_path / "a.mp4", 200)
    with VideoReader(path, decoder=decoder) as reader:
        next(reader)
    assert numbers_in(path, decoder) == list(range(200))


def test_expected_video_is_started_early(tmp_path: Path, decoder: Decoder) -> None:
    path, other = make_video(tmp_path / "a.mp4", 40), make_video(tmp_path / "b.mp4", 30)
    decoder.expect(make_request(path, Part(0.5), None, None))
    process, requested = decoder._child, []
    assert process is not None
    process.request = requested.append  # type: ignore[method-assign]
    assert numbers_in(path, decoder, start_seconds=0.5) == list(range(15, 40))
    assert decoder._child is process
    assert not requested  # it was already running
    del process.request
    assert numbers_in(path, decoder, start_seconds=0.5) == list(range(15, 40))  # used once
    for unwanted in (make_request(path, Part(), None, None), {"path": "none.mp4"}):
        decoder.expect(unwanted)
        assert numbers_in(other, decoder) == list(range(30))
    decoder.expect(make_request(path, Part(), None, None))
    assert decoder._child is not None
    decoder._child.kill()
    assert numbers_in(path, decoder) == list(range(40))


WINDOWS = sys.platform == "win32"
KILLS = ["SIGTERM"] if WINDOWS else ["SIGKILL", "SIGSEGV"]


@pytest.mark.parametrize("number", [getattr(signal, name) for name in KILLS])
def test_crash_affects_one_video(tmp_path: Path, decoder: Decoder, number: int) -> None:
    path = make_video(tmp_path / "a.mp4", 300)
    with VideoReader(path, decoder=decoder) as reader:
        next(reader)
        os.kill(reader._child.pid, number)
        with pytest.raises(VideoError, match=r"the decoder (crashed|ended)"):
            list(reader)
    assert numbers_in(path, decoder) == list(range(300))
    assert decoder._child is not None
    os.kill(decoder._child.pid, number)
    decoder._child._process.wait()  # dies while idle
    assert numbers_in(path, decoder) == list(range(300))


def test_damaged_file_does_not_affect_the_next(tmp_path: Path, decoder: Decoder) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    path = make_video(tmp_path / "a.mp4", 5)
    for _ in range(2):
        with pytest.raises(VideoError, match="bad"):
            numbers_in(tmp_path / "bad.mp4", decoder)
        with pytest.raises(InputError, match="no such file"):
            numbers_in(tmp_path / "none.mp4", decoder)
        assert numbers_in(path, decoder) == list(range(5))


@pytest.mark.skipif(WINDOWS, reason="no limit")
def test_memory_limit(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small.mp4", 3)
    huge = make_video(tmp_path / "huge.mp4", 2, width=4096, height=4096)
    decoder = Decoder(memory_limit=200 * 2**20)
    try:
        with pytest.raises(VideoError, match=r"huge\.mp4"):
            numbers_in(huge, decoder)
        assert numbers_in(small, decoder) == [0, 1, 2]
    finally:
        decoder.close()


def test_closed_decoder(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 3)
    decoder = Decoder()
    decoder.close()
    decoder.close()
    with pytest.raises(VideoError, match="the decoder was closed"):
        numbers_in(path, decoder)


@pytest.mark.parametrize("memory_bytes", [1, 10**6, 16 * 2**20])
def test_memory_grows_with_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    monkeypatch.setattr(decoder_process, "MEMORY_BYTES", memory_bytes)
    small = make_video(tmp_path / "small.mp4", 40)
    large = make_video(tmp_path / "large.mp4", 12, width=1920, height=1080)
    with Decoder() as decoder:
        for _ in range(2):
            assert numbers_in(small, decoder) == list(range(40))
            assert numbers_in(large, decoder) == list(range(12))


def test_without_shared_memory(
    tmp_path: Path, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> SharedMemory:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoder_process, "SharedMemory", refuse)
    path = make_video(tmp_path / "a.mp4", 100)
    large = make_video(tmp_path / "b.mp4", 9, width=1920, height=1080)
    for _ in range(2):
        assert numbers_in(path, decoder) == list(range(100))
        assert numbers_in(large, decoder) == list(range(9))


READ_AND_DIE = """
import os, signal, sys
from pathlib import Path
from vtok.video.reader import VideoReader
reader = VideoReader(Path(sys.argv[1]))
next(reader)
print(reader._child._memory.shared.name, flush=True)
os.kill(reader._child.pid if sys.argv[2] == "child" else os.getpid(), signal.SIGKILL)
os._exit(0)
"""


@pytest.mark.skipif(WINDOWS, reason="no SIGKILL")
@pytest.mark.parametrize("dying", ["child", "parent"])
def test_killed_processes_leave_no_shared_memory(tmp_path: Path, dying: str) -> None:
    path = make_video(tmp_path / "a.mp4", 300)
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", READ_AND_DIE, path, dying]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    with pytest.raises(FileNotFoundError):
        SharedMemory(done.stdout.strip())


SCRIPT = """
import sys
from pathlib import Path
from vtok.video.reader import VideoReader
with open(sys.argv[2], "a") as log:
    log.write("imported\\n")
with VideoReader(Path(sys.argv[1])) as reader:
    print(sum(map(len, reader)))
"""


def test_main_script_is_not_imported_again(tmp_path: Path) -> None:
    path, script, log = make_video(tmp_path / "a.mp4", 9), tmp_path / "main.py", tmp_path / "log"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, script, path, log],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr, log.read_text()) == ("9\n", "", "imported\n")


def count_frames(path: Path) -> None:
    sys.exit(sum(map(len, VideoReader(path))))


def test_daemonic_process_can_read(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 9)
    process = multiprocessing.get_context("spawn").Process(
        target=count_frames, args=(path,), daemon=True
    )
    process.start()
    process.join(60)
    assert process.exitcode == 9
