"""The chance of each bit from what is known: a logistic regression that learns as it codes.

Each bit of a code has a weight for each of its features, for each other bit that is known at the
same position, and for how many higher bits of the code are as they were one step before. The sum
goes through the logistic function; after each pass all weights take a step down the gradient of
the code length, as in the mixing of PAQ (Mahoney, Adaptive Weighing of Context Models, 2005).

All numbers are integers, in float64 for the speed of its matrix products, some over a power of
two. They stay far below 2^53, so all sums are exact, in any order and on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vtok.codefile.rans import ONE, Bits, Chances

Integers = npt.NDArray[np.int16]
Numbers = npt.NDArray[np.float64]
Place = tuple[Any, slice, slice]  # an index of padded planes `[..., h, w]`
UNIT = 16  # of a bit, and so of all features
EDGE = 2  # padding of planes: the farthest neighbour
MAX_POSITIONS = 1024  # of a pass, in whole rows


class Pass(NamedTuple):
    """Positions that are coded at once: every so many rows and columns.

    Attributes:
        place: of padded planes.
        sides: places of the neighbours beside, above and below, where they are known.
        corners: of the diagonal ones, where they are known.
    """

    place: Place
    sides: tuple[Place, ...]
    corners: tuple[Place, ...]

    @property
    def looks(self) -> bool:
        """Whether any neighbours are known."""
        return bool(self.sides or self.corners)

    def of(self, planes: Integers) -> Integers:
        """A view of these positions of padded planes `[..., h, w]`."""
        return planes[self.place]

    def beside(self, planes: Integers) -> Integers:
        """The sum of the neighbours at the sides, above and below."""
        return _sum_of(planes, self.sides)

    def diagonal(self, planes: Integers) -> Integers:
        """The sum of the diagonal neighbours."""
        return _sum_of(planes, self.corners)

    def near(self, planes: Integers, beside: Integers | None = None) -> Integers:
        """The sum of the known neighbours, those of `beside` twice."""
        if beside is None:
            return self.diagonal(planes)
        twice: Integers = beside + beside
        if self.corners:
            twice += self.diagonal(planes)
        return twice


def _sum_of(planes: Integers, places: tuple[Place, ...]) -> Integers:
    first, second, third, fourth = places
    total: Integers = planes[first] + planes[second]
    total += planes[third]
    total += planes[fourth]
    return total


class Band(NamedTuple):
    """Every `pitch`-th position of some rows, which is a pass.

    Attributes:
        top, bottom: rows, from the first to before the last.
        left: the first column.
        pitch: from one to the next, down and across.
        reach: distance to the neighbours.
        sides, corners: whether the neighbours beside, above and below are known, and the diagonal
            ones.
    """

    top: int
    bottom: int
    left: int
    pitch: int
    reach: int
    sides: bool
    corners: bool

    def as_pass(self, width: int) -> Pass:
        """The pass over these positions in rows of `width`."""

        def place(down: int, right: int) -> Place:
            rows = slice(EDGE + self.top + down, EDGE + self.bottom + down, self.pitch)
            return ..., rows, slice(EDGE + self.left + right, EDGE + width + right, self.pitch)

        far = self.reach
        sides = (place(0, -far), place(0, far), place(-far, 0), place(far, 0))
        corners = tuple(place(down, right) for down in (-far, far) for right in (-far, far))
        return Pass(place(0, 0), sides if self.sides else (), corners if self.corners else ())


def make_bands(height: int, width: int) -> list[Band]:
    """The passes over the positions of one step, in order; each position is in one of them."""
    wholes = [Band(0, height, 0, 4, 2, False, False)]
    for reach in (2, 1):
        for y, x, sides, corners in ((1, 1, False, True), (0, 1, True, False), (1, 0, True, True)):
            top, left = reach * y, reach * x
            wholes.append(Band(top, height, left, 2 * reach, reach, sides, corners))
    bands = []
    for whole in wholes:
        columns = -(-(width - whole.left) // whole.pitch)
        if columns > 0:
            rows = max(1, MAX_POSITIONS // columns) * whole.pitch
            for top in range(whole.top, height, rows):
                bands.append(whole._replace(top=top, bottom=min(height, top + rows)))
    return bands


def split_bits(codes: npt.NDArray[Any], bits: int) -> Integers:
    """Codes `[..., h, w]` as padded planes `[..., bits, h, w]` of +16 and -16, highest first."""
    shifts = np.arange(bits - 1, -1, -1).reshape(bits, 1, 1)
    *outer, height, width = codes.shape
    planes = np.zeros((*outer, bits, height + 2 * EDGE, width + 2 * EDGE), np.int16)
    known = codes.astype(np.int64)[..., None, :, :] >> shifts & 1
    planes[..., EDGE:-EDGE, EDGE:-EDGE] = known * (2 * UNIT) - UNIT
    return planes


def join_bits(planes: Integers) -> npt.NDArray[np.int64]:
    """The inverse of `split_bits`."""
    inner = planes[..., EDGE:-EDGE, EDGE:-EDGE] > 0
    codes = np.zeros((*inner.shape[:-3], *inner.shape[-2:]), np.int64)
    for bit in range(inner.shape[-3]):
        codes = codes * 2 + inner[..., bit, :, :]
    return codes


class Grid:
    """What depends on the size of a latent step alone.

    Args:
        height, width: positions.

    Attributes:
        passes: over the positions, in order.
        weights: of each pass how many neighbours are known, those at the sides twice, and at least
            1: int16 `[rows, columns]`.
        frame: a pass over all positions, with neighbours at a distance of 1.
        padded: size of planes.
    """

    def __init__(self, height: int, width: int) -> None:
        self.padded = (height + 2 * EDGE, width + 2 * EDGE)
        self.passes = [band.as_pass(width) for band in make_bands(height, width)]
        self.frame = Band(0, height, 0, 1, 1, True, True).as_pass(width)
        self.weights: list[Integers] = []
        known = np.zeros(self.padded, np.int16)
        for some in self.passes:
            if some.looks:
                near = some.near(known, some.beside(known) if some.sides else None)
                self.weights.append(np.maximum(near, 1))
            else:
                self.weights.append(np.ones_like(some.of(known)))
            some.of(known)[...] = 1


class Contexts:
    """What is known of the bits of one codebook of a stage, as they become known.

    Args:
        grid: of a latent step.
        bits: of a code.
        below: of each stage below, planes `[t, bits, h, w]` as of `split_bits`, the nearest last.

    Attributes:
        steps: the bits of the steps so far, planes as of `split_bits`.
    """

    def __init__(self, grid: Grid, bits: int, below: Sequence[Sequence[Integers]]) -> None:
        self.steps: list[Integers] = []
        self._grid, self._bits, self._below = grid, bits, below
        # what is known before a step begins: bits of the stages below and one step before, then
        # more features; its views without the padding
        self._settled = np.zeros((len(below) + (6 if below else 4), bits, *grid.padded), np.int16)
        # what becomes known: how many bits are as one step before, less how many are not; the
        # bits; and times those of the stage below
        self._fresh = np.zeros((1 + bits * (2 if below else 1), *grid.padded), np.int16)

    def begin(self) -> None:
        """Go to the next step: what depends on other steps and stages is found for all of it."""
        step, count, settled = len(self.steps), len(self._below), self._settled
        frame, bits = self._grid.frame, self._bits
        for place, stage in enumerate(self._below):
            settled[place] = stage[step]
        settled[count] = self.steps[-1] if step else 0
        settled[count + 1] = self.steps[-2] if step > 1 else 0
        self._fresh[:] = 0
        before = frame.of(settled[count])
        if not count:
            same = agreement(settled[0], settled[1])
            still = frame.beside(same) + frame.diagonal(same) + frame.of(same)
            features = [before * (still * UNIT // (9 * bits)) >> 4, frame.beside(settled[0]) >> 1]
        else:
            under, sunk = settled[count - 1], np.zeros_like(settled[0])
            if step:
                sunk = self._below[-1][step - 1]
            still = frame.of(agreement(under, sunk)) * UNIT // bits
            follows = (before * frame.of(sunk) >> 4) * frame.of(under) >> 4
            features = [before * still >> 4, frame.beside(under) >> 1, frame.of(sunk), follows]
        for place, feature in enumerate(features, start=count + 2):
            frame.of(settled[place])[...] = feature

    def of(self, number: int) -> Numbers:
        """What is known of the positions of a pass.

        Returns:
            integers `[rows, bits, n]`: a row of zeros for the bits themselves; the bits of the
            stages below and those one step before, +16, -16 or 0; more features; and a row of
            zeros for the last one.
        """
        some = self._grid.passes[number]
        settled = some.of(self._settled)
        rows = settled.shape[0] + 6
        known = np.zeros((rows, *settled.shape[1:]))
        known[1:-5] = settled
        if some.looks:
            below = len(self._below)
            weights = self._grid.weights[number]
            self._vote(some, weights, known[-5:-1], settled[max(0, below - 1) : below + 1])
        return known.reshape(rows, self._bits, -1)

    def _vote(self, some: Pass, weights: Integers, votes: Numbers, known: Integers) -> None:
        """The features of what is known of the step itself, into `votes`."""
        bits = self._bits
        beside = some.beside(self._fresh) if some.sides else None
        near = some.near(self._fresh, beside)
        near[1:] *= UNIT**2 // weights
        near[1:] >>= 8
        vote = near[1 : 1 + bits]
        votes[0] = vote
        votes[1] = vote * abs(vote) >> 4
        votes[2] = known[-1] * (near[0] * UNIT // (weights * bits)) >> 4
        if self._below:
            votes[3] = near[1 + bits :] * known[0] >> 4
        elif beside is not None:
            votes[3] = beside[1:]

    def put(self, number: int, values: Numbers) -> None:
        """Make known the bits of a pass, +16 and -16 `[bits, n]`."""
        some, below = self._grid.passes[number], len(self._below)
        fresh, settled = some.of(self._fresh), some.of(self._settled)
        now = fresh[1 : 1 + self._bits]
        now[...] = values.reshape(now.shape)
        fresh[0] = agreement(now, settled[below])
        if below:
            fresh[1 + self._bits :] = now * settled[below - 1] >> 4

    def end(self) -> None:
        """The step is known."""
        self.steps.append(self._fresh[1 : 1 + self._bits].copy())


def agreement(planes: Integers, others: Integers) -> Integers:
    """Bits `[bits, h, w]` that are equal, less those that are not: `[h, w]`."""
    # of sums of 256ths, that divide without a rest
    total: Integers = np.add.reduce(planes * others, 0, np.int16) >> 8
    return total


# 4096 / (1 + exp(-i / 2)) for i = -16 to 16; between them, chances are interpolated
CURVE = (
    1, 2, 4, 6, 10, 17, 28, 45, 74, 120, 194, 311, 488, 748, 1102, 1547, 2048,
    2549, 2994, 3348, 3608, 3785, 3902, 3976, 4022, 4051, 4068, 4079, 4086, 4090, 4092, 4094, 4095,
)  # fmt: skip
# Of the first stage, and of the others. What weights start from was learned from training clips
# by scripts/fit_coder.py; it is in 64ths, and that for the run of higher bits is divided by their
# number.
START = (
    (62, 31, 14, 20, 37, 38, 50, 2),
    (-19, 15, 30, 47, 5, 14, 35, 15, 14, 44, 37),
)
START_RUN = (366, 194)
SLOWNESS = (2, 3)  # in halves
GROUPS = (32, 2)  # of the bits of a code, that are found one after the other
EXTRA = 4  # added to the positions of a pass, so that few of them teach less
_WEIGHT = 1 << 16  # a weight of 1
_SCALE = _WEIGHT * UNIT / 256  # of a weight times a feature, to 256ths of a nat
_RUN = 8.0 * UNIT**2  # of three bits, one times the other two, to eighths of a bit


def _make_chances() -> Chances:
    place, rest = np.divmod(np.arange(ONE), 128)
    curve = np.array(CURVE)
    chances: Chances = (curve[place] * (128 - rest) + curve[place + 1] * rest + 64) >> 7
    return chances


CHANCES = _make_chances()  # of evidence of -2048 to 2047, in 256ths of a nat
_VALUES = np.array((-UNIT, UNIT), np.float64)  # of a bit


class Mixer:
    """The weights of one codebook of a part.

    What is known of a pass comes as `known`, integers `[rows, bits, n]`: a row for its bits, +16
    and -16, highest first; the bits of the stages below, and those one step before, +16, -16 or 0;
    more features; and a row for the last one, the run of higher bits that are as one step before.

    Args:
        bits: of a code.
        below: stages below that are looked at.

    Attributes:
        weights: of each bit for its features, the run last `[bits, features]`.
        links: of each bit to those of the code, of the stages below, and one step before
            `[bits, (below + 2) * bits]`.
        slowness: of learning, in halves.
        groups: of the bits of a code, that are found one after the other.
    """

    def __init__(self, bits: int, below: int) -> None:
        kind = min(below, 1)
        start = np.array((*START[kind], 0)) * (_WEIGHT // 64)
        run = START_RUN[kind] * (_WEIGHT // 64)
        self.slowness = SLOWNESS[kind]
        self.weights = np.repeat(start[None], bits, 0).astype(np.float64)  # [bits, features]
        self.weights[1:, -1] = [run // bit for bit in range(1, bits)]
        self._below, self._first = below, max(1, below)  # row of the first feature
        # to each bit: from the bits of the higher groups, of the stages below, and one step before
        self.links = np.zeros((bits, (below + 2) * bits))
        self._linked = np.ones_like(self.links)
        size = -(-bits // GROUPS[kind])
        self.groups = [slice(bit, min(bit + size, bits)) for bit in range(0, bits, size)]
        for group in self.groups:
            self._linked[group, group.start : bits] = 0

    def encode(self, known: Numbers) -> Chances:
        """The chances of the bits of a pass, which are known; then learn from them.

        Args:
            known: see above; the last row is filled in.

        Returns:
            of each bit the chance that it is 1, of `ONE`, `[bits, n]`.
        """
        before = known[self._below + 1]
        higher = self._linked[:, : len(before)]  # of each bit, those in higher groups
        known[-1] = higher @ (known[0] * before) * before / _RUN
        chances = _chances_of(self._weigh(known))
        self._learn(known, chances)
        return chances

    def decode(self, known: Numbers, take: Callable[[Chances], Bits]) -> None:
        """Find the bits of a pass, one group after the other; then learn from them.

        Args:
            known: see above; the first and the last row are filled in.
            take: gives the bits of these chances, of the same shape.
        """
        evidence = self._weigh(known)
        values, before, runs = known[0], known[self._below + 1], known[-1]
        eighths, run_weights = before / _RUN, self.weights[:, -1:] / _SCALE
        links = self.links[:, : len(values)] / _SCALE
        chances = np.empty(evidence.shape, np.int64)
        as_before = np.zeros_like(evidence[0])
        for group in self.groups:
            total, first = evidence[group], group.start
            if first:
                run = np.multiply(as_before, eighths[group], out=runs[group])
                total += links[group, :first] @ values[:first]
                total += run_weights[group] * run
            chances[group] = of_group = _chances_of(total)
            values[group] = now = _VALUES.take(take(of_group))
            as_before += np.add.reduce(now * before[group], 0)
        self._learn(known, chances)

    def _features(self, known: Numbers) -> tuple[Numbers, Numbers]:
        """The features `[bits, features, n]`, and what bits are linked to `[linked, n]`."""
        linked = known[: self._below + 2].reshape(self.links.shape[1], -1)
        return known[self._first :].transpose(1, 0, 2), linked

    def _weigh(self, known: Numbers) -> Numbers:
        """The evidence of what is known so far, 2048 more than in 256ths of a nat."""
        features, linked = self._features(known)
        evidence: Numbers = (self.weights[:, None] @ features)[:, 0]
        evidence += self.links @ linked
        evidence /= _SCALE
        evidence += ONE // 2
        return evidence

    def _learn(self, known: Numbers, chances: Chances) -> None:
        """One step of every weight down the gradient: the floor of a mean over the positions."""
        features, linked = self._features(known)
        errors = known[0] * (ONE // (2 * UNIT))
        errors += ONE // 2 - chances
        count = self.slowness * (errors.shape[1] + EXTRA) // 2
        self.weights += np.floor((features @ errors[:, :, None])[:, :, 0] / count)
        self.links += np.floor(errors @ linked.T / count) * self._linked


def _chances_of(evidence: Numbers) -> Chances:
    """The chances of a 1, by evidence as of `_weigh`."""
    # `astype` rounds up below zero, but what is below zero here has the first chance anyway
    return CHANCES.take(evidence.astype(np.int64), mode="clip")
