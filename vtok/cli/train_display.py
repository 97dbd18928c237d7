"""What a person watches while a model trains: a live picture, or lines, or JSON, on the way."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vtok.cli.console import one_line, print_json, say, say_warning
from vtok.cli.progress import terminal
from vtok.training.runlog import Alarm, StepReport, ValidationReport

LINE_EVERY = 20
"""Steps from one plain line to the next, where nothing can be drawn."""
LEAST_DB, MOST_DB = 5.0, 40.0
"""Ends of the bars of PSNR, the same all the time: a bar that grows is a model that learns."""
OTHER_LINES = 11  # all but the bars of PSNR, where the parts of the loss take two
REFRESH_PER_SECOND = 4


@contextmanager
def train_display(*, quiet: bool, as_json: bool) -> Iterator[TrainDisplay]:
    """Show how a run goes until the block ends: drawn on a terminal, else a line now and then.

    Args:
        quiet: say nothing but alarms.
        as_json: one JSON object on stdout for each step, validation and alarm; lines are left out.
    """
    console = terminal()
    shared = as_json and sys.stdout.isatty()  # a picture would be torn by the lines of JSON
    if quiet or shared or not console.is_terminal:
        yield TrainDisplay(None, quiet=quiet, as_json=as_json)
        return
    with Live(
        Text("the first step is under way", style="dim"),
        console=console,
        refresh_per_second=REFRESH_PER_SECOND,
        redirect_stdout=False,  # data
        transient=True,  # until there is a step: the last one stays in sight
    ) as live:
        yield TrainDisplay(live, quiet=False, as_json=as_json)


class TrainDisplay:
    """Tells of a run as it goes; an `Observer`.

    Args:
        live: where to draw; None for lines.
        quiet: say nothing but alarms.
        as_json: JSON on stdout.
    """

    def __init__(self, live: Live | None, *, quiet: bool, as_json: bool) -> None:
        self._live = live
        self._as_json = as_json
        self._silent = quiet or (as_json and live is None)
        self._validation: ValidationReport | None = None

    def step(self, report: StepReport) -> None:
        """Draw a step, or write a line for some of them."""
        self._print_json("step", asdict(report))
        if self._live is not None:
            height = max(1, self._live.console.height - OTHER_LINES)
            self._live.transient = False
            self._live.update(draw(report, self._validation, height))
        elif report.step % LINE_EVERY == 0 or report.step in (1, report.steps):
            self.say(step_line(report))

    def validated(self, report: ValidationReport) -> None:
        """Say how good the model is; the picture goes on showing it."""
        self._validation = report
        self._print_json("validation", asdict(report))
        self.say(validation_line(report))

    def alarm(self, alarm: Alarm) -> None:
        """Say what went wrong, whatever else is silent."""
        self._print_json("alarm", {**asdict(alarm), "alarm": alarm.kind})
        text = f"step {alarm.step}: {alarm.text}"
        if self._live is None:
            say_warning(text)
        else:
            self._print("warning: ", "bold yellow", text)

    def say(self, text: str) -> None:
        """One line for a person."""
        if self._live is None:
            say(text, quiet=self._silent)
        else:
            self._print("", "", text)

    def _print(self, start: str, style: str, text: str) -> None:
        # over the picture, which whoever writes past it would tear
        if self._live is not None:
            self._live.console.print(Text.assemble((start, style), one_line(text)))

    def _print_json(self, kind: str, row: dict[str, Any]) -> None:
        if self._as_json:
            print_json({**_plain(row), "kind": kind})


def step_line(report: StepReport) -> str:
    """A step as one line of `name=value`, which is easy to grep and to cut."""
    fields = {
        "step": f"{report.step}/{report.steps}",
        "loss": f"{report.loss:.4f}",
        **{name: f"{value:.4f}" for name, value in report.parts.items()},
        "psnr": _by_stages(report.psnr),
        "usage": f"{report.code_usage:.3f}",
        "bit_entropy": f"{report.bit_entropy:.3f}",
        "gradient": f"{report.gradient_norm:.3g}",
        "rate": f"{report.learning_rate:.3g}",
        "clips/s": f"{report.clips_per_second:.2f}",
        "waiting": f"{report.waiting:.3f}",
        "left": _duration(report.seconds_left),
        "skipped": f"{report.skipped}",
    }
    return " ".join(f"{name}={value}" for name, value in fields.items())


def validation_line(report: ValidationReport) -> str:
    """A validation as one line of `name=value`."""
    line = f"validation={report.step} psnr={_by_stages(report.psnr)} usage={report.code_usage:.3f}"
    return line if report.picture is None else f"{line} picture={report.picture}"


def draw(report: StepReport, validation: ValidationReport | None, height: int) -> RenderableType:
    """A step as a picture, for any width.

    Args:
        report: the step.
        validation: the last one, if there was one.
        height: most lines for the bars of PSNR; of more stages, some are left out.
    """
    return Group(
        _progress(report),
        "",
        _loss(report),
        "",
        _quality(report, validation, height),
        "",
        _codes(report),
    )


def _progress(report: StepReport) -> RenderableType:
    row = _grid(None, 1, None, None)
    row.add_row(
        f"step {report.step:,}/{report.steps:,}",
        _bar(report.step / max(1, report.steps)),
        Text(f"{report.clips_per_second:.2f} clips/s", style="cyan"),
        f"{_duration(report.seconds_left)} left",
    )
    return row


def _loss(report: StepReport) -> RenderableType:
    named = {
        "loss": f"{report.loss:.4f}",
        **{name: f"{value:.4f}" for name, value in report.parts.items()},
        "gradient": f"{report.gradient_norm:.3g}",
        "rate": f"{report.learning_rate:.3g}",
    }
    return _facts({name: (value, "cyan") for name, value in named.items()})


def _quality(
    report: StepReport, validation: ValidationReport | None, height: int
) -> RenderableType:
    """A bar for each number of stages, and what the last validation found."""
    measured = {} if validation is None else validation.psnr
    rows = _grid(None, 1, None, None)
    rows.add_row(
        Text("PSNR", style="bold"),
        Text(f"{LEAST_DB:.0f} to {MOST_DB:.0f} dB", style="dim"),
        Text("training", style="dim"),
        Text("" if validation is None else "validation", style="dim"),
    )
    for stages in _spread(sorted(report.psnr.keys() | measured.keys()), height):
        value = report.psnr.get(stages, math.nan)
        rows.add_row(
            f"{stages} stage{'s' if stages > 1 else ''}",
            _bar((value - LEAST_DB) / (MOST_DB - LEAST_DB)),
            Text(f"{value:.2f} dB", style="cyan"),
            f"{measured[stages]:.2f} dB" if stages in measured else "",
        )
    return rows


def _codes(report: StepReport) -> RenderableType:
    return _facts(
        {
            "codes in use": (f"{report.code_usage:.1%}", "cyan"),
            "entropy of a bit": (f"{report.bit_entropy:.2f}", _colour(report.bit_entropy < 0.5)),
            "waiting for data": (f"{report.waiting:.0%}", _colour(report.waiting > 0.5)),
            "skipped": (f"{report.skipped}", _colour(report.skipped > 0)),
        }
    )


def _facts(facts: Mapping[str, tuple[str, str]]) -> RenderableType:
    """Values by name, each with its colour, in as many columns as there is room for."""
    pairs = [
        Text.assemble((f"{name} ", "dim"), (value, colour))
        for name, (value, colour) in facts.items()
    ]
    return Columns(pairs, padding=(0, 3))


def _colour(is_bad: bool) -> str:
    return "yellow" if is_bad else "cyan"


def _grid(*ratios: int | None) -> Table:
    """A row or rows across the whole width; columns with a ratio take what is left."""
    grid = Table.grid(padding=(0, 1), expand=True)
    for place, ratio in enumerate(ratios):
        right = place >= 2
        grid.add_column(ratio=ratio, no_wrap=True, justify="right" if right else "left")
    return grid


def _bar(share: float) -> ProgressBar:
    share = share if math.isfinite(share) else 0.0
    return ProgressBar(total=1.0, completed=min(max(share, 0.0), 1.0))


def _spread(items: Sequence[int], most: int) -> list[int]:
    """The items, or so many of them, evenly, with the first and the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[place * (len(items) - 1) // (most - 1)] for place in range(most)]


def _by_stages(psnr: Mapping[int, float]) -> str:
    return ",".join(f"{stages}:{psnr[stages]:.2f}" for stages in sorted(psnr))


def _duration(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))


def _plain(value: Any) -> Any:
    """What JSON can hold: no paths, and null in place of what is not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
