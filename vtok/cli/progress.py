"""What a person watches: how far a clip has come, drawn on stderr where that is a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vtok.cli.console import colours, one_line

LABEL_WIDTH = 24


def terminal() -> Console:
    """Standard error to draw on; where NO_COLOR is set, without colours or any other style."""
    return Console(stderr=True, highlight=False, color_system=colours())


class FrameRate(ProgressColumn):
    """Frames per second so far."""

    def render(self, task: Task) -> Text:
        """As `93 frames/s`."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} frames/s", style="cyan")


@contextmanager
def frames_progress(
    label: str, *, quiet: bool
) -> Iterator[Callable[[int, int | None], None] | None]:
    """Show how far one clip has come; gives a function to call with (done, total or None).

    Off a terminal nothing is drawn, and None is given: a line a clip is said at its end anyway.
    """
    console = terminal()
    if quiet or not console.is_terminal:
        yield None
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        FrameRate(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        expand=True,
    ) as progress:
        task = progress.add_task(_shortened(one_line(label)), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def waiting(label: str, *, quiet: bool) -> Iterator[None]:
    """Show that something is under way whose length nobody knows."""
    console = terminal()
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(label):
        yield


def _shortened(label: str) -> str:
    return label if len(label) <= LABEL_WIDTH else label[: LABEL_WIDTH - 1] + "…"


FEW_CORES = 4


@contextmanager
def loading(*, quiet: bool) -> Iterator[None]:
    """Show that the model is being loaded, which takes seconds: torch is to be imported inside."""
    pass

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
