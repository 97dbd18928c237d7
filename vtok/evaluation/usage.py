"""How much of a codebook is used: entries seen, and perplexity."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


@dataclass
class CodeUsage:
    """How often each entry of one stage's codebooks was seen, parallel codebooks taken together.

    Attributes:
        codebook_size: entries of a codebook.
        entries: those that were seen, rising.
        counts: how often each.
    """

    codebook_size: int
    entries: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: Counts = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, codes: npt.NDArray[np.integer]) -> None:
        """Count codes, of any shape."""
        self._merge(*np.unique(codes, return_counts=True))

    def __add__(self, other: CodeUsage) -> CodeUsage:
        total = CodeUsage(self.codebook_size, self.entries, self.counts)
        total._merge(other.entries, other.counts)
        return total

    @property
    def codes(self) -> int:
        """How many were counted."""
        return int(self.counts.sum())

    @property
    def used(self) -> float:
        """Share of the codebook's entries that were seen, 0..1."""
        return len(self.entries) / self.codebook_size

    @property
    def perplexity(self) -> float:
        """2 to the entropy of the entries as they were seen: as many, used alike, say as much.

        At most the number of entries, and of codes: a short clip cannot show more.
        """
        if not self.codes:
            return 0.0
        share = self.counts / self.codes
        return float(2 ** -(share * np.log2(share)).sum())

    def _merge(self, entries: npt.NDArray[np.integer], counts: npt.NDArray[np.integer]) -> None:
        # only what was seen is kept: a codebook may have 2^32 entries
        self.entries, places = np.unique(
            np.concatenate((self.entries, entries)), return_inverse=True
        )
        self.counts = np.bincount(
            places, np.concatenate((self.counts, counts)), len(self.entries)
        ).astype(np.int64)
