"""Coder 1 by compiled loops, once a process codes so much that it pays: numba is an extra.

To load them takes half a second, and the first time on a machine ten, in which they are compiled;
numpy alone codes a short video in less. The bytes are the same, so nobody sees which it was.
"""

import os
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vtok.codefile.bins import BIN_OF, BitDecoder, encode_misses
from vtok.codefile.contexts import EDGE, Integers, make_bands
from vtok.codefile.mixing import CHANCES, Mixer

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
        _grid(fast, *steps.shape[2:]),
        fast.Learned(mixer.weights, mixer.links, higher, mixer.slowness),
        stream,
    )


@lru_cache(8)
def _grid(fast: ModuleType, padded_height: int, padded_width: int) -> Any:
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
