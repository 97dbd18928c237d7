#!/usr/bin/env python
"""What the weights of coder 1 start from, learned from code files of training clips.

Each stage of each chunk is coded as always, and what its weights have become at its end is noted.
The mean over all is what they start from in the next round. The last round's belong into
vtok/codefile/probability.py and docs/format.md. They are part of the format: with others, coder 1
would be another coder.

    vtok encode corpus/video -o codes/ --size 256 --duration 3
    scripts/fit_coder.py codes/*.vtok
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vtok.codefile import CodeFileReader, entropy, packed_length
from vtok.codefile import probability as mixing
from vtok.codefile.entropy import StageCoder

Stacks = list[tuple[npt.NDArray[Any], int]]
UNIT = 1024  # a 64th of a weight of 1
NEUTRAL = ((32, 16, 16, 0, 16, 16, 16, 0), (0, 32, 16, 16, 0, 0, 16, 16, 0, 16, 16)), (256, 128)


class Noted(mixing.Mixer):
    """A mixer that is not forgotten."""

    made: ClassVar[list[Noted]] = []

    def __init__(self, bits: int, below: int) -> None:
        super().__init__(bits, below)
        self.kind = min(below, 1)
        Noted.made.append(self)

    def learned(self) -> tuple[npt.NDArray[np.float64], float]:
        """The weights of features and of the run, in 64ths, means over the bits."""
        later = self.weights[1:, -1] * np.arange(1, len(self.weights))
        run = float(later.mean() / UNIT) if len(later) else 0.0
        return self.weights[:, :-1].mean(0) / UNIT, run


def read(paths: list[Path]) -> Stacks:
    """The codes of each chunk `[stages, K, t, h, w]`, and the bits of a code."""
    stacks = []
    for path in paths:
        with path.open("rb") as stream:
            reader = CodeFileReader(stream, name=str(path))
            bits = reader.header.format.bits_per_code
            stacks += [(chunk.codes, bits) for chunk in reader]
    return stacks


def code(stacks: Stacks) -> tuple[float, float]:
    """Code all; gives the mean of coded over packed, of the first two stages and of all."""
    few, every = [], []
    for codes, bits in stacks:
        coder = StageCoder(codes.shape[1:], bits)
        lengths = [len(coder.encode(stage)) for stage in codes]
        packed = packed_length(bits, codes[0].size)
        few.append(statistics.mean(lengths[:2]) / packed)
        every.append(statistics.mean(lengths) / packed)
    return statistics.mean(few), statistics.mean(every)


def main() -> None:
    """Learn, and print what was learned in each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--neutral", action="store_true", help="begin at round numbers")
    args = parser.parse_args()
    stacks = read(args.files)
    entropy.Mixer = Noted  # type: ignore[misc]
    if args.neutral:
        mixing.START, mixing.START_RUN = NEUTRAL
    for number in range(args.rounds + 1):
        Noted.made.clear()
        few, every = code(stacks)
        print(f"round {number}: coded / packed {few:.4f} of two stages, {every:.4f} of all")
        print(f"  START = {mixing.START}\n  START_RUN = {mixing.START_RUN}")
        learned = [[m.learned() for m in Noted.made if m.kind == kind] for kind in (0, 1)]
        mixing.START = tuple(
            tuple(round(float(x)) for x in np.mean([weights for weights, _ in some], 0))
            for some in learned
        )
        mixing.START_RUN = tuple(round(statistics.mean(r for _, r in some)) for some in learned)


if __name__ == "__main__":
    main()
