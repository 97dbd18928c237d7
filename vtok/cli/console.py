"""What a person sees: progress and messages on stderr, so that stdout holds nothing but data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

errors = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str, *, quiet: bool = False) -> None:
    """One line for a person."""
    if not quiet:
        errors.print(message, markup=False)


def say_error(message: str) -> None:
    """One line that says what went wrong."""
    errors.print(Text("error: ", style="bold red") + Text(message))


def say_warning(message: str) -> None:
    """One line that says what to beware of."""
    errors.print(Text("warning: ", style="bold yellow") + Text(message))


def print_json(row: dict[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


class FrameRate(ProgressColumn):
    """Frames per second so far."""

    def render(self, task: Task) -> Text:
        """As `93 frames/s`."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} frames/s", style="cyan")


@contextmanager
def frames_progress(label: str, *, quiet: bool) -> Iterator[Any]:
    """Show how far one clip has come; gives a function to call with (done, total or None).

    Off a terminal nothing is drawn: a line a clip is said at its end anyway.
    """
    shown = errors.is_terminal and not quiet
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        FrameRate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not shown,
    ) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
