"""Coder 1: the codes of one stage of a chunk, by an adaptive model of their bits and rANS.

docs/format.md describes it. A part may look at the stages below of the same chunk and at nothing
else, so chunks and stages can be cut and read alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vtok.codefile.contexts import Contexts, join_bits, make_passes, split_bits
from vtok.codefile.mixing import Bits, Mixer, Numbers
from vtok.codefile.rans import BitDecoder, encode_bits

Codes = npt.NDArray[Any]
CodePass = Callable[[Mixer, Numbers, Numbers, Numbers], Numbers]
MIN_POSITIONS = 64  # of a step: with fewer, most of the time would go into little
MAX_WIDTH = 1 << 13  # positions in a row: bounds a pass, which has at least one row
MAX_BITS = 1 << 24  # of a part when packed: bounds time and memory
MAX_WORK = 1 << 14  # of all passes, their bits and 8: bounds the time of many over little
MAX_BELOW = 8  # stages below that are looked at, the nearest ones


def fits(shape: tuple[int, int, int, int], bits: int) -> bool:
    """Whether a file may hold codes `[K, t, h, w]` of so many bits by coder 1."""
    books, steps, height, width = shape
    positions = height * width
    if positions < MIN_POSITIONS or width > MAX_WIDTH:
        return False
    if books * steps * positions * bits > MAX_BITS:
        return False
    # a pass takes about as long as 8 bit planes of it, if they are small
    return books * steps * len(make_passes(height, width)) * (bits + 8) <= MAX_WORK


def encode_stage(codes: Codes, bits: int, below: Sequence[Codes] = ()) -> bytes:
    """Code the codes of a stage.

    Args:
        codes: integers `[K, t, h, w]`, 0 <= code < 2 ** bits.
        bits: of a code, 1..32.
        below: codes of the stages below, from the first to the last, each of the same shape.
    """
    coded: list[tuple[Bits, npt.NDArray[np.uint16]]] = []

    def note(mixer: Mixer, features: Numbers, here: Numbers, values: Numbers) -> Numbers:
        chances = mixer.encode(features, here, values).astype(np.uint16)
        coded.append((values.reshape(-1) > 0, chances.reshape(-1)))
        return values

    _code(codes, bits, below, note)
    known, chances = zip(*coded, strict=True)
    return encode_bits(np.concatenate(known), np.concatenate(chances))


def decode_stage(
    data: bytes, shape: tuple[int, int, int, int], bits: int, below: Sequence[Codes] = ()
) -> npt.NDArray[np.int64]:
    """What `encode_stage` was given.

    Args:
        data: the bytes.
        shape: of the codes.
        bits, below: as they were.

    Raises:
        Damage: for bytes that `encode_stage` does not make.
    """
    decoder = BitDecoder(data)

    def take(mixer: Mixer, features: Numbers, here: Numbers, _: Numbers) -> Numbers:
        return mixer.decode(features, here, decoder.take)

    codes = _code(np.zeros(shape, np.int64), bits, below, take)
    decoder.finish()
    return codes


def _code(
    codes: Codes, bits: int, below: Sequence[Codes], code_pass: CodePass
) -> npt.NDArray[np.int64]:
    """Go through the bits of a stage, in the same way for who writes and for who reads them.

    Args:
        codes: as they are known: all zero for a reader.
        bits, below: see `encode_stage`.
        code_pass: takes the mixer, the features, and the bits of a pass as they are known, and
            gives the bits.

    Returns:
        the codes.
    """
    coded = np.empty(codes.shape, np.int64)
    passes = make_passes(*codes.shape[2:])
    below = below[-MAX_BELOW:]
    for book, steps in enumerate(codes):
        contexts = Contexts((bits, *codes.shape[2:]))
        mixer = Mixer(bits, len(below))
        for step, known in enumerate(steps):
            contexts.begin([split_bits(stage[book, step], bits) for stage in below])
            planes = split_bits(known, bits)
            for some in passes:
                values = some.of(planes).reshape(bits, -1).astype(np.float64)
                features, here = contexts.features(some), contexts.here(some)
                contexts.put(some, code_pass(mixer, features, here, values))
            coded[book, step] = join_bits(contexts.now)
    return coded
