"""Coder 1 of .vtok files, made from docs/format.md with numpy alone: see read_vtok.py.

It goes through the page from top to bottom, and is as short as it can be rather than fast.
"""

from typing import Any

import numpy as np

PASSES = (
    # top, left, pitch, reach, and how often neighbours across and diagonal ones count
    (0, 0, 4, 2, 0, 0), (2, 2, 4, 2, 0, 1), (0, 2, 4, 2, 2, 0), (2, 0, 4, 2, 2, 1),
    (1, 1, 2, 1, 0, 1), (0, 1, 2, 1, 2, 0), (1, 0, 2, 1, 2, 1),
)  # fmt: skip
CROSS, DIAG = ((0, -1), (0, 1), (-1, 0), (1, 0)), ((-1, -1), (-1, 1), (1, -1), (1, 1))
POINTS = (
    1, 2, 4, 6, 10, 17, 28, 45, 74, 120, 194, 311, 488, 748, 1102, 1547, 2048, 2549, 2994, 3348,
    3608, 3785, 3902, 3976, 4022, 4051, 4068, 4079, 4086, 4090, 4092, 4094, 4095,
)  # fmt: skip
WEIGHTS = (62, 31, 14, 20, 37, 38, 50, 2), (-19, 15, 30, 47, 5, 14, 35, 15, 14, 44, 37)
RUN = 366, 194
LEAST = 1, 4, 15, 49, 112, 210, 353, 560, 843, 1207, 1642
MISS = 2, 8, 28, 77, 155, 274, 446, 689, 1013, 1417, 1874
Z = np.arange(4096)
TABLE = np.array(POINTS)[Z // 128] * (128 - Z % 128) + np.array(POINTS)[Z // 128 + 1] * (Z % 128)
TABLE = (TABLE + 64) >> 7


class Bins:
    """Hits and misses by bin, all taken apart at once."""

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
            raise ValueError("a modelled part does not end where its bytes do")

    def take(self, chances: Any) -> Any:
        """The next bits, +16 or -16, of these chances [n]."""
        bins = np.searchsorted(LEAST, np.minimum(chances, 4096 - chances), side="right") - 1
        missed = np.zeros(len(chances), bool)
        for number in np.unique(bins):
            here, used = bins == number, self.used[number]
            self.used[number] += here.sum()
            missed[here] = self.bits[number][used : self.used[number]]
        return np.where((chances >= 2048) != missed, 16, -16)


def around(planes: Any, rows: Any, columns: Any, reach: int, offsets: Any) -> Any:
    """The sum of neighbours, in planes [..., h + 4, w + 4] with an edge of zeros."""
    places = ((rows + 2 + reach * y, columns + 2 + reach * x) for y, x in offsets)
    return sum(planes[..., y, x] for y, x in places)


def same(planes: Any, others: Any) -> Any:
    """Of two [bits, h, w]: how many bits are equal, less how many are not."""
    return (planes * others).sum(0) // 256


def split(codes: Any, bits: int) -> Any:
    """Codes [t, h, w] as [t, bits, h + 4, w + 4], highest bit first."""
    planes = np.where(codes[:, None] >> np.arange(bits)[::-1, None, None] & 1, 16, -16)
    return np.pad(planes, ((0, 0), (0, 0), (2, 2), (2, 2)))


def passes_of(height: int, width: int) -> Any:
    """Rows and columns of each pass [n], and its line of the table."""
    for top, left, pitch, *rest in PASSES:
        rows, columns = np.arange(top, height, pitch), np.arange(left, width, pitch)
        each = max(1, 1024 // max(1, len(columns)))
        for first in range(0, len(rows), each) if len(columns) else ():
            yield (
                *map(np.ravel, np.meshgrid(rows[first : first + each], columns, indexing="ij")),
                *rest,
            )


def features_of(planes: Any, below: Any, step: int, view: Any, near: Any) -> Any:
    """The features of the positions of a pass [bits, features, n]."""
    now, before, earlier = planes[step], planes[step - 1], planes[step - 2]
    here, bits = (..., view[0] + 2, view[1] + 2), len(now)
    reach, across, corners = near
    p, q = before[here], earlier[here]

    def sums(what: Any) -> Any:
        beside = around(what, *view, reach, CROSS) if across else 0
        return across * beside + (around(what, *view, reach, DIAG) if corners else 0)

    known = now[0] != 0
    weight = np.maximum(1, sums(known.astype(int)))
    share = 256 // weight
    vote = sums(now) * share >> 8
    stay = 16 * sums(same(now, before)) // (weight * bits)
    votes = [vote, vote * abs(vote) >> 4, p * stay >> 4]
    if not below:
        m = same(before, earlier)
        still = 16 * (m[here] + around(m, *view, 1, CROSS + DIAG)) // (9 * bits)
        beside = around(now, *view, reach, CROSS) if across else np.zeros_like(p)
        settled = [p, q, p * still >> 4, around(before, *view, 1, CROSS) >> 1]
        return np.stack(np.broadcast_arrays(*settled, *votes, beside), 1)
    under, sunk = below[-1][step], below[-1][step - 1]
    u, s = under[here], sunk[here]
    still = 16 * same(under, sunk)[here] // bits
    settled = [u, p, q, p * still >> 4, around(under, *view, 1, CROSS) >> 1, s]
    above = (sums(now * under >> 4) * share >> 8) * u >> 4
    return np.stack([*settled, (p * s >> 4) * u >> 4, *np.broadcast_arrays(*votes, above)], 1)


def decode_modelled(data: bytes, shape: Any, bits: int, below: Any) -> Any:
    """The codes [K, t, h, w] of a part; `below` are those of the parts before it."""
    bins = Bins(data)
    books = [
        decode_book(bins, shape[1:], bits, [split(stage[book], bits) for stage in below[-3:]])
        for book in range(shape[0])
    ]
    if any(
        len(b) - used > 7 or b[used:].any() for b, used in zip(bins.bits, bins.used, strict=True)
    ):
        raise ValueError("a modelled part has more bits than codes")
    ones = np.stack(books)[..., 2:-2, 2:-2] > 0
    return (ones << np.arange(bits)[::-1, None, None]).sum(2)


def decode_book(bins: Bins, shape: Any, bits: int, below: Any) -> Any:
    """The bits of one codebook, as `split` has them."""
    later, (steps, height, width) = int(bool(below)), shape
    planes = np.zeros((steps + 2, bits, height + 4, width + 4), np.int64)  # two before the first
    below = [np.pad(stage, ((2, 0), (0, 0), (0, 0), (0, 0))) for stage in below]
    weights = np.tile(1024 * np.array(WEIGHTS[later]), (bits, 1))
    runs = np.array([0, *(1024 * RUN[later] // i for i in range(1, bits))])
    links = np.zeros((bits, (len(below) + 2) * bits), np.int64)
    size = -(-bits // 2) if later else 1
    higher = np.arange(bits) // size * size  # bits in higher groups
    for step in range(2, steps + 2):
        under = [stage[step] for stage in below]
        for rows, columns, reach, across, corners in passes_of(height, width):
            view, here = (rows, columns), (..., rows + 2, columns + 2)
            features = features_of(planes, below, step, view, (reach, across, corners))
            p = planes[step - 1][here]
            values = np.concatenate([*(u[here] for u in under), p, np.zeros_like(p)])
            found, run = values[-bits:], np.zeros_like(p)
            chances = np.zeros_like(p)
            for first in range(0, bits, size):
                group = slice(first, first + size)
                run[group] = p[group] * (found[:first] * p[:first] // 256).sum(0) // 8
                evidence = np.einsum("bf,bfn->bn", weights[group], features[group])
                evidence += links[group] @ values + runs[group, None] * run[group]
                chances[group] = TABLE[np.clip(evidence // 4096 + 2048, 0, 4095)]
                found[group] = bins.take(chances[group].ravel()).reshape(-1, len(rows))
            error, divisor = (found > 0) * 4096 - chances, (2 + later) * (len(rows) + 4) // 2
            weights += np.einsum("bn,bfn->bf", error, features) // divisor
            runs += (error * run).sum(1) // divisor
            change = error @ values.T // divisor
            inner = np.arange(bits)[None] < higher[:, None]
            links += change * np.hstack([np.ones_like(links[:, bits:]), inner])
            planes[step][here] = found
    return planes[2:]
