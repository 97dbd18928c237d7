"""Optional sections of code files: hostile and damaged ones, salvage, verification and joining."""

import io
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from commands import rows, vtok
from test_edit import Pipe
from test_frame_times import BASE, TICKS, seconds, times_of
from test_sound import onsets, packets_of
from videos import make_timed_video

from vtok._sound import MAX_PACKETS, Sound
from vtok._times import Part
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import SEGMENTED, Damage
from vtok.codefile.sections import (
    MAX_FRAMES,
    MAX_SECTIONS,
    FrameDurations,
    Section,
    find_times,
    read_numbers,
    sound_to_section,
    write_numbers,
)
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import CodeFileError, OutputError
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.decode import decode_file
from vtok.pipeline.edit import join_files
from vtok.pipeline.encode import encode_file
from vtok.pipeline.inspect import verify_file
from vtok.pipeline.options import DecodeOptions, EncodeOptions
from vtok.pipeline.sections import part_of_file
from vtok.video.mux import FrameTimes, remux


@pytest.fixture(scope="module")
def loud(film: Path, model: LoadedTokenizer) -> Path:
    """Encode the film with its sound, in several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vtok.pipeline.encode.CHUNK_STEPS", 8)
        encode_file(film, film.with_name("loud.vtok"), model=model)
    return film.with_name("loud.vtok")


@pytest.fixture(scope="module")
def silent(film: Path, model: LoadedTokenizer) -> Path:
    path, options = film.with_name("silent.vtok"), EncodeOptions(audio="none", num_frames=30)
    encode_file(film, path, model=model, options=options)
    return path


@pytest.fixture(scope="module")
def uneven(model: LoadedTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uneven")
    source = make_timed_video(folder / "a.mp4", TICKS, BASE)
    encode_file(source, folder / "uneven.vtok", model=model)
    return folder / "uneven.vtok"


def with_sections(path: Path, sections: Iterable[Section]) -> bytes:
    """Return a code file with other optional sections."""
    out = io.BytesIO()
    with path.open("rb") as stream:
        reader = CodeFileReader(stream)
        with CodeFileWriter(out, reader.header, version=SEGMENTED) as writer:
            for chunk in reader.stored():
                writer.write_parts(chunk.parts, chunk.num_steps, chunk.num_frames, chunk.opens)
            for section in sections:
                writer.write_section(section)
    return out.getvalue()


def first_sound(path: Path) -> Sound:
    with path.open("rb") as stream:
        return next(CodeFileReader(stream).sound())


def times(first: int, ticks: list[int], base: Fraction = BASE) -> Section:
    (section,) = FrameDurations(first, base, np.array(ticks, np.int64)).to_sections()
    return section


HOSTILE = {
    "overlap": [times(0, [5] * 4), times(3, [5])],
    "out of order": [times(5, [5]), times(3, [5])],
    "beyond the file": [times(29, [5, 5])],
    "a million years": [times(0, [2**52], Fraction(1000))],
    "no frames": [Section(b"time", 0, 0, (write_numbers((1, 25)),))],
    "fewer numbers": [Section(b"time", 0, 9, (write_numbers((1, 25, 2)),))],
    "a long number": [Section(b"time", 0, 1, (b"\x01\x19" + b"\xff" * 9 + b"\1",))],
    "a base of 0": [Section(b"time", 0, 1, (write_numbers((0, 25, 2)),))],
    "two parts": [Section(b"time", 0, 1, (write_numbers((1, 25, 2)), b""))],
    "many numbers": [Section(b"time", 0, 1, (bytes(9 * MAX_FRAMES),))],
}


def read_times(stream: io.BytesIO) -> None:
    reader = CodeFileReader(stream, name="a.vtok")
    for _ in reader:
        pass
    reader.frame_durations()


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
def test_hostile_times_are_refused_in_one_line(
    name: str, kind: type[io.BytesIO], silent: Path
) -> None:
    data = with_sections(silent, HOSTILE[name])
    with pytest.raises(CodeFileError, match=r"^a\.vtok: [^\n]*$"):
        read_times(kind(data))
    saved = CodeFileReader(kind(data), salvage=True)
    assert sum(chunk.num_frames for chunk in saved) == 30
    assert saved.frame_durations() == []
    assert saved.damaged == {b"time"}


def test_too_many_sections_are_refused(silent: Path) -> None:
    section = times(0, [5]).to_bytes()
    with CodeFileWriter(
        io.BytesIO(), CodeFileReader(io.BytesIO(silent.read_bytes())).header
    ) as writer:
        for _ in range(MAX_SECTIONS):
            writer.write_section(times(0, [5]))
        with pytest.raises(OutputError, match="more than 65536 optional sections"):
            writer.write_section(times(0, [5]))
    data = with_sections(silent, [])
    place = data.rindex(b"FOOT")
    data = data[:place] + section * (MAX_SECTIONS + 1) + data[place:]
    with pytest.raises(CodeFileError, match="more than 65536 optional sections"):
        list(CodeFileReader(io.BytesIO(data)).sections(b"none"))
    with pytest.raises(CodeFileError, match="more than 65536 optional sections"):
        CodeFileReader(Pipe(data)).verify()


def test_times_of_a_billion_frames_take_no_memory() -> None:
    spans = [FrameDurations(10**9, BASE, np.array([9000, 18_000], np.int64))]
    found = find_times(spans, 2 * 10**9, Fraction(25))
    assert found is not None
    assert len(found.frames) < 10
    assert found.seconds(10**9) == Fraction(10**9, 25)
    assert found.seconds(10**9 + 2) - found.seconds(10**9) == Fraction(3, 10)


def test_time_bases_without_a_simple_common_one_take_no_time(silent: Path) -> None:
    sections = [times(one, [2**30], Fraction(1, 2**31 - 1 - one)) for one in range(30)]
    reader = CodeFileReader(io.BytesIO(with_sections(silent, sections)))
    assert part_of_file(reader, Part(start_seconds=5.0, duration_seconds=1.0)) == (10, 12)


def changed(loud: Path, **changes: object) -> bytes:
    """Return a file whose last block of sound is changed."""
    sound = first_sound(loud)
    return with_sections(
        loud, [sound_to_section(sound), sound_to_section(replace(sound, **changes))]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": "flac"},
        {"codec": "../../a"},
        {"sample_rate": 0},
        {"channels": True},
        {"time_base": Fraction(2**40)},
        {"extradata": bytes(300_000)},
        {"packets": ((2**54, 1, b""),)},
    ],
)
def test_hostile_sound_is_refused_in_one_line(changes: dict[str, object], loud: Path) -> None:
    if packets := changes.get("packets"):
        sound = first_sound(loud)
        changes = {"packets": tuple(sound.packets[0]._make(one) for one in packets)}  # type: ignore[attr-defined]
    reader = CodeFileReader(io.BytesIO(changed(loud, **changes)), name="a.vtok")
    with pytest.raises(CodeFileError, match=r"^a\.vtok: [^\n]*$"):
        list(reader.sound())


def test_number_of_packets_is_limited(loud: Path) -> None:
    section = sound_to_section(first_sound(loud))
    count = MAX_PACKETS + 10**6
    table = write_numbers([count]) + bytes(3 * count)
    section = section._replace(parts=(*section.parts[:2], table, b""))
    reader = CodeFileReader(io.BytesIO(with_sections(loud, [section])))
    with pytest.raises(CodeFileError, match="an optional section 'soun' has parts of"):
        next(reader.sound())


def test_numbers_read_back() -> None:
    numbers = [0, 1, 127, 128, 16_383, 16_384, 2**35, 2**56 - 1]
    assert read_numbers(write_numbers(numbers)).tolist() == numbers
    assert read_numbers(b"").tolist() == []
    with pytest.raises(CodeFileError):
        write_numbers([2**56])
    for data in (b"\x80", b"\x01\xff", b"\xff" * 8 + b"\x01"):
        with pytest.raises(Damage):
            read_numbers(data)


def test_long_times_are_split(silent: Path) -> None:
    ticks = np.arange(1, MAX_FRAMES + 3)
    found = list(FrameDurations(5, BASE, ticks).to_sections())
    assert [(one.first_frame, one.num_frames) for one in found] == [
        (5, MAX_FRAMES),
        (5 + MAX_FRAMES, 2),
    ]
    read = [FrameDurations.from_section(one).ticks for one in found]
    assert np.array_equal(np.concatenate(read), ticks)


@pytest.mark.parametrize("setup", [b"", b"spam", bytes(10_000)])
def test_hostile_setup_ends_in_one_line(
    setup: bytes, loud: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    data = with_sections(loud, [sound_to_section(replace(first_sound(loud), setup=setup))])
    with pytest.raises(OutputError, match=r"^[^\n]*b\.mp4: cannot be written \([^\n]+\)$"):
        decode_file(io.BytesIO(data), tmp_path / "b.mp4", model=model)
    assert not list(tmp_path.iterdir())


def test_memory_of_the_muxer_is_limited(film: Path, loud: Path, tmp_path: Path) -> None:
    sound = first_sound(loud)
    large = replace(sound, setup=sound.setup + bytes(100 << 20))
    clock = FrameTimes(Fraction(1, 30), np.arange(121))
    with pytest.raises(ValueError, match=r"Memory|the muxer"):
        remux(film, tmp_path / "b.mp4", "mp4", clock, [large], memory_bytes=300 << 20)
    remux(film, tmp_path / "b.mp4", "mp4", clock, [sound], memory_bytes=300 << 20)
    assert packets_of(tmp_path / "b.mp4") == [one.data for one in sound.packets]


def damaged(path: Path, kind: bytes, number: int = 0) -> bytes:
    """Change a byte in a part of a section."""
    data, place = bytearray(path.read_bytes()), -1
    for _ in range(number + 1):
        place = data.index(kind, place + 1)
    data[place + 80] ^= 1
    return bytes(data)


@pytest.fixture(scope="module")
def joined(loud: Path, uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with times and two blocks of sound."""
    path = tmp_path_factory.mktemp("joined") / "joined.vtok"
    join_files([loud, loud], path)
    return path


def test_verify_counts_damaged_sections(joined: Path, tmp_path: Path) -> None:
    (tmp_path / "b.vtok").write_bytes(damaged(joined, b"soun", 1))
    with pytest.raises(CodeFileError, match=r"damaged in 1 of 2 optional sections \(.*codes are"):
        verify_file(tmp_path / "b.vtok")
    for source in (io.BytesIO, Pipe):
        with pytest.raises(CodeFileError, match="damaged in 1 of 2 optional sections"):
            verify_file(source((tmp_path / "b.vtok").read_bytes()))


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
def test_salvage_keeps_intact_sound(
    kind: type[io.BytesIO], joined: Path, film: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    data, options = damaged(joined, b"soun", 1), DecodeOptions(salvage=True)
    with pytest.raises(CodeFileError):
        decode_file(kind(data), tmp_path / "b.mp4", model=model)
    result = decode_file(kind(data), tmp_path / "b.mp4", model=model, options=options)
    assert result.frames == 240
    assert result.lost_frames in (None, 0)
    assert result.note == "left out where damaged: sound"
    assert onsets(tmp_path / "b.mp4") == pytest.approx(onsets(film), abs=0.025)


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
def test_salvage_leaves_out_damaged_times(
    kind: type[io.BytesIO], uneven: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    data, options = damaged(uneven, b"time"), DecodeOptions(salvage=True)
    result = decode_file(kind(data), tmp_path / "b.mp4", model=model, options=options)
    assert (result.frames, result.note) == (60, "left out where damaged: times of frames")
    assert np.ptp(np.diff(times_of(tmp_path / "b.mp4"))) < 1e-3


def test_salvage_without_some_frames_leaves_out_the_sound(
    loud: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    with loud.open("rb") as stream:
        chunk = CodeFileReader(stream).chunks[1]
    data = bytearray(loud.read_bytes())
    data[chunk.offset + 100] ^= 1
    options = DecodeOptions(salvage=True)
    result = decode_file(io.BytesIO(data), tmp_path / "b.mp4", model=model, options=options)
    assert result.lost_frames
    assert result.note == "left out, since frames were lost: sound"


def test_cut_file_is_salvaged_with_its_times(
    uneven: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    data = uneven.read_bytes()
    data, options = data[: data.rindex(b"FOOT")], DecodeOptions(salvage=True)
    decode_file(io.BytesIO(data), tmp_path / "b.mp4", model=model, options=options)
    assert times_of(tmp_path / "b.mp4") == pytest.approx(seconds(TICKS), abs=1e-3)


def test_silent_files_among_joined_ones_are_reported(
    loud: Path, silent: Path, film: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    result = join_files([silent, loud, silent], tmp_path / "b.vtok")
    assert result.note == f"there is no sound in {silent} and 1 more"
    decode_file(tmp_path / "b.vtok", tmp_path / "b.mp4", model=model)
    assert onsets(tmp_path / "b.mp4") == pytest.approx(onsets(film) + 1, abs=0.025)
    assert join_files([silent, silent], tmp_path / "c.vtok").note is None


def test_even_and_uneven_files_are_joined(
    silent: Path, uneven: Path, model: LoadedTokenizer, tmp_path: Path
) -> None:
    with uneven.open("rb") as stream:
        spans = CodeFileReader(stream).frame_durations()
    data = with_sections(silent, [])
    (tmp_path / "even.vtok").write_bytes(data)
    timed = with_sections(silent, [times(0, spans[0].ticks.tolist()[:30])])
    (tmp_path / "timed.vtok").write_bytes(timed)
    result = join_files([tmp_path / name for name in ("even.vtok", "timed.vtok", "even.vtok")],
                        tmp_path / "b.vtok")  # fmt: skip
    assert result.note is None
    decode_file(tmp_path / "b.vtok", tmp_path / "b.mp4", model=model)
    steps = np.diff(times_of(tmp_path / "b.mp4"))
    assert steps[:30] == pytest.approx(1 / 30, abs=1e-3)
    assert steps[30:60] == pytest.approx(spans[0].ticks[:30] / 90_000, abs=1e-3)
    assert steps[60:] == pytest.approx(1 / 30, abs=1e-3)


def test_notes_of_joining_are_printed(loud: Path, silent: Path, tmp_path: Path) -> None:
    done = vtok("cat", loud, silent, "-o", tmp_path / "b.vtok")
    assert "there is no sound in" in done.stderr
    (row,) = rows(vtok("cat", loud, silent, "-o", tmp_path / "c.vtok", "--json"))
    assert row["note"] == f"there is no sound in {silent}"
