"""Bits with chances, coded at once: what is alike in chance is gathered, and coded as bytes.

A coder of single bits would have to take one step after the other between all of them. Here a bit
is first made a hit or a miss, by whether it is what its chance says. Hits and misses of about the
same chance go into the same bin; eight of a bin are a byte, and bytes are what rANS codes, by a
table for each bin. So nothing in the coder depends on the model of the bits: a reader takes all
bins apart first, and then hands out what is in them.
"""

from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt

from vtok.codefile.rans import Bytes, Table, decode_bytes, encode_bytes
from vtok.codefile.source import Damage

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
