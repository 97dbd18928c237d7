"""Print the results of evaluations: tables, JSON or CSV."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtok.cli.console import colours, one_line, print_json
from vtok.evaluation.metrics import METRICS
from vtok.evaluation.results import ClipResult, Point, mean_points, total_usage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vtok.evaluation.compare import Delta
    from vtok.evaluation.results import CodeUsage

WIDEST = 400
MAX_ACROSS = 8  # codebooks side by side
FIELDS = ("input", "width", "height", "frames", "fps")
COLUMNS = ("coder", "setting", "bits", "bytes", "bpp", "raw_bpp", "kbps", *METRICS, "decode_fps")


class Printer:
    """Prints results one by one, as a table, JSON or CSV."""

    def __init__(self, *, as_json: bool, as_csv: bool) -> None:
        self._as_json, self._as_csv = as_json, as_csv
        self._begun = False
        self._csv = csv.DictWriter(sys.stdout, (*FIELDS, *COLUMNS), lineterminator="\n")

    def clip(self, result: ClipResult) -> None:
        """Print the result of one clip."""
        if self._as_json:
            print_json({"kind": "clip", **result.to_json(), "status": "ok"})
            return
        facts = result.to_json()
        if self._as_csv:
            self._rows({key: facts[key] for key in FIELDS}, result.points)
            return
        speed = (
            "" if result.encode_fps is None else f", encoded at {result.encode_fps:.0f} frames/s"
        )
        size = f"{result.frames} frames {result.width}x{result.height}"
        self._tables(f"{result.name}: {size}{speed}", result.points, result.usage)

    def mean(self, results: Sequence[ClipResult]) -> None:
        """Print the mean over several clips; nothing for one clip."""
        if len(results) < 2:
            return
        points, usage = mean_points(results), total_usage(results)
        if self._as_json:
            rates = [point.to_json() for point in points]
            codebooks = [one.to_json() for one in usage]
            print_json(
                {"kind": "mean", "clips": len(results), "rates": rates, "codebooks": codebooks}
            )
        elif self._as_csv:
            self._rows({"input": "mean"}, points)
        else:
            self._tables(
                f"mean of {len(results)} clips, code usage over all of them", points, usage
            )

    def deltas(self, deltas: Sequence[Delta]) -> None:
        """Print a table of Bjontegaard deltas; JSON has them already, CSV has none."""
        if self._as_json or self._as_csv or not deltas:
            return
        metrics = [METRICS[delta.metric] for delta in deltas]
        changes = [
            "-" if delta.quality is None else f"{delta.quality:+.{metric.digits}f}"
            for delta, metric in zip(deltas, metrics, strict=True)
        ]
        rates = [
            "no quality in common" if delta.rate is None else f"{delta.rate:+.0f} % bytes"
            for delta in deltas
        ]
        columns = [
            Column("against", [delta.codec for delta in deltas], is_text=True),
            Column("by", [metric.label for metric in metrics], is_text=True),
            Column("at the same bytes", changes),
            Column("at the same quality", rates, is_text=True),
        ]
        self._print("Bjontegaard deltas of vtok", make_table(columns))

    def _rows(self, facts: dict[str, Any], points: Sequence[Point]) -> None:
        if not self._begun:
            self._csv.writeheader()
        self._begun = True
        for point in points:
            row = {**facts, **point.to_json()}
            self._csv.writerow({key: row.get(key) for key in (*FIELDS, *COLUMNS)})
        sys.stdout.flush()

    def _tables(self, title: str, points: Sequence[Point], usage: Sequence[CodeUsage]) -> None:
        names, sizes, quality = point_columns(points)
        tables = [make_table([*names, *sizes, *quality])]
        if self._console().measure(tables[0]).maximum > self._room():
            tables = [make_table([*names, *sizes]), make_table([*names, *quality])]
        if usage:
            tables.append(make_table(usage_columns(usage)))
        self._print(title, *tables)

    def _room(self) -> int:
        """Width that a table may take."""
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDEST

    def _console(self) -> Console:
        """A console wider than any table: a narrow terminal wraps lines, rich would cut cells."""
        from rich.console import Console

        return Console(file=sys.stdout, width=WIDEST, highlight=False, color_system=colours())

    def _print(self, title: str, *tables: Table) -> None:
        from rich.text import Text

        console = self._console()
        if self._begun:
            console.print()
        self._begun = True
        console.print(Text(one_line(title), style="bold"), soft_wrap=True)
        for number, table in enumerate(tables):
            if number:
                console.print()
            console.print(table)


@dataclass(frozen=True)
class Column:
    """A column of a table: head and one cell per row; numbers are aligned right."""

    head: str
    cells: Sequence[str]
    is_text: bool = False


def make_table(columns: Sequence[Column]) -> Table:
    """Make a table without lines, for terminals and pipes."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.head, justify="left" if column.is_text else "right", no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def point_columns(points: Sequence[Point]) -> tuple[list[Column], list[Column], list[Column]]:
    """Columns of names, sizes and quality, with one row per coder and rate."""
    names = [Column("bits", [f"{point.bits}" for point in points])]
    sizes = [
        Column("bytes", [f"{point.bytes:,.0f}" for point in points]),
        Column("bpp", [f"{point.bpp:.4f}" for point in points]),
        Column("kbps", [f"{point.kbps:.1f}" for point in points]),
    ]
    if len({point.coder for point in points}) > 1:
        names.insert(0, Column("coder", [point.coder for point in points], is_text=True))
        sizes.insert(0, Column("setting", [point.setting for point in points], is_text=True))
    quality = [
        Column(metric.label, [_cell(point.quality[name], metric.digits) for point in points])
        for name, metric in METRICS.items()
        if name in points[0].quality
    ]
    if any(point.decode_fps is not None for point in points):
        # last and aligned left, so that the width of a speed moves no other column
        speeds = [_cell(point.decode_fps, 0, " frames/s") for point in points]
        quality.append(Column("decoded at", speeds, is_text=True))
    return names, sizes, quality


def usage_columns(usage: Sequence[CodeUsage]) -> list[Column]:
    """Share of used entries and perplexity: one column per codebook, or one row if many."""
    heads = ("codebook", f"used of {usage[0].codebook_size:,}", "perplexity")
    rows = [
        (f"{number}", f"{one.used:.1%}", f"{one.perplexity:.0f}")
        for number, one in enumerate(usage, start=1)
    ]
    if len(rows) > MAX_ACROSS:
        return [
            Column(head, cells) for head, cells in zip(heads, zip(*rows, strict=True), strict=True)
        ]
    first = Column(heads[0], heads[1:], is_text=True)
    return [first, *(Column(row[0], row[1:]) for row in rows)]


def _cell(value: float | None, digits: int, unit: str = "") -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"
