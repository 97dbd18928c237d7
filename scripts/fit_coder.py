#!/usr/bin/env python
"""Fit the initial weights of the entropy coder to code files of training clips.

Codes each stage of each chunk and averages the weights at its end; these are the initial weights of
the next round. Copy the result of the last round to vtok/codefile/probability.py,
examples/read_coder.py and docs/format.md. The weights are part of the format: other weights need
another coder number.

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

from vtok.codefile import probability
from vtok.codefile.packing import StageCoder, packed_length
from vtok.codefile.reader import CodeFileReader

Stacks = list[tuple[npt.NDArray[Any], int]]
UNIT = 1024  # a 64th of a weight of 1


class RecordedWeights(probability.Weights):
    """Weights that are kept after coding."""

    made: ClassVar[list[RecordedWeights]] = []

    def __init__(self, bits: int, below: int) -> None:
        super().__init__(bits, below)
        self.kind = min(below, 1)
        RecordedWeights.made.append(self)

    def learned(self) -> tuple[npt.NDArray[np.float64], float]:
        """Return the weights of the features and of the run in 64ths, averaged over the bits."""
        later = self.features[1:, -1] * np.arange(1, len(self.features))
        run = float(later.mean() / UNIT) if len(later) else 0.0
        return self.features[:, :-1].mean(0) / UNIT, run


def read(paths: list[Path]) -> Stacks:
    """Read the codes of each chunk `[stages, K, t, h, w]` and the bits of a code."""
    stacks = []
    for path in paths:
        with path.open("rb") as stream:
            reader = CodeFileReader(stream, name=str(path))
            bits = reader.header.format.bits_per_code
            stacks += [(chunk.codes, bits) for chunk in reader]
    return stacks


def code(stacks: Stacks) -> tuple[float, float]:
    """Code all chunks; return the mean of coded over packed of the first two stages and of all."""
    few, every = [], []
    for codes, bits in stacks:
        coder = StageCoder(codes.shape[1:], bits)
        lengths = [len(coder.encode(stage)) for stage in codes]
        packed = packed_length(bits, codes[0].size)
        few.append(statistics.mean(lengths[:2]) / packed)
        every.append(statistics.mean(lengths) / packed)
    return statistics.mean(few), statistics.mean(every)


def main() -> None:
    """Fit, and print the weights of each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    stacks = read(args.files)
    probability.Weights = RecordedWeights  # type: ignore[misc]
    for number in range(args.rounds + 1):
        RecordedWeights.made.clear()
        few, every = code(stacks)
        print(f"round {number}: coded / packed {few:.4f} of two stages, {every:.4f} of all")
        print(f"  START = {probability.START}\n  START_RUN = {probability.START_RUN}")
        made = RecordedWeights.made
        learned = [[w.learned() for w in made if w.kind == kind] for kind in (0, 1)]
        probability.START = tuple(
            tuple(round(float(x)) for x in np.mean([weights for weights, _ in some], 0))
            for some in learned
        )
        probability.START_RUN = tuple(
            round(statistics.mean(r for _, r in some)) for some in learned
        )


if __name__ == "__main__":
    main()
