"""Packing: round trips at every width, and the bytes of docs/format.md."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok.codefile.packing import pack, packed_length, unpack
from vtok.errors import ShapeError


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[list[int], int]:
    bits = draw(st.integers(1, 32))
    return draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), bits


@settings(deadline=None)
@given(codes_and_bits(), st.sampled_from([np.int64, np.uint32, np.uint64]))
def test_unpack_inverts_pack(sample: tuple[list[int], int], dtype: type) -> None:
    codes, bits = sample
    data = pack(np.array(codes, dtype), bits)
    assert len(data) == packed_length(bits, len(codes))
    unpacked = unpack(data, bits, len(codes))
    assert unpacked.dtype == np.int64
    assert unpacked.tolist() == codes


@settings(deadline=None)
@given(codes_and_bits())
def test_bytes_are_one_little_endian_number(sample: tuple[list[int], int]) -> None:
    codes, bits = sample
    number = sum(code << (index * bits) for index, code in enumerate(codes))
    expected = number.to_bytes(packed_length(bits, len(codes)), "little")
    assert pack(np.array(codes, np.int64), bits) == expected


@pytest.mark.parametrize(
    ("codes", "bits", "expected"),
    [
        ([1, 0, 1, 1, 0, 0, 0, 0, 1], 1, "0d 01"),
        ([0x1, 0x2, 0x3], 4, "21 03"),
        ([0x12, 0xFF], 8, "12 ff"),
        ([0x1FF, 0x000, 0x1FF], 9, "ff 01 fc 07"),
        ([0x001, 0x100], 9, "01 00 02"),
        ([0x1234, 0x5678], 16, "34 12 78 56"),
        ([0x3FFFF, 0x00001], 18, "ff ff 07 00 00"),
        ([0xDEADBEEF], 32, "ef be ad de"),
        ([], 9, ""),
    ],
)
def test_golden_bytes(codes: list[int], bits: int, expected: str) -> None:
    assert pack(np.array(codes, np.int64), bits).hex(" ") == expected


@pytest.mark.parametrize("bits", [1, 7, 9, 18, 31, 32])
@pytest.mark.parametrize("count", [65535, 65536, 65537, 2 * 65536 + 3])
def test_blocks_join_at_whole_bytes(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 2**bits, count)
    data = pack(codes, bits)
    assert np.array_equal(unpack(data, bits, count), codes)
    # codes around the first block boundary, computed without unpack
    number = int.from_bytes(data, "little") >> (65530 * bits)
    for code in codes[65530:65540]:
        assert number & (2**bits - 1) == code
        number >>= bits


def test_strided_codes_are_packed_in_order() -> None:
    codes = np.arange(40).reshape(2, 20).T.reshape(-1)[::-1]
    assert unpack(pack(codes, 9), 9, 40).tolist() == codes.tolist()


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (np.array([512]), 9, r"512 to 512, but 9 bits hold 0\.\.511"),
        (np.array([-1, 3]), 9, r"-1 to 3"),
        (np.array([2**32]), 32, r"4294967296"),
        (np.array([0.5]), 9, r"integers \[N\], not float64"),
        (np.zeros((2, 2), np.int64), 9, r"not int64 \[2, 2\]"),
        (np.array([0]), 0, r"0 bits"),
        (np.array([0]), 33, r"33 bits"),
    ],
)
def test_pack_refuses_invalid_codes(codes: np.ndarray, bits: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        pack(codes, bits)


@pytest.mark.parametrize(("length", "count"), [(2, 1), (4, 3), (0, 1), (0, -1), (3, 10**12)])
def test_unpack_refuses_wrong_lengths(length: int, count: int) -> None:
    with pytest.raises(ShapeError, match=f"{length} bytes are not {count} codes"):
        unpack(bytes(length), 18, count)
