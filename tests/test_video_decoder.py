"""Decoder: one process for many videos, replaced after crashes, with limited memory."""

import os
import signal
from pathlib import Path

import pytest
from videos import make_video, read_barcodes

from vtok._times import Part
from vtok.errors import InputError, VideoError
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_crash_affects_one_video(tmp_path: Path, decoder: Decoder, number: int) -> None:
    path = make_video(tmp_path / "a.mp4", 300)
    with VideoReader(path, decoder=decoder) as reader:
        next(reader)
        os.kill(reader._child.pid, number)
        with pytest.raises(VideoError, match="the decoder crashed"):
            list(reader)
    assert numbers_in(path, decoder) == list(range(300))
    assert decoder._child is not None
    os.kill(decoder._child.pid, signal.SIGKILL)
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
