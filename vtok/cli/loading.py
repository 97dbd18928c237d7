"""Loading torch and the model: what a person sees of it, and how its threads will wait."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

FEW_CORES = 4


@contextmanager
def loading(*, quiet: bool) -> Iterator[None]:
    """Show that the model is being loaded, which takes seconds: torch is to be imported inside."""
    from vtok.cli.progress import waiting

    spare_cores()
    with waiting("loading the model", quiet=quiet):
        yield


def spare_cores() -> None:
    """Let threads of torch that wait for one another sleep, unless the environment has a say.

    By default they spin for milliseconds. Where passes of the model already take all of few cores,
    what else torch does on several threads, as the decoder of `--min-psnr`, would take the cores
    from them and from the reader, the entropy coder and the writer, only to wait. On many cores
    waking all threads would take longer than it saves.
    """
    if _cores() <= FEW_CORES:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read where torch is imported


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
