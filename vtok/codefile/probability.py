"""Adaptive model of codes: the probability of each bit, from bits that are coded before it.

A logistic regression for each bit of a code, trained while it codes by one gradient step after each
pass, as in the mixing of PAQ (Mahoney, Adaptive Weighing of Context Models, 2005). Its inputs are
bits of the same position in earlier latent steps and in the stages below, and neighbours within the
latent step. docs/format.md specifies the model exactly.

All arithmetic is on integers: features in int16, sums of products in float64. No sum reaches 2**53,
so results are exact whatever the machine or the order of summation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Integers = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.int64]

ONE = 4096  # a probability p means p / ONE
UNIT = 16  # a bit is +UNIT or -UNIT, an unknown one 0
MAX_POSITIONS = 1024  # of a pass: the weights learn after each
MAX_BELOW = 2  # stages below that a stage looks at, the nearest ones
_CROSS = ((-1, 0), (0, -1), (0, 1), (1, 0))  # rows down, columns to the right
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
# Positions of a latent step from coarse to fine: first row, first column, pitch, neighbours
LEVELS = (
    (0, 0, 4, ()),
    (2, 2, 4, _DIAGONAL),
    (0, 2, 4, _CROSS),
    (2, 0, 4, _CROSS),
    (1, 1, 2, _DIAGONAL),
    (0, 1, 2, _CROSS),
    (1, 0, 2, _CROSS),
)
# 4096 / (1 + exp(-i / 2)) for i = -16..16; probabilities between them are interpolated
CURVE = (
    1, 2, 4, 6, 10, 17, 28, 45, 74, 120, 194, 311, 488, 748, 1102, 1547, 2048,
    2549, 2994, 3348, 3608, 3785, 3902, 3976, 4022, 4051, 4068, 4079, 4086, 4090, 4092, 4094, 4095,
)  # fmt: skip
# Initial weights in 64ths of the first stage and of the others, fitted to training clips by
# scripts/fit_coder.py. That of the run, the last feature, is divided by the number of the bit.
START = ((62, 20, 37, 38, 50), (-19, 15, 5, 35, 15, 14, 44, 37))
START_RUN = (366, 194)
SLOWNESS = (2, 3)  # divides gradients, in halves
GROUPS = (3, 2)  # of the bits of a code: a group knows the bits of the groups before it
EXTRA = 4  # added to the positions of a pass, to damp the steps of small passes
_WEIGHT = 1 << 16  # a weight of 1
_SCALE = _WEIGHT * UNIT / 256  # a weight of 1 times UNIT, over 256ths of a nat
_RUN = 8.0 * UNIT**2  # product of three bits, over 8ths of a bit


def _make_probabilities() -> Probabilities:
    place, rest = np.divmod(np.arange(ONE), 128)
    curve = np.array(CURVE)
    table: Probabilities = (curve[place] * (128 - rest) + curve[place + 1] * rest + 64) >> 7
    return table


_VALUES = np.array((-UNIT, UNIT), np.int16)  # of a bit
PROBABILITIES = _make_probabilities()  # by evidence, -2048..2047 in 256ths of a nat


class BitCoder(Protocol):
    """Writes bits of given probabilities, or reads them if `reads`."""

    reads: bool

    def code(self, probabilities: Probabilities, values: Integers) -> Bits:
        """Write `values` (+16 or -16), or ignore them and read; return the bits `[bits, n]`.

        `probabilities` are those of a 1, out of `ONE`.
        """
        ...


class Pass(NamedTuple):
    """Positions that are coded together.

    Attributes:
        positions: range of the coding order, n positions.
        neighbours: indices into the coding order `[4 or 0, n]`; the number of all positions for a
            neighbour outside of the grid.
        known: of each position the neighbours inside the grid, at least 1 `[n]`.
    """

    positions: slice
    neighbours: Indices
    known: Integers


class Grid:
    """Coding order of the h x w positions of a latent step.

    Attributes:
        size: number of positions.
        passes: in order; together they hold each position once.
    """

    def __init__(self, height: int, width: int) -> None:
        self.size = height * width
        self.passes: list[Pass] = []
        self._shape = height, width
        margin = 2  # the largest distance to a neighbour
        padded = np.full((height + 2 * margin, width + 2 * margin), self.size, np.int64)
        rank = padded[margin:-margin, margin:-margin]
        for top, left, pitch, neighbours in LEVELS:
            rows, columns = np.mgrid[top:height:pitch, left:width:pitch].reshape(2, -1)
            first = sum(len(some.known) for some in self.passes)
            for start in range(0, len(rows), MAX_POSITIONS):
                row, column = (axis[start : start + MAX_POSITIONS] for axis in (rows, columns))
                around = np.empty((len(neighbours), len(row)), np.int64)
                for index, (down, right) in zip(around, neighbours, strict=True):
                    y, x = margin + down * pitch // 2, margin + right * pitch // 2
                    index[:] = padded[row + y, column + x]
                inside = np.maximum((around < self.size).sum(0), 1).astype(np.int16)
                begin = first + start
                self.passes.append(Pass(slice(begin, begin + len(row)), around, inside))
            rank[rows, columns] = np.arange(first, first + len(rows))
        self._rank = rank.reshape(-1)
        self._order = self._rank.argsort()

    def split(self, codes: npt.NDArray[Any], bits: int) -> Integers:
        """Split codes `[..., h, w]` into planes `[..., bits, size]`, highest bit first."""
        flat = codes.reshape(*codes.shape[:-2], 1, self.size).take(self._order, -1)
        shifts = np.arange(bits - 1, -1, -1).reshape(bits, 1)
        planes: Integers = (flat.astype(np.int64) >> shifts & 1).astype(np.int16)
        planes *= 2 * UNIT
        planes -= UNIT
        return planes

    def join(self, planes: Integers) -> npt.NDArray[np.int64]:
        """Invert `split`."""
        codes = np.zeros((*planes.shape[:-2], self.size), np.int64)
        for bit in range(planes.shape[-2]):
            codes = codes * 2 + (planes[..., bit, :] > 0)
        return codes.take(self._rank, -1).reshape(*planes.shape[:-2], *self._shape)

    def cross(self, planes: Integers) -> Integers:
        """Sum `[bits, size]` over the neighbours at the left, right, above and below."""
        raster = planes.take(self._rank, -1).reshape(-1, *self._shape)
        total = np.zeros_like(raster)
        total[:, 1:] += raster[:, :-1]
        total[:, :-1] += raster[:, 1:]
        total[:, :, 1:] += raster[:, :, :-1]
        total[:, :, :-1] += raster[:, :, 1:]
        return total.reshape(planes.shape).take(self._order, -1)


make_grid = lru_cache(4)(Grid)  # the same for all chunks of a file


def count_passes(height: int, width: int) -> int:
    """Count the passes of a `Grid` without making it."""
    sizes = (
        len(range(top, height, pitch)) * len(range(left, width, pitch))
        for top, left, pitch, _ in LEVELS
    )
    return sum(-(-size // MAX_POSITIONS) for size in sizes)


class Weights:
    """Logistic regression of the bits of one codebook of a stage.

    Inputs of a pass are integers `[rows, bits, n]`. Row 0 is for the bits themselves, then come a
    row for each stage below and one for the step before. Each bit has a link to every bit of these
    rows and to the bits of earlier groups in row 0. From the row of the nearest stage below on
    (without one, that of the step before), the bit's own entry in each row is a feature with a
    weight. The last row is computed here: the run of earlier bits that are as one step before.

    Args:
        bits: of a code.
        below: stages below that are looked at.
    """

    def __init__(self, bits: int, below: int) -> None:
        kind = min(below, 1)
        start = np.array((*START[kind], 0), np.float64) * (_WEIGHT // 64)
        self.features = np.repeat(start[None], bits, 0)  # [bits, features]
        run = START_RUN[kind] * (_WEIGHT // 64)
        self.features[1:, -1] = [run // bit for bit in range(1, bits)]
        self.links = np.zeros((bits, (below + 2) * bits))
        self._linked = np.ones_like(self.links)
        self._below, self._slowness = below, SLOWNESS[kind]
        size = -(-bits // GROUPS[kind])
        self._groups = [slice(bit, min(bit + size, bits)) for bit in range(0, bits, size)]
        for group in self._groups:
            self._linked[group, group.start : bits] = 0

    def code(self, inputs: Floats, values: Integers, coder: BitCoder) -> None:
        """Code the bits of a pass, put them into `values` and row 0, and learn from them."""
        known, linked = inputs[0], inputs[: self._below + 2].reshape(self.links.shape[1], -1)
        features = inputs[max(1, self._below) :].transpose(1, 0, 2)  # [bits, features, n]
        before = inputs[self._below + 1]
        known[...] = values
        earlier = self._linked[:, : len(known)]  # bits of earlier groups
        eighths, as_before = before / _RUN, np.zeros_like(known[0])
        np.multiply(earlier @ (known * before), eighths, out=inputs[-1])
        evidence: Floats = (self.features[:, None] @ features)[:, 0]
        evidence += self.links @ linked
        evidence /= _SCALE
        evidence += ONE // 2
        probabilities = np.empty(evidence.shape, np.int64)
        for group in self._groups if coder.reads else [slice(0, len(known))]:
            total, first = evidence[group], group.start
            if first:
                run = np.multiply(as_before, eighths[group], out=inputs[-1, group])
                total += (self.links[group, :first] / _SCALE) @ known[:first]
                total += self.features[group, -1:] / _SCALE * run
            # below 0 the cast rounds up, but mode="clip" gives the first entry all the same
            some = PROBABILITIES.take(total.astype(np.int64), mode="clip")
            bits = coder.code(some, values[group])
            probabilities[group] = some
            if coder.reads:
                values[group] = _VALUES.take(bits)
                known[group] = values[group]
                as_before += np.add.reduce(known[group] * before[group], 0)
        errors = known * (ONE // (2 * UNIT))
        errors -= probabilities
        errors += ONE // 2
        count = self._slowness * (errors.shape[1] + EXTRA) // 2
        self.features += np.floor((features @ errors[:, :, None])[:, :, 0] / count)
        self.links += np.floor(errors @ linked.T / count) * self._linked


def code_planes(grid: Grid, planes: Integers, below: Sequence[Integers], coder: BitCoder) -> None:
    """Code one codebook of a stage.

    Args:
        grid: of a latent step.
        planes: bits as `Grid.split` gives them `[t, bits, size]`: of a writer those to write, of a
            reader zeros, which are overwritten.
        below: those of the stages below, at most `MAX_BELOW`, the nearest last.
        coder: writes or reads them.
    """
    weights = Weights(planes.shape[1], len(below))
    before = nearest_before = np.zeros_like(planes[0])
    for step, now in enumerate(planes):
        inputs = [*(stage[step] for stage in below), before]
        if below:
            nearest = inputs[-2]
            inputs += [grid.cross(nearest) >> 1, (before * nearest_before >> 4) * nearest >> 4]
            nearest_before = nearest
        else:
            inputs.append(grid.cross(before) >> 1)
        _code_step(grid, now, np.stack(inputs), len(below), weights, coder)
        before = now


def _code_step(
    grid: Grid, now: Integers, settled: Integers, below: int, weights: Weights, coder: BitCoder
) -> None:
    """Code a latent step, given the inputs that are known before it `[rows, bits, size]`."""
    bits, ready = len(now), len(settled) + 1
    # For each position: bits, the same times those of the nearest stage below over 16, and how many
    # are as one step before less how many are not. Zeros where not known; the last position is that
    # outside of the grid.
    state = np.zeros((grid.size + 1, 2 * bits + 1), np.int16)
    for some in grid.passes:
        inputs = np.zeros((ready + (5 if below else 4), bits, len(some.known)))
        known, values = settled[..., some.positions], now[:, some.positions]
        fresh = state[some.positions]
        inputs[1:ready] = known
        if len(some.neighbours):
            first, second, third, fourth = some.neighbours
            total = state.take(first, 0)
            total += state.take(second, 0)
            total += state.take(third, 0)
            total += state.take(fourth, 0)
            around = total.T.copy()
            around[:-1] *= 256 // some.known
            around[:-1] >>= 8
            vote, product, same = around[:bits], around[bits:-1], around[-1]
            inputs[ready] = vote
            inputs[ready + 1] = vote * abs(vote) >> 4
            inputs[ready + 2] = known[below] * (same * UNIT // (some.known * bits)) >> 4
            if below:
                inputs[ready + 3] = product * known[below - 1] >> 4
        weights.code(inputs, values, coder)
        fresh[:, :bits] = values.T
        if below:
            fresh[:, bits:-1] = (values * known[below - 1] >> 4).T
        fresh[:, -1] = np.add.reduce(values * known[below], 0, np.int16) >> 8
