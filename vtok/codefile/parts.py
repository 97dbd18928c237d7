"""The parts of a chunk: the codes of each stage as bytes, by one of the coders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.byte_source import Damage
from vtok.codefile.entropy import MAX_WORK, Shape, StageCoder, work
from vtok.codefile.header import CodeFormat
from vtok.codefile.packing import pack, unpack
from vtok.codefile.records import MODELLED, PACKED
from vtok.errors import CodeFileError


class CodedPart(NamedTuple):
    """The codes of one stage of a chunk as they lie in the file."""

    coder: int
    data: bytes


def encode_parts(
    codes: npt.NDArray[Any],
    layout: CodeFormat,
    coders: Sequence[int] | None = None,
    *,
    compress: bool = False,
) -> tuple[CodedPart, ...]:
    """The parts of a chunk.

    Args:
        codes: integers `[stages, num_codebooks, t, h, w]`, 0 <= code < codebook_size.
        layout: of the file.
        coders: of each stage; if None, packed, or with `compress` what takes the fewest bytes.
        compress: whether to spend the time that an entropy coder takes.

    Raises:
        ShapeError: for codes that are no such integers.
        CodeFileError: for coders that are not known, or do not make a stage any shorter.
    """
    for coder in coders or ():
        check_coder(coder)
    shape, bits = codes.shape[1:], layout.bits_per_code
    room, modelled = _Room(shape, bits), StageCoder(shape, bits)
    parts = []
    for number, stage in enumerate(codes):
        packed = pack(stage.reshape(-1), bits)  # checks the codes too
        wanted = coders[number] if coders else MODELLED if compress else PACKED
        coded = modelled.encode(stage) if wanted == MODELLED and room.for_one_more() else None
        if coded is None:
            modelled.pass_over(stage)
        if coded is not None and len(coded) < len(packed):
            room.take()
            parts.append(CodedPart(MODELLED, coded))
        elif coders and wanted == MODELLED:
            raise CodeFileError(f"coder {MODELLED} does not make stage {number + 1} any shorter")
        else:
            parts.append(CodedPart(PACKED, packed))
    return tuple(parts)


def decode_parts(
    parts: Sequence[CodedPart], num_steps: int, layout: CodeFormat
) -> npt.NDArray[np.int64]:
    """What `encode_parts` was given, of all parts of a chunk or the first few.

    Returns:
        codes int64 `[len(parts), num_codebooks, t, h, w]`.

    Raises:
        Damage: for bytes that no coder makes of so many codes.
    """
    shape = (layout.num_codebooks, num_steps, *layout.grid)  # [K, t, h, w]
    codes = np.empty((len(parts), *shape), np.int64)
    bits = layout.bits_per_code
    room, modelled = _Room(shape, bits), StageCoder(shape, bits)
    for number, part in enumerate(parts):
        if part.coder == PACKED:
            codes[number] = unpack(part.data, bits, codes[number].size).reshape(shape)
            modelled.pass_over(codes[number])
        elif room.for_one_more():
            room.take()
            codes[number] = modelled.decode(part.data)
        else:
            raise Damage(f"a stage of {codes[number].size} codes by coder {part.coder}")
    return codes


class _Room:
    """How many more stages of a chunk may be modelled, of codes `[K, t, h, w]`."""

    def __init__(self, shape: Shape, bits: int) -> None:
        each = work(shape, bits)
        self._left = 0 if each is None else MAX_WORK // each

    def for_one_more(self) -> bool:
        """Whether one more may be."""
        return self._left > 0

    def take(self) -> None:
        """Take note of one that is."""
        self._left -= 1


def check_coder(coder: int) -> None:
    """Refuse a coder that is not known, by its number.

    Raises:
        CodeFileError: if so.
    """
    if coder not in (PACKED, MODELLED):
        raise CodeFileError(f"coded by coder {coder}, which this vtok does not know: update it")
