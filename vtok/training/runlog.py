"""Reports of a run, and its log: CSV files, and TensorBoard events where that is installed."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from vtok._files import atomic_output
from vtok.errors import OutputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = Mapping[str, "float | str"]
STEPS, VALIDATIONS, EVENTS = "log.csv", "validation.csv", "tensorboard"  # in the run's folder
FIRST = ("step", "loss")
LAST = (
    "code_usage", "bit_entropy", "gradient_norm", "learning_rate", "clips_per_second", "waiting",
    "skipped", "picture",
)  # fmt: skip
PSNR = "psnr_"
MAX_DIGITS = 18  # of a step number
FLUSH_SECONDS = 2  # a flush takes milliseconds, too long for every step


@dataclass(frozen=True)
class StepReport:
    """Result of one step."""

    step: int  # number of steps done, from 1
    steps: int  # total number of steps
    loss: float  # weighted sum of the parts
    parts: Mapping[str, float]  # each loss before its weight: l1, mse, rmse, entropy, ...
    psnr: Mapping[int, float]  # running mean over training clips in dB, by number of stages
    code_usage: float  # share of the entries of the first stage's codebook seen lately, 0..1
    bit_entropy: float  # mean entropy of the bits lately, 0..1 bit
    gradient_norm: float  # norm before clipping
    learning_rate: float  # of Muon
    clips_per_second: float  # over all processes
    waiting: float  # share of the time spent waiting for data, 0..1
    seconds_left: float | None  # estimated time to the last step; None while unknown
    skipped: int  # number of unreadable sources


@dataclass(frozen=True)
class ValidationReport:
    """Quality on the validation clips."""

    step: int  # number of steps done
    psnr: Mapping[int, float]  # mean over the clips in dB, by number of stages
    code_usage: float  # share of the entries of the first stage's codebook that they use, 0..1
    picture: Path | None  # picture of originals and reconstructions, or None


@dataclass(frozen=True)
class Alarm:
    """A problem that needs attention."""

    step: int  # number of steps done
    kind: Literal["not_finite", "collapse", "stalled_data"]  # type of the problem
    text: str  # one line: the problem, its consequence, and what to try


class Observer(Protocol):
    """Receiver of the progress of a run, such as a display."""

    def step(self, report: StepReport) -> None:
        """Receive the result of a step."""

    def validated(self, report: ValidationReport) -> None:
        """Receive the result of a validation."""

    def alarm(self, alarm: Alarm) -> None:
        """Receive an alarm."""

    def say(self, text: str) -> None:
        """Receive one line of information."""


class RunLog:
    """Log of every step and validation in the folder of a run; a repeated step replaces the first.

    After a kill at any moment the files continue with complete rows; a partial row is dropped.
    Every method raises `OutputError` if a file cannot be written, or is not a log. `say` receives
    one line if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self._steps = _Table(folder / STEPS)
        self._validations = _Table(folder / VALIDATIONS)
        self._events = _Events(folder / EVENTS, say)

    def append(self, report: StepReport) -> None:
        """Write a step."""
        row: dict[str, float | str] = {"step": report.step, "loss": report.loss, **report.parts}
        row |= {f"{PSNR}{stages}": value for stages, value in report.psnr.items()}
        row |= {name: getattr(report, name) for name in LAST[:-1]}
        self._steps.add(row)
        self._events.add("train", row)

    def validated(self, report: ValidationReport) -> None:
        """Write a validation."""
        row: dict[str, float | str] = {"step": report.step, "code_usage": report.code_usage}
        row |= {f"{PSNR}{stages}": value for stages, value in report.psnr.items()}
        row["picture"] = "" if report.picture is None else report.picture.name
        self._validations.add(row)
        self._events.add("validation", row)

    def rewind(self, step: int) -> None:
        """Drop everything after a step, for a run that resumes there; 0 empties the log."""
        for log in (self._steps, self._validations, self._events):
            log.rewind(step)

    def close(self) -> None:
        """Write pending events."""
        self._events.close()


class _Table:
    """A CSV file with one row for each step, in order; columns may be added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self.last = sys.maxsize  # until the file is read

    def add(self, row: Row) -> None:
        """Append a row; rows of this step and later ones are dropped."""
        step = int(row["step"])
        if step <= self.last or not row.keys() <= set(self.columns):
            self.rewind(step - 1, row)
        texts = {k: f"{v:.7g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        with self._written(), self.path.open("a", encoding="utf-8", newline="") as file:
            self._writer(file).writerow(texts)
        self.last = step

    def rewind(self, step: int, columns: Iterable[str] = ()) -> None:
        """Keep the rows up to a step, and add columns."""
        names = {*self._header(self._lines()), *columns}
        if not names:
            return
        self.columns = sorted(names, key=_place)
        with (
            atomic_output(self.path, overwrite=True) as temporary,
            self._written(),
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(row for row in self.rows() if int(row["step"]) <= step)
        self.last = step

    def rows(self) -> Iterator[dict[str, str]]:
        """Read the complete rows; none if the file does not exist."""
        lines = self._lines()
        names = self._header(lines)
        for row in lines:
            if len(row) == len(names) and row[0].isdecimal() and len(row[0]) <= MAX_DIGITS:
                yield dict(zip(names, row, strict=True))

    def _header(self, lines: Iterator[list[str]]) -> list[str]:
        names = next(lines, [])
        if names and names[0] != "step":
            raise OutputError(f"{self.path}: not the log of a run, move it elsewhere")
        return names

    def _lines(self) -> Iterator[list[str]]:
        try:
            with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
                complete = (line.replace("\0", "") for line in file if line.endswith("\n"))
                yield from csv.reader(complete)
        except FileNotFoundError:
            return
        except (OSError, csv.Error) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise OutputError(f"{self.path}: cannot be read ({reason})") from exc

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise OutputError(f"{self.path}: cannot be written ({exc.strerror})") from exc

    def _writer(self, file: TextIO) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self.columns, restval="", lineterminator="\n")


class _Events:
    """The same rows as TensorBoard events; does nothing without TensorBoard."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.writer: SummaryWriter | None = None
        self.missing = False
        self.first: int | None = None

    def add(self, kind: str, row: Row) -> None:
        """Write all numbers of a row."""
        step = int(row["step"])
        if not (self.writer or self.missing):
            self._open(step if self.first is None else self.first)
        if self.writer is None:
            return
        try:
            for name, value in row.items():
                if name not in ("step", "picture"):
                    self.writer.add_scalar(f"{kind}/{name}", value, step)
        except OSError as exc:
            raise OutputError(f"{self.folder}: cannot be written ({exc.strerror})") from exc

    def rewind(self, step: int) -> None:
        """Have readers drop everything after a step; the next file says so at its start."""
        self.close()
        self.first = step + 1

    def close(self) -> None:
        """Close the file; later rows go to another one."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _open(self, first: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.missing = True
            self.say("TensorBoard is not installed, logging CSV only: install vtok[train]")
            return
        self.writer = SummaryWriter(str(self.folder), purge_step=first, flush_secs=FLUSH_SECONDS)


def _place(column: str) -> tuple[int, int, str]:
    """Sort key of columns: step and loss, the parts of the loss, PSNR by stages, the rest."""
    if column in FIRST:
        return 0, FIRST.index(column), ""
    if column in LAST:
        return 3, LAST.index(column), ""
    stages = column.removeprefix(PSNR)
    return (2, int(stages), "") if stages.isdecimal() else (1, 0, column)
