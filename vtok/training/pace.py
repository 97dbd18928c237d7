"""How fast a run goes, and how much of its time goes into waiting for data."""

from __future__ import annotations

from collections import deque
from time import monotonic

LATELY = 50  # steps


class Pace:
    """Rates over the last steps.

    Args:
        clips: of one step, over all processes.
    """

    def __init__(self, clips: int) -> None:
        self.clips = clips
        self._marks: deque[tuple[float, float]] = deque([(monotonic(), 0.0)], maxlen=LATELY)

    def mark(self, waited: float) -> None:
        """A step is over.

        Args:
            waited: seconds spent waiting for data so far.
        """
        self._marks.append((monotonic(), waited))

    @property
    def seconds_per_step(self) -> float:
        """Mean over the last steps."""
        return max(1e-9, self._marks[-1][0] - self._marks[0][0]) / max(1, len(self._marks) - 1)

    @property
    def clips_per_second(self) -> float:
        """Mean over the last steps."""
        return self.clips / self.seconds_per_step

    @property
    def waiting(self) -> float:
        """Share of the time lately spent waiting, 0..1."""
        waited = self._marks[-1][1] - self._marks[0][1]
        elapsed = max(1e-9, self._marks[-1][0] - self._marks[0][0])
        return min(1.0, max(0.0, waited / elapsed))

    def seconds_left(self, steps: int) -> float | None:
        """Until this many more steps are done; None while nothing can be said."""
        return None if len(self._marks) < 3 else steps * self.seconds_per_step
