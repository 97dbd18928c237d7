"""Coder 1: what goes in comes out, at every shape, in the bytes that the format fixes."""

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

from vtok.codefile import CodeFileReader, CodeFileWriter, encode_parts
from vtok.codefile.byte_source import Damage
from vtok.codefile.entropy import MAX_WORK, StageCoder, work
from vtok.codefile.packing import packed_length
from vtok.codefile.parts import CodedPart
from vtok.codefile.probability import EDGE, MAX_POSITIONS, Grid
from vtok.codefile.rans import EDGES, MISSES, ONE, BitDecoder, encode_bits, table
from vtok.errors import CodeFileError

GOLDEN = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "make_golden.py"))
Codes = npt.NDArray[np.int64]


def make_codes(kind: str, shape: tuple[int, ...], bits: int, seed: int = 0) -> Codes:
    """Codes `[stages, K, t, h, w]` of some kind."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, shape)
    if kind == "zero":
        codes[:] = 0
    elif kind == "ones":
        codes[:] = 2**bits - 1
    elif kind == "alternating":  # the opposite of what neighbours are taken for
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
    """The codes `[K, t, h, w]` of a first stage."""
    return StageCoder(shape, bits).decode(data)


KINDS = ("zero", "ones", "alternating", "random", "still", "flat")
shapes = st.tuples(*(st.integers(1, most) for most in (3, 2, 3, 9, 9)))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KINDS), shapes, st.integers(1, 16), st.integers(0, 2**32 - 1))
@example("random", (2, 1, 2, 5, 4), 32, 0)
@example("still", (10, 1, 2, 3, 3), 2, 0)  # more stages below than are looked at
def test_decode_undoes_encode(
    kind: str, shape: tuple[int, int, int, int, int], bits: int, seed: int
) -> None:
    codes = make_codes(kind, shape, bits, seed)
    decoder, other = (StageCoder(shape[1:], bits) for _ in range(2))
    for number, data in enumerate(code_stages(codes, bits)):
        decoded = decoder.decode(data)
        assert decoded.dtype == np.int64
        assert np.array_equal(decoded, codes[number])
        if number % 2:  # it does not matter how the stages below came to be known
            assert np.array_equal(other.decode(data), codes[number])
        else:
            other.pass_over(codes[number])


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
@example(200, 150)  # more positions than a pass may have
def test_each_position_is_in_one_pass(height: int, width: int) -> None:
    seen = np.zeros((height + 2 * EDGE, width + 2 * EDGE), np.int16)
    for some in Grid(height, width).passes:
        assert 0 < some.of(seen).size <= MAX_POSITIONS
        some.of(seen)[...] += 1
    assert (seen[EDGE:-EDGE, EDGE:-EDGE] == 1).all()
    assert seen.sum() == height * width


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, ONE - 1)), min_size=1, max_size=300))
@example([(False, ONE - 1)] * 300)
@example([(True, 1)] * 300)
def test_bits_come_back_at_any_chance(pairs: list[tuple[bool, int]]) -> None:
    bits = np.array([bit for bit, _ in pairs])
    chances = np.array([chance for _, chance in pairs])
    decoder = BitDecoder(encode_bits(bits, chances), len(bits))
    halves = [decoder.take(part) for part in np.array_split(chances, 2)]
    assert np.array_equal(np.concatenate(halves), bits)
    decoder.finish()


def test_bits_that_are_not_there_are_found_at_the_end() -> None:
    chances = np.full(40, 100)
    decoder = BitDecoder(encode_bits(np.zeros(40, bool), chances), 400)
    assert not decoder.take(chances).any()
    for chance in (100, ONE // 2, ONE - 1):  # of its own bin, of the last one, of the first one
        decoder.take(np.full(20, chance))
    with pytest.raises(Damage, match="ends before its codes"):
        decoder.finish()


def test_bits_take_what_they_are_worth() -> None:
    """Gathering them in bins costs less than 1 % of bits whose chances are what they say."""
    rng = np.random.default_rng(3)
    evidence = rng.normal(0, 4, 200_000)
    chances = np.clip(ONE / (1 + np.exp(-evidence)), 1, ONE - 1).astype(np.int64)
    bits = rng.random(len(chances)) < chances / ONE
    shares = np.where(bits, chances, ONE - chances)
    assert 8 * len(encode_bits(bits, chances)) < 1.01 * -np.log2(shares / ONE).sum()


def test_every_byte_has_a_share_in_every_bin() -> None:
    for number, miss in enumerate(MISSES):
        of_bin = table(number)
        assert of_bin.shares.sum() == 65536
        assert of_bin.shares.min() > 0
        misses = np.bitwise_count(np.arange(256, dtype=np.uint8)) * of_bin.shares
        assert abs(misses.sum() / 65536 / 8 - miss / ONE) < 0.01
    assert all(low <= miss for low, miss in zip(EDGES, MISSES, strict=True))


def golden_stages(shape: tuple[int, ...], bits: int) -> Codes:
    """Codes that mostly stay from step to step, by integer arithmetic alone."""
    number = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    hashes = number * 2654435761 % 2**32
    codes = np.broadcast_to(hashes[:, :, :1] >> 32 - bits, shape)
    flips = np.where(hashes % 11 == 0, 1 << (hashes >> 8) % bits, 0)
    return codes ^ flips


@pytest.mark.parametrize(
    ("shape", "bits", "digests"),
    [
        ((1, 1, 1, 1, 2), 9, ["ec1991fbd3284678"]),
        ((2, 1, 4, 10, 12), 9, ["330687d78273d93d", "2ebfeb7927ccae0d"]),
        ((3, 2, 2, 9, 8), 5, ["c7f76a257fa78458", "e61fc216cfb6bafd", "61726b59c2da3daf"]),
        ((1, 1, 2, 7, 11), 16, ["9852766440fc12f4"]),
    ],
)
def test_golden_bytes(shape: tuple[int, ...], bits: int, digests: list[str]) -> None:
    parts = code_stages(golden_stages(shape, bits), bits)
    assert [hashlib.sha256(part).hexdigest()[:16] for part in parts] == digests


def test_how_many_neighbours_are_known() -> None:
    """Of a pass with all eight around it 12, for those at the sides count twice."""
    grid = Grid(9, 9)
    assert len(grid.passes) == len(grid.weights) == 7
    assert [weight[1, 1] for weight in grid.weights] == [1, 4, 8, 12, 4, 8, 12]
    assert [weight[0, 0] for weight in grid.weights] == [1, 4, 6, 8, 4, 6, 8]


def test_any_integers_of_any_order_give_the_same_bytes() -> None:
    codes = make_codes("still", (2, 2, 3, 8, 9), 7)
    expected = code_stages(codes, 7)
    for kind in ("<u1", ">i2", ">u4", "<u8"):
        assert code_stages(codes.astype(kind), 7) == expected
    assert code_stages(np.asfortranarray(codes), 7) == expected
    backwards = np.ascontiguousarray(codes[..., ::-1])[..., ::-1]
    backwards.setflags(write=False)
    assert code_stages(backwards, 7) == expected


def test_codes_of_little_change_are_packed_to_what_changes() -> None:
    """A tenth of the codes is drawn anew at each step: about 0.1 * 9 + 0.47 bits of 9."""
    codes = make_codes("still", (1, 1, 8, 32, 32), 9)
    rest = len(code_stages(codes, 9)[0]) - len(code_stages(codes[:, :, :1], 9)[0])
    assert rest < 0.25 * packed_length(9, codes[0, :, 1:].size)


def test_a_stage_that_repeats_the_one_below_costs_little() -> None:
    codes = make_codes("random", (1, 1, 4, 16, 16), 9)
    alone, after = code_stages(np.concatenate((codes, codes)), 9)
    assert len(after) < len(alone) / 5


@pytest.mark.parametrize("kind", ["zero", "still"])
def test_damage_is_named_or_gives_other_codes(kind: str) -> None:
    """CRCs come first; what passes them all the same must not do harm."""
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
        ((1, 1, 1, 8192), 9, 104),
        ((1, 1, 1, 8193), 9, None),  # too wide
        ((255, 65536, 8, 8), 1, 0),
        ((1, 1, 131072, 8192), 1, 0),
    ],
)
def test_what_may_be_coded_is_bounded(
    shape: tuple[int, int, int, int], bits: int, stages: int | None
) -> None:
    each = work(shape, bits)
    assert (None if each is None else MAX_WORK // each) == stages


def file_of(codes: Codes) -> tuple[bytes, CodeFileReader]:
    """A code file of two equal chunks."""
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


def test_a_code_file_is_read_whole_by_chunk_and_by_stage() -> None:
    codes = make_codes("still", (3, 1, 4, 10, 12), 9)
    data, reader = file_of(codes)
    assert len(data) < 0.6 * 2 * packed_length(9, codes.size) + 1000
    assert [chunk.coders for chunk in reader] == [(1, 1, 1)] * 2
    assert reader.complete
    assert np.array_equal(reader.read_chunk(1).codes, codes)
    few = CodeFileReader(io.BytesIO(data), stages=2)
    assert all(np.array_equal(chunk.codes, codes[:2]) for chunk in few)


def test_a_part_that_no_writer_makes_is_damage() -> None:
    """All CRCs match, but the bytes of the last chunk's last part are not those of its codes."""
    codes = make_codes("still", (2, 1, 4, 10, 12), 9)
    _, reader = file_of(codes)
    stored = [reader.read_stored(0), reader.read_stored(1)]
    stream = io.BytesIO()
    with CodeFileWriter(stream, reader.header) as writer:
        for chunk, cut in zip(stored, (0, 2), strict=True):
            last = chunk.parts[1]
            parts = [chunk.parts[0], CodedPart(1, last.data[: len(last.data) - cut])]
            writer.write_parts(parts, 4, chunk.num_frames)
    bad = CodeFileReader(io.BytesIO(stream.getvalue()), name="a.vtok")
    with pytest.raises(CodeFileError, match=r"^a\.vtok: a coded stage .*complete before that: 1 c"):
        list(bad)
    with pytest.raises(CodeFileError, match=r"^a\.vtok: chunk 1 is damaged: a coded stage"):
        bad.read_chunk(1)
    assert np.array_equal(bad.read_chunk(0).codes, codes)
    rescued = CodeFileReader(io.BytesIO(stream.getvalue()), salvage=True)
    assert len(list(rescued)) == 1
