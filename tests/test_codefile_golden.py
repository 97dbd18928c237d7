"""Golden files: read, written, and read by a second reader written from docs/format.md.

If one of these tests fails, the format has changed: files that people have would no longer read.
"""

import hashlib
import io
import json
import runpy
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vtok.codefile.reader import CodeFileReader
from vtok.codefile.writer import CodeFileWriter

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "make_golden.py"))
GOLDEN = SCRIPT["GOLDEN"]
SHA256 = "06499b04881d9f29cafc5d9682a1b1eaa12164ff664cbfab031fd49682cea3d4"


def test_golden_file_is_unchanged() -> None:
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == SHA256


def test_read() -> None:
    with GOLDEN.open("rb") as stream:
        reader = CodeFileReader(stream)
        assert reader.version == (1, 0)
        assert reader.header == SCRIPT["golden_header"]()
        for chunk, (codes, num_frames) in zip(reader, SCRIPT["golden_chunks"](), strict=True):
            assert chunk.num_frames == num_frames
            assert np.array_equal(chunk.codes, codes)
        assert reader.num_frames == 16
        reader.verify()


def test_write_gives_the_same_bytes() -> None:
    stream = io.BytesIO()
    with CodeFileWriter(stream, SCRIPT["golden_header"]()) as writer:
        for codes, num_frames in SCRIPT["golden_chunks"]():
            writer.write(codes, num_frames)
    assert stream.getvalue() == GOLDEN.read_bytes()


def second_reader(data: bytes) -> tuple[dict[str, Any], list[list[int]]]:
    """Read the header and the codes of each chunk as docs/format.md describes them."""
    magic, major, _, length = struct.unpack_from("<8sHHI", data)
    assert (magic, major) == (b"\x89VTOK\r\n\n", 1)
    place = 16 + length
    assert zlib.crc32(data[:place]) == int.from_bytes(data[place : place + 4], "little")
    header = json.loads(data[16:place])
    form = header["format"]
    bits = form["codebook_size"].bit_length() - 1
    place += 4
    index, chunks = [], []
    while data[place : place + 4] == b"CODE":
        count, first, frames, steps = struct.unpack_from("<BQII", data, place + 4)
        index.append((place, first, frames, steps))
        end = place + 21 + 9 * count
        parts = [struct.unpack_from("<BII", data, place + 21 + 9 * i) for i in range(count)]
        assert zlib.crc32(data[place:end]) == int.from_bytes(data[end : end + 4], "little")
        place = end + 4
        codes = []
        for coder, length, crc in parts:
            assert coder == 0
            assert zlib.crc32(data[place : place + length]) == crc
            number = int.from_bytes(data[place : place + length], "little")
            for _ in range(form["num_codebooks"] * steps * form["grid"][0] * form["grid"][1]):
                codes.append(number % 2**bits)
                number >>= bits
            assert number == 0
            place += length
        chunks.append(codes)
    kind, count, total = struct.unpack_from("<4sIQ", data, place)
    assert (kind, count, total) == (b"FOOT", len(index), sum(entry[2] for entry in index))
    end = place + 16 + 24 * count
    assert list(struct.iter_unpack("<QQII", data[place + 16 : end])) == index
    assert data[end : end + 32] == hashlib.sha256(data[:place]).digest()
    crc, length, trailer = struct.unpack("<IQ8s", data[end + 32 :])
    assert crc == zlib.crc32(data[place : end + 32])
    assert (length, trailer) == (len(data) - place, b"\x89VEND\r\n\n")
    return header, chunks


def test_independent_reader_gives_equal_codes() -> None:
    header, chunks = second_reader(GOLDEN.read_bytes())
    assert header["source"]["fps"] == [30000, 1001]
    assert header["metadata"] == {"caption": "a bee, 蜂", "id": "7"}
    expected = [codes.reshape(-1).tolist() for codes, _ in SCRIPT["golden_chunks"]()]
    assert chunks == expected


SEGMENTS = SCRIPT["GOLDEN_SEGMENTS"]


def test_golden_file_of_version_1_1_is_unchanged() -> None:
    digest = "26fd690a9092eb4cc57efda1285b2a6d06e2bb403032614fd3128c479336802a"
    assert hashlib.sha256(SEGMENTS.read_bytes()).hexdigest() == digest


def test_write_gives_the_same_bytes_in_version_1_1() -> None:
    stream = io.BytesIO()
    SCRIPT["write_segments"](stream)
    assert stream.getvalue() == SEGMENTS.read_bytes()


def test_read_version_1_1() -> None:
    with SEGMENTS.open("rb") as stream:
        reader = CodeFileReader(stream)
        assert reader.version == (1, 1)
        assert reader.header == SCRIPT["golden_header"]()
        first, opens = 0, [0, None, 7, None, None, 0]
        for chunk, row, drop in zip(reader, SCRIPT["SEGMENTS"], opens, strict=True):
            _, num_steps, num_frames, stages = row
            codes = SCRIPT["golden_codes"](first, (stages, 2, num_steps, 3, 4))
            np.testing.assert_array_equal(chunk.codes, codes)
            assert (chunk.num_frames, chunk.opens) == (num_frames, drop)
            first += codes.size
        assert reader.num_frames == 15
        reader.verify()
