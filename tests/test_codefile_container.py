"""Code file reader and writer: round trips on files and pipes, by chunk and by stage."""

import contextlib
import hashlib
import io
import os
import struct
import threading
import zlib
from dataclasses import replace
from fractions import Fraction
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok.codefile.header import CodeFormat, Header, ModelIdentity, SourceVideo, Transform
from vtok.codefile.packing import Chunk
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import (
    ROW,
    ChunkHead,
    Footer,
    IndexEntry,
    Part,
    Rows,
    preamble_to_bytes,
)
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import CodeFileError, OutputError, ShapeError, UsageError

Chunks = list[tuple[np.ndarray, int]]


class TrickleReader(io.RawIOBase):
    """A pipe that returns 1 to 7 bytes per read."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)
        self._turn = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._turn = self._turn % 7 + 1
        piece = self._inner.read(min(self._turn, len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)


class TrickleWriter:
    """A pipe that accepts at most 5 bytes per write, without seek and tell."""

    def __init__(self, room: int = 10**9) -> None:
        self.data = b""
        self._room = room

    def write(self, data: bytes) -> int:
        if len(self.data) >= self._room:
            raise OSError(28, "No space left on device")
        self.data += bytes(data[:5])
        return min(5, len(data))

    def flush(self) -> None:
        pass


def make_header(stages: int = 3, codebooks: int = 2, bits: int = 9, steps: int = 2) -> Header:
    return Header(
        format=CodeFormat(2**bits, codebooks, stages, 4, 8, (2, 3), steps, 5),
        model=ModelIdentity("test", "a" * 64, "b" * 64, "float32", "cpu"),
        source=SourceVideo(24, 16, Fraction(25)),
        transform=Transform(24, 16, Fraction(25)),
        writer="vtok test",
    )


def make_chunks(header: Header, steps: list[int], missing: int = 0) -> Chunks:
    """Random codes of chunks with these latent steps; the last one lacks `missing` frames."""
    layout = header.format
    rng = np.random.default_rng(sum(steps))
    chunks = []
    for index, count in enumerate(steps):
        frames = 4 * count - (3 if index == 0 else 0) - (missing if index == len(steps) - 1 else 0)
        shape = (layout.num_stages, layout.num_codebooks, count, *layout.grid)
        chunks.append((rng.integers(0, layout.codebook_size, shape), frames))
    return chunks


def write(header: Header, chunks: Chunks) -> bytes:
    stream = io.BytesIO()
    with CodeFileWriter(stream, header) as writer:
        for codes, num_frames in chunks:
            writer.write(codes, num_frames)
    return stream.getvalue()


def trickle(data: bytes) -> BinaryIO:
    return cast(BinaryIO, TrickleReader(data))


def assert_same(read: list[Chunk], chunks: Chunks, stages: int | None = None) -> None:
    assert [chunk.num_frames for chunk in read] == [frames for _, frames in chunks]
    first = 0
    for chunk, (codes, frames) in zip(read, chunks, strict=True):
        assert chunk.first_frame == first
        assert chunk.codes.dtype == np.int64
        assert np.array_equal(chunk.codes, codes[:stages])
        first += frames


HEADER = make_header()
CHUNKS = make_chunks(HEADER, [2, 1, 2, 1], missing=2)  # 5, 4, 8 and 2 frames
DATA = write(HEADER, CHUNKS)
OFFSETS = [entry.offset for entry in CodeFileReader(io.BytesIO(DATA)).chunks]


@settings(deadline=None, max_examples=60)
@given(
    stages=st.integers(1, 4),
    codebooks=st.integers(1, 3),
    bits=st.integers(1, 32),
    steps=st.lists(st.integers(1, 3), max_size=4),
    missing=st.integers(0, 3),
)
def test_round_trip(stages: int, codebooks: int, bits: int, steps: list[int], missing: int) -> None:
    header = make_header(stages, codebooks, bits, steps=3)
    chunks = make_chunks(header, steps, missing if len(steps) > 1 else 0)
    data = write(header, chunks)
    for stream in (io.BytesIO(data), trickle(data)):
        reader = CodeFileReader(stream)
        assert reader.header == header
        assert_same(list(reader), chunks)
        assert reader.complete
        assert reader.num_frames == sum(frames for _, frames in chunks)
        assert len(reader.chunks) == len(chunks)


def test_bytes_do_not_depend_on_the_stream() -> None:
    sink = TrickleWriter()
    with CodeFileWriter(cast(BinaryIO, sink), HEADER) as writer:
        for codes, num_frames in CHUNKS:
            writer.write(codes.astype(np.uint16), num_frames)
    assert sink.data == DATA


def test_overhead_is_small() -> None:
    codes = np.zeros((3, 2, 2, 2, 3), np.int64)
    empty, one = write(HEADER, []), write(HEADER, [(codes, 5)])
    packed = 3 * (-(-2 * 2 * 2 * 3 * 9 // 8))
    assert len(one) - len(empty) == packed + 25 + 3 * 9 + 24  # chunk head, stages, index entry


def test_pipe_delivers_each_chunk_when_written() -> None:
    read_end, write_end = os.pipe()
    seen, in_time = threading.Event(), list[bool]()

    def produce() -> None:
        with os.fdopen(write_end, "wb") as stream, CodeFileWriter(stream, HEADER) as writer:
            writer.write(*CHUNKS[0])
            in_time.append(seen.wait(30))  # the reader has it before the next is written
            for codes, num_frames in CHUNKS[1:]:
                writer.write(codes, num_frames)

    thread = threading.Thread(target=produce)
    thread.start()
    with os.fdopen(read_end, "rb", buffering=0) as stream:
        reader = CodeFileReader(stream)
        assert reader.num_frames is None
        read = []
        for chunk in reader:
            seen.set()
            read.append(chunk)
    thread.join()
    assert in_time == [True]
    assert_same(read, CHUNKS)
    assert reader.num_frames == 19


def test_pipe_is_read_once_and_in_order() -> None:
    reader = CodeFileReader(trickle(DATA), name="stdin")
    with pytest.raises(CodeFileError, match="stdin: the index of a pipe is known when"):
        _ = reader.chunks
    with pytest.raises(CodeFileError, match="stdin: a pipe cannot be read by chunk"):
        reader.read_chunk(0)
    list(reader)
    with pytest.raises(CodeFileError, match="stdin: a pipe can be read once only"):
        list(reader)


def test_index_is_known_before_reading_a_file() -> None:
    reader = CodeFileReader(io.BytesIO(DATA))
    assert reader.num_frames == 19
    assert [entry.first_frame for entry in reader.chunks] == [0, 5, 9, 17]
    assert [entry.num_steps for entry in reader.chunks] == [2, 1, 2, 1]


def test_read_chunk_during_iteration() -> None:
    reader = CodeFileReader(io.BytesIO(DATA))
    walk = iter(reader)
    read = [next(walk)]
    for index in (3, 0, 2, 1):
        assert np.array_equal(reader.read_chunk(index).codes, CHUNKS[index][0])
        assert reader.read_chunk(index).first_frame == reader.chunks[index].first_frame
    assert_same(read + list(walk), CHUNKS)
    assert reader.complete
    assert_same(list(reader), CHUNKS)  # a file can be read again
    for index in (-1, 4):
        with pytest.raises(CodeFileError, match=f"code file: no chunk {index}, it has 4"):
            reader.read_chunk(index)


def test_file_inside_a_stream() -> None:
    stream = io.BytesIO(b"before" + DATA)
    stream.seek(6)
    reader = CodeFileReader(stream)
    assert np.array_equal(reader.read_chunk(2).codes, CHUNKS[2][0])
    assert_same(list(reader), CHUNKS)


@pytest.mark.parametrize("stages", [1, 2, 3, None])
def test_first_stages_alone(stages: int | None) -> None:
    for stream in (io.BytesIO(DATA), trickle(DATA)):
        reader = CodeFileReader(stream, stages=stages)
        assert_same(list(reader), CHUNKS, stages)
        assert reader.complete
    codes = CodeFileReader(io.BytesIO(DATA), stages=stages).read_chunk(1).codes
    assert np.array_equal(codes, CHUNKS[1][0][:stages])


def test_stages_larger_than_read_pieces() -> None:
    """Stages are longer than `PIECE_BYTES`."""
    header = replace(
        make_header(2, 1, 32, 1),
        format=CodeFormat(2**32, 1, 2, 4, 8, (600, 700), 1, None),
        transform=Transform(5600, 4800, Fraction(25)),
    )
    chunks = make_chunks(header, [1, 1])
    data = write(header, chunks)
    for stages in (1, 2):
        for stream in (io.BytesIO(data), cast(BinaryIO, io.BufferedReader(TrickleReader(data)))):
            reader = CodeFileReader(stream, stages=stages)
            assert_same(list(reader), chunks, stages)
    CodeFileReader(io.BytesIO(data)).verify()


def test_bytes_read_excludes_skipped_stages() -> None:
    packed = sum(-(-codes[0].size * 9 // 8) for codes, _ in CHUNKS)  # of one stage
    for stream in (io.BytesIO(DATA), trickle(DATA)):
        reader = CodeFileReader(stream)
        assert reader.bytes_read == OFFSETS[0]
        for index, _ in enumerate(reader, start=1):
            assert reader.bytes_read == [*OFFSETS, len(DATA) - 68 - 24 * 4][index]
        assert reader.bytes_read == len(DATA)
    for stream in (io.BytesIO(DATA), trickle(DATA)):
        reader = CodeFileReader(stream, stages=1)
        list(reader)
        assert reader.bytes_read == len(DATA) - 2 * packed


@pytest.mark.parametrize("stages", [0, 4, -1])
def test_missing_stages_are_refused(stages: int) -> None:
    message = rf"code file: {stages} stages asked for, the file has 1\.\.3"
    with pytest.raises(UsageError, match=message):
        CodeFileReader(io.BytesIO(DATA), stages=stages)
    reader = CodeFileReader(io.BytesIO(DATA))
    with pytest.raises(UsageError, match=message):
        reader.limit_stages(stages)
    assert_same(list(reader), CHUNKS)


def test_stages_can_be_limited_after_reading_the_header() -> None:
    reader = CodeFileReader(trickle(DATA))
    reader.limit_stages(reader.header.format.num_stages - 1)
    assert_same(list(reader), CHUNKS, 2)


def test_fewer_stages_can_be_copied_without_decoding() -> None:
    """Write new heads and copy the parts; no code is unpacked."""
    whole = CodeFileReader(io.BytesIO(DATA))
    header = replace(whole.header, format=replace(whole.header.format, num_stages=1))
    out = io.BytesIO(preamble_to_bytes(header))
    out.seek(0, io.SEEK_END)
    index = []
    for entry in whole.chunks:
        data = io.BytesIO(DATA[entry.offset + 21 :])
        part = Part(*_unpack_part(data.read(9)))
        payload = DATA[entry.offset + 25 + 3 * 9 :][: part.length]
        index.append(entry._replace(offset=out.tell()))
        out.write(ChunkHead(b"CODE", *entry[1:], (part,)).to_bytes() + payload)
    _finish(out, index)
    assert out.getvalue() == write(header, [(codes[:1], frames) for codes, frames in CHUNKS])


def _unpack_part(data: bytes) -> tuple[int, int, int]:
    return data[0], int.from_bytes(data[1:5], "little"), int.from_bytes(data[5:9], "little")


def _finish(out: io.BytesIO, index: list[IndexEntry]) -> None:
    digest = hashlib.sha256(out.getvalue()).digest()
    out.write(Footer(make_rows(index), digest).to_bytes())


def make_rows(entries: list[IndexEntry]) -> Rows:
    return np.array([tuple(entry) for entry in entries], ROW)


def with_chunk_between(kind: bytes, payload: bytes) -> bytes:
    """The first chunk of codes, then one of another type, then the footer."""
    out = io.BytesIO()
    writer = CodeFileWriter(out, HEADER)
    offset = out.tell()
    writer.write(*CHUNKS[0])
    part = Part(0, len(payload), zlib.crc32(payload))
    out.write(ChunkHead(kind, 0, 0, 0, (part,)).to_bytes() + payload)
    _finish(out, [IndexEntry(offset, 0, 5, 2)])
    return out.getvalue()


@pytest.mark.parametrize("payload", [b"", b"x" * 1000])
def test_unknown_optional_chunks_are_skipped(payload: bytes) -> None:
    data = with_chunk_between(b"note", payload)
    for stream in (io.BytesIO(data), trickle(data)):
        reader = CodeFileReader(stream)
        assert_same(list(reader), CHUNKS[:1])
        assert reader.complete
    CodeFileReader(io.BytesIO(data)).verify()


def test_index_that_points_at_another_chunk_is_refused() -> None:
    data = with_chunk_between(b"note", b"")
    body = data[: data.rindex(b"FOOT")]
    out = io.BytesIO(body)
    out.seek(0, io.SEEK_END)
    _finish(out, [IndexEntry(body.rindex(b"note"), 0, 5, 2)])
    with pytest.raises(CodeFileError, match="chunk 0 is damaged: the index does not match it"):
        CodeFileReader(io.BytesIO(out.getvalue())).read_chunk(0)


@pytest.mark.parametrize("salvage", [False, True])
def test_unknown_critical_chunks_are_refused_by_name(salvage: bool) -> None:
    reader = CodeFileReader(io.BytesIO(with_chunk_between(b"NEXT", b"")), salvage=salvage)
    with pytest.raises(CodeFileError, match="type 'NEXT', which this vtok does not know: update"):
        list(reader)


def test_unknown_coder_is_refused_only_if_its_stage_is_read() -> None:
    data = bytearray(DATA)
    entry = CodeFileReader(io.BytesIO(DATA)).chunks[0]
    parts = [_unpack_part(DATA[entry.offset + 21 + 9 * i :][:9]) for i in range(3)]
    parts[2] = (7, *parts[2][1:])
    head = ChunkHead(b"CODE", *entry[1:], tuple(Part(*part) for part in parts)).to_bytes()
    data[entry.offset : entry.offset + len(head)] = head
    with pytest.raises(CodeFileError, match="coded by coder 7, which this vtok does not know"):
        next(iter(CodeFileReader(io.BytesIO(data))))
    chunk = next(iter(CodeFileReader(io.BytesIO(data), stages=2)))
    assert np.array_equal(chunk.codes, CHUNKS[0][0][:2])


def with_version(major: int, minor: int) -> bytes:
    preamble = preamble_to_bytes(HEADER, (major, minor))
    out = io.BytesIO(preamble)
    out.seek(0, io.SEEK_END)
    _finish(out, [])
    return out.getvalue()


def test_newer_minor_versions_are_read_and_newer_major_ones_refused() -> None:
    reader = CodeFileReader(io.BytesIO(with_version(1, 9)))
    assert reader.version == (1, 9)
    assert list(reader) == []
    with pytest.raises(CodeFileError, match=r"a.vtok: of format version 2.1, this vtok reads 1.x"):
        CodeFileReader(io.BytesIO(with_version(2, 1)), name="a.vtok")


def test_unknown_header_keys_are_read_from_a_newer_minor_version_only() -> None:
    text = HEADER.to_json()[:-1] + b',"zoom":1}'
    for minor in (0, 1, 2, 3):
        start = struct.pack("<8sHHI", b"\x89VTOK\r\n\n", 1, minor, len(text)) + text
        stream = io.BytesIO(start + struct.pack("<I", zlib.crc32(start)))
        if minor > 2:
            assert CodeFileReader(stream).header == HEADER
        else:
            with pytest.raises(CodeFileError, match=r"code file: header: .* unknown keys: \['zoom"):
                CodeFileReader(stream)


WRONG_CODES = [
    (np.zeros((2, 2, 2, 2, 3), int), 5, r"codes are \[2, 2, 2, 2, 3\], the header says \[3, 2, t,"),
    (np.zeros((3, 2, 2, 3, 2), int), 5, "the header says"),
    (np.zeros((2, 2, 3), int), 5, "the header says"),
    (np.zeros((3, 2, 2, 2, 3)), 5, "must be integers"),
    (np.full((3, 2, 2, 2, 3), 512), 5, r"but 9 bits hold 0\.\.511"),
    (np.full((3, 2, 2, 2, 3), -1), 5, r"but 9 bits hold 0\.\.511"),
    (np.zeros((3, 2, 3, 2, 3), int), 9, r"chunk 0 has t = 3, not 1\.\.2"),
    (np.zeros((3, 2, 0, 2, 3), int), 1, r"chunk 0 has t = 0, not 1\.\.2"),
    (np.zeros((3, 2, 2, 2, 3), int), 6, r"chunk 0 has num_frames 6, but t = 2 covers 2\.\.5"),
    (np.zeros((3, 2, 2, 2, 3), int), 1, r"chunk 0 has num_frames 1, but t = 2 covers 2\.\.5"),
    (np.zeros((3, 2, 1, 2, 3), int), 0, r"chunk 0 has num_frames 0, but t = 1 covers 1\.\.1"),
]


@pytest.mark.parametrize(("codes", "num_frames", "message"), WRONG_CODES)
def test_writer_remains_usable_after_refused_codes(
    codes: np.ndarray, num_frames: int, message: str
) -> None:
    stream = io.BytesIO()
    with CodeFileWriter(stream, HEADER) as writer:
        with pytest.raises(ShapeError, match=message):
            writer.write(codes, num_frames)
        for good, frames in CHUNKS:
            writer.write(good, frames)
    assert stream.getvalue() == DATA


def test_only_the_last_chunk_may_lack_frames() -> None:
    writer = CodeFileWriter(io.BytesIO(), HEADER)
    codes = np.zeros((3, 2, 2, 2, 3), int)
    writer.write(codes, 4)
    with pytest.raises(ShapeError, match="chunk 1 follows a chunk that is not full"):
        writer.write(codes, 8)


def test_no_footer_after_an_exception() -> None:
    stream = io.BytesIO()
    writer = CodeFileWriter(stream, HEADER)
    with contextlib.suppress(KeyError), writer:
        writer.write(*CHUNKS[0])
        raise KeyError("stop")
    assert DATA.startswith(stream.getvalue())
    with pytest.raises(
        CodeFileError, match="not finished; complete before that: 1 chunk, 5 frames"
    ):
        list(CodeFileReader(io.BytesIO(stream.getvalue())))


def test_no_footer_after_a_failed_write() -> None:
    sink = TrickleWriter(room=OFFSETS[2] + 40)
    writer = CodeFileWriter(cast(BinaryIO, sink), HEADER)
    writer.write(*CHUNKS[0])
    writer.write(*CHUNKS[1])
    with pytest.raises(OSError, match="No space left"):
        writer.write(*CHUNKS[2])
    size = len(sink.data)
    with pytest.raises(OutputError, match="a write to it failed"):
        writer.write(*CHUNKS[0])
    writer.close()
    assert len(sink.data) == size


@pytest.mark.parametrize("answer", [0, None])
def test_stream_that_accepts_nothing_does_not_hang(answer: int | None) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> Any:
            return answer

    with pytest.raises(OutputError, match="takes no more bytes"):
        CodeFileWriter(Full(), HEADER)


def test_close_writes_one_footer() -> None:
    stream = io.BytesIO()
    writer = CodeFileWriter(stream, HEADER)
    writer.close()
    writer.close()
    assert stream.getvalue() == write(HEADER, [])
    with pytest.raises(OutputError, match="the code file is closed"):
        writer.write(*CHUNKS[0])
