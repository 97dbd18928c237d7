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
UNIT = 16  # of a bit, and so of all features
EDGE = 2  # padding of planes: the farthest neighbour
MAX_POSITIONS = 4096  # of a pass, in whole rows


class Pass(NamedTuple):
    """Positions that are coded at once: every `pitch`-th of some rows and of the columns.

    Attributes:
        top, bottom: rows, from the first to before the last.
        left: the first column.
        pitch: from one to the next, down and across.
        reach: distance to the neighbours.
    """

    top: int
    bottom: int
    left: int
    pitch: int
    reach: int

    def of(self, planes: Integers, down: int = 0, right: int = 0) -> Integers:
        """A view of these positions of padded planes `[..., h, w]`, or of those beside them."""
        end = planes.shape[-1] - EDGE + right
        rows = slice(EDGE + self.top + down, EDGE + self.bottom + down, self.pitch)
        return planes[..., rows, EDGE + self.left + right : end : self.pitch]

    def beside(self, planes: Integers) -> Integers:
        """The sum of the neighbours at the sides, above and below."""
        far = self.reach
        left, right = self.of(planes, 0, -far), self.of(planes, 0, far)
        total: Integers = left + right + self.of(planes, -far) + self.of(planes, far)
        return total

    def diagonal(self, planes: Integers) -> Integers:
        """The sum of the diagonal neighbours."""
        far = self.reach
        above = self.of(planes, -far, -far) + self.of(planes, -far, far)
        total: Integers = above + self.of(planes, far, -far) + self.of(planes, far, far)
        return total


def make_passes(height: int, width: int) -> list[Pass]:
    """The passes over the positions of one step, in order; each position is in one of them."""
    starts = [(0, 0, 2)]
    for reach in (2, 1):
        starts += [(reach * y, reach * x, reach) for y, x in ((1, 1), (0, 1), (1, 0))]
    passes = []
    for top, left, reach in starts:
        pitch = 2 * reach
        columns = -(-(width - left) // pitch)
        if columns > 0:
            band = max(1, MAX_POSITIONS // columns) * pitch
            for first in range(top, height, band):
                passes.append(Pass(first, min(height, first + band), left, pitch, reach))
    return passes


def split_bits(codes: npt.NDArray[Any], bits: int) -> Integers:
    """Codes `[h, w]` as padded planes `[bits, h, w]` of +16 and -16, highest bit first."""
    shifts = np.arange(bits - 1, -1, -1).reshape(bits, 1, 1)
    planes = np.where(codes.astype(np.int64) >> shifts & 1, UNIT, -UNIT).astype(np.int16)
    return np.pad(planes, ((0, 0), (EDGE, EDGE), (EDGE, EDGE)))


def join_bits(planes: Integers) -> npt.NDArray[np.int64]:
    """The inverse of `split_bits`."""
    inner = planes[:, EDGE:-EDGE, EDGE:-EDGE] > 0
    codes = np.zeros(inner.shape[1:], np.int64)
    for plane in inner:
        codes = codes * 2 + plane
    return codes


class Contexts:
    """What is known of the bits of one codebook of a part, as they become known.

    Args:
        shape: (bits, h, w) of a latent step.

    Attributes:
        now: the bits of the step so far, planes as of `split_bits`.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        bits, height, width = shape
        padded = (height + 2 * EDGE, width + 2 * EDGE)
        self._frame = Pass(0, height, 0, 1, 1)
        self.now, self._before, self._earlier = np.zeros((3, bits, *padded), np.int16)
        self._below: Sequence[Integers] = ()
        self._under = np.zeros_like(self.now)
        # of this step: bits that are as one step before, less those that are not; bits times
        # those of the stage below; and where they are known
        self._agreement = np.zeros(padded, np.int16)
        self._above = np.zeros_like(self.now)
        self._known = np.zeros(padded, np.int16)
        self._settled = np.zeros((0, *self.now.shape), np.int16)

    def begin(self, below: Sequence[Integers]) -> None:
        """Go to the next step: what depends on other steps and stages is found for all of it.

        Args:
            below: bits of this step in the stages below, from the first to the last.
        """
        bits, of, frame = len(self.now), self._frame.of, self._frame
        self.now, self._before, self._earlier = self._earlier, self.now, self._before
        self._below, sunk = below, self._under
        for planes in (self.now, self._agreement, self._above, self._known):
            planes[:] = 0
        before = of(self._before)
        still = agreement(self._before, self._earlier)
        still = (frame.beside(still) + frame.diagonal(still) + of(still)) * UNIT // (9 * bits)
        features = [before, frame.beside(self._before) >> 1, of(self._earlier)]
        features += [before * still >> 4, np.full_like(before, UNIT)]
        if below:
            self._under = below[-1]
            under, follows = of(self._under), before * of(sunk) >> 4
            still = of(agreement(self._under, sunk)) * UNIT // bits
            features += [under, frame.beside(self._under) >> 1, of(sunk)]
            features += [follows * under >> 4, before * still >> 4]
        if len(self._settled) != len(features):
            self._settled = np.zeros((len(features), *self.now.shape), np.int16)
        of(self._settled)[...] = features

    def features(self, some: Pass) -> npt.NDArray[np.float64]:
        """The features of a pass, integers `[bits, features, n]`."""
        settled = np.moveaxis(some.of(self._settled), 0, 1)  # [bits, features, rows, columns]
        more = 9 if self._below else 7
        shape = (settled.shape[0], settled.shape[1] + more, *settled.shape[2:])
        features = np.empty(shape)
        features[:, : settled.shape[1]] = settled
        now, far = self.now, some.reach
        sides = [some.of(now, 0, -far), some.of(now, 0, far), some.of(now, -far), some.of(now, far)]
        cross = sides[0] + sides[1] + sides[2] + sides[3]
        corners = some.diagonal(now)
        weight = np.maximum(2 * some.beside(self._known) + some.diagonal(self._known), 1)
        stays = 2 * some.beside(self._agreement) + some.diagonal(self._agreement)
        stays = stays * UNIT // (weight * len(now))
        vote = (2 * cross + corners) // weight
        fresh = [*sides, corners >> 1, some.of(self._before) * stays >> 4, vote * abs(vote) >> 4]
        if self._below:
            under = some.of(self._under)
            fresh.append(some.beside(self._above) * under >> 5)
            fresh.append(some.diagonal(self._above) * under >> 5)
        for place, feature in enumerate(fresh, start=settled.shape[1]):
            features[:, place] = feature
        return features.reshape(*shape[:2], -1)

    def here(self, some: Pass) -> npt.NDArray[np.float64]:
        """What is known of these positions themselves: bits one step before, and of stages below.

        Returns:
            `[(1 + stages below) * bits, n]`, +16, -16 or 0.
        """
        known = np.concatenate([some.of(planes) for planes in (self._before, *self._below)])
        return known.reshape(len(known), -1).astype(np.float64)

    def put(self, some: Pass, values: npt.NDArray[np.float64]) -> None:
        """Make known the bits of a pass, +16 and -16 `[bits, n]`."""
        now = some.of(self.now)
        now[...] = values.reshape(now.shape)
        some.of(self._agreement)[...] = agreement(now, some.of(self._before))
        some.of(self._known)[...] = 1
        if self._below:
            some.of(self._above)[...] = now * some.of(self._under) >> 4


def agreement(planes: Integers, others: Integers) -> Integers:
    """Bits `[bits, h, w]` that are equal, less those that are not: `[h, w]`."""
    total: Integers = (planes * others).sum(0, dtype=np.int16) // UNIT**2
    return total
