"""The log of a run: CSV for people and programs, TensorBoard events where that is installed."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vtok._files import atomic_output
from vtok.errors import OutputError
from vtok.training.report import StepReport, ValidationReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = Mapping[str, "float | str"]
STEPS, VALIDATIONS, EVENTS = "log.csv", "validation.csv", "tensorboard"
"""What the files and the folder of events are called inside the run."""
FIRST = ("step", "loss")
LAST = (
    "code_usage", "bit_entropy", "gradient_norm", "learning_rate", "clips_per_second", "waiting",
    "skipped", "picture",
)  # fmt: skip
PSNR = "psnr_"
MAX_DIGITS = 18  # of a step
FLUSH_SECONDS = 2  # a flush costs milliseconds, too many to do it at every step


class RunLog:
    """Writes down every step and validation; steps that are done again replace the old ones.

    Killed at any moment, it goes on with whole rows: half a row is dropped.

    Args:
        folder: of the run; must exist.
        say: called once with a line if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] | None = None) -> None:
        self._steps = _Table(folder / STEPS)
        self._validations = _Table(folder / VALIDATIONS)
        self._events = _Events(folder / EVENTS, say)

    def append(self, report: StepReport) -> None:
        """Write a step.

        Raises:
            OutputError: The files cannot be written, or are no log.
        """
        self._write(self._steps, "train", _step_row(report))

    def validated(self, report: ValidationReport) -> None:
        """Write a validation.

        Raises:
            OutputError: The files cannot be written, or are no log.
        """
        row: dict[str, float | str] = {"step": report.step, "code_usage": report.code_usage}
        row |= _psnr_columns(report.psnr)
        row["picture"] = "" if report.picture is None else report.picture.name
        self._write(self._validations, "validation", row)

    def rewind(self, step: int) -> None:
        """Drop all that came after `step`, for a run that goes on from there.

        Args:
            step: number of steps done; 0 empties the log.

        Raises:
            OutputError: The files cannot be written, or are no log.
        """
        self._steps.rewind(step)
        self._validations.rewind(step)
        self._events.rewind(step)

    def close(self) -> None:
        """Write what is left of the events."""
        self._events.close()

    def _write(self, table: _Table, kind: str, row: Row) -> None:
        table.add(row)
        self._events.add(kind, row)


def read_columns(path: Path) -> dict[str, list[float]]:
    """The numbers of a log, by column; what a row does not have is not a number.

    Args:
        path: log.csv or validation.csv of a run.

    Returns:
        Columns of one length, `step` among them; none if there is no such file.

    Raises:
        OutputError: The file is no log of a run, or cannot be read.
    """
    rows = list(_Table(path).rows())
    names = [name for name in (rows[0] if rows else ()) if name != "picture"]
    return {name: [_number(row[name]) for row in rows] for name in names}


class _Table:
    """A CSV file with a row for each step, in order, whose columns may become more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self.last = sys.maxsize  # until it was read

    def add(self, row: Row) -> None:
        """Append a row; rows of this step and later ones are dropped."""
        step = int(row["step"])
        if step <= self.last or not row.keys() <= set(self.columns):
            self.rewind(step - 1, row)
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                self._writer(file).writerow({name: _text(value) for name, value in row.items()})
        except OSError as exc:
            raise OutputError(f"{self.path}: cannot be written ({exc.strerror})") from exc
        self.last = step

    def rewind(self, step: int, columns: Iterable[str] = ()) -> None:
        """Keep the rows up to a step, with these columns added; half a row at the end goes."""
        names = {*self._header(self._lines()), *columns}
        if not names:
            return
        self.columns = sorted(names, key=_place)
        with atomic_output(self.path, overwrite=True) as temporary:
            try:
                with temporary.open("w", encoding="utf-8", newline="") as file:
                    writer = self._writer(file)
                    writer.writeheader()
                    writer.writerows(row for row in self.rows() if int(row["step"]) <= step)
            except OSError as exc:
                raise OutputError(f"{self.path}: cannot be written ({exc.strerror})") from exc
        self.last = step

    def rows(self) -> Iterator[dict[str, str]]:
        """The whole rows of the file, which need not exist."""
        lines = self._lines()
        names = self._header(lines)
        for row in lines:
            if len(row) == len(names) and row[0].isdecimal() and len(row[0]) <= MAX_DIGITS:
                yield dict(zip(names, row, strict=True))

    def _header(self, lines: Iterator[list[str]]) -> list[str]:
        names = next(lines, [])
        if names and names[0] != "step":
            raise OutputError(f"{self.path}: is no log of a run, move it out of the way")
        return names

    def _lines(self) -> Iterator[list[str]]:
        try:
            with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
                yield from csv.reader(
                    line.replace("\0", "") for line in file if line.endswith("\n")
                )
        except FileNotFoundError:
            return
        except (OSError, csv.Error) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise OutputError(f"{self.path}: cannot be read ({reason})") from exc

    def _writer(self, file: TextIO) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self.columns, restval="", lineterminator="\n")


class _Events:
    """The same rows as TensorBoard events; nothing where it is missing."""

    def __init__(self, folder: Path, say: Callable[[str], None] | None) -> None:
        self.folder, self.say = folder, say
        self.writer: SummaryWriter | None = None
        self.missing = False
        self.first: int | None = None

    def add(self, kind: str, row: Row) -> None:
        """Write all numbers of a row."""
        step = int(row["step"])
        writer = self._open(step if self.first is None else self.first)
        if writer is None:
            return
        try:
            for name, value in row.items():
                if name not in ("step", "picture"):
                    writer.add_scalar(f"{kind}/{name}", value, step)
        except OSError as exc:
            raise OutputError(f"{self.folder}: cannot be written ({exc.strerror})") from exc

    def rewind(self, step: int) -> None:
        """Have readers drop what came after a step: a new file says so at its start."""
        self.close()
        self.first = step + 1

    def close(self) -> None:
        """Close the file; what is added later goes to another one."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _open(self, first: int) -> SummaryWriter | None:
        if self.writer is None and not self.missing:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.missing = True
                if self.say is not None:
                    self.say("TensorBoard is not installed, only CSV is logged: vtok[train] has it")
                return None
            self.writer = SummaryWriter(
                str(self.folder), purge_step=first, flush_secs=FLUSH_SECONDS
            )
        return self.writer


def _step_row(report: StepReport) -> dict[str, float | str]:
    row: dict[str, float | str] = {"step": report.step, "loss": report.loss, **report.parts}
    row |= _psnr_columns(report.psnr)
    for name in LAST[:-1]:
        row[name] = getattr(report, name)
    return row


def _psnr_columns(psnr: Mapping[int, float]) -> dict[str, float]:
    return {f"{PSNR}{stages}": value for stages, value in psnr.items()}


def _place(column: str) -> tuple[int, int, str]:
    """Sorts columns: step and loss, the parts of the loss, PSNR by stages, the rest."""
    if column in FIRST:
        return 0, FIRST.index(column), ""
    if column in LAST:
        return 3, LAST.index(column), ""
    stages = column.removeprefix(PSNR)
    return (2, int(stages), "") if stages.isdecimal() else (1, 0, column)


def _text(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
