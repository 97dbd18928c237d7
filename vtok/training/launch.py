"""How many processes were started together, as whoever started them says; without torch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

# set by torch's launcher, which accelerate uses, and by three kinds of MPI
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
NUMBERS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def num_processes() -> int:
    """How many there are, 1 where nobody says."""
    return _first(COUNTS, 1)


def is_main_process() -> bool:
    """Whether this is the one that speaks."""
    return _first(NUMBERS, 0) == 0


def _first(names: Sequence[str], default: int) -> int:
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), default)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Takes note of the first signal; the second ends the process at once.

    Attributes:
        number: of the signal, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # others may not
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def end(self) -> None:
        """End the process as the signal asks."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
