"""Bytes with known frequencies to fewer bytes and back: rANS, in integers alone.

Asymmetric numeral systems (Duda, arXiv 1311.2540) keep all symbols so far in one number, the
state. A symbol of frequency f / 65536 multiplies it by about 65536 / f, and what is last put in
comes out first, so the encoder works from the last symbol to the first.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.source import Damage

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
    def of(cls, shares: npt.NDArray[np.int64]) -> "Table":
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
