"""Parts of chunks: choice of the coder, length limits, limits of work, damage."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtok.codefile.header import CodeFormat
from vtok.codefile.packing import (
    MAX_WORK,
    CodedPart,
    StageCoder,
    check_coder,
    decode_parts,
    encode_parts,
    work,
)
from vtok.codefile.records import MODELLED, PACKED, Damage
from vtok.errors import CodeFileError

Codes = npt.NDArray[np.int64]


def moving_codes(stages: int = 2, steps: int = 4, side: int = 12, bits: int = 6) -> Codes:
    """Make a moving pattern [stages, 1, steps, side, side]."""
    step, y, x = np.mgrid[:steps, :side, :side]
    planes = [((x + step) // 3 + y // 4 * (k + 2)) % 2**bits for k in range(stages)]
    return np.stack(planes)[:, None].astype(np.int64)


def layout_of(codes: Codes, codebook_size: int) -> CodeFormat:
    """Make a format for codes [stages, K, t, h, w]."""
    stages, books, steps, *grid = codes.shape
    return CodeFormat(
        codebook_size=codebook_size, num_codebooks=books, num_stages=stages,
        temporal_compression=4, spatial_compression=8, grid=(grid[0], grid[1]),
        chunk_steps=steps, decoder_lookback=1,
    )  # fmt: skip


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Codes, int]:
    """Codes [stages, K, t, h, w] of several kinds, and their bits."""
    bits, stages, books = draw(st.integers(1, 16)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    shape = (stages, books, *(draw(st.integers(1, most)) for most in (3, 19, 19)))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["random", "constant", "alternating"]))
    if kind == "random":
        return rng.integers(0, 2**bits, shape), bits
    if kind == "constant":
        return np.full(shape, int(rng.integers(0, 2**bits))), bits
    return np.where(np.indices(shape).sum(0) % 2, 2**bits - 1, 0), bits


@settings(max_examples=40)
@given(stacks(), st.booleans())
def test_decode_inverts_encode(stack: tuple[Codes, int], compress: bool) -> None:
    codes, bits = stack
    layout = layout_of(codes, 2**bits)
    parts = encode_parts(codes, layout, compress=compress)
    for stages in range(1, len(codes) + 1):  # without those above
        decoded = decode_parts(parts[:stages], codes.shape[2], layout)
        assert np.array_equal(decoded, codes[:stages])


def test_parts_are_never_longer_than_packed() -> None:
    codes = moving_codes(stages=3)
    layout = layout_of(codes, 64)
    packed, coded = encode_parts(codes, layout), encode_parts(codes, layout, compress=True)
    assert {part.coder for part in packed} == {PACKED}
    assert {part.coder for part in coded} == {MODELLED}
    sizes = [sum(len(part.data) for part in parts) for parts in (coded, packed)]
    assert sizes[0] < 0.7 * sizes[1]
    noise = np.random.default_rng(1).integers(0, 64, codes.shape)
    assert {part.coder for part in encode_parts(noise, layout, compress=True)} == {PACKED}


def test_given_coders_are_used_where_they_help() -> None:
    codes = moving_codes()
    layout = layout_of(codes, 64)
    mixed = encode_parts(codes, layout, [PACKED, MODELLED])
    assert [part.coder for part in mixed] == [PACKED, MODELLED]
    noise = np.random.default_rng(1).integers(0, 64, codes.shape)
    assert [part.coder for part in encode_parts(noise, layout, [MODELLED, PACKED])] == [0, 0]
    assert [part.coder for part in encode_parts(codes, layout, [1, 9])] == [MODELLED, MODELLED]


def test_golden_bytes() -> None:
    codes = moving_codes(stages=2)
    parts = encode_parts(codes, layout_of(codes, 64), compress=True)
    digest = hashlib.sha256(b"".join(part.data for part in parts)).hexdigest()
    assert digest == "5a7940a66b9c03ad95d648f6e3b1b8c9ba5ea4009ec20ab6148e57bffd96cffb"


def test_cut_and_changed_bytes_are_damage() -> None:
    codes = moving_codes(stages=1)[0]
    shape = codes.shape
    data = StageCoder(shape, 6).encode(codes)
    for cut in range(len(data)):
        with pytest.raises(Damage):
            StageCoder(shape, 6).decode(data[:cut])
    with pytest.raises(Damage, match="does not end"):
        StageCoder(shape, 6).decode(data + b"\0\0")
    rng = np.random.default_rng(2)
    for _ in range(40):
        noise = rng.integers(0, 256, len(data), dtype=np.uint8).tobytes()
        with pytest.raises(Damage):
            StageCoder(shape, 6).decode(noise)


def test_unknown_coders_are_refused_by_name() -> None:
    with pytest.raises(CodeFileError, match=r"by vtok 0\.1, .*: encode again"):
        check_coder(1)
    with pytest.raises(CodeFileError, match="coder 3, which this vtok does not know: update it"):
        check_coder(3)


def test_work_is_limited_in_both_directions() -> None:
    tiny = np.zeros((1, 1, 1, 7, 9), np.int64)
    tall = np.zeros((5, 1, 1, 1024, 300), np.int64)
    fit = MAX_WORK // (work(tall.shape[1:], 8) or 1)
    assert 0 < fit < 5
    for codes, count in ((tiny, 0), (tall, fit)):
        layout = layout_of(codes, 256)
        parts = encode_parts(codes, layout, compress=True)
        assert [part.coder for part in parts] == [MODELLED] * count + [PACKED] * (
            len(codes) - count
        )
        assert np.array_equal(decode_parts(parts, 1, layout), codes)
        more = [*parts[:count], CodedPart(MODELLED, b"\0" * 8)]
        with pytest.raises(Damage, match="by coder 2"):
            decode_parts(more, 1, layout)
