"""Parts of a chunk: the codes of each stage as bytes, packed or entropy-coded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.byte_source import Damage
from vtok.codefile.entropy import BitDecoder, BitEncoder
from vtok.codefile.header import CodeFormat
from vtok.codefile.packing import pack, unpack
from vtok.codefile.probability import (
    MAX_BELOW,
    BitCoder,
    Integers,
    code_planes,
    count_passes,
    make_grid,
)
from vtok.codefile.records import MODELLED, PACKED
from vtok.errors import CodeFileError

Codes = npt.NDArray[Any]
Shape = tuple[int, int, int, int]  # [K, t, h, w]
MIN_POSITIONS = 64  # of a latent step: smaller ones take much time for few bits
MAX_WORK = 1 << 23  # of all entropy-coded parts of a chunk: bounds time and memory
PASS_WORK = 128  # cost of a pass in positions, with 8 bits more


class CodedPart(NamedTuple):
    """Codes of one stage of a chunk, as stored."""

    coder: int
    data: bytes


def work(shape: Shape, bits: int) -> int | None:
    """Cost of entropy-coding a stage `[K, t, h, w]`, in bits; None if it may not be."""
    books, steps, height, width = shape
    if not MIN_POSITIONS <= height * width <= MAX_WORK:
        return None
    passes = count_passes(height, width)
    return books * steps * (height * width * bits + PASS_WORK * passes * (bits + 8))


def steps_to_code(shape: Shape, bits: int, stages: int) -> int:
    """Latent steps that a chunk may have if all its stages are to be entropy-coded.

    Args:
        shape: `[K, most, h, w]` of a stage.
        bits: of a code.
        stages: of a chunk.

    Returns:
        `most`, halved as often as needed; 1 if that does not help.
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
        coders: of each stage. If None, `compress` decides.
        compress: entropy-code each stage that becomes shorter by it; else pack all.

    Raises:
        ShapeError: for codes that are no such integers.
        CodeFileError: for unknown coders, or if entropy coding does not shorten a stage.
    """
    for coder in coders or ():
        check_coder(coder)
    bits, modelled = layout.bits_per_code, _Stages(codes.shape[1:], layout.bits_per_code)
    parts = []
    for number, stage in enumerate(codes):
        packed = pack(stage.reshape(-1), bits)  # checks the codes too
        wanted = coders[number] if coders else MODELLED if compress else PACKED
        coded = modelled.encode(stage, len(packed)) if wanted == MODELLED else None
        if coded is not None:
            parts.append(CodedPart(MODELLED, coded))
        elif coders and wanted == MODELLED:
            raise CodeFileError(f"coder {MODELLED} does not make stage {number + 1} any shorter")
        else:
            parts.append(CodedPart(PACKED, packed))
            modelled.skip(stage)
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
    shape = (layout.num_codebooks, num_steps, *layout.grid)
    codes = np.empty((len(parts), *shape), np.int64)
    bits, modelled = layout.bits_per_code, _Stages(shape, layout.bits_per_code)
    for stage, part in zip(codes, parts, strict=True):
        if part.coder == PACKED:
            stage[...] = unpack(part.data, bits, stage.size).reshape(shape)
            modelled.skip(stage)
        else:
            stage[...] = modelled.decode(part.data)
    return codes


def check_coder(coder: int) -> None:
    """Raise `CodeFileError` for an unknown coder."""
    if coder not in (PACKED, MODELLED):
        raise CodeFileError(f"coded by coder {coder}, which this vtok does not know: update it")


class _Stages:
    """Entropy-codes the stages of a chunk, first to last, within the limit of work."""

    def __init__(self, shape: Shape, bits: int) -> None:
        self._shape, self._bits = shape, bits
        each = work(shape, bits)
        self._left = MAX_WORK // each if each else 0
        self._below: list[Codes | Integers] = []  # codes until they are needed as planes

    def encode(self, codes: Codes, limit: int) -> bytes | None:
        """Code the next stage; None if it may not be coded or takes `limit` bytes or more."""
        if not self._left:
            return None
        encoder, planes = BitEncoder(), self._grid.split(codes, self._bits)
        self._code(planes, encoder)
        data = encoder.finish()
        if len(data) >= limit:
            return None
        self._left -= 1
        self._below.append(planes)
        return data

    def decode(self, data: bytes) -> npt.NDArray[np.int64]:
        """Decode the next stage."""
        if not self._left:
            raise Damage(f"a stage of {np.prod(self._shape)} codes by coder {MODELLED}")
        self._left -= 1
        books, steps = self._shape[:2]
        planes = np.zeros((books, steps, self._bits, self._grid.size), np.int16)
        decoder = BitDecoder(data, planes.size)
        self._code(planes, decoder)
        decoder.finish()
        self._below.append(planes)
        return self._grid.join(planes)

    def skip(self, codes: Codes) -> None:
        """Take note of a stage that is stored packed."""
        self._below.append(codes)

    @property
    def _grid(self) -> Any:
        return make_grid(*self._shape[2:])

    def _code(self, planes: Integers, coder: BitCoder) -> None:
        for number in range(len(self._below))[-MAX_BELOW:]:
            stage = self._below[number]
            if stage.shape == self._shape:
                self._below[number] = self._grid.split(stage, self._bits)
        below = self._below[-MAX_BELOW:]
        for book, of_book in enumerate(planes):
            code_planes(self._grid, of_book, [stage[book] for stage in below], coder)
