"""Sound of videos: kept in code files as it is, and in sync after encode, cut, cat and decode."""

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_edit import Pipe
from videos import H264, SOUND, make_film, make_video

from vtok._sound import Packet, Sound
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import Damage
from vtok.codefile.sections import Section, sound_of_section, sound_to_section
from vtok.errors import CodeFileError, OptionError
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.decode import decode_file
from vtok.pipeline.edit import cut_file, join_files
from vtok.pipeline.encode import encode_file
from vtok.pipeline.inspect import inspect_file
from vtok.pipeline.options import CutOptions, DecodeOptions, EncodeOptions


def onsets(path: Path) -> npt.NDArray[np.float64]:
    """Seconds from the first frame of the video to the start of each beep."""
    with av.open(path) as container:
        first = next(container.decode(video=0))
        begin = float(first.pts * first.time_base)
    with av.open(path) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=48000)
        level, times = [], []
        for frame in container.decode(audio=0):
            start = float(frame.pts * frame.time_base)
            for part in resampler.resample(frame):
                samples = part.to_ndarray()[0]
                level.append(np.abs(samples))
                times.append(start + np.arange(len(samples)) / 48000)
    loud = np.concatenate(times)[np.concatenate(level) > 0.2]
    return loud[np.diff(loud, prepend=-1) > 0.1] - begin


def packets_of(path: Path) -> list[bytes]:
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.fixture(scope="module")
def codes(film: Path, model: LoadedTokenizer) -> Path:
    encode_file(film, film.with_suffix(".vtok"), model=model)
    return film.with_suffix(".vtok")


def in_sync(path: Path, expected: npt.NDArray[np.float64]) -> bool:
    """Return True if the beeps are within 25 ms of these times."""
    found = onsets(path)
    return len(found) == len(expected) and bool((np.abs(found - expected) < 0.025).all())


def test_packets_are_unchanged(
    film: Path, codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    with codes.open("rb") as stream:
        kept = [one.data for block in CodeFileReader(stream).sound() for one in block.packets]
    assert kept == packets_of(film)
    decode_file(codes, tmp_path / "b.mp4", model=model)
    assert packets_of(tmp_path / "b.mp4") == kept


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_decoded_sound_is_in_sync(
    suffix: str, film: Path, codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    decode_file(codes, tmp_path / f"b{suffix}", model=model)
    assert in_sync(tmp_path / f"b{suffix}", onsets(film))


@pytest.mark.parametrize(
    ("source", "codec", "target"),
    [
        ("a.mkv", "libopus", "b.webm"),
        ("a.webm", "libopus", "b.mp4"),
        ("a.ts", "aac", "b.mp4"),
        ("a.mp4", "libmp3lame", "b.mkv"),
        ("a.mov", "pcm_s16le", "b.mov"),
        ("a.mkv", "flac", "b.mp4"),
        ("a.avi", "libmp3lame", "b.mp4"),
        ("a.mkv", "ac3", "b.mp4"),
    ],
)
def test_codecs(
    source: str, codec: str, target: str, model: LoadedTokenizer, tmp_path: Path
) -> None:
    video = ("-c:v", "libvpx-vp9", "-cpu-used", "8") if source.endswith("webm") else ()
    arguments = (*H264, *video, "-c:a", codec)
    film = make_video(tmp_path / source, 120, arguments=arguments, inputs=SOUND)
    encode_file(film, tmp_path / "a.vtok", model=model)
    decode_file(tmp_path / "a.vtok", tmp_path / target, model=model)
    assert in_sync(tmp_path / target, onsets(film))


@pytest.mark.parametrize("start", [0.0, 0.4, 1.7, 2.0333])
def test_parts_are_in_sync(
    start: float, film: Path, codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    first = round(start * 30)
    expected = onsets(film) - first / 30
    expected = expected[(expected > 0.01) | (first == 0)]
    part: dict[str, Any] = {"start_seconds": start}
    cut_file(codes, tmp_path / "cut.vtok", options=CutOptions(**part))
    decode_file(tmp_path / "cut.vtok", tmp_path / "cut.mp4", model=model)
    decode_file(codes, tmp_path / "part.mp4", model=model, options=DecodeOptions(**part))
    encode_file(film, tmp_path / "part.vtok", model=model, options=EncodeOptions(**part))
    decode_file(tmp_path / "part.vtok", tmp_path / "encoded.mp4", model=model)
    for name in ("cut.mp4", "part.mp4", "encoded.mp4"):
        assert in_sync(tmp_path / name, expected), name


def test_joined_files_are_in_sync(
    film: Path, codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    cut_file(codes, tmp_path / "c.vtok", options=CutOptions(start_frame=51, num_frames=40))
    join_files([codes, tmp_path / "c.vtok", codes], tmp_path / "d.vtok")
    decode_file(tmp_path / "d.vtok", tmp_path / "d.mp4", model=model)
    times = onsets(film)
    middle = times[(times > 51 / 30) & (times < 91 / 30)] - 51 / 30
    expected = np.concatenate([times, middle + 4, times + 4 + 40 / 30])
    assert in_sync(tmp_path / "d.mp4", expected)


def test_streams(codes: Path, film: Path, model: LoadedTokenizer, tmp_path: Path) -> None:
    for source in (io.BytesIO(codes.read_bytes()), Pipe(codes.read_bytes())):
        with (tmp_path / "b.mp4").open("wb") as output:
            decode_file(source, output, model=model)  # type: ignore[arg-type]
        assert in_sync(tmp_path / "b.mp4", onsets(film))


def test_sound_counts_as_bytes_but_not_as_bits_per_pixel(
    film: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    results = [
        encode_file(film, tmp_path / f"{mode}.vtok", model=model, options=EncodeOptions(audio=mode))
        for mode in ("copy", "none")
    ]
    loud, silent = results
    assert loud.bpp == silent.bpp
    assert loud.bytes - loud.audio_bytes == silent.bytes
    assert silent.audio_bytes == 0
    facts = [inspect_file(str(tmp_path / f"{mode}.vtok")) for mode in ("copy", "none")]
    assert facts[0]["audio"] == "aac, 48000 Hz, 1 channel"
    assert facts[0]["audio_bytes"] == loud.audio_bytes
    for name in ("bpp", "kbps", "chunk_bytes"):
        assert facts[0][name] == facts[1][name]
    assert "audio" not in facts[1]


def test_cut_can_leave_out_the_sound(codes: Path, tmp_path: Path) -> None:
    result = cut_file(codes, tmp_path / "b.vtok", options=CutOptions(audio=False))
    assert result.audio_bytes == 0
    with (tmp_path / "b.vtok").open("rb") as stream:
        assert not list(CodeFileReader(stream).sound())


def test_a_container_without_the_codec_is_reported(
    codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    result = decode_file(codes, tmp_path / "b.webm", model=model)
    assert result.note == "the sound is left out: webm holds no aac, .mkv does"
    assert not inspect_file(str(tmp_path / "b.webm"))["missing_frames"]


@pytest.mark.parametrize("name", ["b.npy", "b_%03d.png"])
def test_pictures_and_arrays_without_sound_are_reported(
    codes: Path, model: LoadedTokenizer, tmp_path: Path, name: str
) -> None:
    options = DecodeOptions(num_frames=5)
    result = decode_file(codes, tmp_path / name, model=model, options=options)
    assert result.note == "the sound is left out: pictures and arrays hold none"
    silent = replace(options, audio=False, overwrite=True)
    assert decode_file(codes, tmp_path / name, model=model, options=silent).note is None


def test_joined_sounds_of_two_codecs_are_reported(
    codes: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    other = make_film(tmp_path / "a.mkv", "libopus")
    encode_file(other, tmp_path / "a.vtok", model=model)
    result = join_files([codes, tmp_path / "a.vtok"], tmp_path / "b.vtok")
    assert result.note is not None
    assert "a.vtok: its sound is left out: opus, 48000 Hz, 1 channel" in result.note


def test_other_formats_hold_no_sound(film: Path, model: LoadedTokenizer, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="npy files hold no sound"):
        EncodeOptions(to="npy", audio="copy")
    for audio, note in ((None, "the sound is left out: npy files hold none"), ("none", None)):
        options = EncodeOptions(to="npy", audio=audio, num_frames=5, overwrite=True)
        assert encode_file(film, tmp_path / "a.npy", model=model, options=options).note == note


PACKETS = st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(0, 4096), st.binary()))


@given(PACKETS)
def test_sections_of_sound_read_back(packets: list[tuple[int, int, bytes]]) -> None:
    kept = tuple(Packet(*packet) for packet in packets)
    sound = Sound("aac", 48000, 2, Fraction(1, 48000), b"\x11\x90", b"NUT", kept)
    assert sound_of_section(sound_to_section(sound)) == sound


@given(st.lists(st.binary(max_size=60), min_size=3, max_size=4), st.booleans())
def test_damaged_sections_of_sound_are_refused(parts: list[bytes], described: bool) -> None:
    if described:
        parts[0] = b'{"channels":1,"codec":"aac","extradata":"","sample_rate":8,"time_base":[1,8]}'
    try:
        found = sound_of_section(Section(b"soun", 0, 0, tuple(parts)))
    except Damage:
        return
    assert b"".join(packet.data for packet in found.packets) == parts[3]


def test_hostile_sound_is_an_error(codes: Path, model: LoadedTokenizer, tmp_path: Path) -> None:
    data = bytearray(codes.read_bytes())
    place = data.index(b"soun")
    data[place + 200] ^= 1
    (tmp_path / "b.vtok").write_bytes(data)
    with pytest.raises(CodeFileError):
        decode_file(tmp_path / "b.vtok", tmp_path / "b.mp4", model=model)
