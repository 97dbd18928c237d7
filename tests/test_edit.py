"""cut and cat: chunks are copied, and decode to the frames of the sources."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codefiles import all_frames, load_tiny, random_file
from commands import rows, vtok
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok.codefile.edit import fit_stages
from vtok.codefile.reader import CodeFileReader
from vtok.errors import CodeFileError, UsageError
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.edit import cut_file, join_files
from vtok.pipeline.options import CutOptions


class Pipe(io.RawIOBase):
    """A stream without seek that returns up to 97 bytes per read."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._inner.read(min(97, len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)


def cut(data: bytes, **options: Any) -> bytes:
    out = io.BytesIO()
    result = cut_file(io.BytesIO(data), out, options=CutOptions(**options))
    assert result.bytes == len(out.getvalue())
    reader = CodeFileReader(io.BytesIO(out.getvalue()))
    reader.verify()
    assert result.frames == reader.num_frames
    return out.getvalue()


def join(*parts: bytes) -> bytes:
    out = io.BytesIO()
    join_files([Pipe(part) for part in parts], out)
    CodeFileReader(io.BytesIO(out.getvalue())).verify()
    return out.getvalue()


def read(data: bytes) -> CodeFileReader:
    return CodeFileReader(io.BytesIO(data))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 129), st.integers(1, 130))
def test_cut_decodes_to_part_of_whole(
    model: LoadedTokenizer, data: bytes, whole: np.ndarray, first: int, count: int
) -> None:
    part = cut(data, start_seconds=first / 25, duration_seconds=count / 25)
    np.testing.assert_array_equal(all_frames(part, model), whole[first : first + count])


def test_cut_of_cut(model: LoadedTokenizer, data: bytes, whole: np.ndarray) -> None:
    part = cut(data, start_seconds=1.6, duration_seconds=2.4)  # frames 40 to 99
    again = cut(part, start_seconds=1, duration_seconds=0.8)  # 65 to 84
    np.testing.assert_array_equal(all_frames(again, model), whole[65:85])
    header = read(again).header
    assert (header.transform.start, header.transform.duration) == (Fraction(13, 5), Fraction(4, 5))
    assert len(again) < len(part) < len(data)
    assert read(again).version == (1, 1)


@pytest.fixture(scope="module", params=[None, [3, 1, 2]], ids=["1.0", "1.1"])
def long_chunks(request: pytest.FixtureRequest, model: LoadedTokenizer) -> bytes:
    """Return a code file of 300 frames in chunks of 32 latent steps, of all stages or of few."""
    return random_file(model, 300, stages=request.param, chunk_steps=32)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 299), st.integers(1, 300))
def test_cut_keeps_only_needed_steps_of_long_chunks(
    model: LoadedTokenizer, long_chunks: bytes, first: int, count: int
) -> None:
    part = cut(long_chunks, start_frame=first, num_frames=count)
    shown = all_frames(long_chunks, model)[first : first + count]
    np.testing.assert_array_equal(all_frames(part, model), shown)
    steps = sum(chunk.codes.shape[2] for chunk in read(part))
    lookback = read(part).header.format.decoder_lookback
    assert lookback is not None
    assert steps <= len(shown) // 4 + 2 + max(1, lookback) + 2 * 7
    least = len(cut(part, num_stages=1))
    assert len(cut(part, max_bytes=least)) == least
    assert len(cut(long_chunks, start_frame=first, num_frames=count, max_bytes=least)) <= least


def test_segments_in_between_are_copied(model: LoadedTokenizer, long_chunks: bytes) -> None:
    part = cut(long_chunks, start_frame=150, num_frames=40)
    joined = join(part, part, part)
    stored = [list(read(file).stored()) for file in (part, joined)]
    again = cut(joined, start_frame=1, num_frames=118)
    count = len(stored[0])
    middle = list(read(again).stored())[count:-count]
    assert [chunk.parts for chunk in middle] == [chunk.parts for chunk in stored[0]]
    assert [chunk.parts for chunk in stored[1]] == 3 * [chunk.parts for chunk in stored[0]]
    shown = all_frames(long_chunks, model)[150:190]
    np.testing.assert_array_equal(all_frames(again, model), np.concatenate([shown] * 3)[1:119])


def test_version_is_the_lowest_possible(data: bytes) -> None:
    for options in ({}, {"num_stages": 2}, {"duration_seconds": 29 / 25}, {"max_bytes": 10**6}):
        assert read(cut(data, **options)).version == (1, 0)
    assert cut(data) == data
    assert read(cut(data, duration_seconds=20 / 25)).version == (1, 1)


@pytest.mark.parametrize("stages", [1, 2])
def test_num_stages_keeps_the_first_stages(
    model: LoadedTokenizer, data: bytes, stages: int
) -> None:
    some = cut(data, num_stages=stages)
    for ours, theirs in zip(read(some), read(data), strict=True):
        np.testing.assert_array_equal(ours.codes, theirs.codes[:stages])
    assert some == cut(data, num_bits=6 * stages)
    assert cut(some) == some


def test_max_bytes(model: LoadedTokenizer, data: bytes) -> None:
    least = len(cut(data, num_stages=1))
    for most in (least, least + 300, len(cut(data, num_stages=2)) + 100, len(data) - 1, len(data)):
        small = cut(data, max_bytes=most)
        stages = [len(chunk.codes) for chunk in read(small)]
        assert len(small) <= most
        assert max(stages) - min(stages) <= 1
        assert read(small).header.format.num_stages == max(stages)
        for ours, theirs in zip(read(small), read(data), strict=True):
            np.testing.assert_array_equal(ours.codes, theirs.codes[: len(ours.codes)])
        assert len(all_frames(small, model)) == 130
    with pytest.raises(UsageError, match=f"^max_bytes=9: expected {least} or more"):
        cut(data, max_bytes=9)
    part = cut(data, max_bytes=least - 300, start_seconds=3)
    assert len(part) <= least - 300


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), min_size=1), st.data())
def test_fit_stages_uses_available_bytes(lengths: list[list[int]], draw: Any) -> None:
    least, most = sum(parts[0] for parts in lengths), sum(map(sum, lengths))
    room = draw.draw(st.integers(least, most))
    counts = fit_stages(lengths, room, room)
    used = sum(sum(parts[:count]) for parts, count in zip(lengths, counts, strict=True))
    assert used <= room
    missing = [parts[n] for parts, n in zip(lengths, counts, strict=True) if n < len(parts)]
    if missing:  # one step of the same round back would not have fitted
        assert used + max(missing) > room


def test_join_keeps_order(model: LoadedTokenizer, data: bytes) -> None:
    parts = [data, random_file(model, 31, seed=2), random_file(model, 1, seed=3)]
    both = join(*parts)
    np.testing.assert_array_equal(
        all_frames(both, model), np.concatenate([all_frames(part, model) for part in parts])
    )
    reader = read(both)
    assert (reader.num_frames, reader.index.num_segments) == (162, 3)
    assert len(reader.chunks) == 5 + 2 + 1
    assert [chunk.restart for chunk in reader] == [True, *[False] * 4, True, False, True]
    assert join(both) == both


def test_joined_cuts_equal_whole(model: LoadedTokenizer, data: bytes, whole: np.ndarray) -> None:
    first = cut(data, duration_seconds=2)
    second = cut(data, start_seconds=2, duration_seconds=1)
    third = cut(data, start_seconds=3)
    joined = join(first, second, third)
    np.testing.assert_array_equal(all_frames(joined, model), whole)
    middle = cut(joined, start_seconds=1.8, duration_seconds=1.6)  # across three segments
    np.testing.assert_array_equal(all_frames(middle, model), whole[45:85])
    assert read(middle).index.num_segments == 3


def test_join_of_different_stages(model: LoadedTokenizer, data: bytes) -> None:
    one = cut(data, num_stages=1)
    both = join(one, data)
    assert read(both).header.format.num_stages == 3
    assert {len(chunk.codes) for chunk in read(both)} == {1, 3}
    assert cut(both, num_stages=1) != both
    assert {len(chunk.codes) for chunk in read(cut(both, num_stages=2))} == {1, 2}


def test_join_refuses_different_files(tmp_path: Path, model: LoadedTokenizer, data: bytes) -> None:
    other = random_file(load_tiny(tmp_path, "classic"), 9)
    with pytest.raises(CodeFileError, match=r"^standard input: weights [0-9a-f]{12}, but standard"):
        join(data, other)


@pytest.fixture
def here(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.vtok").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cut_and_cat_commands(here: Path, data: bytes) -> None:
    (row,) = rows(vtok("cut", "a.vtok", "--start", 2, "--json"))
    assert (row["frames"], row["output"], row["status"]) == (80, "a.cut.vtok", "ok")
    assert row["bytes"] == (here / "a.cut.vtok").stat().st_size
    vtok("cut", "a.vtok", "-o", "b.vtok", "--duration", 2)
    result = vtok("cat", "b.vtok", "a.cut.vtok", "-o", "c.vtok")
    assert result.exit_code == 0
    assert result.stderr.startswith("b.vtok a.cut.vtok -> c.vtok: 130 frames 30x20, ")
    piped = vtok("cat", "b.vtok", "-", "-o", "-", data=(here / "a.cut.vtok").read_bytes())
    assert piped.stdout_bytes == (here / "c.vtok").read_bytes()
    piped = vtok("cut", "-", "--stages", 1, data=data)
    vtok("cut", "a.vtok", "-o", "d.vtok", "--stages", 1)
    assert piped.stdout_bytes == (here / "d.vtok").read_bytes()


BAD = {
    "cut a.vtok --stages 9": (2, "--stages 9: expected 1 to 3"),
    "cut a.vtok --start 99": (2, "--start 99: expected a time in the file (130 frames, 5.2 s)"),
    "cut a.vtok --max-bytes 0": (2, "--max-bytes 0: expected 1 or more"),
    "cut a.vtok --max-bytes 99": (2, "--max-bytes 99: expected "),
    "cut a.vtok -o a.vtok": (2, "a.vtok: is an input, it cannot be the output of a.vtok"),
    "cut nix.vtok": (5, "nix.vtok: no such file"),
    "cut text.vtok": (4, "text.vtok: not a vtok code file"),
    "cat a.vtok nix.vtok -o b.vtok": (5, "nix.vtok: no such file"),
    "cat a.vtok text.vtok -o b.vtok": (4, "text.vtok: not a vtok code file"),
    "cat a.vtok broken.vtok -o b.vtok": (4, "broken.vtok: stage 1 at frame 125 does not match"),
    "cat a.vtok a.vtok -o a.vtok --overwrite": (2, "a.vtok: is an input, it cannot be the output"),
    "cat a.vtok -o a.vtok": (2, "a.vtok: is an input, it cannot be the output"),
    "cat a.vtok a.vtok -o text.vtok": (1, "text.vtok: exists already"),
    "cat - - -o b.vtok": (2, "- reads standard input, which can be read only once"),
}


@pytest.mark.parametrize("arguments", BAD)
def test_errors_are_one_line_and_leave_no_files(here: Path, data: bytes, arguments: str) -> None:
    (here / "text.vtok").write_text("hello")
    broken = bytearray(data)
    broken[read(data).chunks[4].offset + 70] ^= 1
    broken[-300] ^= 1
    (here / "broken.vtok").write_bytes(broken)
    before = sorted(here.iterdir())
    code, message = BAD[arguments]
    result = vtok(*arguments.split())
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert sorted(here.iterdir()) == before
