"""Entropy-coded parts of .vtok files, written from docs/format.md with numpy alone.

Used by read_vtok.py. Follows the page from top to bottom; short rather than fast.
"""

from typing import Any

import numpy as np

CROSS, DIAGONAL = ((-1, 0), (0, -1), (0, 1), (1, 0)), ((-1, -1), (-1, 1), (1, -1), (1, 1))
LEVELS = (  # first row, first column, pitch, reach, neighbours
    (0, 0, 4, 2, ()), (2, 2, 4, 2, DIAGONAL), (0, 2, 4, 2, CROSS), (2, 0, 4, 2, CROSS),
    (1, 1, 2, 1, DIAGONAL), (0, 1, 2, 1, CROSS), (1, 0, 2, 1, CROSS),
)  # fmt: skip
POINTS = (
    1, 2, 4, 6, 10, 17, 28, 45, 74, 120, 194, 311, 488, 748, 1102, 1547, 2048, 2549, 2994, 3348,
    3608, 3785, 3902, 3976, 4022, 4051, 4068, 4079, 4086, 4090, 4092, 4094, 4095,
)  # fmt: skip
WEIGHTS = (62, 20, 37, 38, 50), (-19, 15, 5, 35, 15, 14, 44, 37)
RUN = 366, 194
LEAST = 1, 4, 15, 49, 112, 210, 353, 560, 843, 1207, 1642
MISS = 2, 8, 28, 77, 155, 274, 446, 689, 1013, 1417, 1874
Z = np.arange(4096)
TABLE = np.array(POINTS)[Z // 128] * (128 - Z % 128) + np.array(POINTS)[Z // 128 + 1] * (Z % 128)
TABLE = (TABLE + 64) >> 7


class Bins:
    """Misses and hits of each bin, decoded at once."""

    def __init__(self, data: bytes) -> None:
        counts, place = [], 0
        for _ in MISS:
            number = shift = 0
            while data[place] & 128:
                number, shift, place = number | (data[place] & 127) << shift, shift + 7, place + 1
            counts.append(number | data[place] << shift)
            place += 1
        state = int.from_bytes(data[place : place + 4], "little")
        words = iter(np.frombuffer(data[place + 4 :], "<u2").tolist())
        self.bits, self.used = [], [0] * len(MISS)
        for miss, count in zip(MISS, counts, strict=True):
            ks = [value.bit_count() for value in range(256)]
            share = [max(1, miss**k * (4096 - miss) ** (8 - k) >> 80) for k in ks]
            share[0] += 65536 - sum(share)
            start = np.cumsum([0, *share]).tolist()
            values = np.zeros(count, np.uint8)
            for i in range(count):
                low = state % 65536
                value = int(np.searchsorted(start, low, side="right")) - 1
                state = share[value] * (state // 65536) + low - start[value]
                if state < 65536:
                    state = 65536 * state + next(words, 0)
                values[i] = value
            self.bits.append(np.unpackbits(values, bitorder="little"))
        if state != 65536 or next(words, None) is not None:
            raise ValueError("an entropy-coded part does not end where its bytes do")

    def take(self, probabilities: Any) -> Any:
        """Return the next bits, +16 or -16, of these probabilities [n]."""
        least = np.minimum(probabilities, 4096 - probabilities)
        bins = np.searchsorted(LEAST, least, side="right") - 1
        missed = np.zeros(len(probabilities), bool)
        for number in np.unique(bins):
            here, used = bins == number, self.used[number]
            self.used[number] += here.sum()
            missed[here] = self.bits[number][used : self.used[number]]
        return np.where((probabilities >= 2048) != missed, 16, -16)


def split(codes: Any, bits: int) -> Any:
    """Split codes [t, h, w] into planes [t, bits, h + 4, w + 4], highest bit first."""
    planes = np.where(codes[:, None] >> np.arange(bits)[::-1, None, None] & 1, 16, -16)
    return np.pad(planes, ((0, 0), (0, 0), (2, 2), (2, 2)))


def passes_of(height: int, width: int) -> Any:
    """Yield rows and columns of each pass [n], reach and neighbours."""
    for top, left, pitch, reach, neighbours in LEVELS:
        axes = np.arange(top, height, pitch), np.arange(left, width, pitch)
        rows, columns = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
        for first in range(0, len(rows), 1024):
            some = slice(first, first + 1024)
            yield rows[some], columns[some], reach, neighbours


def around(planes: Any, rows: Any, columns: Any, reach: int, neighbours: Any) -> Any:
    """Sum neighbours in planes [..., h + 4, w + 4], which are 0 outside of the grid."""
    places = ((rows + 2 + reach * y, columns + 2 + reach * x) for y, x in neighbours)
    return sum((planes[..., y, x] for y, x in places), np.zeros_like(planes[..., rows, columns]))


def features_of(planes: Any, below: Any, step: int, some: Any) -> Any:
    """Compute the features of the positions of a pass [bits, features, n]."""
    now, before = planes[step], planes[step - 1]
    rows, columns = some[:2]
    here, p = (..., rows + 2, columns + 2), before[..., rows + 2, columns + 2]
    inside = np.pad(np.ones([side - 4 for side in now.shape[1:]], int), 2)
    count = np.maximum(1, around(inside, *some))
    share = 256 // count
    vote = around(now, *some) * share >> 8
    same = (now * before).sum(0) // 256
    stay = 16 * around(same, *some) // (count * len(now))
    votes = [vote, vote * abs(vote) >> 4, p * stay >> 4]
    if not below:
        return np.stack([p, around(before, rows, columns, 1, CROSS) >> 1, *votes], 1)
    under, u, s = below[-1][step], below[-1][step][here], below[-1][step - 1][here]
    settled = [u, p, around(under, rows, columns, 1, CROSS) >> 1, (p * s >> 4) * u >> 4]
    above = (around(now * under >> 4, *some) * share >> 8) * u >> 4
    return np.stack([*settled, *votes, above], 1)


def decode_book(bins: Bins, shape: Any, bits: int, below: Any) -> Any:
    """Decode the planes of one codebook, laid out as by `split`."""
    later, (steps, height, width) = int(bool(below)), shape
    planes = np.zeros((steps + 1, bits, height + 4, width + 4), np.int64)  # one before the first
    below = [np.pad(stage, ((1, 0), (0, 0), (0, 0), (0, 0))) for stage in below]
    weights = np.tile(1024 * np.array(WEIGHTS[later]), (bits, 1))
    runs = np.array([0, *(1024 * RUN[later] // i for i in range(1, bits))])
    links = np.zeros((bits, (len(below) + 2) * bits), np.int64)
    size = -(-bits // (2 if later else 3))
    higher = np.arange(bits) // size * size  # bits in earlier groups
    inner = np.arange(bits)[None] < higher[:, None]
    linked = np.hstack([inner, np.ones((bits, (len(below) + 1) * bits), bool)])
    for step in range(1, steps + 1):
        for some in passes_of(height, width):
            here = (..., some[0] + 2, some[1] + 2)
            features = features_of(planes, below, step, some)
            p = planes[step - 1][here]
            values = np.concatenate([np.zeros_like(p), *(stage[step][here] for stage in below), p])
            found, run, probabilities = values[:bits], np.zeros_like(p), np.zeros_like(p)
            for first in range(0, bits, size):
                group = slice(first, first + size)
                run[group] = p[group] * (found[:first] * p[:first] // 256).sum(0) // 8
                evidence = np.einsum("bf,bfn->bn", weights[group], features[group])
                evidence += links[group] @ values + runs[group, None] * run[group]
                probabilities[group] = TABLE[np.clip(evidence // 4096 + 2048, 0, 4095)]
                taken = bins.take(probabilities[group].ravel())
                found[group] = taken.reshape(-1, len(some[0]))
            error = (found > 0) * 4096 - probabilities
            divisor = (2 + later) * (len(some[0]) + 4) // 2
            weights += np.einsum("bn,bfn->bf", error, features) // divisor
            runs += (error * run).sum(1) // divisor
            links += error @ values.T // divisor * linked
            planes[step][here] = found
    return planes[1:]


def decode_modelled(data: bytes, shape: Any, bits: int, below: Any) -> Any:
    """Decode the codes [K, t, h, w] of a part; `below` has those of the parts before it."""
    bins = Bins(data)
    books = [
        decode_book(bins, shape[1:], bits, [split(stage[book], bits) for stage in below[-2:]])
        for book in range(shape[0])
    ]
    if any(
        len(b) - used > 7 or b[used:].any() for b, used in zip(bins.bits, bins.used, strict=True)
    ):
        raise ValueError("an entropy-coded part has more bits than codes")
    ones = np.stack(books)[..., 2:-2, 2:-2] > 0
    return (ones << np.arange(bits)[::-1, None, None]).sum(2)
