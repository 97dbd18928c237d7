"""Read a .vtok file with numpy alone: no model, no torch, no vtok.

    python examples/read_vtok.py clip.vtok

Written from docs/format.md, as a template for readers in other languages. The decoder of
entropy-coded parts is in read_coder.py, short rather than fast. Checks every CRC, the index and the
SHA-256; trusts the lengths in the file.
"""

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from read_coder import decode_modelled

MAGIC, TRAILER = b"\x89VTOK\r\n\n", b"\x89VEND\r\n\n"
DIGEST_BYTES, CRC_BYTES = 32, 4


@dataclass
class Chunk:
    """Codes of consecutive frames.

    Attributes:
        first_frame, num_frames: frames that the chunk shows.
        codes: integers [stages, codebooks, t, h, w].
        opens: for the first chunk of a segment, frames to drop at its start; None for others.
    """

    first_frame: int
    num_frames: int
    codes: npt.NDArray[np.int64]
    opens: int | None


def take(data: bytes, place: int, form: str) -> tuple[Any, ...]:
    """Unpack the fields of `form`, little-endian, at `place`."""
    return struct.unpack_from("<" + form, data, place)


def check(good: bool, what: str) -> None:
    """Raise `ValueError` if a check failed."""
    if not good:
        raise ValueError(what)


def read_header(data: bytes) -> tuple[dict[str, Any], int]:
    """Read the header; return it and the offset of the first record."""
    magic, major, _, length = take(data, 0, "8sHHI")
    check(magic == MAGIC, "not a vtok code file")
    check(major == 1, f"of format version {major}")
    end = 16 + length
    check(take(data, end, "I") == (zlib.crc32(data[:end]),), "the header does not match its CRC")
    return json.loads(data[16:end]), end + CRC_BYTES


def unpack(data: bytes, bits: int, count: int) -> npt.NDArray[np.int64]:
    """Decode coder 0: code i begins at bit i * bits, lowest bit first."""
    check(len(data) == -(-bits * count // 8), "a part does not have the length of its codes")
    flat = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: bits * count]
    weights = np.left_shift(1, np.arange(bits, dtype=np.int64))
    return flat.reshape(count, bits).astype(np.int64) @ weights


def decode_parts(parts: list[tuple[int, bytes]], header: dict[str, Any], steps: int) -> Any:
    """Decode the codes of a chunk, [stages, codebooks, t, h, w]."""
    form = header["format"]
    bits = form["codebook_size"].bit_length() - 1
    shape = (form["num_codebooks"], steps, *form["grid"])
    stages: list[npt.NDArray[np.int64]] = []
    for coder, data in parts:
        check(coder in (0, 2), f"coded by coder {coder}, which this reader does not know")
        if coder == 2:
            stages.append(decode_modelled(data, shape, bits, stages))
        else:
            stages.append(unpack(data, bits, int(np.prod(shape))).reshape(shape))
    return np.stack(stages)


def read_chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a complete file; check the index and the SHA-256 at its end."""
    header, place = read_header(data)
    rows, opens = b"", 0
    fresh = True  # the next chunk begins a segment, as the first one always does
    while (kind := data[place : place + 4]) != b"FOOT":
        start = place
        count, first, frames, steps = take(data, place + 4, "BQII")
        table = [take(data, place + 21 + 9 * i, "BII") for i in range(count)]
        place += 21 + 9 * count
        check(
            take(data, place, "I") == (zlib.crc32(data[start:place]),),
            f"the head at {start} does not match its CRC",
        )
        place += CRC_BYTES
        parts = []
        for coder, length, crc in table:
            parts.append((coder, data[place : place + length]))
            check(zlib.crc32(parts[-1][1]) == crc, f"a part at {place} does not match its CRC")
            place += length
        if kind == b"SEGM":
            opens, fresh = frames, True
        elif kind == b"CODE":
            codes = decode_parts(parts, header, steps)
            yield Chunk(first, frames, codes, opens if fresh else None)
            fresh = False
        else:
            check(kind[:1].islower(), f"a chunk of type {kind!r}, which this reader does not know")
            continue  # optional chunks are not in the index
        rows += struct.pack("<QQII", start, first, frames, steps)
    check_footer(data, place, rows)


def check_footer(data: bytes, place: int, rows: bytes) -> None:
    """Check that the footer lists all records and matches the bytes before it."""
    _, count, _ = take(data, place, "4sIQ")
    end = place + 16 + 24 * count
    check(data[place + 16 : end] == rows, "the index does not match the chunks")
    digest = hashlib.sha256(data[:place]).digest()
    check(data[end : end + DIGEST_BYTES] == digest, "the bytes do not match their SHA-256")
    end += DIGEST_BYTES
    crc = zlib.crc32(data[place:end])
    tail = struct.pack("<IQ8s", crc, 68 + 24 * count, TRAILER)
    check(data[end:] == tail, "the last bytes are wrong")


def main() -> None:
    path = Path(sys.argv[1])
    data = path.read_bytes()
    shape = read_header(data)[0]["transform"]
    print(f"{path}: {shape['width']}x{shape['height']}, {shape['fps'][0]}/{shape['fps'][1]} fps")
    for chunk in read_chunks(data):
        where = f"frames {chunk.first_frame} to {chunk.first_frame + chunk.num_frames - 1}"
        opens = "" if chunk.opens is None else f", a segment that drops {chunk.opens} frames"
        print(f"{where}: codes {list(chunk.codes.shape)}, the first {chunk.codes.flat[0]}{opens}")


if __name__ == "__main__":
    main()
