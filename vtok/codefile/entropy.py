"""Bits with probabilities to bytes and back: binned by probability, coded with rANS.

A bit is a miss if it is not the more probable value. Misses and hits of about the same probability
go into the same bin, eight make a byte, and the bytes of a bin are coded with rANS (Duda, arXiv
1311.2540) by a static table of that bin. Only one step in eight bits is sequential, in Python; all
else is vectorized.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.probability import ONE, Bits, Integers, Probabilities
from vtok.codefile.records import Damage

Bytes = npt.NDArray[np.uint8]
# Of each bin the least probability of a miss, and the one that its table assumes, out of ONE
EDGES = (1, 4, 15, 49, 112, 210, 353, 560, 843, 1207, 1642)
MISSES = (2, 8, 28, 77, 155, 274, 446, 689, 1013, 1417, 1874)
_FOLDED = np.minimum(np.arange(ONE), ONE - np.arange(ONE))
_BIN_OF = (np.searchsorted(EDGES, _FOLDED, side="right") - 1).astype(np.uint8)
_LOW = 1 << 16  # the state of rANS lies in _LOW .. 2**32 - 1
_MASK = _LOW - 1
_STATE_BYTES = 4


class Table(NamedTuple):
    """Frequencies of bytes."""

    shares: list[int]  # of each byte, at least 1, 65536 in all
    starts: list[int]  # sum of the shares of smaller bytes
    symbols: bytes  # byte of each of the 65536 places
    steps: list[tuple[int, int, int, int]]  # of the encoder, for each byte


@cache
def table(number: int) -> Table:
    """Table of a bin, by number: eight independent misses or hits."""
    miss, hit = MISSES[number], ONE - MISSES[number]
    # ONE ** 8 is 2 ** 96
    by_misses = np.array([max(1, miss**n * hit ** (8 - n) >> 80) for n in range(9)])
    shares = by_misses[[bin(byte).count("1") for byte in range(256)]]
    shares[0] += _LOW - shares.sum()
    symbols = np.repeat(np.arange(256, dtype=np.uint8), shares).tobytes()
    starts = shares.cumsum() - shares
    columns = (shares << 16, shares, _LOW - shares, starts)
    steps = list(zip(*(column.tolist() for column in columns), strict=True))
    return Table(shares.tolist(), starts.tolist(), symbols, steps)


class BitEncoder:
    """Collects bits; see `vtok.codefile.probability.BitCoder`."""

    reads = False

    def __init__(self) -> None:
        self._missed: list[list[Bits]] = [[np.zeros(0, np.bool_)] for _ in EDGES]

    def code(self, probabilities: Probabilities, values: Integers) -> Bits:
        """Add bits."""
        bits = values > 0
        order, counts = _sort(probabilities)
        missed = (bits != (probabilities >= ONE // 2)).reshape(-1)[order]
        begin = 0
        for pieces, count in zip(self._missed, counts, strict=True):
            pieces.append(missed[begin : begin + count])
            begin += count
        return bits

    def finish(self) -> bytes:
        """Return the coded bits."""
        runs = [np.packbits(np.concatenate(p), bitorder="little").tobytes() for p in self._missed]
        return b"".join(_varint(len(run)) for run in runs) + _encode_bytes(runs)


class BitDecoder:
    """Inverts `BitEncoder`; all methods raise `Damage` for bytes that it does not make.

    Args:
        data: the bytes.
        most: the largest number of bits that they may hold.
    """

    reads = True

    def __init__(self, data: bytes, most: int) -> None:
        counts, place = [], 0
        for _ in EDGES:
            count, place = _read_varint(data, place)
            counts.append(count)
        if sum(counts) > most // 8 + len(EDGES):  # before time and memory are spent on them
            raise Damage(f"a coded stage of {sum(counts)} bytes of bits, not {most // 8}")
        runs = _decode_bytes(data[place:], counts)
        self._missed = [np.unpackbits(r, bitorder="little").view(np.bool_) for r in runs]
        self._next = [0] * len(EDGES)

    def code(self, probabilities: Probabilities, values: Integers) -> Bits:
        """Take the next bits."""
        order, counts = _sort(probabilities)
        pieces = []
        for number, count in enumerate(counts):
            begin = self._next[number]
            self._next[number] = end = begin + count
            pieces.append(self._missed[number][begin:end])
            if end > len(self._missed[number]):
                raise Damage("a coded stage ends before its codes")
        bits = np.empty(len(order), np.bool_)
        bits[order] = np.concatenate(pieces)
        return bits.reshape(probabilities.shape) ^ (probabilities >= ONE // 2)

    def finish(self) -> None:
        """Check that all bits were taken."""
        for missed, place in zip(self._missed, self._next, strict=True):
            if len(missed) - place >= 8 or missed[place:].any():
                raise Damage("a coded stage does not end with its codes")


def _sort(probabilities: Probabilities) -> tuple[npt.NDArray[np.int64], list[int]]:
    """The order that sorts bits by bin, and the number in each bin."""
    bins = _BIN_OF.take(probabilities.reshape(-1))
    return bins.argsort(kind="stable"), np.bincount(bins, minlength=len(EDGES)).tolist()


def _varint(number: int) -> bytes:
    """Seven bits to a byte, the lowest first; all bytes but the last have their top bit set."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out) + bytes([number])


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    number = 0
    for shift in range(0, 35, 7):
        if place >= len(data):
            break
        number |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return number, place
    raise Damage("a coded stage without the lengths of its bins")


def _encode_bytes(runs: list[bytes]) -> bytes:
    """Code the bytes of each bin, from the last to the first, since a decoder reverses them."""
    words: list[int] = []
    state, mask, put = _LOW, _MASK, words.append
    for number, run in reversed(list(enumerate(runs))):
        for limit, share, rest, start in map(table(number).steps.__getitem__, reversed(run)):
            if state >= limit:
                put(state & mask)
                state >>= 16
            state += state // share * rest + start
    return state.to_bytes(_STATE_BYTES, "little") + np.array(words[::-1], "<u2").tobytes()


def _decode_bytes(data: bytes, counts: list[int]) -> list[Bytes]:
    """Invert `_encode_bytes`, given the number of bytes of each bin."""
    if len(data) < _STATE_BYTES or len(data) % 2:
        raise Damage(f"a coded stage of {len(data)} bytes")
    state = int.from_bytes(data[:_STATE_BYTES], "little")
    words = np.frombuffer(data, "<u2", offset=_STATE_BYTES)[::-1].tolist()
    runs, least, mask, take = [], _LOW, _MASK, words.pop
    for number, count in enumerate(counts):
        run = bytearray(count)
        shares, starts, symbols, _ = table(number)
        most = shares[0]  # byte 0 starts at 0 and is the most frequent one
        for place in range(count):
            low = state & mask
            if low < most:
                state = most * (state >> 16) + low
            else:
                run[place] = symbol = symbols[low]
                state = shares[symbol] * (state >> 16) + low - starts[symbol]
            if state < least:
                if not words:
                    raise Damage("a coded stage ends before its codes")
                state = state << 16 | take()
        runs.append(np.frombuffer(run, np.uint8))
    if words or state != _LOW:
        raise Damage("a coded stage does not end with its codes")
    return runs
