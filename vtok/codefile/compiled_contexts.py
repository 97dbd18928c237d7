"""What contexts.py finds by numpy, as numba compiles it: see compiled.py.

What is compiled is kept until its own file changes: after a change here, touch compiled.py.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]
UNIT = 16  # as in contexts
_OF_OTHERS = 7  # features known before a step, in all stages but the first
_NEXT = np.uint64(1)  # an index that is unsigned needs no check for counting from the end
loop = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


class View(NamedTuple):
    """The positions of a pass in flat padded planes.

    Attributes:
        places: of each position.
        row: to the next row.
        down, right: to the neighbours that are looked at.
        sides, corners: how often the neighbours beside, above and below count, and the diagonal
            ones.
    """

    places: Array
    row: int
    down: int
    right: int
    sides: int
    corners: int


class Grid(NamedTuple):
    """All passes over the positions of a step.

    Attributes:
        places: of one pass after the other, in flat padded planes.
        passes: of each where its places end, its reach, and whether it looks to the sides and to
            the corners `[passes, 4]`.
        row: from one row to the next, uint64.
    """

    places: Array
    passes: Array
    row: int


class Known(NamedTuple):
    """What is known of a step, in flat padded planes of bits, +16, -16 or 0.

    Attributes:
        below: the stages below, the nearest last `[stages, bits, size]`.
        under, sunk: the nearest one, and that one step before `[bits, size]`.
        before, earlier: one and two steps before.
        now: the step itself, as it becomes known.
        product: of that and `under`, over 16.
        still: how much of what is around each position is as it was `[size]`.
        same: how many bits are as one step before, less how many are not, as it becomes known.
        seen: 1 where the step is known.
    """

    below: Array
    under: Array
    sunk: Array
    before: Array
    earlier: Array
    now: Array
    product: Array
    still: Array
    same: Array
    seen: Array


@loop
def _cross(plane: Array, at: int, down: int, right: int) -> Any:
    return np.int64(plane[at - right]) + plane[at + right] + plane[at - down] + plane[at + down]


@loop
def _diagonal(plane: Array, at: int, down: int, right: int) -> Any:
    above, under = at - down, at + down
    total = np.int64(plane[above - right]) + plane[above + right]
    return total + plane[under - right] + plane[under + right]


@loop
def near(plane: Array, at: int, down: int, right: int, sides: int, corners: int) -> Any:
    """The sum of a plane over the neighbours of a place, each as often as it counts."""
    return sides * _cross(plane, at, down, right) + corners * _diagonal(plane, at, down, right)


@loop
def agreement(planes: Array, others: Array, at: int) -> Any:
    """Of two `[bits, size]` at a place: bits that are equal, less those that are not."""
    total = np.int64(0)
    for bit in range(len(planes)):
        total += np.int64(planes[bit, at]) * others[bit, at] >> 8
    return total


@loop
def begin_step(known: Known, view: View) -> None:
    """Find how still each position is; nothing is known of the step."""
    bits, same, still, down = len(known.now), known.same, known.still, view.row
    under, sunk, before, earlier = known.under, known.sunk, known.before, known.earlier
    if not len(known.below):
        for at in view.places:
            same[at] = agreement(before, earlier, at)
        for at in view.places:
            around = _cross(same, at, down, _NEXT) + _diagonal(same, at, down, _NEXT)
            still[at] = UNIT * (same[at] + around) // (9 * bits)
    else:
        for at in view.places:
            still[at] = UNIT * agreement(under, sunk, at) // bits
    same[:] = 0
    known.seen[:] = 0


@loop
def settled(rows: Array, bit: int, view: View, known: Known) -> int:
    """The features of a bit that are known before its step; returns how many there are."""
    p, q, u, s = known.before[bit], known.earlier[bit], known.under[bit], known.sunk[bit]
    places, still, down = view.places, known.still, view.row
    if not len(known.below):
        for i in range(len(places)):
            at = places[i]
            rows[0, i], rows[1, i], rows[2, i] = p[at], q[at], p[at] * still[at] >> 4
            rows[3, i] = _cross(p, at, down, _NEXT) >> 1
        return 4
    for i in range(len(places)):
        at = places[i]
        rows[0, i], rows[1, i], rows[2, i] = u[at], p[at], q[at]
        rows[3, i], rows[4, i] = p[at] * still[at] >> 4, _cross(u, at, down, _NEXT) >> 1
        rows[5, i], rows[6, i] = s[at], (np.int64(p[at]) * s[at] >> 4) * u[at] >> 4
    return _OF_OTHERS


@loop
def fresh(
    rows: Array, row: int, bit: int, view: View, known: Known, shares: Array, stays: Array
) -> int:
    """The features of a bit that become known in its step; returns how many there are with them."""
    c, x, p, u = known.now[bit], known.product[bit], known.before[bit], known.under[bit]
    places, _, down, right, sides, corners = view
    for i in range(len(places)):
        at = places[i]
        vote = near(c, at, down, right, sides, corners) * shares[i] >> 8
        rows[row, i], rows[row + 1, i] = vote, vote * abs(vote) >> 4
        rows[row + 2, i] = p[at] * stays[i] >> 4
    for i in range(len(places)):
        at = places[i]
        if row == _OF_OTHERS:
            of_x = near(x, at, down, right, sides, corners) * shares[i] >> 8
            rows[row + 3, i] = of_x * u[at] >> 4
        else:
            rows[row + 3, i] = (sides >> 1) * _cross(c, at, down, right)
    return row + 4


@loop
def link(linked: Array, view: View, known: Known) -> None:
    """Fill in what each bit is linked to, but for the bits of its own code."""
    bits, stages, places = len(known.now), len(known.below), view.places
    for stage in range(stages + 1):
        planes = known.below[stage] if stage < stages else known.before
        for bit in range(bits):
            for i in range(len(places)):
                linked[stage * bits + bit, i] = planes[bit, places[i]]
