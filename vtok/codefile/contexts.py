"""What is known of a bit before it is coded: its neighbours in time, in space, in the stage below.

The positions of a latent step are coded from coarse to fine, in passes. The first takes every
fourth row and column, and each further one the points in the middle between those known so far:

    0 5 2 5 0    0 to 3 look at neighbours at a distance of 2, 4 to 6 at a distance of 1;
    6 4 6 4 6    of these 1 and 4 know the diagonal ones, 2 and 5 those at the sides, above and
    3 5 1 5 3    below, 3 and 6 all eight
    6 4 6 4 6
    0 5 2 5 0

A bit is +16 or -16, and 0 where it is not known (yet), so features need no special cases: they
are integers of about -16 to 16, and a weight times a feature is evidence for a 1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int16]
Numbers = npt.NDArray[np.float64]
UNIT = 16  # of a bit, and so of all features
EDGE = 2  # padding of planes: the farthest neighbour
MAX_POSITIONS = 1024  # of a pass, in whole rows


class Pass(NamedTuple):
    """Positions that are coded at once: every `pitch`-th of some rows and of the columns.

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

    def of(self, planes: Integers, down: int = 0, right: int = 0) -> Integers:
        """A view of these positions of padded planes `[..., h, w]`, or of those beside them."""
        end = planes.shape[-1] - EDGE + right
        rows = slice(EDGE + self.top + down, EDGE + self.bottom + down, self.pitch)
        return planes[..., rows, EDGE + self.left + right : end : self.pitch]

    def beside(self, planes: Integers) -> Integers:
        """The sum of the neighbours at the sides, above and below."""
        far = self.reach
        total: Integers = self.of(planes, 0, -far) + self.of(planes, 0, far)
        total += self.of(planes, -far)
        total += self.of(planes, far)
        return total

    def diagonal(self, planes: Integers) -> Integers:
        """The sum of the diagonal neighbours."""
        far = self.reach
        total: Integers = self.of(planes, -far, -far) + self.of(planes, -far, far)
        total += self.of(planes, far, -far)
        total += self.of(planes, far, far)
        return total

    def near(self, planes: Integers, beside: Integers | None = None) -> Integers:
        """The sum of the known neighbours, those of `beside` twice."""
        if not self.sides:
            return self.diagonal(planes)
        twice: Integers = 2 * (self.beside(planes) if beside is None else beside)
        return twice + self.diagonal(planes) if self.corners else twice


def make_passes(height: int, width: int) -> list[Pass]:
    """The passes over the positions of one step, in order; each position is in one of them."""
    wholes = [Pass(0, height, 0, 4, 2, False, False)]
    for reach in (2, 1):
        for y, x, sides, corners in ((1, 1, False, True), (0, 1, True, False), (1, 0, True, True)):
            top, left = reach * y, reach * x
            wholes.append(Pass(top, height, left, 2 * reach, reach, sides, corners))
    passes = []
    for whole in wholes:
        columns = -(-(width - whole.left) // whole.pitch)
        if columns > 0:
            band = max(1, MAX_POSITIONS // columns) * whole.pitch
            for top in range(whole.top, height, band):
                passes.append(whole._replace(top=top, bottom=min(height, top + band)))
    return passes


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


class Contexts:
    """What is known of the bits of one codebook of a stage, as they become known.

    Args:
        shape: (bits, h, w) of a latent step.
        below: of each stage below, planes `[t, bits, h, w]` as of `split_bits`, the nearest last.

    Attributes:
        steps: the bits of the steps so far, planes as of `split_bits`.
    """

    def __init__(self, shape: tuple[int, int, int], below: Sequence[Sequence[Integers]]) -> None:
        bits, height, width = shape
        self.steps: list[Integers] = []
        self._below = below
        self._bits = bits
        self._frame = Pass(0, height, 0, 1, 1, True, True)
        padded = (height + 2 * EDGE, width + 2 * EDGE)
        # what is known before a step begins: bits of the stages below and one step before, then
        # more features; its views without the padding
        self._settled = np.zeros((len(below) + (6 if below else 4), bits, *padded), np.int16)
        # what becomes known: where bits are known; how many are as one step before, less how many
        # are not; the bits; and times those of the stage below
        self._fresh = np.zeros((2 + bits * (2 if below else 1), *padded), np.int16)

    def begin(self) -> None:
        """Go to the next step: what depends on other steps and stages is found for all of it."""
        step, count, settled = len(self.steps), len(self._below), self._settled
        of, frame, bits = self._frame.of, self._frame, self._bits
        for place, stage in enumerate(self._below):
            settled[place] = stage[step]
        settled[count] = self.steps[-1] if step else 0
        settled[count + 1] = self.steps[-2] if step > 1 else 0
        self._fresh[:] = 0
        before = of(settled[count])
        if not count:
            still = agreement(settled[0], settled[1])
            still = (frame.beside(still) + frame.diagonal(still) + of(still)) * UNIT // (9 * bits)
            features = [before * still >> 4, frame.beside(settled[0]) >> 1]
        else:
            under, sunk = settled[count - 1], np.zeros_like(settled[0])
            if step:
                sunk = self._below[-1][step - 1]
            still = of(agreement(under, sunk)) * UNIT // bits
            follows = (before * of(sunk) >> 4) * of(under) >> 4
            features = [before * still >> 4, frame.beside(under) >> 1, of(sunk), follows]
        for place, feature in enumerate(features, start=count + 2):
            of(settled[place])[...] = feature

    def of(self, some: Pass) -> tuple[Numbers, Numbers]:
        """What is known of the positions of a pass, integers.

        Returns:
            The bits of the stages below and those one step before, +16, -16 or 0,
            `[(1 + stages below) * bits, n]`; and the features `[bits, features, n]`.
        """
        settled, below = some.of(self._settled), len(self._below)
        shape = (settled.shape[0] + 4, *settled.shape[1:])
        known = np.zeros(shape)
        known[:-4] = settled
        if some.sides or some.corners:
            self._vote(some, known[-4:], settled[max(0, below - 1) : below + 1])
        known = known.reshape(*shape[:2], -1)
        here = known[: below + 1].reshape(-1, known.shape[2])
        return here, known[max(0, below - 1) :].transpose(1, 0, 2)

    def _vote(self, some: Pass, votes: Numbers, known: Integers) -> None:
        """The features of what is known of the step itself, into `votes`."""
        bits = self._bits
        beside = some.beside(self._fresh) if some.sides else None
        near = some.near(self._fresh, beside)
        weight = np.maximum(near[0], 1)
        share = UNIT**2 // weight
        vote = near[2 : 2 + bits] * share >> 8
        votes[0] = vote
        votes[1] = vote * abs(vote) >> 4
        votes[2] = known[-1] * (near[1] * UNIT // (weight * bits)) >> 4
        if self._below:
            votes[3] = (near[2 + bits :] * share >> 8) * known[0] >> 4
        elif beside is not None:
            votes[3] = beside[2:]

    def put(self, some: Pass, values: Numbers) -> None:
        """Make known the bits of a pass, +16 and -16 `[bits, n]`."""
        fresh, settled, below = some.of(self._fresh), some.of(self._settled), len(self._below)
        now = fresh[2 : 2 + self._bits]
        now[...] = values.reshape(now.shape)
        fresh[0] = 1
        fresh[1] = agreement(now, settled[below])
        if below:
            fresh[2 + self._bits :] = now * settled[below - 1] >> 4

    def end(self) -> None:
        """The step is known."""
        self.steps.append(self._fresh[2 : 2 + self._bits].copy())


def agreement(planes: Integers, others: Integers) -> Integers:
    """Bits `[bits, h, w]` that are equal, less those that are not: `[h, w]`."""
    total: Integers = (planes * others).sum(0, dtype=np.int16) // UNIT**2
    return total
