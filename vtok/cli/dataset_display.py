"""What a person watches while a data set is made: drawn on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vtok.cli.console import one_line, print_json, say, say_error
from vtok.cli.progress import terminal
from vtok.dataset.reports import MANIFEST
from vtok.dataset.scheduler import Totals

LINE_SECONDS = 10.0
"""From one plain line to the next, where nothing can be drawn."""
NAMES = {"fetch": "fetching", "decode": "decoding", "model": "model", "write": "writing"}
COLOURS = {"fetch": "magenta", "decode": "cyan", "model": "green", "write": "yellow"}
WIDTH = 12  # of all bars together: a line has to fit on 80 columns


@contextmanager
def dataset_display(*, quiet: bool, as_json: bool) -> Iterator[DatasetDisplay]:
    """Show how a run goes until the block ends."""
    console = terminal()
    if quiet or not console.is_terminal:
        yield DatasetDisplay(None, quiet=quiet, as_json=as_json)
        return
    with Live(console=console, refresh_per_second=4, redirect_stdout=False) as live:
        yield DatasetDisplay(live, quiet=False, as_json=as_json)


class DatasetDisplay:
    """Tells of a run as it goes; a `Watcher`.

    Args:
        live: where to draw; None for lines.
        quiet: say nothing but what failed.
        as_json: one JSON object a clip on stdout.
    """

    def __init__(self, live: Live | None, *, quiet: bool, as_json: bool) -> None:
        self._live, self._quiet, self._as_json = live, quiet, as_json
        self._begin = self._said = time.monotonic()

    def planned(self, totals: Totals) -> None:
        """Say what there is to do."""
        self._begin = self._said = time.monotonic()
        if self._live is None:
            say(planned_line(totals), quiet=self._quiet)
        else:
            self._live.console.print(planned_line(totals), markup=False)

    def ended(self, record: dict[str, Any], totals: Totals) -> None:
        """Show a clip that has ended."""
        if self._as_json:
            print_json({key: record.get(key) for key in MANIFEST})
        if record["status"] != "ok":
            self._say_failure(f"{record['id']}: {record.get('stage')}: {record['message']}")
        now = time.monotonic()
        if self._live is not None:
            self._live.update(draw(totals, now - self._begin))
        elif now - self._said > LINE_SECONDS:
            self._said = now
            say(progress_line(totals, now - self._begin), quiet=self._quiet)

    def _say_failure(self, text: str) -> None:
        if self._live is None:
            say_error(text)
        else:
            self._live.console.print(Text.assemble(("error: ", "bold red"), one_line(text)))


def planned_line(totals: Totals) -> str:
    """What there is to do, in one line."""
    parts = [f"{totals.clips:,} clips", f"{totals.there:,} there already"]
    if totals.left_failed:
        parts.append(f"{totals.left_failed:,} failed before (--retry-failed tries them again)")
    if totals.faults:
        parts.append(f"{totals.faults:,} that are no clips")
    if totals.repeated:
        parts.append(f"{totals.repeated:,} named again")
    return ", ".join([*parts, f"{totals.todo:,} to do"])


def progress_line(totals: Totals, seconds: float) -> str:
    """How far a run is, as `name=value`, which is easy to grep and to cut."""
    fields = {
        "clips": f"{totals.ended}/{totals.todo}",
        "failed": f"{totals.failed}",
        "frames/s": f"{totals.frames / max(seconds, 1e-9):.1f}",
        "clips/s": f"{totals.ended / max(seconds, 1e-9):.2f}",
        **{NAMES[name]: f"{share:.0%}" for name, share in shares(totals).items()},
        "left": _left(totals, seconds),
    }
    return " ".join(f"{name}={value}" for name, value in fields.items())


def summary_line(totals: Totals) -> str:
    """What came of a run, in one line."""
    rate = totals.frames / max(totals.seconds, 1e-9)
    failed = f", {totals.bad:,} failed" if totals.bad else ""
    return (
        f"{totals.done:,} clips done, {totals.there:,} there already{failed}: {totals.frames:,} "
        f"frames, {totals.bytes:,} bytes, {rate:.0f} frames/s"
    )


def draw(totals: Totals, seconds: float) -> RenderableType:
    """How far a run is as a picture, for any width."""
    row = Table.grid(padding=(0, 1), expand=True)
    for place in range(5):
        row.add_column(ratio=1 if place == 1 else None, no_wrap=True)
    rate = totals.frames / max(seconds, 1e-9)
    row.add_row(
        f"{totals.ended:,}/{totals.todo:,} clips",
        ProgressBar(total=max(1, totals.todo), completed=totals.ended),
        Text(f"{rate:.0f} frames/s", style="cyan"),
        Text(f"{totals.failed:,} failed", style="red" if totals.failed else "dim"),
        f"{_left(totals, seconds)} left",
    )
    return Group(row, _where_time_goes(totals))


def shares(totals: Totals) -> dict[str, float]:
    """Which part of the workers' time each stage takes."""
    whole = sum(totals.spent.values())
    return {name: seconds / whole for name, seconds in totals.spent.items() if whole}


def _where_time_goes(totals: Totals) -> Text:
    text = Text("time: ", style="dim")
    for name, share in shares(totals).items():
        text.append("█" * round(share * WIDTH), style=COLOURS[name])
        text.append(f" {NAMES[name]} {share:.0%}  ", style=COLOURS[name])
    return text


def _left(totals: Totals, seconds: float) -> str:
    if not totals.ended:
        return "-:--:--"
    return str(timedelta(seconds=round(seconds / totals.ended * (totals.todo - totals.ended))))
