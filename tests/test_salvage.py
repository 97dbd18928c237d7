"""Salvage: undamaged chunks are read, also after the damage, and lost frames are reported."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from codefiles import all_frames, load_tiny, random_file
from commands import rows, vtok

from vtok.codefile.index import find_heads
from vtok.codefile.packing import Chunk
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import ByteSource
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.edit import join_files

FRAMES = 29 + 32 + 32 + 32 + 7  # of chunks with 8 steps, and one with 2
STARTS = (0, 29, 61, 93, 125, 132)
Damage = Callable[[bytearray, int, int], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedTokenizer:
    return load_tiny(folder)


@pytest.fixture(scope="module")
def data(model: LoadedTokenizer) -> bytes:
    return random_file(model, FRAMES)


def flip_codes(data: bytearray, start: int, end: int) -> None:
    data[end - 9] ^= 4


def flip_head(data: bytearray, start: int, end: int) -> None:
    data[start + 6] ^= 4


def flip_type(data: bytearray, start: int, end: int) -> None:
    data[start] ^= 4


def delete(data: bytearray, start: int, end: int) -> None:
    del data[start + 70 : start + 90]


def insert(data: bytearray, start: int, end: int) -> None:
    data[start + 70 : start + 70] = b"CODE" * 9


def salvage(data: bytes) -> tuple[CodeFileReader, list[Chunk]]:
    reader = CodeFileReader(io.BytesIO(data), salvage=True)
    return reader, list(reader)


def bounds_of(data: bytes) -> list[int]:
    reader = CodeFileReader(io.BytesIO(data))
    return [entry.offset for entry in reader.chunks] + [len(data) - 68 - 24 * len(reader.chunks)]


@pytest.mark.parametrize("harm", [flip_codes, flip_head, flip_type, delete, insert])
@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("cut", [False, True])
def test_undamaged_chunks_are_read(data: bytes, harm: Damage, number: int, cut: bool) -> None:
    bounds, damaged = bounds_of(data), bytearray(data)
    if cut:
        del damaged[bounds[-1] + 9 :]
    harm(damaged, bounds[number], bounds[number + 1])
    reader, chunks = salvage(bytes(damaged))
    expected = list(CodeFileReader(io.BytesIO(data)))
    del expected[number]
    assert [chunk.first_frame for chunk in chunks] == [chunk.first_frame for chunk in expected]
    for chunk, other in zip(chunks, expected, strict=True):
        assert np.array_equal(chunk.codes, other.codes)
        assert (chunk.num_frames, chunk.opens) == (other.num_frames, other.opens)
    assert reader.lost
    assert not reader.complete
    assert reader.gaps == ([(STARTS[number], STARTS[number + 1])] if number < 4 else [])


def test_missing_first_chunk(data: bytes) -> None:
    bounds, damaged = bounds_of(data), bytearray(data)
    flip_codes(damaged, bounds[0], bounds[1])
    flip_codes(damaged, bounds[1], bounds[2])
    reader, chunks = salvage(bytes(damaged))
    assert [(c.first_frame, c.num_frames, c.opens) for c in chunks] == [
        (64, 29, 0),
        (93, 32, None),
        (125, 7, None),
    ]
    assert reader.gaps == [(0, 29), (29, 61), (61, 64)]


def test_segments_after_damage_are_found(folder: Path, model: LoadedTokenizer, data: bytes) -> None:
    (folder / "one.vtok").write_bytes(data)
    join_files([str(folder / "one.vtok")] * 2, folder / "two.vtok")
    two = (folder / "two.vtok").read_bytes()
    offsets = [entry.offset for entry in CodeFileReader(io.BytesIO(two)).chunks]
    damaged = bytearray(two)
    flip_head(damaged, offsets[4], 0)  # the last one before the second segment
    reader, chunks = salvage(bytes(damaged))
    assert [chunk.opens for chunk in chunks] == [0, None, None, None, 0, None, None, None, None]
    assert reader.gaps == [(125, 132)]
    shown = all_frames(data, model)
    assert np.array_equal(all_frames(two, model)[132:], shown)


def test_pipe_ends_at_damage(data: bytes) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    damaged = bytearray(data)
    flip_codes(damaged, *bounds_of(data)[1:3])
    reader = CodeFileReader(Pipe(bytes(damaged)), salvage=True)
    assert [chunk.first_frame for chunk in reader] == [0]
    assert reader.lost


def test_many_false_heads_are_fast(data: bytes) -> None:
    hostile = data[: bounds_of(data)[0]] + b"CODE" * 200_000
    assert salvage(hostile)[1] == []
    assert len(list(find_heads(ByteSource(io.BytesIO(data)), 0))) == 5


def test_command_reports_lost_frames(
    folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    bounds, damaged = bounds_of(data), bytearray(data)
    flip_codes(damaged, bounds[1], bounds[2])
    flip_head(damaged, bounds[4], bounds[5])
    Path("bad.vtok").write_bytes(damaged)
    arguments = ["decode", "bad.vtok", "-o", "bad.mkv", "--salvage", "--overwrite"]
    arguments += ["--model", "fast.safetensors"]
    result = vtok(*arguments)
    assert "; 93 frames were saved, 39 lost (29 to 60, 125 to 131)\n" in result.stderr
    (row,) = rows(vtok(*arguments, "--json"))
    assert (row["frames"], row["lost_frames"]) == (93, 39)
    assert row["gaps"] == [[29, 61], [125, 132]]
    # frames 38 to 74, of chunks 1 and 2: the decoder starts with the latter
    (row,) = rows(vtok(*arguments, "--json", "--start", 1.5, "--duration", 1.5))
    assert (row["frames"], row["lost_frames"], row["gaps"]) == (11, 26, [[38, 64]])
