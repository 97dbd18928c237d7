"""Messages and progress on standard error, JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import typer

from vtok._files import open_closed_streams

if TYPE_CHECKING:
    from rich.console import Console

LABEL_WIDTH = 24
FEW_CORES = 4


def use_open_streams() -> None:
    """Let text for a closed standard output or error go to the null device."""
    open_closed_streams()
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115


def is_closed(stream: Any) -> bool:
    """Return True for a standard stream that was closed when the command started."""
    return stream is None or getattr(stream, "name", "") == os.devnull


def one_line(text: str) -> str:
    """Escape line breaks and terminal control characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(message: str, *, quiet: bool = False) -> None:
    """Print one line on standard error."""
    if not quiet:
        typer.echo(one_line(message), err=True)


def say_error(message: str) -> None:
    """Print one line that begins with `error:`."""
    typer.echo(_coloured("error:", typer.colors.RED) + " " + one_line(message), err=True)


def say_warning(message: str) -> None:
    """Print one line that begins with `warning:`."""
    typer.echo(_coloured("warning:", typer.colors.YELLOW) + " " + one_line(message), err=True)


def print_json(row: dict[str, Any]) -> None:
    """Print one JSON object on one line of standard output."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def colours() -> Literal["auto"] | None:
    """Rich's `color_system`: None (no styles at all) if NO_COLOR is set."""
    return None if os.environ.get("NO_COLOR") else "auto"


def _coloured(word: str, colour: str) -> str:
    plain = colours() is None or not sys.stderr.isatty()
    return word if plain else typer.style(word, fg=colour, bold=True)


def terminal() -> Console:
    """A rich console on standard error."""
    from rich.console import Console  # rich is not imported for --help

    return Console(stderr=True, highlight=False, color_system=colours())


@contextmanager
def frames_progress(
    label: str, *, quiet: bool
) -> Iterator[Callable[[int, int | None], None] | None]:
    """Draw a progress bar for one video.

    Yields a function of (frames done, total or None), or None if nothing is drawn because
    standard error is not a terminal.
    """
    console = terminal()
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    text = one_line(label)
    text = text if len(text) <= LABEL_WIDTH else text[: LABEL_WIDTH - 1] + "…"
    begin = time.monotonic()
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", style="cyan"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        expand=True,
    ) as progress:
        task = progress.add_task(text, total=None, rate="")

        def update(done: int, total: int | None) -> None:
            rate = f"{done / max(time.monotonic() - begin, 1e-3):.0f} frames/s"
            progress.update(task, completed=done, total=total, rate=rate)

        yield update


@contextmanager
def waiting(label: str, *, quiet: bool) -> Iterator[None]:
    """Draw a spinner until the block ends."""
    console = terminal()
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(label):
        yield


@contextmanager
def loading(*, quiet: bool) -> Iterator[None]:
    """Draw a spinner while torch is imported (in the block) and a model is loaded."""
    spare_cores()
    with waiting("loading the model", quiet=quiet):
        yield


def spare_cores() -> None:
    """Let idle OpenMP threads sleep on machines with few cores.

    By default they spin for milliseconds and take cores from the reader, the entropy coder and
    the writer (measured by scripts/benchmark_commands.py). On many cores waking them costs more
    than it saves. A value that is already in the environment is kept.
    """
    if _cores() <= FEW_CORES:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
