"""Binary rANS: bits with known probabilities to bytes and back, in integers alone.

Asymmetric numeral systems (Duda, arXiv 1311.2540) keep all bits so far in one number, the state.
A bit of probability f / 4096 multiplies it by about 4096 / f, and what is last put in comes out
first, so the encoder works from the last bit to the first.
"""

import numpy as np
import numpy.typing as npt

from vtok.codefile.source import Damage

PRECISION = 12
ONE = 1 << PRECISION  # probabilities are integers p of p / ONE
LOW = 1 << 14  # the state lies in LOW .. LOW * 2**16 - 1, a single digit of Python's integers
WORD_BITS, STATE_BYTES = 16, 4
_BLOCK = 1 << 16  # bits that are lists of Python's integers at a time


def encode_bits(bits: npt.NDArray[np.bool_], chances: npt.NDArray[np.uint16]) -> bytes:
    """Code bits.

    Args:
        bits: `[N]`.
        chances: of each bit the probability that it is 1, `[N]`, 0 < chance < `ONE`.

    Returns:
        The last state in 4 bytes, then words of 2 bytes in the order a decoder takes them.
    """
    state, words = LOW, []
    for end in range(len(bits), 0, -_BLOCK):
        block = slice(max(0, end - _BLOCK), end)
        chance = chances[block].astype(np.int64)
        shares = np.where(bits[block], chance, ONE - chance)[::-1].tolist()
        starts = np.where(bits[block], 0, chance)[::-1].tolist()
        for share, start in zip(shares, starts, strict=True):
            if state >= share << (PRECISION + 6):  # the result would not stay in range
                words.append(state & 0xFFFF)
                state >>= WORD_BITS
            state += state // share * (ONE - share) + start
    words.reverse()
    return state.to_bytes(STATE_BYTES, "little") + np.array(words, "<u2").tobytes()


class BitDecoder:
    """Takes back what `encode_bits` made, a few bits at a time.

    Args:
        data: the bytes.

    Raises:
        Damage: if they are too few, or odd in number.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < STATE_BYTES or len(data) % 2:
            raise Damage(f"a coded stage of {len(data)} bytes")
        self._state = int.from_bytes(data[:STATE_BYTES], "little")
        self._words: list[int] = np.frombuffer(data, "<u2", offset=STATE_BYTES)[::-1].tolist()

    def take(self, chances: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """The next bits.

        Args:
            chances: of each bit `[n]`, as it was when it was coded.

        Raises:
            Damage: if the bytes end before.
        """
        state, words, bits = self._state, self._words, bytearray()
        try:
            for chance in chances.tolist():
                low = state & (ONE - 1)
                if low < chance:
                    state = chance * (state >> PRECISION) + low
                    bits.append(1)
                else:
                    state -= chance * (state >> PRECISION) + chance
                    bits.append(0)
                if state < LOW:
                    state = state << WORD_BITS | words.pop()
        except IndexError as exc:
            raise Damage("a coded stage ends before its codes") from exc
        self._state = state
        return np.frombuffer(bits, np.bool_)

    def finish(self) -> None:
        """Check that all bytes were used, and that they were made by `encode_bits`.

        Raises:
            Damage: if not.
        """
        if self._words or self._state != LOW:
            raise Damage("a coded stage does not end with its codes")
