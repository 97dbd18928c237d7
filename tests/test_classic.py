"""Classic codecs: the search for a size, and decoding of streams."""

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_similarity import smooth

import vtok.evaluation.classic as classic
from vtok.errors import OptionError, UsageError, VtokError
from vtok.evaluation.classic import (
    CODECS,
    MAX_TRIALS,
    TOLERANCE,
    RateMatcher,
    decode_stream,
    encode_stream,
    find_codec,
    make_master,
)
from vtok.evaluation.metrics import psnr


def moving(height: int, width: int, count: int = 6) -> np.ndarray:
    """Sliding gray frames, since codecs halve the resolution of colour."""
    wide = smooth(height, width + 2 * count, 1)[0].mean(-1, keepdims=True).repeat(3, -1)
    wide = wide.astype(np.uint8)
    return np.stack([wide[:, 2 * k : 2 * k + width] for k in range(count)])


@pytest.fixture
def counted():
    """Model of an encoder's bytes, and the list of factors it was called with."""
    asked: list[float] = []

    def bytes_at(crf: float) -> int:
        asked.append(crf)
        return round(500 + 2_000_000 * 2 ** (-crf / 5.5 - (crf / 60) ** 2))

    return bytes_at, asked


@pytest.mark.parametrize("target", [3_000, 8_000, 30_000, 400_000])
def test_search_converges_in_few_trials(counted, target: int) -> None:
    bytes_at, asked = counted
    codec = CODECS["x264"][0]
    crf, count = RateMatcher(codec, bytes_at).match(target)
    assert abs(count / target - 1) <= TOLERANCE
    assert count == bytes_at(crf)
    assert len(asked) <= 8


def test_search_reuses_trials(counted) -> None:
    bytes_at, asked = counted
    matcher = RateMatcher(CODECS["x264"][0], bytes_at)
    first = matcher.match(20_000)
    trials = len(asked)
    assert matcher.match(20_010) == first
    assert len(asked) == trials


@pytest.mark.parametrize(("target", "end"), [(10, 51), (10**9, 1)])
def test_unreachable_size_ends_at_the_limit(counted, target: int, end: int) -> None:
    crf, _ = RateMatcher(CODECS["x264"][0], counted[0]).match(target)
    assert crf == end


def test_search_ends_if_no_factor_matches() -> None:
    asked = []

    def bytes_at(crf: float) -> int:
        asked.append(crf)
        return 1000 if crf > 30 else 2000

    _, count = RateMatcher(CODECS["x264"][0], bytes_at).match(1500)
    assert count in (1000, 2000)
    assert len(asked) <= MAX_TRIALS


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 97)])
def test_stream_decodes_to_similar_frames(
    tmp_path: Path, name: str, height: int, width: int
) -> None:
    frames, codec = moving(height, width), find_codec(name)
    master = make_master(tmp_path / "m.mkv", [frames[:4], frames[4:]], Fraction(30000, 1001))
    assert (master.width, master.height, master.frames) == (width, height, 6)
    sizes, quality = [], []
    for crf in (20.5, 45.5):
        stream = tmp_path / f"{crf}.{codec.stream}"
        sizes.append(encode_stream(master, codec, crf, stream))
        assert sizes[-1] == stream.stat().st_size
        decoded = np.concatenate(list(decode_stream(master, stream)))
        quality.append(psnr(decoded, frames))
    assert sizes[0] > sizes[1]
    assert quality[0] > quality[1] + 2
    assert quality[0] > 30


def test_codec_keeps_colours(tmp_path: Path) -> None:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[:, :16, :, 0], frames[:, 16:, :16, 1], frames[:, 16:, 16:, 2] = 220, 180, 240
    codec = find_codec("x264")
    master = make_master(tmp_path / "m.mkv", [frames], Fraction(25))
    encode_stream(master, codec, 1, tmp_path / "s")
    decoded = np.concatenate(list(decode_stream(master, tmp_path / "s")))
    inside = decoded[:, 8, 8], decoded[:, 24, 8], decoded[:, 24, 24]
    expected = [[220, 0, 0], [0, 180, 0], [0, 0, 240]]
    assert np.abs(np.stack(inside, 1).astype(int) - expected).max() <= 4


def test_truncated_stream_raises(tmp_path: Path) -> None:
    codec = find_codec("x264")
    master = make_master(tmp_path / "m.mkv", [moving(48, 48)], Fraction(25))
    stream = tmp_path / "s.h264"
    encode_stream(master, codec, 30, stream)
    stream.write_bytes(stream.read_bytes()[: stream.stat().st_size // 3])
    with pytest.raises(VtokError, match=r"frames instead of 6"):
        list(decode_stream(master, stream))


def test_empty_clip_raises(tmp_path: Path) -> None:
    with pytest.raises(VtokError, match="no frames"):
        make_master(tmp_path / "m.mkv", [], Fraction(25))


def test_missing_codecs_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="codecs=h266: expected some of x264, x265, av1"):
        find_codec("h266")
    monkeypatch.setattr(classic, "ffmpeg_lists", lambda kind: {"libx264", "libaom-av1"})
    assert find_codec("av1").encoder == "libaom-av1"
    with pytest.raises(UsageError, match="x265: this ffmpeg has no libx265"):
        find_codec("x265")


def test_encoder_failure_is_one_line(tmp_path: Path) -> None:
    master = make_master(tmp_path / "m.mkv", [moving(32, 32)], Fraction(25))
    with pytest.raises(
        VtokError, match="x264, preset medium cannot encode frames of 32x32"
    ) as caught:
        encode_stream(master, find_codec("x264"), 30, tmp_path / "nowhere" / "s.h264")
    assert "\n" not in str(caught.value)


def test_frames_too_small_for_the_encoder_raise(tmp_path: Path) -> None:
    master = make_master(tmp_path / "m.mkv", [moving(8, 8)], Fraction(25))
    with pytest.raises(VtokError, match=r"cannot encode frames of 8x8 .*too small"):
        encode_stream(master, find_codec("x265"), 30, tmp_path / "s.hevc")


def test_libaom_stream_decodes(tmp_path: Path) -> None:
    codec = CODECS["av1"][1]
    listed = subprocess.run(
        [classic.ffmpeg_path(), "-hide_banner", "-encoders"], capture_output=True, check=True
    )
    if codec.encoder.encode() not in listed.stdout:
        pytest.skip("this ffmpeg has no libaom")
    master = make_master(tmp_path / "m.mkv", [moving(32, 48, 3)], Fraction(25))
    encode_stream(master, codec, 40, tmp_path / "s.obu")
    assert len(list(decode_stream(master, tmp_path / "s.obu"))) == 3
