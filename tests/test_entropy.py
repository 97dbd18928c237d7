"""Entropy coder: round trips at every shape, golden bytes, damage, limits."""

import contextlib
import hashlib
import io
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vtok.codefile.entropy import EDGES, MISSES, BitDecoder, BitEncoder, table
from vtok.codefile.packing import MAX_WORK, CodedPart, StageCoder, encode_parts, packed_length, work
from vtok.codefile.probability import LEVELS, MAX_POSITIONS, ONE, Grid, count_passes
from vtok.codefile.reader import CodeFileReader
from vtok.codefile.records import Damage
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import CodeFileError

GOLDEN = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "make_golden.py"))
Codes = npt.NDArray[np.int64]


def make_codes(kind: str, shape: tuple[int, ...], bits: int, seed: int = 0) -> Codes:
    """Make codes `[stages, K, t, h, w]` of a kind."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, shape)
    if kind == "zero":
        codes[:] = 0
    elif kind == "ones":
        codes[:] = 2**bits - 1
    elif kind == "alternating":  # the opposite of its neighbours
        codes = np.indices(shape).sum(0) % 2 * (2**bits - 1)
    elif kind == "still":  # few codes differ from one step to the next
        codes[:, :, 1:] = np.where(rng.random(shape)[:, :, 1:] < 0.1, codes[:, :, 1:], 0)
        codes = np.bitwise_xor.accumulate(codes, axis=2)
    elif kind == "flat":  # few codes differ from one column to the next
        codes[..., 1:] = np.where(rng.random(shape)[..., 1:] < 0.1, codes[..., 1:], 0)
        codes = np.bitwise_xor.accumulate(codes, axis=4)
    return codes


def code_stages(codes: Codes, bits: int) -> list[bytes]:
    coder = StageCoder(codes.shape[1:], bits)
    return [coder.encode(stage) for stage in codes]


def decode_first(data: bytes, shape: tuple[int, ...], bits: int) -> npt.NDArray[np.int64]:
    """Decode the codes `[K, t, h, w]` of a first stage."""
    return StageCoder(shape, bits).decode(data)


KINDS = ("zero", "ones", "alternating", "random", "still", "flat")
shapes = st.tuples(*(st.integers(1, most) for most in (3, 2, 3, 9, 9)))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KINDS), shapes, st.integers(1, 16), st.integers(0, 2**32 - 1))
@example("random", (2, 1, 2, 5, 4), 32, 0)
@example("still", (10, 1, 2, 3, 3), 2, 0)  # more stages than the model looks at
def test_decode_inverts_encode(
    kind: str, shape: tuple[int, int, int, int, int], bits: int, seed: int
) -> None:
    codes = make_codes(kind, shape, bits, seed)
    decoder, other = (StageCoder(shape[1:], bits) for _ in range(2))
    for number, data in enumerate(code_stages(codes, bits)):
        decoded = decoder.decode(data)
        assert decoded.dtype == np.int64
        assert np.array_equal(decoded, codes[number])
        if number % 2:  # stages below may be decoded or skipped
            assert np.array_equal(other.decode(data), codes[number])
        else:
            other.skip(codes[number])


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
@example(200, 150)  # more positions than a pass may have
def test_each_position_is_in_one_pass(height: int, width: int) -> None:
    grid = Grid(height, width)
    assert len(grid.passes) == count_passes(height, width)
    ends = [0]
    for some in grid.passes:
        assert 0 < len(some.known) <= MAX_POSITIONS
        assert (some.positions.start, some.positions.stop) == (ends[-1], ends[-1] + len(some.known))
        ends.append(some.positions.stop)
        inside = some.neighbours < grid.size
        assert (some.neighbours[inside] < some.positions.start).all()  # coded before
        assert (some.known == np.maximum(inside.sum(0), 1)).all()
    assert ends[-1] == grid.size == height * width
    codes = np.arange(height * width).reshape(height, width)
    assert np.array_equal(grid.join(grid.split(codes, 16)), codes)


def test_neighbours_are_those_of_the_levels() -> None:
    grid = Grid(9, 9)
    rank = grid.split(np.arange(81).reshape(9, 9), 7)
    raster = sum((rank[bit] > 0).astype(int) << 6 - bit for bit in range(7))
    for some, (top, left, pitch, neighbours) in zip(grid.passes, LEVELS, strict=True):
        row, column = divmod(int(raster[some.positions][0]), 9)
        assert (row, column) == (top, left)
        found = [raster[index[0]] if index[0] < 81 else None for index in some.neighbours]
        places = [(row + y * pitch // 2, column + x * pitch // 2) for y, x in neighbours]
        inside = [0 <= y < 9 and 0 <= x < 9 for y, x in places]
        expected = [9 * y + x if ok else None for (y, x), ok in zip(places, inside, strict=True)]
        assert found == expected


def code_bits(bits: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.int64]) -> bytes:
    encoder = BitEncoder()
    encoder.code(probabilities, np.where(bits, 16, -16).astype(np.int16))
    return encoder.finish()


def take_bits(decoder: BitDecoder, probabilities: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    return decoder.code(probabilities, np.zeros(len(probabilities), np.int16))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, ONE - 1)), min_size=1, max_size=300))
@example([(False, ONE - 1)] * 300)
@example([(True, 1)] * 300)
def test_bits_of_any_probability_are_restored(pairs: list[tuple[bool, int]]) -> None:
    bits = np.array([bit for bit, _ in pairs])
    probabilities = np.array([probability for _, probability in pairs])
    decoder = BitDecoder(code_bits(bits, probabilities), len(bits))
    halves = [take_bits(decoder, part) for part in np.array_split(probabilities, 2)]
    assert np.array_equal(np.concatenate(halves), bits)
    decoder.finish()


@pytest.mark.parametrize("probability", [100, ONE // 2, ONE - 1])  # own bin, last bin, first bin
def test_missing_bits_are_damage(probability: int) -> None:
    probabilities = np.full(40, 100)
    decoder = BitDecoder(code_bits(np.zeros(40, bool), probabilities), 400)
    assert not take_bits(decoder, probabilities).any()
    with pytest.raises(Damage, match="ends before its codes"):
        take_bits(decoder, np.full(20, probability))


def test_bits_take_close_to_their_information() -> None:
    """Binning costs less than 1 % for bits that follow their probabilities."""
    rng = np.random.default_rng(3)
    evidence = rng.normal(0, 4, 200_000)
    probabilities = np.clip(ONE / (1 + np.exp(-evidence)), 1, ONE - 1).astype(np.int64)
    bits = rng.random(len(probabilities)) < probabilities / ONE
    shares = np.where(bits, probabilities, ONE - probabilities)
    assert 8 * len(code_bits(bits, probabilities)) < 1.01 * -np.log2(shares / ONE).sum()


def test_every_byte_has_a_share_in_every_bin() -> None:
    for number, miss in enumerate(MISSES):
        of_bin = table(number)
        assert sum(of_bin.shares) == 65536
        assert min(of_bin.shares) > 0
        misses = sum(bin(byte).count("1") * share for byte, share in enumerate(of_bin.shares))
        assert abs(misses / 65536 / 8 - miss / ONE) < 0.01
    assert all(low <= miss for low, miss in zip(EDGES, MISSES, strict=True))


def golden_stages(shape: tuple[int, ...], bits: int) -> Codes:
    """Make codes that mostly stay from step to step, by integer arithmetic alone."""
    number = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    hashes = number * 2654435761 % 2**32
    codes = np.broadcast_to(hashes[:, :, :1] >> 32 - bits, shape)
    flips = np.where(hashes % 11 == 0, 1 << (hashes >> 8) % bits, 0)
    return codes ^ flips


@pytest.mark.parametrize(
    ("shape", "bits", "digests"),
    [
        ((1, 1, 1, 1, 2), 9, ["ec1991fbd3284678"]),
        ((2, 1, 4, 10, 12), 9, ["11388b993c2c6384", "ce033e13df986265"]),
        ((3, 2, 2, 9, 8), 5, ["f4bdc90bdf548571", "7ee5ba13c46ab0d3", "f33d89674e4e6073"]),
        ((1, 1, 2, 7, 11), 16, ["f21235f3af3cbc88"]),
    ],
)
def test_golden_bytes(shape: tuple[int, ...], bits: int, digests: list[str]) -> None:
    parts = code_stages(golden_stages(shape, bits), bits)
    assert [hashlib.sha256(part).hexdigest()[:16] for part in parts] == digests


def test_bytes_do_not_depend_on_integer_type_or_memory_order() -> None:
    codes = make_codes("still", (2, 2, 3, 8, 9), 7)
    expected = code_stages(codes, 7)
    for kind in ("<u1", ">i2", ">u4", "<u8"):
        assert code_stages(codes.astype(kind), 7) == expected
    assert code_stages(np.asfortranarray(codes), 7) == expected
    backwards = np.ascontiguousarray(codes[..., ::-1])[..., ::-1]
    backwards.setflags(write=False)
    assert code_stages(backwards, 7) == expected


def test_still_codes_take_few_bits() -> None:
    """A tenth of the codes changes at each step: about 0.1 * 9 + 0.47 bits of 9."""
    codes = make_codes("still", (1, 1, 8, 32, 32), 9)
    rest = len(code_stages(codes, 9)[0]) - len(code_stages(codes[:, :, :1], 9)[0])
    assert rest < 0.27 * packed_length(9, codes[0, :, 1:].size)


def test_repeated_stage_takes_few_bits() -> None:
    codes = make_codes("random", (1, 1, 4, 16, 16), 9)
    alone, after = code_stages(np.concatenate((codes, codes)), 9)
    assert len(after) < len(alone) / 5


@pytest.mark.parametrize("kind", ["zero", "still"])
def test_damage_raises_or_gives_other_codes(kind: str) -> None:
    """CRCs are checked first; damage that passes them must do no harm."""
    codes = make_codes(kind, (1, 1, 2, 8, 8), 6)
    (data,), codes = code_stages(codes, 6), codes[0]
    rng = np.random.default_rng(1)
    wrong = [data[:end] for end in range(len(data))]
    wrong += [data + b"\0", data + b"\0\0", rng.bytes(3), rng.bytes(4), b"", b"\xff" * 9]
    for _ in range(60):
        flipped = bytearray(data)
        flipped[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        wrong.append(bytes(flipped))
    for bad in wrong:
        with contextlib.suppress(Damage):
            decoded = decode_first(bad, codes.shape, 6)
            assert decoded.min() >= 0
            assert decoded.max() < 64
            assert not np.array_equal(decoded, codes)


@pytest.mark.parametrize(
    ("shape", "bits", "stages"),
    [
        ((1, 8, 32, 32), 9, 42),
        ((1, 4, 90, 160), 9, 12),
        ((1, 2, 135, 240), 9, 11),
        ((1, 1, 270, 480), 9, 5),
        ((1, 8, 270, 480), 9, 0),  # too many bits
        ((1, 1, 8, 8), 1, 1032),
        ((1, 1, 7, 9), 9, None),  # too few positions
        ((1, 1, 1, 8193), 9, 89),
        ((255, 65536, 8, 8), 1, 0),
        ((1, 1, 131072, 8192), 1, None),  # too many positions
    ],
)
def test_work_is_bounded(shape: tuple[int, int, int, int], bits: int, stages: int | None) -> None:
    each = work(shape, bits)
    assert (None if each is None else MAX_WORK // each) == stages


def file_of(codes: Codes) -> tuple[bytes, CodeFileReader]:
    """Make a code file of two equal chunks."""
    golden: Any = GOLDEN["golden_header"]()
    layout = replace(golden.format, num_codebooks=1, num_stages=len(codes), chunk_steps=4)
    layout = replace(layout, grid=codes.shape[3:])
    height, width = (8 * side for side in codes.shape[3:])
    header = replace(
        golden, format=layout, transform=replace(golden.transform, width=width, height=height)
    )
    stream = io.BytesIO()
    parts = encode_parts(codes, layout, compress=True)
    with CodeFileWriter(stream, header) as writer:
        writer.write_parts(parts, 4, 13)
        writer.write_parts(parts, 4, 16)
    return stream.getvalue(), CodeFileReader(io.BytesIO(stream.getvalue()))


def test_code_file_is_read_whole_by_chunk_and_by_stage() -> None:
    codes = make_codes("still", (3, 1, 4, 10, 12), 9)
    data, reader = file_of(codes)
    assert len(data) < 0.6 * 2 * packed_length(9, codes.size) + 1000
    assert [chunk.coders for chunk in reader] == [(2, 2, 2)] * 2
    assert reader.complete
    assert np.array_equal(reader.read_chunk(1).codes, codes)
    few = CodeFileReader(io.BytesIO(data), stages=2)
    assert all(np.array_equal(chunk.codes, codes[:2]) for chunk in few)


def test_part_with_valid_crc_and_wrong_bytes_is_damage() -> None:
    """All CRCs match, but the last part of the last chunk is cut."""
    codes = make_codes("still", (2, 1, 4, 10, 12), 9)
    _, reader = file_of(codes)
    stored = [reader.read_stored(0), reader.read_stored(1)]
    stream = io.BytesIO()
    with CodeFileWriter(stream, reader.header) as writer:
        for chunk, cut in zip(stored, (0, 2), strict=True):
            last = chunk.parts[1]
            parts = [chunk.parts[0], CodedPart(2, last.data[: len(last.data) - cut])]
            writer.write_parts(parts, 4, chunk.num_frames)
    bad = CodeFileReader(io.BytesIO(stream.getvalue()), name="a.vtok")
    with pytest.raises(CodeFileError, match=r"^a\.vtok: a coded stage .*complete before that: 1 c"):
        list(bad)
    with pytest.raises(CodeFileError, match=r"^a\.vtok: chunk 1 is damaged: a coded stage"):
        bad.read_chunk(1)
    assert np.array_equal(bad.read_chunk(0).codes, codes)
    rescued = CodeFileReader(io.BytesIO(stream.getvalue()), salvage=True)
    assert len(list(rescued)) == 1
