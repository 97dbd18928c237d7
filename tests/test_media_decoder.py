"""One decoding process for many videos: what it keeps, what ends it, and how much it may take."""

import os
import signal
from pathlib import Path

import pytest
from videos import make_video, read_barcodes

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


def test_one_process_reads_many_videos_of_any_size(tmp_path: Path, decoder: Decoder) -> None:
    small = make_video(tmp_path / "small.mp4", 70)
    large = make_video(tmp_path / "large.mkv", 20, width=160, height=120)
    assert numbers_in(small, decoder) == list(range(70))
    process = decoder._child
    for _ in range(3):
        assert numbers_in(small, decoder) == list(range(70))
        assert numbers_in(large, decoder, duration_seconds=0.5) == list(range(15))
    assert decoder._child is process


def test_a_reader_closed_early_leaves_nothing_for_the_next(
    tmp_path: Path, decoder: Decoder
) -> None:
    path = make_video(tmp_path / "a.mp4", 200)
    with VideoReader(path, decoder=decoder) as reader:
        next(reader)
    assert numbers_in(path, decoder) == list(range(200))


def test_a_video_that_is_expected_is_read_before_it_is_asked_for(
    tmp_path: Path, decoder: Decoder
) -> None:
    path, other = make_video(tmp_path / "a.mp4", 40), make_video(tmp_path / "b.mp4", 30)
    decoder.expect(make_request(path, 0.5, None, None, None))
    process, asked = decoder._child, []
    assert process is not None
    process.request = asked.append  # type: ignore[method-assign]
    assert numbers_in(path, decoder, start_seconds=0.5) == list(range(15, 40))
    assert decoder._child is process
    assert not asked  # it was at it already
    del process.request
    assert numbers_in(path, decoder, start_seconds=0.5) == list(range(15, 40))  # and only once
    for unwanted in (make_request(path, 0.0, None, None, None), {"path": "none.mp4"}):
        decoder.expect(unwanted)
        assert numbers_in(other, decoder) == list(range(30))
    decoder.expect(make_request(path, 0.0, None, None, None))
    assert decoder._child is not None
    decoder._child.kill()
    assert numbers_in(path, decoder) == list(range(40))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_died_takes_no_other_video_along(
    tmp_path: Path, decoder: Decoder, number: int
) -> None:
    path = make_video(tmp_path / "a.mp4", 300)
    with VideoReader(path, decoder=decoder) as reader:
        next(reader)
        os.kill(reader._child.pid, number)
        with pytest.raises(VideoError, match="the decoder crashed"):
            list(reader)
    assert numbers_in(path, decoder) == list(range(300))
    assert decoder._child is not None
    os.kill(decoder._child.pid, signal.SIGKILL)
    decoder._child._process.wait()  # while it had nothing to do
    assert numbers_in(path, decoder) == list(range(300))


def test_a_damaged_file_is_an_error_and_the_next_is_read(tmp_path: Path, decoder: Decoder) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video at all")
    path = make_video(tmp_path / "a.mp4", 5)
    for _ in range(2):
        with pytest.raises(VideoError, match="bad"):
            numbers_in(tmp_path / "bad.mp4", decoder)
        with pytest.raises(InputError, match="no such file"):
            numbers_in(tmp_path / "none.mp4", decoder)
        assert numbers_in(path, decoder) == list(range(5))


def test_a_video_that_wants_too_much_memory_is_an_error(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small.mp4", 3)
    huge = make_video(tmp_path / "huge.mp4", 2, width=4096, height=4096)
    decoder = Decoder(memory_limit=200 * 2**20)
    try:
        with pytest.raises(VideoError, match=r"huge\.mp4"):
            numbers_in(huge, decoder)
        assert numbers_in(small, decoder) == [0, 1, 2]
    finally:
        decoder.close()


def test_a_closed_decoder_reads_no_more(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 3)
    decoder = Decoder()
    decoder.close()
    decoder.close()
    with pytest.raises(VideoError, match="the decoder was closed"):
        numbers_in(path, decoder)
