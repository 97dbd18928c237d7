"""Bytes with known frequencies to fewer bytes and back: rANS, in integers alone.

Asymmetric numeral systems (Duda, arXiv 1311.2540) keep all symbols so far in one number, the
state. A symbol of frequency f / 65536 multiplies it by about 65536 / f, and what is last put in
comes out first, so the encoder works from the last symbol to the first.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.source import Damage

Bytes = npt.NDArray[np.uint8]
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
    """

    shares: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    symbols: bytes

    @classmethod
    def of(cls, shares: npt.NDArray[np.int64]) -> "Table":
        """The table of these shares."""
        symbols = np.repeat(np.arange(256, dtype=np.uint8), shares).tobytes()
        return cls(shares, shares.cumsum() - shares, symbols)


def encode_bytes(runs: list[tuple[Bytes, Table]]) -> bytes:
    """Code runs of bytes, each run by its table.

    Returns:
        The last state in 4 bytes, then words of 2 bytes in the order a decoder takes them.
    """
    state, words = LOW, []
    for symbols, table in reversed(runs):
        columns = (table.shares << WORD_BITS, table.shares, LOW - table.shares, table.starts)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        for symbol in symbols[::-1].tobytes():
            limit, share, rest, start = rows[symbol]
            if state >= limit:  # the result would not stay in range
                words.append(state & _MASK)
                state >>= WORD_BITS
            state += state // share * rest + start
    words.reverse()
    return state.to_bytes(STATE_BYTES, "little") + np.array(words, "<u2").tobytes()


def decode_bytes(data: bytes, runs: list[tuple[int, Table]]) -> list[Bytes]:
    """Take back what `encode_bytes` made.

    Args:
        data: the bytes, all of them.
        runs: how many bytes each run has, and its table.

    Raises:
        Damage: for bytes that `encode_bytes` does not make of such runs.
    """
    if len(data) < STATE_BYTES or len(data) % 2:
        raise Damage(f"a coded stage of {len(data)} bytes")
    state = int.from_bytes(data[:STATE_BYTES], "little")
    words: list[int] = np.frombuffer(data, "<u2", offset=STATE_BYTES)[::-1].tolist()
    decoded = []
    try:
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
                    state = state << WORD_BITS | words.pop()
            decoded.append(np.frombuffer(run, np.uint8))
    except IndexError as exc:
        raise Damage("a coded stage ends before its codes") from exc
    if words or state != LOW:
        raise Damage("a coded stage does not end with its codes")
    return decoded
