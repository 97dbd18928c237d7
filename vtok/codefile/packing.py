"""Codes of a chunk to bytes and back: packed, or entropy-coded where that is shorter.

Packing lays integers of 1 to 32 bits end to end, lowest bit first: code i takes bits i * bits to
(i + 1) * bits of the bytes, counted from the lowest bit of the first byte. The bytes are one
little-endian number, the sum of code[i] << (i * bits); the last byte is filled up with zeros.

9 bits:   byte 0            byte 1                              byte 2
          code 0, bits 0-7  code 0, bit 8; code 1, bits 0-6     code 1, bits 7-8; code 2, ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.entropy import BitDecoder, BitEncoder
from vtok.codefile.header import CodeFormat
from vtok.codefile.probability import (
    MAX_BELOW,
    BitCoder,
    Grid,
    Integers,
    code_planes,
    count_passes,
    make_grid,
)
from vtok.codefile.records import MODELLED, PACKED, PLAIN, ChunkHead, Damage
from vtok.errors import CodeFileError, ShapeError

Codes = npt.NDArray[Any]
Shape = tuple[int, int, int, int]  # [K, t, h, w]
MIN_POSITIONS = 64  # of a latent step: smaller ones take much time for few bits
MAX_WORK = 1 << 23  # of all entropy-coded parts of a chunk: bounds time and memory
PASS_WORK = 128  # cost of a pass, in positions of 8 bits more
_BLOCK = 1 << 16  # codes packed at a time: a multiple of 8, so that a block ends on a whole byte


@dataclass(frozen=True, eq=False)
class Chunk:
    """Codes of consecutive frames.

    Attributes:
        first_frame: number of the first frame, from 0.
        num_frames: frames that the chunk shows, without padding.
        codes: int64 `[stages, num_codebooks, t, h, w]`, 0 <= code < codebook_size.
        opens: for the first chunk of a segment, frames to drop at its start; None for others.
        skip: frames to drop of those that the codes decode to, before the shown ones.
        coders: of each stage.
    """

    first_frame: int
    num_frames: int
    codes: npt.NDArray[np.int64]
    opens: int | None = None
    skip: int = 0
    coders: tuple[int, ...] = ()

    @property
    def restart(self) -> bool:
        """True if the decoder starts with a fresh state here."""
        return self.opens is not None


@dataclass(frozen=True, eq=False)
class StoredChunk:
    """A chunk as stored, with one part per stage; the other fields as in `Chunk`."""

    num_frames: int
    num_steps: int
    parts: tuple[CodedPart, ...]
    opens: int | None


class CodedPart(NamedTuple):
    """Codes of one stage of a chunk, as stored."""

    coder: int
    data: bytes


def packed_length(bits: int, count: int) -> int:
    """Compute the bytes of `count` packed codes of `bits` bits."""
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
    packed = []
    for start in range(0, codes.size, _BLOCK):
        words = codes[start : start + _BLOCK].astype("<u4").view(np.uint8).reshape(-1, 4)
        planes = np.unpackbits(words, axis=1, count=bits, bitorder="little")
        packed.append(np.packbits(planes, bitorder="little").tobytes())
    return b"".join(packed)


def unpack(data: bytes, bits: int, count: int) -> npt.NDArray[np.int64]:
    """Invert `pack`.

    Args:
        data: `packed_length(bits, count)` bytes.
        bits: width of a code, 1..32.
        count: number of codes.

    Returns:
        Codes, int64 `[count]`.

    Raises:
        ShapeError: if `data` is not of that length, or `bits` is out of range.
    """
    _check_bits(bits)
    if count < 0 or len(data) != packed_length(bits, count):
        raise ShapeError(f"{len(data)} bytes are not {count} codes of {bits} bits")
    # The eight bytes from that of its first bit hold a code, which takes at most 39 of these bits.
    words: npt.NDArray[np.uint64] = np.ndarray(len(data) + 1, "<u8", data + bytes(8), strides=(1,))
    codes = np.empty(count, np.int64)
    for start in range(0, count, _BLOCK):
        places = np.arange(start, min(count, start + _BLOCK), dtype=np.uint64) * np.uint64(bits)
        found = words[places >> np.uint64(3)] >> (places & np.uint64(7))
        codes[start : start + _BLOCK] = found & np.uint64(2**bits - 1)
    return codes


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 32:
        raise ShapeError(f"a code of {bits} bits cannot be packed, 1..32 can")


def work(shape: Shape, bits: int) -> int | None:
    """Cost of entropy-coding a stage `[K, t, h, w]`, in bits; None if it may not be."""
    books, steps, height, width = shape
    if not MIN_POSITIONS <= height * width <= MAX_WORK:
        return None
    passes = count_passes(height, width)
    return books * steps * (height * width * bits + PASS_WORK * passes * (bits + 8))


def steps_to_code(shape: Shape, bits: int, stages: int) -> int:
    """Halve the latent steps t of a stage `[K, t, h, w]` until all stages can be entropy-coded.

    Returns 1 if that does not help.
    """
    books, steps, height, width = shape
    while steps > 1 and stages * (work((books, steps, height, width), bits) or 0) > MAX_WORK:
        steps //= 2
    return steps


def encode_parts(
    codes: Codes,
    layout: CodeFormat,
    coders: Sequence[int] | None = None,
    *,
    compress: bool = False,
) -> tuple[CodedPart, ...]:
    """Encode the codes of a chunk.

    Args:
        codes: integers `[stages, num_codebooks, t, h, w]`, 0 <= code < codebook_size.
        layout: of the file.
        coders: wanted for each stage: `PACKED`, or any other for entropy coding where that is
            shorter. If None, `compress` decides.
        compress: entropy-code each stage that becomes shorter by it; else pack all.

    Raises:
        ShapeError: for codes that are no such integers.
    """
    shape, bits, parts = codes.shape[1:], layout.bits_per_code, []
    left, modelled = _most_modelled(shape, bits), StageCoder(shape, bits)
    for number, stage in enumerate(codes):
        packed = pack(stage.reshape(-1), bits)  # checks the codes too
        if (last := int(stage.max(initial=0))) >= layout.num_entries:
            raise ShapeError(f"a code is {last}, the codebook has 0..{layout.num_entries - 1}")
        shorten = coders[number] != PACKED if coders else compress
        coded = modelled.encode(stage) if shorten and left else None
        if coded is None:
            modelled.skip(stage)
        if coded is not None and len(coded) < len(packed):
            left -= 1
            parts.append(CodedPart(MODELLED, coded))
        else:
            parts.append(CodedPart(PACKED, packed))
    return tuple(parts)


def decode_parts(
    parts: Sequence[CodedPart], num_steps: int, layout: CodeFormat
) -> npt.NDArray[np.int64]:
    """Invert `encode_parts`, for all parts of a chunk or the first few.

    Returns:
        Codes, int64 `[len(parts), num_codebooks, t, h, w]`.

    Raises:
        Damage: for bytes that `encode_parts` does not make.
    """
    shape, bits = (layout.num_codebooks, num_steps, *layout.grid), layout.bits_per_code
    left, modelled = _most_modelled(shape, bits), StageCoder(shape, bits)
    codes = np.empty((len(parts), *shape), np.int64)
    for stage, part in zip(codes, parts, strict=True):
        if part.coder == PACKED:
            stage[...] = unpack(part.data, bits, stage.size).reshape(shape)
            modelled.skip(stage)
        elif left:
            left -= 1
            stage[...] = modelled.decode(part.data)
        else:
            raise Damage(f"a stage of {stage.size} codes by coder {part.coder}")
        if layout.entries is not None and (last := int(stage.max(initial=0))) >= layout.entries:
            raise Damage(f"a code is {last}, the codebook has 0..{layout.entries - 1}")
    return codes


def check_parts(layout: CodeFormat, version: tuple[int, int], head: ChunkHead) -> None:
    """Raise `Damage` if the number or the lengths of the parts of a chunk are wrong.

    Packed stages have exactly the length of their codes; no coder may need more.
    """
    stages, most = len(head.parts), layout.num_stages
    least = most if version == PLAIN else 1
    if not least <= stages <= most:
        expected = most if least == most else f"{least}..{most}"
        raise Damage(f"{stages} stages at frame {head.first_frame}, the header says {expected}")
    packed = packed_length(layout.bits_per_code, layout.codes_per_step * head.num_steps)
    for part in head.parts:
        if part.length > packed or (part.coder == PACKED and part.length < packed):
            raise Damage(
                f"a stage of {part.length} bytes, not {packed}, at frame {head.first_frame}"
            )


def check_coder(coder: int) -> None:
    """Raise `CodeFileError` for unknown coders."""
    if coder == 1:
        raise CodeFileError("entropy-coded by vtok 0.1, whose coder was replaced: encode again")
    if coder not in (PACKED, MODELLED):
        raise CodeFileError(f"coded by coder {coder}, which this vtok does not know: update it")


class StageCoder:
    """Entropy-codes the stages of a chunk, first to last; a stage may depend on those before it.

    Args:
        shape: `[K, t, h, w]` of the codes of a stage.
        bits: of a code, 1..32.
    """

    def __init__(self, shape: Shape, bits: int) -> None:
        self._shape, self._bits = shape, bits
        self._below: deque[Callable[[], Integers]] = deque(maxlen=MAX_BELOW)  # make the planes

    def encode(self, codes: Codes) -> bytes:
        """Encode the next stage, integers 0 <= code < 2 ** bits."""
        encoder, planes = BitEncoder(), self._grid.split(codes, self._bits)
        self._code(planes, encoder)
        return encoder.finish()

    def decode(self, data: bytes) -> npt.NDArray[np.int64]:
        """Decode the next stage; raise `Damage` for bytes that `encode` does not make."""
        books, steps = self._shape[:2]
        planes = np.zeros((books, steps, self._bits, self._grid.size), np.int16)
        decoder = BitDecoder(data, planes.size)
        self._code(planes, decoder)
        decoder.finish()
        return self._grid.join(planes)

    def skip(self, codes: Codes) -> None:
        """Take the codes of the next stage, which is stored packed."""
        self._below.append(cache(lambda: self._grid.split(codes, self._bits)))

    @property
    def _grid(self) -> Grid:
        return make_grid(*self._shape[2:])

    def _code(self, planes: Integers, coder: BitCoder) -> None:
        below = [make_planes() for make_planes in self._below]
        for book, of_book in enumerate(planes):
            code_planes(self._grid, of_book, [stage[book] for stage in below], coder)
        self._below.append(lambda: planes)


def _most_modelled(shape: Shape, bits: int) -> int:
    """Return the number of stages of a chunk that may be entropy-coded."""
    each = work(shape, bits)
    return MAX_WORK // each if each else 0
