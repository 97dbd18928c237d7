"""The parts of a chunk: the codes of each stage as bytes, by one of the coders."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.container import PACKED
from vtok.codefile.header import CodeFormat
from vtok.codefile.packing import pack, unpack
from vtok.errors import CodeFileError


class CodedPart(NamedTuple):
    """The codes of one stage of a chunk as they lie in the file."""

    coder: int
    data: bytes


def encode_parts(
    codes: npt.NDArray[Any], layout: CodeFormat, coders: Sequence[int] | None = None
) -> tuple[CodedPart, ...]:
    """The parts of a chunk.

    Args:
        codes: integers `[stages, num_codebooks, t, h, w]`, 0 <= code < codebook_size.
        layout: of the file.
        coders: of each stage; that which takes the fewest bytes if None.

    Raises:
        ShapeError: for codes that are no such integers.
        CodeFileError: for coders that are not known.
    """
    for coder in coders or ():
        check_coder(coder)
    return tuple(
        CodedPart(PACKED, pack(stage.reshape(-1), layout.bits_per_code)) for stage in codes
    )


def decode_parts(
    parts: Sequence[CodedPart], num_steps: int, layout: CodeFormat
) -> npt.NDArray[np.int64]:
    """What `encode_parts` was given, of all parts of a chunk or the first few.

    Returns:
        codes int64 `[len(parts), num_codebooks, t, h, w]`.
    """
    shape = (layout.num_codebooks, num_steps, *layout.grid)  # [K, t, h, w]
    codes = np.empty((len(parts), *shape), np.int64)
    for stage, part in zip(codes, parts, strict=True):
        stage[...] = unpack(part.data, layout.bits_per_code, stage.size).reshape(shape)
    return codes


def check_coder(coder: int) -> None:
    """Refuse a coder that is not known, by its number.

    Raises:
        CodeFileError: if so.
    """
    if coder != PACKED:
        raise CodeFileError(f"coded by coder {coder}, which this vtok does not know: update it")
