"""A second reader of coder 1, made from docs/format.md alone: one bit at a time, no numpy inside.

If it and vtok ever disagree, the page or the code has changed: files that people have would no
longer read.
"""

from itertools import product
from typing import Any

import numpy as np
import pytest

from vtok.codefile.entropy import encode_stage

CURVE = (
    1, 2, 4, 6, 10, 17, 28, 45, 74, 120, 194, 311, 488, 748, 1102, 1547, 2048,
    2549, 2994, 3348, 3608, 3785, 3902, 3976, 4022, 4051, 4068, 4079, 4086, 4090, 4092, 4094, 4095,
)  # fmt: skip
START = (
    (34, 18, 24, 21, 0, 6, 8, 12, 11, 3, 31, 55),
    (-13, 11, 18, 26, 0, -30, 9, 15, 36, 34, 0, 0, 0, 0, -7, 30, 18, 23, 12),
)
CROSS, DIAGONAL = ((0, -1), (0, 1), (-1, 0), (1, 0)), ((-1, -1), (-1, 1), (1, -1), (1, 1))
Planes = dict[tuple[int, int, int, int], int]  # bits by (step, bit, row, column)


def chance_of(evidence: int) -> int:
    """Of a 1, of 4096."""
    place, rest = divmod(min(4095, max(0, evidence // 4096 + 2048)), 128)
    return (CURVE[place] * (128 - rest) + CURVE[place + 1] * rest + 64) >> 7


def passes_of(h: int, w: int) -> list[tuple[list[tuple[int, int]], int]]:
    """The positions of each pass, and its reach."""
    passes = []
    starts = ((0, 0, 4), (2, 2, 4), (0, 2, 4), (2, 0, 4), (1, 1, 2), (0, 1, 2), (1, 0, 2))
    for top, left, pitch in starts:
        rows, columns = range(top, h, pitch), range(left, w, pitch)
        each = max(1, 4096 // max(1, len(columns)))
        for first in range(0, len(rows), each):
            places = list(product(rows[first : first + each], columns))
            if places:
                passes.append((places, pitch // 2))
    return passes


class SecondReader:
    """Reads the parts of a chunk."""

    def __init__(self, shape: tuple[int, int, int, int], bits: int) -> None:
        self.shape, self.bits = shape, bits
        self.stages: list[list[Planes]] = []  # of each stage, of each codebook

    def read(self, data: bytes) -> Any:
        """The codes of the next part, [K, t, h, w]."""
        books, t, h, w = self.shape
        self.state = int.from_bytes(data[:4], "little")
        pairs = range(4, len(data), 2)
        self.words = [int.from_bytes(data[i : i + 2], "little") for i in pairs]
        self.stages.append([self.read_book(book) for book in range(books)])
        assert (self.state, self.words) == (16384, [])
        codes = np.zeros(self.shape, np.int64)
        for place in product(range(books), range(t), range(self.bits), range(h), range(w)):
            book, step, bit, y, x = place
            known = self.stages[-1][book][step, bit, y, x] > 0
            codes[book, step, y, x] += known << (self.bits - 1 - bit)
        return codes

    def take(self, chance: int) -> int:
        """The next bit, +16 or -16."""
        high, low = divmod(self.state, 4096)
        if low < chance:
            value, self.state = 16, chance * high + low
        else:
            value, self.state = -16, (4096 - chance) * high + low - chance
        if self.state < 16384:
            self.state = 65536 * self.state + self.words.pop(0)
        return value

    def read_book(self, book: int) -> Planes:
        """The bits of one codebook."""
        self.now: Planes = {}
        self.below = [stage[book] for stage in self.stages][-8:]
        later, bits = bool(self.below), range(self.bits)
        weights = [[1024 * weight for weight in START[later]] for _ in bits]
        runs = [0] + [1024 * (547, 291)[later] // bit for bit in bits[1:]]
        links = [[0] * ((2 + len(self.below)) * self.bits) for _ in bits]
        slow = 2 if later else 1
        for step in range(self.shape[1]):
            for places, reach in passes_of(*self.shape[2:]):
                inputs: dict[tuple[int, int], list[int]] = {}
                errors: dict[tuple[int, int], int] = {}
                features = {
                    (bit, i): self.features(step, bit, *place, reach)
                    for bit in bits
                    for i, place in enumerate(places)
                }
                found: list[list[int]] = [[] for _ in bits]
                for bit, (i, (y, x)) in product(bits, enumerate(places)):
                    known = [
                        plane.get((step - 1, j, y, x), 0) for plane in [self.now] for j in bits
                    ]
                    before = list(known)
                    known += [plane[step, j, y, x] for plane in self.below for j in bits]
                    known += [found[j][i] for j in range(bit)]
                    run = sum(found[j][i] * before[j] // 256 for j in range(bit))
                    inputs[bit, i] = [*features[bit, i], *known, before[bit] * run // 8]
                    row = [*weights[bit], *links[bit][: len(known)], runs[bit]]
                    chance = chance_of(sum(a * b for a, b in zip(row, inputs[bit, i], strict=True)))
                    found[bit].append(self.take(chance))
                    errors[bit, i] = (4096 if found[bit][i] > 0 else 0) - chance
                for bit in bits:
                    values = [[inputs[bit, i], errors[bit, i]] for i in range(len(places))]
                    steps = [
                        sum(row[k] * error for row, error in values) // (slow * (len(places) + 4))
                        for k in range(len(inputs[bit, 0]))
                    ]
                    count = len(weights[bit])
                    weights[bit] = [a + b for a, b in zip(weights[bit], steps, strict=False)]
                    for k, change in enumerate(steps[count:-1]):
                        links[bit][k] += change
                    runs[bit] += steps[-1]
                    for i, (y, x) in enumerate(places):
                        self.now[step, bit, y, x] = found[bit][i]
        return self.now

    def same(self, planes: Planes, others: Planes, times: tuple[int, int], y: int, x: int) -> int:
        """Bits of a position that are equal, less those that are not."""
        pairs = [
            planes.get((times[0], bit, y, x), 0) * others.get((times[1], bit, y, x), 0)
            for bit in range(self.bits)
        ]
        return sum(pairs) // 256

    def features(self, step: int, bit: int, y: int, x: int, reach: int) -> list[int]:
        """The features of one bit."""

        def around(offsets: Any, far: int, value: Any) -> int:
            return sum(value(y + far * down, x + far * right) for down, right in offsets)

        def at(planes: Planes, time: int) -> Any:
            return lambda row, column: planes.get((time, bit, row, column), 0)

        now, times = self.now, (step, step - 1)
        p, q, c = at(now, step - 1), at(now, step - 2), at(now, step)
        cross, diagonal = around(CROSS, reach, c), around(DIAGONAL, reach, c)

        def there(row: int, column: int) -> int:
            return int(c(row, column) != 0)

        weight = max(1, 2 * around(CROSS, reach, there) + around(DIAGONAL, reach, there))

        def agrees(row: int, column: int) -> int:
            return self.same(now, now, times, row, column)

        def agreed(row: int, column: int) -> int:
            return self.same(now, now, (step - 1, step - 2), row, column)

        stay = 2 * around(CROSS, reach, agrees) + around(DIAGONAL, reach, agrees)
        stay = 16 * stay // (weight * self.bits)
        still = agreed(y, x) + around(CROSS, 1, agreed) + around(DIAGONAL, 1, agreed)
        still = 16 * still // (9 * self.bits)
        vote = (2 * cross + diagonal) // weight
        here = p(y, x)
        features = [here, around(CROSS, 1, p) >> 1, q(y, x), here * still >> 4, 16]
        nearby = [c(y + reach * down, x + reach * right) for down, right in CROSS]
        nearby += [diagonal >> 1, here * stay >> 4, vote * abs(vote) >> 4]
        if not self.below:
            return features + nearby
        u, s = at(self.below[-1], step), at(self.below[-1], step - 1)
        under = u(y, x)
        below = 16 * self.same(self.below[-1], self.below[-1], times, y, x) // self.bits
        features += [under, around(CROSS, 1, u) >> 1, s(y, x)]
        features += [(here * s(y, x) >> 4) * under >> 4, here * below >> 4]

        def above(row: int, column: int) -> int:
            return int(c(row, column) * u(row, column)) >> 4

        nearby.append(around(CROSS, reach, above) * under >> 5)
        nearby.append(around(DIAGONAL, reach, above) * under >> 5)
        return features + nearby


@pytest.mark.parametrize(
    ("shape", "bits", "stages"),
    [((1, 3, 9, 10), 3, 3), ((2, 2, 8, 8), 2, 2), ((1, 4, 5, 3), 9, 1), ((1, 1, 1, 1), 1, 1)],
)
def test_a_second_reader_reads_the_same(
    shape: tuple[int, int, int, int], bits: int, stages: int
) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (stages, *shape))
    codes[:, :, 1:] = np.where(
        rng.random(codes[:, :, 1:].shape) < 0.3, codes[:, :, 1:], codes[:, :, :1]
    )
    reader = SecondReader(shape, bits)
    for number, stage in enumerate(codes):
        data = encode_stage(stage, bits, list(codes[:number]))
        assert np.array_equal(reader.read(data), stage)
