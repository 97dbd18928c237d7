"""How many processes were started together, as whoever started them says; without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence

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
