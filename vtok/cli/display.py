"""Live displays of `vtok train` and `vtok dataset encode`: drawings, lines or JSON."""

from __future__ import annotations

import math
import sys
import time
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

from vtok.cli.console import one_line, print_json, say, say_error, say_warning, terminal
from vtok.cli.failures import with_flags
from vtok.dataset.folder import MANIFEST
from vtok.dataset.scheduler import RunObserver, Totals
from vtok.training.runlog import Alarm, StepReport, ValidationReport

LINE_EVERY = 20
"""Steps between lines if nothing can be drawn."""
MIN_DB, MAX_DB = 5.0, 40.0
"""Fixed range of the PSNR bars, so that progress shows as growth."""
OTHER_LINES = 11  # lines that are not PSNR bars, if the parts of the loss take two
REFRESH_PER_SECOND = 4


@contextmanager
def train_display(*, quiet: bool, as_json: bool) -> Iterator[TrainDisplay]:
    """Show the progress of a run: drawn on a terminal, else as a line every few steps.

    Args:
        quiet: print only alarms.
        as_json: print one JSON object for each step, validation and alarm instead of lines.
    """
    console = terminal()
    shared = as_json and sys.stdout.isatty()  # JSON lines would break the drawing
    if quiet or shared or not console.is_terminal:
        yield TrainDisplay(None, quiet=quiet, as_json=as_json)
        return
    with Live(
        Text("first step in progress", style="dim"),
        console=console,
        refresh_per_second=REFRESH_PER_SECOND,
        redirect_stdout=False,  # data
        transient=True,  # until the first step: the last one stays visible
    ) as live:
        yield TrainDisplay(live, quiet=False, as_json=as_json)


class TrainDisplay:
    """Prints the events of a run; a `RunObserver`.

    Args:
        live: draws steps; None prints lines.
        quiet: print only alarms.
        as_json: print JSON on standard output.
    """

    def __init__(self, live: Live | None, *, quiet: bool, as_json: bool) -> None:
        self._live = live
        self._as_json = as_json
        self._silent = quiet or (as_json and live is None)
        self._validation: ValidationReport | None = None

    def step(self, report: StepReport) -> None:
        """Draw a step, or print a line for some of them."""
        self._print_json("step", asdict(report))
        if self._live is not None:
            height = max(1, self._live.console.height - OTHER_LINES)
            self._live.transient = False
            self._live.update(draw_step(report, self._validation, height))
        elif report.step % LINE_EVERY == 0 or report.step in (1, report.steps):
            self.say(step_line(report))

    def validated(self, report: ValidationReport) -> None:
        """Print the result of a validation; the drawing keeps showing it."""
        self._validation = report
        self._print_json("validation", asdict(report))
        self.say(validation_line(report))

    def alarm(self, alarm: Alarm) -> None:
        """Print a warning, even if quiet."""
        self._print_json("alarm", {**asdict(alarm), "alarm": alarm.kind})
        text = f"step {alarm.step}: {alarm.text}"
        if self._live is None:
            say_warning(text)
        else:
            self._print("warning: ", "bold yellow", text)

    def say(self, text: str) -> None:
        """Print one line."""
        if self._live is None:
            say(text, quiet=self._silent)
        else:
            self._print("", "", text)

    def _print(self, start: str, style: str, text: str) -> None:
        # above the drawing: printing past it would break it
        if self._live is not None:
            self._live.console.print(Text.assemble((start, style), one_line(text)))

    def _print_json(self, kind: str, row: dict[str, Any]) -> None:
        if self._as_json:
            print_json({**_plain(row), "kind": kind})


def step_line(report: StepReport) -> str:
    """Format a step as one line of `name=value`."""
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
    """Format a validation as one line of `name=value`."""
    line = f"validation={report.step} psnr={_by_stages(report.psnr)} usage={report.code_usage:.3f}"
    return line if report.picture is None else f"{line} picture={report.picture}"


def draw_step(
    report: StepReport, validation: ValidationReport | None, height: int
) -> RenderableType:
    """Draw a step, for any terminal width.

    Args:
        report: the step.
        validation: the last validation, if any.
        height: maximum number of PSNR bars; stages in between are left out.
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
    """PSNR bars by number of stages, with the values of the last validation."""
    measured = {} if validation is None else validation.psnr
    rows = _grid(None, 1, None, None)
    rows.add_row(
        Text("PSNR", style="bold"),
        Text(f"{MIN_DB:.0f} to {MAX_DB:.0f} dB", style="dim"),
        Text("training", style="dim"),
        Text("" if validation is None else "validation", style="dim"),
    )
    for stages in _spread(sorted(report.psnr.keys() | measured.keys()), height):
        value = report.psnr.get(stages, math.nan)
        rows.add_row(
            f"{stages} stage{'s' if stages > 1 else ''}",
            _bar((value - MIN_DB) / (MAX_DB - MIN_DB)),
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
    """Values by name, each with its colour, in as many columns as fit."""
    pairs = [
        Text.assemble((f"{name} ", "dim"), (value, colour))
        for name, (value, colour) in facts.items()
    ]
    return Columns(pairs, padding=(0, 3))


def _colour(is_bad: bool) -> str:
    return "yellow" if is_bad else "cyan"


def _grid(*ratios: int | None) -> Table:
    """A grid of the full width; columns with a ratio share the remaining space."""
    grid = Table.grid(padding=(0, 1), expand=True)
    for place, ratio in enumerate(ratios):
        right = place >= 2
        grid.add_column(ratio=ratio, no_wrap=True, justify="right" if right else "left")
    return grid


def _bar(share: float) -> ProgressBar:
    share = share if math.isfinite(share) else 0.0
    return ProgressBar(total=1.0, completed=min(max(share, 0.0), 1.0))


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most `most` items, evenly spaced, including the first and last."""
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
    """Convert to JSON types: paths to strings, values that are not finite to null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


LINE_SECONDS = 10.0
"""Seconds between lines if nothing can be drawn."""
PHASE_NAMES = {"fetch": "fetching", "decode": "decoding", "model": "model", "write": "writing"}
PHASE_COLOURS = {"fetch": "magenta", "decode": "cyan", "model": "green", "write": "yellow"}
BAR_WIDTH = 12  # of all phases together: the line must fit in 80 columns


@contextmanager
def dataset_display(*, quiet: bool, as_json: bool) -> Iterator[DatasetDisplay]:
    """Show the progress of a run over a data set: drawn on a terminal, else as lines."""
    console = terminal()
    if quiet or not console.is_terminal:
        yield DatasetDisplay(None, quiet=quiet, as_json=as_json)
        return
    with Live(console=console, refresh_per_second=4, redirect_stdout=False) as live:
        yield DatasetDisplay(live, quiet=False, as_json=as_json)


class DatasetDisplay(RunObserver):
    """Prints the events of a run over a data set; a `RunObserver`.

    Args:
        live: draws progress; None prints lines.
        quiet: print only failures.
        as_json: print one JSON object per clip on standard output.
    """

    def __init__(self, live: Live | None, *, quiet: bool, as_json: bool) -> None:
        self._live, self._quiet, self._as_json = live, quiet, as_json
        self._begin = self._said = time.monotonic()

    def planned(self, totals: Totals) -> None:
        """Print what the run will do."""
        self._begin = self._said = time.monotonic()
        if self._live is None:
            say(planned_line(totals), quiet=self._quiet)
        else:
            self._live.console.print(planned_line(totals), markup=False)

    def finished(self, record: dict[str, Any], totals: Totals) -> None:
        """Show a finished clip."""
        if self._as_json:
            print_json({key: record.get(key) for key in MANIFEST})
        if record["status"] != "ok":
            message = with_flags(record["message"])
            self._say_failure(f"{record['id']}: {record.get('phase')}: {message}")
        now = time.monotonic()
        if self._live is not None:
            self._live.update(draw_dataset(totals, now - self._begin))
        elif now - self._said > LINE_SECONDS:
            self._said = now
            say(progress_line(totals, now - self._begin), quiet=self._quiet)

    def _say_failure(self, text: str) -> None:
        if self._live is None:
            say_error(text)
        else:
            self._live.console.print(Text.assemble(("error: ", "bold red"), one_line(text)))


def planned_line(totals: Totals) -> str:
    """Format what a run will do as one line."""
    parts = [f"{totals.items:,} clips", f"{totals.up_to_date:,} up to date"]
    if totals.failed_before:
        parts.append(f"{totals.failed_before:,} failed before (--retry-failed tries them again)")
    if totals.faults:
        parts.append(f"{totals.faults:,} that are not clips")
    if totals.duplicates:
        parts.append(f"{totals.duplicates:,} duplicates")
    return ", ".join([*parts, f"{totals.todo:,} to do"])


def progress_line(totals: Totals, seconds: float) -> str:
    """Format the progress of a run as one line of `name=value`."""
    fields = {
        "clips": f"{totals.finished}/{totals.todo}",
        "failed": f"{totals.failed}",
        "frames/s": f"{totals.frames / max(seconds, 1e-9):.1f}",
        "clips/s": f"{totals.finished / max(seconds, 1e-9):.2f}",
        **{PHASE_NAMES[name]: f"{share:.0%}" for name, share in _phase_shares(totals).items()},
        "left": _left(totals, seconds),
    }
    return " ".join(f"{name}={value}" for name, value in fields.items())


def summary_line(totals: Totals) -> str:
    """Format the result of a run as one line."""
    rate = totals.frames / max(totals.seconds, 1e-9)
    failed = f", {totals.bad:,} failed" if totals.bad else ""
    missing = f" ({totals.missing_frames:,} missing)" if totals.missing_frames else ""
    return (
        f"{totals.done:,} clips done, {totals.up_to_date:,} up to date{failed}: {totals.frames:,} "
        f"frames{missing}, {totals.bytes:,} bytes, {rate:.0f} frames/s"
    )


def draw_dataset(totals: Totals, seconds: float) -> RenderableType:
    """Draw the progress of a run, for any terminal width."""
    row = Table.grid(padding=(0, 1), expand=True)
    for place in range(5):
        row.add_column(ratio=1 if place == 1 else None, no_wrap=True)
    rate = totals.frames / max(seconds, 1e-9)
    row.add_row(
        f"{totals.finished:,}/{totals.todo:,} clips",
        ProgressBar(total=max(1, totals.todo), completed=totals.finished),
        Text(f"{rate:.0f} frames/s", style="cyan"),
        Text(f"{totals.failed:,} failed", style="red" if totals.failed else "dim"),
        f"{_left(totals, seconds)} left",
    )
    return Group(row, _where_time_goes(totals))


def _phase_shares(totals: Totals) -> dict[str, float]:
    """Share of the workers' time spent in each phase."""
    whole = sum(totals.phase_seconds.values())
    return {name: seconds / whole for name, seconds in totals.phase_seconds.items() if whole}


def _where_time_goes(totals: Totals) -> Text:
    text = Text("time: ", style="dim")
    for name, share in _phase_shares(totals).items():
        text.append("█" * round(share * BAR_WIDTH), style=PHASE_COLOURS[name])
        text.append(f" {PHASE_NAMES[name]} {share:.0%}  ", style=PHASE_COLOURS[name])
    return text


def _left(totals: Totals, seconds: float) -> str:
    if not totals.finished:
        return "-:--:--"
    return str(
        timedelta(seconds=round(seconds / totals.finished * (totals.todo - totals.finished)))
    )
