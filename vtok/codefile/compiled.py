"""The loops of coder 1 as numba compiles them: the same bytes, some ten times faster.

docs/format.md says what is computed; contexts.py, mixing.py, bins.py and rans.py do it by numpy
alone. Here the bits of a code follow one another, each at all positions of a pass, so what is at
work fits into the nearest cache. All sums are of integers far below 2^53, in float64: they are
exact in any order, so the compiler may choose one.
"""

from __future__ import annotations

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


ONE, EXTRA = 4096, 4  # as in bins and mixing
_MASK = 0xFFFF


class Learned(NamedTuple):
    """What a `Mixer` has learned, and how.

    Attributes:
        weights: of features `[bits, features]`.
        links: from other bits `[bits, (stages below + 2) * bits]`.
        higher: of each bit how many higher ones are found before it.
        slowness: of learning, in halves.
    """

    weights: Array
    links: Array
    higher: Array
    slowness: int


class Stream(NamedTuple):
    """Where bits go to as hits and misses, or come from.

    Attributes:
        missed: of a writer in order, of a reader by bin.
        bins: of a writer, of each bit.
        next: of a writer one number, of a reader one for each bin: the place of the next bit.
        bin_of, chance_of: of each chance, and by evidence.
    """

    missed: Array
    bins: Array
    next: Array
    bin_of: Array
    chance_of: Array


@loop
def _weigh(evidence: Array, weights: Array, rows: Array, count: int) -> None:
    """Add the first rows, each by its weight."""
    row = 0
    while row + 4 <= count:  # the sum is taken from memory and put back for four at once
        a, b, c, d = weights[row], weights[row + 1], weights[row + 2], weights[row + 3]
        for i in range(len(evidence)):
            pair = a * rows[row, i] + b * rows[row + 1, i]
            evidence[i] += pair + (c * rows[row + 2, i] + d * rows[row + 3, i])
        row += 4
    while row < count:
        for i in range(len(evidence)):
            evidence[i] += weights[row] * rows[row, i]
        row += 1


@loop
def _learn(weights: Array, rows: Array, count: int, errors: Array, slowness: int) -> None:
    """One step of the first weights down the gradient."""
    divisor = slowness * (len(errors) + EXTRA) // 2
    for row in range(count):
        total = 0.0
        for i in range(len(errors)):
            total += errors[i] * rows[row, i]
        weights[row] += np.floor(total / divisor)


@loop
def _code_bit(
    places: Array, evidence: Array, given: Array, bit: tuple[Array, Array, Array], stream: Stream
) -> None:  # fmt: skip
    """Put a bit of each position into the stream; or take it out, where none is given.

    Args:
        places: of the positions.
        evidence: for each of them.
        given: a flat plane.
        bit: to be filled in: a flat plane, and of each position the bit and how far its chance is
            from it.
        stream: where bits go to, or come from.
    """
    now, own, errors = bit
    missed, bins, following, bin_of, chance_of = stream
    for i in range(len(places)):
        at = places[i]
        place = np.int64(np.floor(evidence[i] / 4096)) + ONE // 2
        chance = chance_of[min(max(place, 0), ONE - 1)]
        likely, number, value = chance >= ONE // 2, bin_of[chance], given[at]
        if value:
            to = following[0]
            following[0] = to + 1
            bins[to], missed[to] = number, likely != (value > 0)
        else:
            where = min(following[number], len(missed) - 1)  # `finish` finds what is not there
            following[number] += 1
            value = UNIT if likely != missed[where] else -UNIT
        now[at] = own[i] = value
        errors[i] = (ONE if value > 0 else 0) - chance


@loop
def _code_pass(view: View, known: Known, given: Array, learned: Learned, stream: Stream) -> None:
    """Code the bits of a pass; or find them, where `given` is what is to be filled in."""
    n, bits = len(view.places), len(known.now)
    rows, own, errors = np.empty((12, n)), np.empty((bits, n)), np.empty(n)
    linked = np.empty(((len(known.below) + 1) * bits, n))
    shares, stays = np.empty(n, np.int64), np.empty(n, np.int64)
    run, evidence = np.zeros(n), np.empty(n)
    places, _, down, right, sides, corners = view
    seen, same, now, before = known.seen, known.same, known.now, known.before
    for i in range(n):
        at = places[i]
        weight = max(near(seen, at, down, right, sides, corners), 1)
        shares[i] = 256 // weight
        stays[i] = UNIT * near(same, at, down, right, sides, corners) // (weight * bits)
    link(linked, view, known)
    higher = 0
    for bit in range(bits):
        count = fresh(rows, settled(rows, bit, view, known), bit, view, known, shares, stays)
        for other in range(higher, learned.higher[bit]):
            for i in range(n):
                run[i] += own[other, i] * before[other, places[i]]
        higher = learned.higher[bit]
        for i in range(n):
            rows[count, i] = run[i] * before[bit, places[i]] / 2048
        weights, links = learned.weights[bit], learned.links[bit]
        evidence[:] = 0
        _weigh(evidence, weights, rows, count + 1)
        _weigh(evidence, links, own, higher)
        _weigh(evidence, links[bits:], linked, len(linked))
        _code_bit(places, evidence, given[bit], (now[bit], own[bit], errors), stream)
        _learn(weights, rows, count + 1, errors, learned.slowness)
        _learn(links, own, higher, errors, learned.slowness)
        _learn(links[bits:], linked, len(linked), errors, learned.slowness)
    product, under = known.product, known.under
    for at in places:
        seen[at] = 1
        same[at] = agreement(now, before, at)
        for bit in range(bits):
            product[bit, at] = now[bit, at] * under[bit, at] >> 4


@loop
def code_book(
    steps: Array, given: Array, below: Array, grid: Grid, learned: Learned,
    stream: Stream,
) -> None:  # fmt: skip
    """Code one codebook of a stage, or find it.

    Args:
        steps: flat padded planes of zeros to fill in `[t, bits, size]`.
        given: of a writer the same with the bits; of a reader `steps` itself.
        below: those of the stages below, the nearest last `[stages, t, bits, size]`.
        grid: of a step.
        learned: what weights start from; it is changed.
        stream: where bits go to, or come from.
    """
    places, passes, row = grid
    stages, (_, bits, size) = len(below), steps.shape
    zero, still = np.zeros((bits, size), np.int16), np.zeros(size, np.int64)
    same, seen = np.zeros(size, np.int64), np.zeros(size, np.int64)
    product = np.zeros((bits, size), np.int16)
    for step in range(len(steps)):
        under = below[stages - 1, step] if stages else zero
        sunk = below[stages - 1, step - 1] if stages and step else zero
        before = steps[step - 1] if step else zero
        earlier = steps[step - 2] if step > 1 else zero
        product[:] = 0
        known = Known(
            below[:, step], under, sunk, before, earlier, steps[step], product, still, same, seen
        )
        begin_step(known, View(places, row, row, np.uint64(1), 2, 1))
        begin = 0
        for end, reach, sides, corners in passes:
            right = np.uint64(reach)
            view = View(places[begin:end], row, right * row, right, 2 * sides, corners)
            _code_pass(view, known, given[step], learned, stream)
            begin = end


@loop
def encode_words(
    state: int, symbols: Array, shares: Array, starts: Array, words: Array, count: int
) -> Any:
    """Code bytes by a table, the last one first; see `rans.encode_bytes`.

    Args:
        state: before.
        symbols: the bytes.
        shares, starts: of the table.
        words: room for the words that come out, in the order in which they do.
        count: how many there are so far.

    Returns:
        The state after it, and how many words there are.
    """
    for at in range(len(symbols) - 1, -1, -1):
        share = shares[symbols[at]]
        if state >= share << 16:
            words[count] = state & _MASK
            count += 1
            state >>= 16
        quotient = state // share
        state += quotient * (ONE * 16 - share) + starts[symbols[at]]
    return state, count


@loop
def decode_words(
    state: int, words: Array, at: int, symbols: Array, shares: Array, starts: Array, run: Array
) -> Any:
    """Take bytes back by a table; see `rans.decode_bytes`.

    Args:
        state: before.
        words: in the order in which they are taken, and where the next one is.
        symbols, shares, starts: of the table.
        run: room for the bytes.

    Returns:
        The state after it, and where the next word is: beyond their end, if there are too few.
    """
    for place in range(len(run)):
        low = state & _MASK
        symbol = symbols[low]
        run[place] = symbol
        state = shares[symbol] * (state >> 16) + low - starts[symbol]
        if state <= _MASK:
            state = state << 16 | (words[at] if at < len(words) else 0)
            at += 1
    return state, at
