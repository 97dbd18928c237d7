"""Bytes with known frequencies to fewer bytes and back: rANS, in integers alone.

Asymmetric numeral systems (Duda, arXiv 1311.2540) keep all symbols so far in one number, the
state. A symbol of frequency f / 65536 multiplies it by about 65536 / f, and what is last put in
comes out first, so the encoder works from the last symbol to the first.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.byte_source import Damage

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]
PRECISION = 16
LOW = 1 << 16  # the state lies in LOW .. LOW * 2**16 - 1
WORD_BITS, STATE_BYTES = 16, 4
_MASK = (1 << PRECISION) - 1


class Table(NamedTuple):
    """How often each byte comes.

    Attributes:
        shares: of each of the 256 bytes, of 65536 in all, none 0.
        starts: the sum of the shares before each.
        symbols: the byte of each of the 65536 places.
        rows: of each byte what `_encode_words` wants: its share << 16, share, 65536 - share, start.
    """

    shares: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    symbols: bytes
    rows: list[tuple[int, int, int, int]]

    @classmethod
    def of(cls, shares: npt.NDArray[np.int64]) -> Table:
        """The table of these shares."""
        symbols = np.repeat(np.arange(256, dtype=np.uint8), shares).tobytes()
        starts = shares.cumsum() - shares
        columns = (shares << WORD_BITS, shares, LOW - shares, starts)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        return cls(shares, starts, symbols, rows)


def encode_bytes(runs: list[tuple[Bytes, Table]], fast: ModuleType | None = None) -> bytes:
    """Code runs of bytes, each run by its table.

    Args:
        runs: the bytes.
        fast: compiled loops, if there are any.

    Returns:
        The last state in 4 bytes, then words of 2 bytes in the order a decoder takes them.
    """
    if fast is None:
        state, words = _encode_words(runs)
    else:
        state, count = LOW, 0
        room = np.empty(sum(len(symbols) for symbols, _ in runs), "<u2")
        for symbols, table in reversed(runs):
            tables = (table.shares, table.starts)
            state, count = fast.encode_words(state, symbols, *tables, room, count)
        words = room[:count]
    return int(state).to_bytes(STATE_BYTES, "little") + words[::-1].tobytes()


def _encode_words(runs: list[tuple[Bytes, Table]]) -> tuple[int, Words]:
    """The last state, and words in the order in which they come out."""
    state, words = LOW, []
    for symbols, table in reversed(runs):
        for limit, share, rest, start in map(table.rows.__getitem__, symbols[::-1].tobytes()):
            if state >= limit:  # the result would not stay in range
                words.append(state & _MASK)
                state >>= WORD_BITS
            state += state // share * rest + start
    return state, np.array(words, "<u2")


def decode_bytes(
    data: bytes, runs: list[tuple[int, Table]], fast: ModuleType | None = None
) -> list[Bytes]:
    """Take back what `encode_bytes` made.

    Args:
        data: the bytes, all of them.
        runs: how many bytes each run has, and its table.
        fast: compiled loops, if there are any.

    Raises:
        Damage: for bytes that `encode_bytes` does not make of such runs.
    """
    if len(data) < STATE_BYTES or len(data) % 2:
        raise Damage(f"a coded stage of {len(data)} bytes")
    state = int.from_bytes(data[:STATE_BYTES], "little")
    words = np.frombuffer(data, "<u2", offset=STATE_BYTES)
    if fast is None:
        state, left, decoded = _decode_words(state, words[::-1].tolist(), runs)
    else:
        decoded, taken = [np.empty(count, np.uint8) for count, _ in runs], 0
        for run, (_, table) in zip(decoded, runs, strict=True):
            symbols = np.frombuffer(table.symbols, np.uint8)
            tables = (symbols, table.shares, table.starts)
            state, taken = fast.decode_words(state, words, taken, *tables, run)
        left = len(words) - taken
    if left < 0:
        raise Damage("a coded stage ends before its codes")
    if left or state != LOW:
        raise Damage("a coded stage does not end with its codes")
    return decoded


def _decode_words(
    state: int, words: list[int], runs: list[tuple[int, Table]]
) -> tuple[int, int, list[Bytes]]:
    """The last state, how many words are left of those to be popped, and the runs."""
    decoded: list[Bytes] = []
    for count, table in runs:
        run = bytearray(count)
        shares, starts, symbols = table.shares.tolist(), table.starts.tolist(), table.symbols
        most = shares[0]  # byte 0, which starts at 0, comes most often
        for place in range(count):
            low = state & _MASK
            if low < most:
                state = most * (state >> PRECISION) + low
            else:
                run[place] = symbol = symbols[low]
                state = shares[symbol] * (state >> PRECISION) + low - starts[symbol]
            if state < LOW:
                if not words:
                    return state, -1, decoded
                state = state << WORD_BITS | words.pop()
        decoded.append(np.frombuffer(run, np.uint8))
    return state, len(words), decoded


Bits = npt.NDArray[np.bool_]
Chances = npt.NDArray[np.int64]
ONE = 4096  # chances are integers p of p / ONE, 0 < p < ONE
# the least chance of a miss in each bin, and the one that it is coded with
EDGES = (1, 4, 15, 49, 112, 210, 353, 560, 843, 1207, 1642)
MISSES = (2, 8, 28, 77, 155, 274, 446, 689, 1013, 1417, 1874)
_FOLDED = np.minimum(np.arange(ONE), ONE - np.arange(ONE))
BIN_OF = (np.searchsorted(EDGES, _FOLDED, side="right") - 1).astype(np.uint8)  # of a chance of 1


@cache
def table(number: int) -> Table:
    """The table of a bin: how often a byte of so many misses comes."""
    miss, hit = MISSES[number], ONE - MISSES[number]
    # 4096 ** 8 is 2 ** 96, and shares are of 2 ** 16
    by_misses = np.array([max(1, miss**n * hit ** (8 - n) >> 80) for n in range(9)])
    shares = by_misses[np.bitwise_count(np.arange(256, dtype=np.uint8))]
    shares[0] += 65536 - shares.sum()
    return Table.of(shares)


def encode_bits(bits: Bits, chances: Chances) -> bytes:
    """Code bits.

    Args:
        bits: `[N]`.
        chances: of each bit the probability that it is 1, `[N]`, 0 < chance < `ONE`.
    """
    return encode_misses(bits != (chances >= ONE // 2), BIN_OF.take(chances))


def encode_misses(missed: Bits, bins: Bytes, fast: ModuleType | None = None) -> bytes:
    """Code bits that were made misses and hits.

    Args:
        missed: `[N]`.
        bins: of each bit, `[N]`.
        fast: compiled loops, if there are any.
    """
    missed = missed[bins.argsort(kind="stable")]
    ends = np.bincount(bins, minlength=len(EDGES)).cumsum()
    runs = [
        (np.packbits(of_bin, bitorder="little"), table(n))
        for n, of_bin in enumerate(np.split(missed, ends[:-1]))
    ]
    return b"".join(_varint(len(run)) for run, _ in runs) + encode_bytes(runs, fast)


class BitDecoder:
    """Takes back what `encode_bits` made, a few bits at a time.

    Args:
        data: the bytes.
        most: bits that there are, at most.
        fast: compiled loops, if there are any.

    Attributes:
        missed: misses and hits, bin by bin.
        next: of each bin the place of the next one.

    Raises:
        Damage: for bytes that `encode_bits` does not make.
    """

    def __init__(self, data: bytes, most: int, fast: ModuleType | None = None) -> None:
        counts, place = [], 0
        for _ in EDGES:
            count, place = _read_varint(data, place)
            counts.append(count)
        if sum(counts) > most // 8 + len(EDGES):  # before any time is spent on them
            raise Damage(f"a coded stage of {sum(counts)} bytes of bits, not {most // 8}")
        tables = [(count, table(n)) for n, count in enumerate(counts)]
        runs = decode_bytes(data[place:], tables, fast)
        # one more, to be taken for all that are not there
        runs.append(np.zeros(1, np.uint8))
        self.missed = np.unpackbits(np.concatenate(runs), bitorder="little").view(np.bool_)
        self._ends = 8 * np.cumsum(counts)
        self.next = self._ends - 8 * np.array(counts)  # of each bin

    def take(self, chances: Chances) -> Bits:
        """The next bits; any bits where there are none left, which `finish` will find.

        Args:
            chances: of each bit, as it was when it was coded.
        """
        flat = chances.reshape(-1)
        bins = BIN_OF.take(flat)
        counts = np.bincount(bins, minlength=len(EDGES))
        self.next += counts
        places = (self.next - counts.cumsum()).repeat(counts)
        places += np.arange(len(flat))
        bits = np.empty(len(flat), np.bool_)
        bits[bins.argsort(kind="stable")] = self.missed.take(places, mode="clip")
        bits ^= flat >= ONE // 2
        return bits.reshape(chances.shape)

    def finish(self) -> None:
        """Check that all bits were taken.

        Raises:
            Damage: if not.
        """
        if (self.next > self._ends).any():
            raise Damage("a coded stage ends before its codes")
        left = np.split(self.missed, self._ends)[:-1]
        for rest, end, place in zip(left, self._ends, self.next, strict=True):
            if end - place >= 8 or rest[len(rest) - (end - place) :].any():
                raise Damage("a coded stage does not end with its codes")


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
