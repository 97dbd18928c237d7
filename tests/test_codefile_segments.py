"""Format version 1.1: segments, chunks of fewer stages, and errors in both."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codefile_container import HEADER, make_rows, trickle
from test_codefile_damage import Pipe

from vtok.codefile.index import Index
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import SEGMENTED, Damage, IndexEntry, Order, Place
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import CodeFileError, ShapeError

LAYOUT = HEADER.format  # 4 frames a step, 2 steps a chunk, 3 stages
# drop at the start of a segment (None: no segment is opened), latent steps, frames, stages
PLAN = [
    (7, 2, 0, 3),  # covers 5 frames, all of them dropped
    (None, 2, 6, 1),  # covers 8, of which 2 are dropped
    (None, 2, 3, 2),  # covers 8: the segment shows no more
    (0, 1, 1, 3),
    (0, 2, 5, 2),
    (None, 1, 4, 3),
    (None, 2, 1, 1),
]
Plan = list[tuple[int | None, int, int, int]]


def codes(steps: int, stages: int, seed: int) -> np.ndarray:
    shape = (stages, LAYOUT.num_codebooks, steps, *LAYOUT.grid)
    return np.random.default_rng(seed).integers(0, LAYOUT.codebook_size, shape)


def write(plan: Plan = PLAN) -> bytes:
    stream = io.BytesIO()
    with CodeFileWriter(stream, HEADER, version=SEGMENTED) as writer:
        for seed, (drop, steps, frames, stages) in enumerate(plan):
            if drop is not None:
                writer.open_segment(drop)
            writer.write(codes(steps, stages, seed), frames)
    return stream.getvalue()


DATA = write()
READER = CodeFileReader(io.BytesIO(DATA))


def test_round_trip() -> None:
    for stream in (io.BytesIO(DATA), trickle(DATA)):
        reader = CodeFileReader(stream)
        assert reader.version == (1, 1)
        first = 0
        for seed, (chunk, (drop, steps, frames, stages)) in enumerate(
            zip(reader, PLAN, strict=True)
        ):
            np.testing.assert_array_equal(chunk.codes, codes(steps, stages, seed))
            assert (chunk.first_frame, chunk.num_frames) == (first, frames)
            assert chunk.restart == (drop is not None)
            assert chunk.skip == {0: 5, 1: 2}.get(seed, 0)
            first += frames
        assert reader.complete
        assert reader.num_frames == first == 20


def test_read_chunk_equals_iteration() -> None:
    for number, chunk in enumerate(CodeFileReader(io.BytesIO(DATA))):
        other = READER.read_chunk(number)
        np.testing.assert_array_equal(chunk.codes, other.codes)
        assert (chunk.restart, chunk.skip) == (other.restart, other.skip)
        assert READER.read_chunk(number).num_frames == chunk.num_frames
    assert READER.index.bounds.tolist() == [0, 0, 6, 9, 10, 15, 19, 20]
    assert READER.index.num_segments == 3
    assert READER.index.num_steps == 12


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_first_stages_alone(stages: int) -> None:
    for stream in (io.BytesIO(DATA), trickle(DATA)):
        reader = CodeFileReader(stream, stages=stages)
        assert [len(chunk.codes) for chunk in reader] == [min(p[3], stages) for p in PLAN]
        assert reader.complete


def test_copy_of_stored_chunks_is_identical() -> None:
    stream = io.BytesIO()
    with CodeFileWriter(stream, HEADER, version=SEGMENTED) as writer:
        for chunk in CodeFileReader(trickle(DATA)).stored():
            if chunk.opens is not None:
                writer.open_segment(chunk.opens)
            writer.write_parts(chunk.parts, chunk.num_steps, chunk.num_frames)
    assert stream.getvalue() == DATA


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([(7, 2, 1, 3)], r"chunk 0 has num_frames 1, but t = 2 covers 0\.\.0 here"),
        ([(4, 2, 2, 3)], r"chunk 0 has num_frames 2, but t = 2 covers 1\.\.1 here"),
        ([(0, 2, 0, 3)], r"chunk 0 has num_frames 0, but t = 2 covers 1\.\.5 here"),
        ([(0, 2, 4, 3), (None, 2, 8, 3)], "chunk 1 follows a chunk that is not full"),
        ([(0, 2, 5, 4)], r"codes are \[4, 2, 2, 2, 3\], the header says \[3, 2, t, 2, 3\]"),
        ([(0, 2, 5, 0)], r"codes are \[0, 2, 2, 2, 3\]"),
        ([(-1, 2, 5, 3)], "the segment before chunk 0 drops -1 frames, not 0..4294967295"),
        ([(2**32, 2, 5, 3)], "the segment before chunk 0 drops 4294967296 frames"),
    ],
)
def test_writer_refuses_chunks_that_do_not_fit(plan: Plan, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        write(plan)


def test_segments_need_version_1_1_and_a_chunk_each() -> None:
    writer = CodeFileWriter(io.BytesIO(), HEADER, version=SEGMENTED)
    writer.open_segment()
    with pytest.raises(ShapeError, match="the segment before chunk 0 opens a segment again"):
        writer.open_segment()
    plain = CodeFileWriter(io.BytesIO(), HEADER)
    with pytest.raises(ShapeError, match=r"before chunk 0 needs version 1\.1 of the format"):
        plain.open_segment()
    with pytest.raises(ShapeError, match=r"codes are \[2, 2, 2, 2, 3\], the header says \[3"):
        plain.write(codes(2, 2, 0), 5)
    parts = next(CodeFileReader(io.BytesIO(DATA)).stored()).parts
    with pytest.raises(ShapeError, match="2 stages, the header says 3"):
        plain.write_parts(parts[:2], 2, 5)


def test_version_1_0_refuses_segments_and_fewer_stages() -> None:
    """The same records after a header of version 1.0 are refused."""
    start = CodeFileWriter(out := io.BytesIO(), HEADER)
    del start
    plain = out.getvalue() + DATA[len(out.getvalue()) :]
    with pytest.raises(CodeFileError, match="a chunk of type 'SEGM', which this vtok does not kno"):
        list(CodeFileReader(trickle(plain)))
    with pytest.raises(CodeFileError, match="a chunk of type 'SEGM'"):
        _ = CodeFileReader(io.BytesIO(plain)).chunks
    fewer = write([(None, 2, 5, 2)])
    plain = out.getvalue() + fewer[len(out.getvalue()) :]
    with pytest.raises(CodeFileError, match="2 stages at frame 0, the header says 3"):
        list(CodeFileReader(trickle(plain)))


def same(chunk: Any, other: Any) -> bool:
    return (
        np.array_equal(chunk.codes, other.codes)
        and (chunk.first_frame, chunk.num_frames) == (other.first_frame, other.num_frames)
        and (chunk.restart, chunk.skip) == (other.restart, other.skip)
    )


CHUNKS = list(READER)


@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_every_changed_byte_is_detected(stream: type[io.BytesIO]) -> None:
    for place in range(len(DATA)):
        data = bytearray(DATA)
        data[place] ^= 1 << place % 8
        with pytest.raises(CodeFileError, match=r"^a\.vtok: ."):
            list(CodeFileReader(stream(data), name="a.vtok"))
        with pytest.raises(CodeFileError, match=r"^a\.vtok: ."):
            CodeFileReader(stream(data), name="a.vtok").verify()


@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_every_cut_is_detected_and_chunks_before_it_are_salvaged(stream: type[io.BytesIO]) -> None:
    ends = [entry.offset for entry in READER.chunks[1:]]
    ends[2:4] = [ends[2] - 25, ends[3] - 25]  # a segment is opened before these
    for length in range(READER.chunks[0].offset, len(DATA)):
        reader = CodeFileReader(stream(DATA[:length]), salvage=True)
        saved = list(reader)
        assert len(saved) == sum(length >= end for end in [*ends, DATA.rindex(b"FOOT")])
        assert all(map(same, saved, CHUNKS))
        assert reader.lost
        assert not reader.complete
        assert reader.num_frames == sum(chunk.num_frames for chunk in saved)
        for number, chunk in enumerate(saved if stream is io.BytesIO else []):
            assert same(reader.read_chunk(number), chunk)


def judge(order: Order, entry: IndexEntry, version: tuple[int, int]) -> Place | bool:
    """Add a row; return False if it is refused, the place of a chunk, or True for a segment."""
    opens = entry.num_steps == 0 and version == SEGMENTED
    if order.why_not_open(entry) if opens else order.why_not_next(entry):
        return False
    if opens:
        order.open(entry)
        return True
    place = order.place(entry)
    order.add(entry)
    return place


def full(order: Order, entry: IndexEntry) -> IndexEntry:
    """Return the row with the largest number of frames that is allowed, if any."""
    rows = (entry._replace(num_frames=frames) for frames in range(12, -1, -1))
    return next((row for row in rows if not order.why_not_next(row)), entry)


@settings(deadline=None, max_examples=300)
@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.booleans()), max_size=8),
    wrong=st.tuples(st.integers(0, 99), st.integers(0, 2), st.integers(-1, 1)),
    version=st.sampled_from([(1, 0), (1, 1)]),
)
def test_index_accepts_exactly_the_rows_in_order(
    steps: list[tuple[int, int, bool]], wrong: tuple[int, int, int], version: tuple[int, int]
) -> None:
    order, entries, places = Order(LAYOUT, version), [], []
    good = True
    for number, (held, frames, most) in enumerate(steps):
        entry = IndexEntry(10 * number, order.num_frames, frames, held)
        entry = full(order, entry) if most and held else entry
        if number == wrong[0]:
            values = list(entry)
            values[wrong[1]] = max(0, values[wrong[1]] + wrong[2] * (11 if wrong[1] == 0 else 1))
            entry = IndexEntry(*values)
        entries.append(entry)
        place = judge(order, entry, version) if good else False
        good = place is not False
        if isinstance(place, Place):
            places.append(place)
    table = make_rows(entries)
    if good:
        index = Index(LAYOUT, version, table)
        assert [index.place(number) for number in range(len(index))] == places
        assert index.num_frames == order.num_frames
    else:
        with pytest.raises(Damage, match="in the index, chunk"):
            Index(LAYOUT, version, table)
