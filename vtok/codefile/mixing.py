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
import numpy.typing as npt

from vtok.codefile.bins import ONE, Bits, Chances
from vtok.codefile.contexts import UNIT

Numbers = npt.NDArray[np.float64]

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
_RUN = 8.0 * UNIT**2  # of a bit times the one before it, to eighths


def _make_chances() -> Chances:
    place, rest = np.divmod(np.arange(ONE), 128)
    curve = np.array(CURVE)
    chances: Chances = (curve[place] * (128 - rest) + curve[place + 1] * rest + 64) >> 7
    return chances


_CHANCES = _make_chances()  # of evidence of -2048 to 2047, in 256ths of a nat


class Mixer:
    """The weights of one codebook of a part.

    Args:
        bits: of a code.
        below: stages below that are looked at.
    """

    def __init__(self, bits: int, below: int) -> None:
        kind = min(below, 1)
        start = np.array(START[kind]) * (_WEIGHT // 64)
        run = START_RUN[kind] * (_WEIGHT // 64)
        self._slowness = SLOWNESS[kind]
        self._weights = np.repeat(start[None], bits, 0).astype(np.float64)  # [bits, features]
        self._run = np.array([0] + [run // bit for bit in range(1, bits)], np.float64)
        # to each bit: from the bits one step before, of the stages below, and the higher groups
        size = -(-bits // GROUPS[kind])
        self._groups = [slice(bit, min(bit + size, bits)) for bit in range(0, bits, size)]
        self._links = np.zeros((bits, (below + 2) * bits))
        self._used = np.ones((bits, bits))
        for group in self._groups:
            self._used[group, group.start :] = 0

    def encode(self, here: Numbers, features: Numbers, values: Numbers) -> Chances:
        """The chances of the bits of a pass, which are known; then learn from them.

        Args:
            here: the bits of the stages below and one step before, +16, -16 or 0,
                `[(below + 1) * bits, n]`.
            features: integers `[bits, features, n]`.
            values: the bits, +16 and -16 `[bits, n]`, highest first.

        Returns:
            of each bit the chance that it is 1, of `ONE`, `[bits, n]`.
        """
        evidence, run, links = self._weigh(here, features)
        as_before = np.cumsum(values * here[-len(values) :] / _RUN, 0)
        runs = np.zeros_like(values)
        for group in self._groups[1:]:
            runs[group] = as_before[group.start - 1]
        chances = _chances_of(evidence + links @ values + run * runs)
        self._learn(here, features, values, runs, chances)
        return chances

    def decode(self, here: Numbers, features: Numbers, take: Callable[[Chances], Bits]) -> Numbers:
        """The bits of a pass, one group after the other; then learn from them.

        Args:
            here, features: as for `encode`.
            take: gives the bits of these chances, of the same shape.

        Returns:
            the bits, +16 and -16 `[bits, n]`.
        """
        evidence, run, links = self._weigh(here, features)
        values: Numbers = np.zeros_like(evidence)
        runs = np.zeros_like(evidence)
        chances = np.empty(evidence.shape, np.int64)
        before = here[-len(values) :] / _RUN
        so_far = runs[0]
        for group in self._groups:
            first = group.start
            total = evidence[group]
            if first:
                runs[group] = so_far
                total = total + links[group, :first] @ values[:first] + run[group] * so_far
            chances[group] = _chances_of(total)
            values[group] = np.where(take(chances[group]), UNIT, -UNIT)
            so_far = so_far + (values[group] * before[group]).sum(0)
        self._learn(here, features, values, runs, chances)
        return values

    def _weigh(self, here: Numbers, features: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """The evidence of what is known before a pass, and the weights of what becomes known."""
        known = len(here)
        links = self._links / _SCALE
        evidence: Numbers = (self._weights[:, None] @ features)[:, 0] / _SCALE
        evidence += links[:, :known] @ here
        run: Numbers = self._run[:, None] / _SCALE * here[-len(links) :]
        return evidence, run, links[:, known:]

    def _learn(
        self, here: Numbers, features: Numbers, values: Numbers, runs: Numbers, chances: Chances
    ) -> None:
        """One step of every weight down the gradient: the floor of a mean over the positions."""
        errors = values * (ONE // (2 * UNIT)) + (ONE // 2 - chances)
        count, known = self._slowness * (values.shape[1] + EXTRA) // 2, len(here)
        self._weights += np.floor((features @ errors[:, :, None])[:, :, 0] / count)
        runs = runs * here[-len(values) :]
        self._run += np.floor((errors * runs).sum(1) / count)
        self._links[:, :known] += np.floor(errors @ here.T / count)
        self._links[:, known:] += np.floor(errors @ values.T / count) * self._used


def _chances_of(evidence: Numbers) -> Chances:
    """The chances of a 1, by evidence in 256ths of a nat."""
    # `astype` rounds up below zero, but what is below zero here has the first chance anyway
    return _CHANCES.take((evidence + ONE // 2).astype(np.int64), mode="clip")
