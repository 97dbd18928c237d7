"""Process inputs one by one; one that fails does not stop the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtok._files import check_output
from vtok.cli.console import frames_progress, print_json, say, say_warning
from vtok.cli.failures import Failures
from vtok.cli.inputs import STREAM, Job, standard_input
from vtok.cli.options import PrintOptions
from vtok.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    from vtok.pipeline.result import Result

Work = Callable[[Any, Any, Any], "Result"]
"""Called with an input, an output (each a path or a stream) and a progress function."""
IsDone = Callable[[Path, Path], bool]
"""Called with an output and its input: is the output complete and up to date?"""
MAX_GAPS = 5  # listed in a warning


def check_jobs(
    jobs: Sequence[Job],
    printing: PrintOptions,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    binary: bool = True,
) -> None:
    """Refuse options that do not fit together, before anything is done.

    Args:
        jobs: all inputs and outputs.
        printing: what the command prints.
        overwrite: existing outputs are replaced.
        skip_existing: existing outputs are kept if they are up to date.
        binary: outputs must not be written to a terminal.
    """
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other")
    if any(job.output == STREAM for job in jobs):
        if printing.as_json:
            raise UsageError("--json and the output both need standard output: give -o FILE")
        if sys.stdout is None or (binary and sys.stdout.isatty()):
            raise UsageError("standard output is not a file or pipe: give -o FILE")
    if any(job.source == STREAM for job in jobs):
        standard_input()
    if len(jobs) == 1:  # of several, each fails alone
        source, output = jobs[0].source, jobs[0].output
        if source != STREAM and not Path(source).exists():
            raise InputError(f"{source}: no such file")
        if output != STREAM and Path(output).exists():
            check_output(Path(output), overwrite or skip_existing)


def run_jobs(
    jobs: Sequence[Job], work: Work, printing: PrintOptions, is_done: IsDone | None = None
) -> None:
    """Do every job and print a line, or JSON, for each.

    Args:
        jobs: inputs and outputs.
        work: does one.
        printing: what to print.
        is_done: decides which outputs to skip; None skips none.

    Raises:
        VtokError: the error of an only job, or one of the kind that all jobs had.
        PartialFailure: if some of several jobs failed.
    """
    failures = Failures(len(jobs), as_json=printing.as_json)
    for number, job in enumerate(jobs, start=1):
        place = f"{number}/{len(jobs)} " if len(jobs) > 1 else ""
        with failures.catch(job.source, input=job.source, output=job.output):
            source, output = Path(job.source), Path(job.output)
            if is_done is not None and job.output != STREAM and is_done(output, source):
                _print_skipped(job, printing)
            else:
                _run_job(job, place + source.name, work, printing)
    failures.raise_if_any()


def _run_job(job: Job, label: str, work: Work, printing: PrintOptions) -> None:
    source = sys.stdin.buffer if job.source == STREAM else Path(job.source)
    output = sys.stdout.buffer if job.output == STREAM else Path(job.output)
    if isinstance(output, Path):
        make_folder(output.parent, f"{output}: its folder cannot be created")
    with frames_progress(label, quiet=printing.quiet) as progress:
        result = work(source, output, progress)
    print_result(result, printing)


def make_folder(folder: Path, message: str = "") -> None:
    """Create a folder and its parents.

    Raises:
        OutputError: if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        message = message or f"{folder}: cannot be created"
        raise OutputError(f"{message} ({exc.strerror})") from exc


def print_result(result: Result, printing: PrintOptions) -> None:
    """Print the result of one job, and its warnings."""
    if result.lost:
        lost = "an unknown number" if result.lost_frames is None else result.lost_frames
        ranges = ", ".join(f"{first} to {end - 1}" for first, end in result.gaps[:MAX_GAPS])
        more = ", ..." if len(result.gaps) > MAX_GAPS else ""
        saved = f"{result.frames} frames were saved, {lost} lost"
        saved += f" ({ranges}{more})" if ranges else ""
        say_warning(f"{result.input}: {result.lost}; {saved}")
    if result.note:
        say_warning(f"{result.input}: {result.note}")
    if printing.as_json:
        print_json({**result.to_json(), "status": "ok"})
    psnr = "" if result.psnr is None else f"{result.psnr:.2f} dB, "
    say(
        f"{result.input} -> {result.output}: "
        f"{result.frames} frames {result.width}x{result.height}, "
        f"{result.contents}, {result.bytes:,} bytes, {result.bpp:.4f} bpp, {psnr}"
        f"{result.frames_per_second:.0f} frames/s",
        quiet=printing.silent,
    )


def _print_skipped(job: Job, printing: PrintOptions) -> None:
    if printing.as_json:
        print_json({"input": job.source, "output": job.output, "status": "skipped"})
    say(f"{job.output}: up to date, skipped", quiet=printing.silent)
