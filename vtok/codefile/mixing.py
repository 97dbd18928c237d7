"""The chance of each bit from what is known: a logistic regression that learns as it codes.

Each bit of a code has a weight for each of its features, for each other bit that is known at the
same position, and for how many higher bits of the code are as they were one step before. The sum
goes through the logistic function; after each pass all weights take a step down the gradient of
the code length, as in the mixing of PAQ (Mahoney, Adaptive Weighing of Context Models, 2005).

All numbers are integers, in float64 for the speed of its matrix products, some over a power of
two. They stay far below 2^53, so all sums are exact, in any order and on any machine.
"""

from collections.abc import Callable

import numpy as np

from vtok.codefile.bins import ONE, Bits, Chances
from vtok.codefile.contexts import UNIT, Numbers

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
