"""One clip after another: each fails alone, and the exit code says how many did."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vtok._files import check_output
from vtok.cli.console import print_json, say, say_warning
from vtok.cli.failures import as_vtok_error, raise_failures, report_failure
from vtok.cli.inputs import STREAM, Job
from vtok.errors import InputError, OutputError, UsageError, VtokError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vtok.pipeline.result import Result

Work = Callable[[Any, Any, Any], "Result"]
"""Called with an input, an output (paths or streams) and a progress function."""
MOST_GAPS = 5  # that are named: a line is to be read


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

    def check(self, jobs: Sequence[Job], *, binary: bool = True) -> None:
        """Refuse what does not fit together, before anything is done; binary data on a terminal."""
        if self.overwrite and self.skip_existing:
            raise UsageError("--overwrite and --skip-existing exclude each other")
        if any(job.output == STREAM for job in jobs):
            if self.as_json:
                raise UsageError("--json and the output both want standard output: give -o FILE")
            if sys.stdout is None or (binary and sys.stdout.isatty()):
                raise UsageError("standard output is no file and no pipe: give -o FILE")
        if any(job.source == STREAM for job in jobs) and (sys.stdin is None or sys.stdin.isatty()):
            raise UsageError("standard input is no file and no pipe: give a file")
        if len(jobs) == 1:
            self._check_only(jobs[0])

    @contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        """Show that something is under way, unless nothing is to be said."""
        from vtok.cli.progress import waiting

        with waiting(label, quiet=self.quiet):
            yield

    def _check_only(self, job: Job) -> None:
        """Find out early what would fail for want of a file; of several, each fails alone."""
        if job.source != STREAM and not Path(job.source).exists():
            raise InputError(f"{job.source}: no such file")
        if job.output != STREAM and Path(job.output).exists():
            check_output(Path(job.output), self.overwrite or self.skip_existing)


def run_jobs(
    jobs: Sequence[Job], work: Work, manner: Manner, is_done: Callable[[Path, Path], bool]
) -> None:
    """Do every job; with several, one that fails does not stop the others.

    Raises:
        VtokError: of the only job.
        PartialFailure: if some of several failed; if all did alike, an error of their kind.
    """
    failures: list[VtokError] = []
    for number, job in enumerate(jobs, start=1):
        place = f"{number}/{len(jobs)} " if len(jobs) > 1 else ""
        try:
            _run_job(job, place + Path(job.source).name, work, manner, is_done)
        except BrokenPipeError:
            raise  # nobody listens any more
        except Exception as error:  # whatever one clip brings about, the others are still done
            known = as_vtok_error(error, job.source)
            known.__cause__ = None if known is error else error  # for --debug
            failures.append(known)
            names = {"input": job.source, "output": job.output}
            report_failure(names, known, as_json=manner.as_json, silent=len(jobs) == 1)
    raise_failures(failures, len(jobs))


def never_done(output: Path, source: Path) -> bool:
    """For outputs of which none is skipped: making one anew takes no longer than checking it."""
    return False


def _run_job(
    job: Job, label: str, work: Work, manner: Manner, is_done: Callable[[Path, Path], bool]
) -> None:
    from vtok.cli.progress import frames_progress

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
        with frames_progress(label, quiet=manner.quiet) as progress:
            result = work(source, output, progress)
    report(result, manner)


def report(result: Result, manner: Manner) -> None:
    """Say what one clip became."""
    if result.lost:
        lost = "nobody knows how many were" if result.lost_frames is None else result.lost_frames
        which = ", ".join(f"{first} to {end - 1}" for first, end in result.gaps[:MOST_GAPS])
        more = ", ..." if len(result.gaps) > MOST_GAPS else ""
        saved = f"{result.frames} frames were saved, {lost} lost"
        saved += f" ({which}{more})" if which else ""
        say_warning(f"{result.input}: {result.lost}; {saved}")
    if result.note:
        say_warning(f"{result.input}: {result.note}")
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
    psnr = "" if result.psnr is None else f"{result.psnr:.2f} dB, "
    return (
        f"{result.input} -> {result.output}: "
        f"{result.frames} frames {result.width}x{result.height}, "
        f"{result.contents}, {result.bytes:,} bytes, {result.bpp:.4f} bpp, {psnr}"
        f"{result.frames_per_second:.0f} frames/s"
    )
