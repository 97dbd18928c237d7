"""One clip after another: each fails alone, and the exit code says how many did."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vtok.cli.console import frames_progress, print_json, say, say_error, say_warning
from vtok.cli.inputs import STREAM, Job
from vtok.errors import OutputError, PartialFailure, UsageError, VtokError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vtok.codec.result import Result

Work = Callable[[Any, Any, Any], "Result"]
"""Called with an input, an output (paths or streams) and a progress function."""


@dataclass(frozen=True)
class Manner:
    """How a command treats its outputs and what it says.

    Attributes:
        overwrite: replace existing outputs.
        skip_existing: leave those that are whole and made the same way.
        as_json: JSON on stdout.
        quiet: nothing but errors.
    """

    overwrite: bool
    skip_existing: bool
    as_json: bool
    quiet: bool

    def check(self, jobs: Sequence[Job]) -> None:
        """Refuse what does not fit together, before anything is done."""
        if self.overwrite and self.skip_existing:
            raise UsageError("--overwrite and --skip-existing exclude each other")
        if any(job.output == STREAM for job in jobs):
            if self.as_json:
                raise UsageError("--json and the output both want standard output: give -o FILE")
            if sys.stdout.isatty():
                raise UsageError("standard output is a terminal: give -o FILE, or a pipe")
        if any(job.source == STREAM for job in jobs) and sys.stdin.isatty():
            raise UsageError("standard input is a terminal: give a file, or a pipe")


def run_jobs(
    jobs: Sequence[Job], work: Work, manner: Manner, is_done: Callable[[Path, Path], bool]
) -> None:
    """Do every job; with several, one that fails does not stop the others.

    Raises:
        VtokError: of the only job.
        PartialFailure: if some of several failed; if all did, the error of the last.
    """
    failures: list[VtokError] = []
    for job in jobs:
        try:
            _run_job(job, work, manner, is_done)
        except VtokError as error:
            if len(jobs) == 1:
                _report_failure(job, error, manner, silent=True)
                raise
            failures.append(error)
            _report_failure(job, error, manner, silent=False)
    if failures:
        counts = f"{len(failures)} of {len(jobs)} inputs failed"
        codes = {error.exit_code for error in failures}
        if len(failures) < len(jobs) or len(codes) > 1:
            raise PartialFailure(counts)
        raise type(failures[0])(counts)


def _run_job(job: Job, work: Work, manner: Manner, is_done: Callable[[Path, Path], bool]) -> None:
    if (
        manner.skip_existing
        and job.output != STREAM
        and is_done(Path(job.output), Path(job.source))
    ):
        if manner.as_json:
            print_json({"input": job.source, "output": job.output, "status": "skipped"})
        say(f"{job.output}: there already, left as it is", quiet=manner.quiet or manner.as_json)
        return
    with _end(job.source, sys.stdin) as source, _end(job.output, sys.stdout) as output:
        if isinstance(output, Path):
            _make_folder(output)
        with frames_progress(Path(job.source).name, quiet=manner.quiet) as progress:
            result = work(source, output, progress)
    if result.lost:
        say_warning(f"{result.input}: {result.lost}; {result.frames} frames were saved")
    if manner.as_json:
        print_json({**result.to_json(), "status": "ok"})
    say(_line(result), quiet=manner.quiet or manner.as_json)


@contextmanager
def _end(name: str, stream: Any) -> Iterator[Path | BinaryIO]:
    yield stream.buffer if name == STREAM else Path(name)


def _make_folder(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{output}: its folder cannot be made ({exc.strerror})") from exc


def _line(result: Result) -> str:
    return (
        f"{result.input} -> {result.output}: "
        f"{result.frames} frames {result.width}x{result.height}, "
        f"{result.codes:,} codes, {result.bytes:,} bytes, {result.bpp:.4f} bpp, "
        f"{result.frames_per_second:.0f} frames/s"
    )


def _report_failure(job: Job, error: VtokError, manner: Manner, *, silent: bool) -> None:
    if manner.as_json:
        print_json(
            {
                "input": job.source,
                "output": job.output,
                "status": "failed",
                "error": type(error).__name__,
                "message": str(error),
                "exit_code": error.exit_code,
            }
        )
    if not silent:
        say_error(str(error))
