"""Damaged code files: all damage is detected with bounded memory, and the rest is salvaged."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok.codefile.packing import Chunk
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import FOOTER_BYTES
from vtok.errors import CodeFileError

DATA = (Path(__file__).parent / "golden" / "v1.vtok").read_bytes()
READER = CodeFileReader(io.BytesIO(DATA))
CHUNKS = list(READER)
OFFSETS = [entry.offset for entry in READER.chunks]
TEXT_MODE = r"not a vtok code file \(or changed by a transfer in text mode: copy it again\)$"
FOOTER = len(DATA) - FOOTER_BYTES - 24 * len(CHUNKS)


class Pipe(io.BytesIO):
    """A stream without seek."""

    def seekable(self) -> bool:
        return False


def same(first: Chunk, second: Chunk) -> bool:
    return (
        first.first_frame == second.first_frame
        and first.num_frames == second.num_frames
        and np.array_equal(first.codes, second.codes)
    )


def read(data: bytes, stream: type[io.BytesIO] = io.BytesIO, salvage: bool = False) -> list[Chunk]:
    return list(CodeFileReader(stream(data), name="a.vtok", salvage=salvage))


@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_salvage_of_an_intact_file(stream: type[io.BytesIO]) -> None:
    reader = CodeFileReader(stream(DATA), salvage=True)
    assert all(map(same, reader, CHUNKS))
    assert reader.complete
    assert reader.lost is None
    READER.verify()


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_every_changed_byte_is_detected(mask: int, stream: type[io.BytesIO]) -> None:
    for place in range(len(DATA)):
        data = bytearray(DATA)
        data[place] ^= mask
        with pytest.raises(CodeFileError, match=r"^a\.vtok: ."):
            read(bytes(data), stream)
        with pytest.raises(CodeFileError, match=r"^a\.vtok: ."):
            CodeFileReader(stream(data), name="a.vtok").verify()


def test_changed_bytes_never_give_wrong_chunks() -> None:
    """Reads by index and salvage check less than a full read."""
    for place in range(OFFSETS[0], len(DATA)):
        data = bytearray(DATA)
        data[place] ^= 0x10
        reader = CodeFileReader(io.BytesIO(data), salvage=True)
        saved = list(reader)
        assert not reader.complete
        assert reader.lost
        damaged = sum(place >= offset for offset in [*OFFSETS[1:], FOOTER])
        expected = [chunk.codes for number, chunk in enumerate(CHUNKS) if number != damaged]
        assert len(saved) == len(expected)
        assert all(map(np.array_equal, [chunk.codes for chunk in saved], expected))
        for index in range(len(reader.chunks)):
            try:
                chunk = reader.read_chunk(index)
            except CodeFileError:
                continue
            assert same(chunk, CHUNKS[index])


@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_every_cut_is_detected_and_chunks_before_it_are_salvaged(stream: type[io.BytesIO]) -> None:
    for length in range(len(DATA)):
        if length < OFFSETS[0]:
            with pytest.raises(CodeFileError, match=r"a.vtok: (not a vtok code file|cut|the file)"):
                read(DATA[:length], stream, salvage=True)
            continue
        count = sum(length >= end for end in [*OFFSETS[1:], FOOTER])
        message = f"complete before that: {count} chunk" if count else "no chunk before that is"
        with pytest.raises(CodeFileError, match=message):
            read(DATA[:length], stream)
        reader = CodeFileReader(stream(DATA[:length]), salvage=True)
        saved = list(reader)
        assert len(saved) == count
        assert all(map(same, saved, CHUNKS))
        assert not reader.complete
        assert reader.lost
        assert reader.num_frames == sum(chunk.num_frames for chunk in saved)


def test_message_for_a_cut_file() -> None:
    with pytest.raises(
        CodeFileError,
        match=r"^a\.vtok: no index at its end: it was cut or is not finished; complete before "
        r"that: 2 chunks, 13 frames; salvage reads the complete part$",
    ):
        read(DATA[: OFFSETS[2]])


@pytest.mark.parametrize("length", [OFFSETS[2], OFFSETS[2] + 60, len(DATA) - 1])
def test_scan_builds_the_index_of_a_cut_file(length: int) -> None:
    whole = 3 if length > FOOTER else 2
    reader = CodeFileReader(io.BytesIO(DATA[:length]), salvage=True)
    assert reader.chunks == READER.chunks[:whole]
    assert reader.num_frames == (16 if whole == 3 else 13)
    assert same(reader.read_chunk(1), CHUNKS[1])
    strict = CodeFileReader(io.BytesIO(DATA[:length]))
    with pytest.raises(CodeFileError, match=f"complete before that: {whole} chunks"):
        _ = strict.num_frames
    with pytest.raises(CodeFileError, match="; salvage reads the complete part"):
        strict.read_chunk(0)


def test_chunks_around_damage_are_read_by_index() -> None:
    data = bytearray(DATA)
    data[OFFSETS[2] - 1] ^= 1
    reader = CodeFileReader(io.BytesIO(data), name="a.vtok")
    assert same(reader.read_chunk(2), CHUNKS[2])
    with pytest.raises(CodeFileError, match=r"^a\.vtok: chunk 1 is damaged: stage 3 at frame 5"):
        reader.read_chunk(1)


@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_exchanged_codes_with_valid_crcs_are_detected(stream: type[io.BytesIO]) -> None:
    """The SHA-256 is the only check that fails."""
    start = OFFSETS[1]
    data = bytearray(DATA)
    parts = start + 25 + 27
    data[parts] ^= 1
    crc = zlib.crc32(data[parts : parts + 54])
    data = bytearray(resealed(patched(bytes(data), start + 26, "<I", crc), start, parts - 4))
    with pytest.raises(CodeFileError, match="the bytes do not match their SHA-256"):
        read(bytes(data), stream)
    reader = CodeFileReader(stream(data), salvage=True)
    assert len(list(reader)) == 3
    assert not reader.complete
    assert reader.lost == "the bytes do not match their SHA-256"


def test_verify_locates_the_damage() -> None:
    data = bytearray(DATA)
    data[OFFSETS[2] - 1] ^= 1
    reader = CodeFileReader(io.BytesIO(data), salvage=True)
    with pytest.raises(CodeFileError, match=r"match their CRC; complete before that: 1 chunk, 5 f"):
        reader.verify()


def test_salvage_keeps_an_intact_index() -> None:
    data = bytearray(DATA)
    data[OFFSETS[1] + 60] ^= 1
    reader = CodeFileReader(io.BytesIO(data), salvage=True)
    assert reader.chunks == READER.chunks
    assert len(list(reader)) == 2
    assert reader.lost == "stage 1 at frame 5 does not match its CRC"
    assert same(reader.read_chunk(2), CHUNKS[2])


def test_bytes_after_the_end_are_detected() -> None:
    for data in (DATA + b"\0", DATA + DATA):
        for stream in (io.BytesIO, Pipe):
            with pytest.raises(CodeFileError, match="more bytes after its end"):
                read(data, stream)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"not a vtok code file \(empty\)$"),
        (b"{}", "not a vtok code file$"),
        (bytes(8) + b'{"latents": 1}', "not a vtok code file, but safetensors, which only info"),
        (b"just a text file\n" * 100, "not a vtok code file$"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a vtok code file$"),
        (bytes(1000), "not a vtok code file$"),
        (DATA.replace(b"\r\n", b"\n"), TEXT_MODE),
        (DATA.replace(b"\n", b"\r\n"), TEXT_MODE),
        (bytes(byte & 0x7F for byte in DATA), TEXT_MODE),
        (DATA.decode("utf-8", "replace").encode(), TEXT_MODE),
        (DATA[:12], "cut inside its header"),
        (DATA[:100], "cut inside its header"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    for stream in (io.BytesIO, Pipe):
        with pytest.raises(CodeFileError, match=r"^a\.vtok: " + message):
            read(data, stream)


def peak_of_reading(stream: BinaryIO) -> tuple[int, list[Chunk]]:
    """Peak memory of reading a file, and its chunks (none if it is refused)."""
    chunks: list[Chunk] = []
    tracemalloc.start()
    try:
        chunks.extend(CodeFileReader(stream))
    except CodeFileError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, chunks


def resealed(data: bytes, start: int, end: int) -> bytes:
    """Recompute the CRC after a record."""
    return data[:end] + struct.pack("<I", zlib.crc32(data[start:end])) + data[end + 4 :]


def patched(data: bytes, place: int, form: str, value: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(form, out, place, value)
    return bytes(out)


HEAD_FIELDS = [(4, "<B"), (5, "<Q"), (13, "<I"), (17, "<I"), (22, "<I"), (40, "<I")]
HUGE = [0, 1, 127, 255, 65535, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize(("field", "form"), HEAD_FIELDS)
@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("stream", [io.BytesIO, Pipe])
def test_wrong_chunk_head_is_refused_before_allocation(
    field: int, form: str, value: int, stream: type[io.BytesIO]
) -> None:
    value %= 256 ** struct.calcsize(form)
    place = OFFSETS[1]
    data = patched(DATA, place + field, form, value)
    if field != 4:
        data = resealed(data, place, place + 21 + 27)
    peak, chunks = peak_of_reading(stream(data))
    if data == DATA:
        return
    assert len(chunks) == 1
    assert peak < 200_000
    with pytest.raises(CodeFileError, match="complete before that: 1 chunk, 5 frames"):
        read(data, stream)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(0, 54)] * 2, "2 stages at frame 5, the header says 3"),
        ([(0, 54)] * 4, "4 stages at frame 5, the header says 3"),
        ([(0, 54), (0, 53), (0, 54)], "a stage of 53 bytes, not 54, at frame 5"),
        ([(0, 54), (0, 54), (9, 55)], "a stage of 55 bytes, not 54, at frame 5"),
    ],
)
def test_stages_unlike_the_header_are_refused(parts: list[tuple[int, int]], message: str) -> None:
    head = struct.pack("<4sBQII", b"CODE", len(parts), 5, 8, 2)
    head += b"".join(struct.pack("<BII", *part, zlib.crc32(bytes(part[1]))) for part in parts)
    head += struct.pack("<I", zlib.crc32(head)) + bytes(sum(length for _, length in parts))
    data = DATA[: OFFSETS[1]] + head
    for stream in (io.BytesIO, Pipe):
        with pytest.raises(CodeFileError, match=message):
            read(data, stream)
    with pytest.raises(CodeFileError, match=message):  # under the index of the good file
        CodeFileReader(io.BytesIO(data.ljust(FOOTER, b"\0") + DATA[FOOTER:])).read_chunk(1)


@pytest.mark.parametrize(("field", "form"), [(4, "<I"), (8, "<Q"), (16, "<Q"), (24, "<Q")])
@pytest.mark.parametrize("value", HUGE)
def test_wrong_index_is_refused(field: int, form: str, value: int) -> None:
    value %= 256 ** struct.calcsize(form)
    data = patched(DATA, FOOTER + field, form, value)
    if data == DATA:
        return
    data = resealed(data, FOOTER, len(DATA) - 20)
    message = f"lists {value} chunks" if field == 4 and value > 3 else "index|record"
    for stream in (io.BytesIO, Pipe):
        peak, chunks = peak_of_reading(stream(data))
        assert len(chunks) == 3
        assert peak < 200_000
        with pytest.raises(CodeFileError, match=message):
            read(data, stream)
    reader = CodeFileReader(io.BytesIO(data))
    with pytest.raises(CodeFileError, match=r"index|record|chunk 0"):
        reader.read_chunk(0)


@pytest.mark.parametrize("value", [*HUGE, FOOTER_BYTES, FOOTER_BYTES + 24, len(DATA)])
def test_wrong_footer_length_is_refused(value: int) -> None:
    data = patched(DATA, len(DATA) - 16, "<Q", value)
    with pytest.raises(CodeFileError, match="the last 16 bytes are wrong"):
        read(data)
    with pytest.raises(CodeFileError, match="complete before that: 3 chunks, 16 frames"):
        _ = CodeFileReader(io.BytesIO(data)).num_frames


def test_misplaced_index_is_refused() -> None:
    tail = struct.pack("<Q8s", FOOTER_BYTES, b"\x89VEND\r\n\n")
    with pytest.raises(CodeFileError, match="does not begin where the last bytes say"):
        _ = CodeFileReader(io.BytesIO(DATA[:-16] + tail)).chunks
    tail = struct.pack("<Q8s", len(DATA) - FOOTER + 48, b"\x89VEND\r\n\n")
    with pytest.raises(CodeFileError, match="does not end where the file does"):
        _ = CodeFileReader(io.BytesIO(DATA + bytes(32) + tail)).chunks


@pytest.mark.parametrize("value", [1, 2**20, 2**20 + 1, 2**31, 2**32 - 1])
def test_wrong_header_length_is_refused_before_allocation(value: int) -> None:
    data = patched(DATA, 12, "<I", value)
    peak, chunks = peak_of_reading(Pipe(data))
    assert not chunks
    assert peak < 200_000
    with pytest.raises(CodeFileError, match="header" if value <= 2**20 else "the limit is 1048576"):
        read(data)


def test_huge_grid_in_the_header_allocates_nothing() -> None:
    """The header allows chunks of 2**28 codes; memory follows the bytes that are read."""
    old = DATA[16 : OFFSETS[0] - 4]
    new = old
    for before, after in [
        (b'"chunk_steps":2', b'"chunk_steps":7'),
        (b'"grid":[3,4]', b'"grid":[2500,2500]'),
        (b'"height":20,', b'"height":20000,'),
        (b'"width":30}', b'"width":20000}'),
    ]:
        assert before in new
        new = new.replace(before, after)
    start = DATA[:12] + struct.pack("<I", len(new)) + new
    start += struct.pack("<I", zlib.crc32(start))
    length = -(-2 * 7 * 2500 * 2500 * 9 // 8)
    head = struct.pack("<4sBQII", b"CODE", 3, 0, 25, 7) + struct.pack("<BII", 0, length, 0) * 3
    head += struct.pack("<I", zlib.crc32(head))
    for stream in (io.BytesIO, Pipe):
        peak, chunks = peak_of_reading(stream(start + head + bytes(100)))
        assert not chunks
        assert peak < 300_000
        with pytest.raises(CodeFileError, match="in the middle of a record"):
            read(start + head + bytes(100), stream)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "repeat", "swap"]),
        st.integers(0, len(DATA)),
        st.integers(0, 60),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def edit(data: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, place, length, piece in edits:
        end = place + length
        if kind == "set":
            data = data[:place] + piece + data[place + len(piece) :]
        elif kind == "insert":
            data = data[:place] + piece + data[place:]
        elif kind == "delete":
            data = data[:place] + data[end:]
        elif kind == "repeat":
            data = data[:end] + data[place:]
        else:
            data = data[:place] + data[end : end + length] + data[place:end] + data[end + length :]
    return data


@settings(deadline=None, max_examples=400)
@given(EDITS, st.booleans(), st.booleans())
def test_edited_bytes_give_correct_codes_or_a_named_error(
    edits: list[tuple[str, int, int, bytes]], pipe: bool, salvage: bool
) -> None:
    data = edit(DATA, edits)
    stream = Pipe(data) if pipe else io.BytesIO(data)
    chunks: list[Chunk] = []
    message = ""
    tracemalloc.start()
    try:
        reader = CodeFileReader(stream, salvage=salvage)
        chunks.extend(reader)
        if not pipe:
            chunks[: len(reader.chunks)] = map(reader.read_chunk, range(len(reader.chunks)))
    except CodeFileError as error:
        message = str(error)
    else:
        assert salvage or data == DATA
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in message
    assert peak < 300_000
    expected = iter(CHUNKS)  # all of them, or some that are in this order
    for chunk in chunks:
        assert any(np.array_equal(chunk.codes, other.codes) for other in expected)
