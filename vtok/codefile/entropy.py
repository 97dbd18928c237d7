"""Coder 1: the codes of the stages of a chunk, by an adaptive model of their bits.

docs/format.md describes it. A part may look at the stages below of the same chunk and at nothing
else, so chunks and stages can be cut and read alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from vtok.codefile.probability import (
    CHANCES,
    EDGE,
    Contexts,
    Grid,
    Integers,
    Mixer,
    Numbers,
    join_bits,
    make_bands,
    split_bits,
)
from vtok.codefile.rans import BIN_OF, BitDecoder, Bits, Chances, encode_bits, encode_misses

Planes = Sequence[Sequence[Integers]]  # [K][t], each as of `split_bits`
# numba keeps what it compiles beside the source
_KEPT = any(Path(__file__).parent.glob("__pycache__/compiled.*.nbc"))
PAYS_AFTER = 1 << 22 if _KEPT else 1 << 24
"""Bits coded by numpy before the loops are loaded, or compiled, which slows the model meanwhile."""
_spent = 0


def loops(bits: int) -> ModuleType | None:
    """The compiled loops, where they are worth while; None: do without.

    Args:
        bits: to be coded next.
    """
    global _spent
    _spent += bits
    return compiled() if _spent > PAYS_AFTER else None


@cache
def compiled() -> ModuleType | None:
    """The compiled loops; None where numba is not there, switched off, or of no use."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":  # before it takes its 100 MB
        return None
    try:
        import numba  # noqa: F401 - asked for by name, to be an error here or nowhere

        from vtok.codefile import compiled as found
    except Exception:  # not installed, of another numpy, without a place for what it compiles: any
        return None
    return found


def encode_stage(
    fast: ModuleType, planes: Integers, below: Sequence[Planes], mixers: Sequence[Mixer]
) -> bytes:
    """Code a stage; see `StageCoder.encode`.

    Args:
        fast: the compiled loops.
        planes: of the stage, as of `split_bits` `[K, t, bits, h, w]`.
        below: those of the stages below that are looked at, the nearest last.
        mixers: for each codebook.
    """
    steps, bits, height, width = planes.shape[1:]
    count = len(planes) * steps * bits * (height - 2 * EDGE) * (width - 2 * EDGE)
    missed, bins = np.empty(count, np.bool_), np.empty(count, np.uint8)
    stream = fast.Stream(missed, bins, np.zeros(1, np.int64), BIN_OF, CHANCES)
    for book, given in enumerate(planes):
        under = [stage[book] for stage in below]
        _code_book(fast, np.zeros_like(given), given, under, mixers[book], stream)
    return encode_misses(missed, bins, fast)


def decode_stage(
    fast: ModuleType,
    planes: Integers,
    below: Sequence[Planes],
    mixers: Sequence[Mixer],
    decoder: BitDecoder,
) -> None:
    """Find the planes of a stage, given as zeros; see `encode_stage`."""
    stream = fast.Stream(decoder.missed, np.empty(0, np.uint8), decoder.next, BIN_OF, CHANCES)
    for book, steps in enumerate(planes):
        under = [stage[book] for stage in below]
        _code_book(fast, steps, steps, under, mixers[book], stream)


def _code_book(
    fast: ModuleType,
    steps: Integers,
    given: Integers,
    below: Sequence[Sequence[Integers]],
    mixer: Mixer,
    stream: Any,
) -> None:
    """Fill in the planes `[t, bits, h, w]` of a codebook; see `compiled.code_book`."""
    flat = (*steps.shape[:2], -1)
    under = np.zeros((len(below), *steps.shape), np.int16)
    for place, stage in enumerate(below):
        under[place] = stage  # an array, or a list of them for each step
    higher = np.zeros(steps.shape[1], np.int64)
    for group in mixer.groups:
        higher[group] = group.start
    fast.code_book(
        steps.reshape(flat),
        given.reshape(flat),
        under.reshape(len(under), *steps.shape[:2], steps[0, 0].size),
        _compiled_grid(fast, *steps.shape[2:]),
        fast.Learned(mixer.weights, mixer.links, higher, mixer.slowness),
        stream,
    )


@lru_cache(8)
def _compiled_grid(fast: ModuleType, padded_height: int, padded_width: int) -> Any:
    """The passes over steps of this size."""
    height, width = padded_height - 2 * EDGE, padded_width - 2 * EDGE
    places, passes, count = [], [], 0
    for band in make_bands(height, width):
        rows = np.arange(band.top, band.bottom, band.pitch) + EDGE
        columns = np.arange(band.left, width, band.pitch) + EDGE
        places.append((rows[:, None] * padded_width + columns).reshape(-1))
        count += places[-1].size
        passes.append((count, band.reach, band.sides, band.corners))
    # an unsigned index needs no check for one that counts from the end
    flat = np.concatenate(places).astype(np.uint64)
    return fast.Grid(flat, np.array(passes, np.int64), np.uint64(padded_width))


Codes = npt.NDArray[Any]
Shape = tuple[int, int, int, int]  # [K, t, h, w]
CodePass = Callable[[Mixer, Numbers], None]
MIN_POSITIONS = 64  # of a step: with fewer, most of the time would go into little
MAX_WIDTH = 1 << 13  # positions in a row: bounds a pass, which has at least one row
MAX_WORK = 1 << 23  # of all modelled parts of a chunk: bounds time and memory
PASS_WORK = 128  # of a pass, for each bit of a code and 8, however few positions it has
MAX_BELOW = 3  # stages below that are looked at, the nearest ones


def work(shape: Shape, bits: int) -> int | None:
    """What it takes to code a stage by coder 1, in bits; None where that may not be."""
    books, steps, height, width = shape
    if height * width < MIN_POSITIONS or width > MAX_WIDTH:
        return None
    passes = len(make_bands(height, width)) if height * width <= MAX_WORK else MAX_WORK
    return books * steps * (height * width * bits + PASS_WORK * passes * (bits + 8))


def steps_to_code(shape: Shape, bits: int, stages: int) -> int:
    """How many steps of `[K, most, h, w]` a chunk may have, for all its stages to be coded.

    Returns:
        `most`, or as often halved as it takes; at least 1, where not all of them may be.
    """
    books, steps, height, width = shape
    while steps > 1 and stages * (work((books, steps, height, width), bits) or 0) > MAX_WORK:
        steps //= 2
    return steps


class StageCoder:
    """Codes the stages of a chunk from the first to the last, or decodes them.

    Args:
        shape: `[K, t, h, w]` of the codes of each stage.
        bits: of a code, 1..32.
    """

    def __init__(self, shape: Shape, bits: int) -> None:
        self._shape, self._bits = shape, bits
        self._below: list[Codes | Planes] = []  # as codes, until their bits are asked for

    def encode(self, codes: Codes) -> bytes:
        """Code the codes of the next stage, integers 0 <= code < 2 ** bits."""
        planes, fast = split_bits(codes, self._bits), loops(codes.size * self._bits)
        if fast is not None:
            data = encode_stage(fast, planes, self._seen(), self._mixers())
            self._below.append(list(planes))
            return data
        coded: list[tuple[Bits, Chances]] = []

        def note(mixer: Mixer, known: Numbers) -> None:
            chances = mixer.encode(known)
            coded.append((known[0].reshape(-1) > 0, chances.reshape(-1)))

        self._code(planes, note)
        known, chances = zip(*coded, strict=True)
        return encode_bits(np.concatenate(known), np.concatenate(chances))

    def decode(self, data: bytes) -> npt.NDArray[np.int64]:
        """What `encode` was given.

        Raises:
            Damage: for bytes that `encode` does not make.
        """
        books, steps, height, width = self._shape
        count = int(np.prod(self._shape)) * self._bits
        fast = loops(count)
        decoder = BitDecoder(data, count, fast)
        if fast is not None:
            padded = (books, steps, self._bits, height + 2 * EDGE, width + 2 * EDGE)
            found = np.zeros(padded, np.int16)
            decode_stage(fast, found, self._seen(), self._mixers(), decoder)
            decoder.finish()
            self._below.append(list(found))
            return join_bits(found)

        def take(mixer: Mixer, known: Numbers) -> None:
            mixer.decode(known, decoder.take)

        planes = self._code(None, take)
        decoder.finish()
        return np.stack([join_bits(np.stack(steps)) for steps in planes])

    def pass_over(self, codes: Codes) -> None:
        """Take note of a stage whose codes are known otherwise."""
        self._below.append(codes)

    def _code(self, known: Integers | None, code_pass: CodePass) -> Planes:
        """Go through the bits of a stage, in the same way for who writes and for who reads them.

        Args:
            known: of a writer, the planes `[K, t, bits, h, w]`.
            code_pass: takes the mixer and what is known of the positions of a pass, of a writer
                the bits too, and fills in what is not.
        """
        bits, steps = self._bits, self._shape[1]
        grid = _grid(*self._shape[2:])
        below = self._seen()
        coded: list[Sequence[Integers]] = []
        for book, mixer in enumerate(self._mixers()):
            contexts = Contexts(grid, bits, [stage[book] for stage in below])
            for step in range(steps):
                contexts.begin()
                for number, some in enumerate(grid.passes):
                    of_pass = contexts.of(number)
                    if known is not None:
                        of_pass[0] = some.of(known[book, step]).reshape(bits, -1)
                    code_pass(mixer, of_pass)
                    contexts.put(number, of_pass[0])
                contexts.end()
            coded.append(contexts.steps)
        self._below.append(coded)
        return coded

    def _mixers(self) -> list[Mixer]:
        """For each codebook of the next stage."""
        return [Mixer(self._bits, min(len(self._below), MAX_BELOW)) for _ in range(self._shape[0])]

    def _seen(self) -> list[Planes]:
        """The planes of the stages below that the next one looks at."""
        return [self._planes(n) for n in range(len(self._below))[-MAX_BELOW:]]

    def _planes(self, number: int) -> Planes:
        """The planes of a stage below."""
        stage = self._below[number]
        if isinstance(stage, np.ndarray):
            self._below[number] = stage = list(split_bits(stage, self._bits))
        return stage


@lru_cache(4)
def _grid(height: int, width: int) -> Grid:
    """What depends on the size of a latent step alone, for all chunks of it."""
    return Grid(height, width)
