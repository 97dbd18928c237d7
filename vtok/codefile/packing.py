"""Packing of codes: integers of 1 to 32 bits laid end to end, lowest bit first.

Code i takes bits i * bits to (i + 1) * bits of the packed bytes, counted from the lowest bit of
the first byte, so the bytes are one little-endian number: the sum of code[i] << (i * bits). The
bits that fill up the last byte are zero.

9 bits:   byte 0            byte 1                              byte 2
          code 0, bits 0-7  code 0, bit 8; code 1, bits 0-6     code 1, bits 7-8; code 2, ...
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from vtok.errors import ShapeError

_BLOCK = 1 << 16  # codes packed at a time: a multiple of 8, so that a block ends on a whole byte


def packed_length(bits: int, count: int) -> int:
    """Number of bytes that `count` codes of `bits` bits take."""
    return -(-bits * count // 8)


def pack(codes: npt.NDArray[Any], bits: int) -> bytes:
    """Pack codes into bytes.

    Args:
        codes: integers `[N]`, each 0 <= code < 2 ** bits.
        bits: width of a code, 1..32.

    Returns:
        `packed_length(bits, N)` bytes.

    Raises:
        ShapeError: for other shapes, types, values or widths.
    """
    _check_bits(bits)
    if codes.ndim != 1 or codes.dtype.kind not in "iu":
        raise ShapeError(f"codes must be integers [N], not {codes.dtype} {list(codes.shape)}")
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >> bits):
        raise ShapeError(
            f"codes run from {codes.min()} to {codes.max()}, but {bits} bits hold 0..{2**bits - 1}"
        )
    blocks = [_pack_block(codes[i : i + _BLOCK], bits) for i in range(0, codes.size, _BLOCK)]
    return b"".join(blocks)


def unpack(data: bytes, bits: int, count: int) -> npt.NDArray[np.int64]:
    """Unpack what `pack` made.

    Args:
        data: `packed_length(bits, count)` bytes.
        bits: width of a code, 1..32.
        count: number of codes.

    Returns:
        codes, int64 `[count]`.

    Raises:
        ShapeError: if `data` is not of that length, or `bits` is out of range.
    """
    _check_bits(bits)
    if count < 0 or len(data) != packed_length(bits, count):
        raise ShapeError(f"{len(data)} bytes are not {count} codes of {bits} bits")
    group, width = _group(bits)
    rows = -(-count // group)
    # 8 more bytes, since a code is read as part of a 64-bit word that begins where the code does.
    padded = data.ljust(rows * width + 8, b"\0")
    codes = np.empty((rows, group), np.int64)
    step = _BLOCK // group
    for row in range(0, rows, step):
        _unpack_rows(padded, bits, row, codes[row : row + step])
    return codes.reshape(-1)[:count]


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 32:
        raise ShapeError(f"a code of {bits} bits cannot be packed, 1..32 can")


def _group(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and how many bytes they fill."""
    return 8 // gcd(bits, 8), bits // gcd(bits, 8)


def _pack_block(codes: npt.NDArray[Any], bits: int) -> bytes:
    """Pack one block: the same shifts for every group, so each is one operation on a column."""
    group, width = _group(bits)
    rows = -(-codes.size // group)
    padded = np.zeros(rows * group, np.uint32)
    padded[: codes.size] = codes
    columns = np.ascontiguousarray(padded.reshape(rows, group).T)  # [group, rows]
    packed = np.zeros((width, rows), np.uint8)
    for index, column in enumerate(columns):
        first = index * bits
        for byte in range(first // 8, (first + bits - 1) // 8 + 1):
            shift = first - 8 * byte
            moved = column << shift if shift >= 0 else column >> -shift
            packed[byte] |= moved.astype(np.uint8)  # keeps the low 8 bits
    data: bytes = packed.T.tobytes()
    return data[: packed_length(bits, codes.size)]


def _unpack_rows(padded: bytes, bits: int, row: int, codes: npt.NDArray[np.int64]) -> None:
    """Unpack the groups from `row` on into `codes` `[rows, group]`."""
    group, width = _group(bits)
    mask = np.uint64(2**bits - 1)
    for index in range(group):
        byte, shift = divmod(index * bits, 8)
        # One unaligned 64-bit word a group; a code and the bits before it take at most 39 of them.
        words: npt.NDArray[np.uint64] = np.ndarray(
            len(codes), "<u8", padded, offset=row * width + byte, strides=(width,)
        )
        codes[:, index] = (words >> np.uint64(shift)) & mask
