"""Expand inputs to files, choose their outputs, and process them one by one."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vtok._files import check_output, is_junk, shorten_name
from vtok.cli.console import frames_progress, is_closed, print_json, say, say_warning
from vtok.cli.failures import Failures, with_flags
from vtok.cli.options import PrintOptions
from vtok.errors import InputError, OutputError, UsageError
from vtok.video.suffixes import PHOTO_SUFFIXES, VIDEO_SUFFIXES, is_pattern, list_pictures

if TYPE_CHECKING:
    from vtok.pipeline.result import Result

STREAM = "-"
STREAM_NAMES = (STREAM, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
MAX_NAME_BYTES = 255
Work = Callable[[Any, Any, Any], "Result"]
"""Called with an input, an output (each a path or a stream) and a progress function."""
IsDone = Callable[[Path, Path], bool]
"""Called with an output and its input: is the output complete and up to date?"""
MAX_GAPS = 5  # listed in a warning


@dataclass(frozen=True)
class Job:
    """One input and its output, each a path or `-` for a standard stream.

    Attributes:
        source: what to read.
        output: what to write.
    """

    source: str
    output: str


def plan(
    inputs: Sequence[str],
    output: str | None,
    suffix: str,
    suffixes: frozenset[str],
    as_video: bool = False,
) -> list[Job]:
    """List every input file, sorted, with its output.

    Args:
        inputs: files, folders (searched for `suffixes`), glob patterns, or `-`.
        output: a file for one input, or a folder for several, in which input folders are
            mirrored. By default an output is written next to its input, and that of standard
            input to standard output.
        suffix: suffix of outputs that are named after their input.
        suffixes: suffixes of the files to take from folders.
        as_video: each folder or glob is one video, made of pictures.

    Raises:
        InputError: if an input is missing or a folder holds no such file.
        UsageError: if two inputs have the same output, or several share one output file.
    """
    if "" in inputs or output == "":
        raise UsageError("an empty name: give a file or a folder (. is the current one)")
    inputs = [STREAM if text in STREAM_NAMES else text for text in inputs]
    if STREAM in inputs:
        if len(inputs) > 1:
            raise UsageError("- reads standard input: it cannot be one of several inputs")
        if output is not None and (output.endswith(os.sep) or Path(output).is_dir()):
            raise UsageError(f"-o {output}: is a folder, standard input needs a file name")
        return [Job(STREAM, output or STREAM)]
    found = [pair for text in inputs for pair in _expand(text, suffixes, as_video)]
    several = len(found) > 1 or any(
        Path(text).is_dir() and _identity(str(found[0][0])) != _identity(text) for text in inputs
    )
    into_folder = output is not None and (
        several or output.endswith(os.sep) or Path(output).is_dir()
    )
    if output == STREAM and several:
        raise UsageError("-o - takes one input: several outputs cannot share standard output")
    if several and output is not None and Path(output).is_file():
        raise UsageError(f"-o {output}: is a file, several inputs need a folder")
    jobs = []
    for path, relative in found:
        if into_folder:
            target = str(Path(str(output)) / _with_suffix(relative, suffix, path))
        else:
            target = output or str(_with_suffix(path, suffix, path))
        jobs.append(Job(str(path), target))
    _refuse_collisions(jobs)
    return jobs


def _with_suffix(path: Path, suffix: str, source: Path) -> Path:
    """Replace the suffix; a name that becomes too long for a file is cut.

    A source that is a pattern or a glob gets its name without numbers and signs, or its folder's.
    """
    stem = path.stem
    if source.is_dir():
        stem = path.name
    elif is_pattern(source):
        stem = re.sub(r"[-_. ]*(%\d*d|\[[^]]*\]|[*?])+[-_. ]*", "", stem) or source.parent.name
    return path.with_name(shorten_name(stem or "frames", MAX_NAME_BYTES - len(suffix)) + suffix)


def with_listed(names: Sequence[str] | None, lists: Sequence[str] | None, null: bool) -> list[str]:
    """Add the paths listed in files to the names given as arguments.

    Args:
        names: arguments.
        lists: files with one path per line; `-` for standard input.
        null: paths end in NUL bytes instead of newlines.

    Raises:
        InputError: if a list cannot be read, or all lists are empty.
        UsageError: if there is no input, or standard input would be read twice.
    """
    found = list(names or ())
    if null and not lists:
        raise UsageError("-0 needs --files-from")
    if [*found, *(lists or ())].count(STREAM) > 1:
        raise UsageError("- reads standard input, which can be read only once")
    for source in lists or ():
        try:
            data = sys.stdin.buffer.read() if source == STREAM else Path(source).read_bytes()
        except OSError as exc:
            raise InputError(f"{source}: cannot be read ({exc.strerror})") from exc
        lines = data.split(b"\0") if null else [line.rstrip(b"\r") for line in data.split(b"\n")]
        if not null and b"\0" in data:
            raise UsageError(f"--files-from {source}: has NUL bytes: did you mean to give -0?")
        found += [os.fsdecode(line) for line in lines if line]
    if not found:
        raise (InputError if lists else UsageError)("no input: give files, or --files-from LIST")
    return found


def find_files(inputs: Sequence[str], suffixes: frozenset[str]) -> list[Path]:
    """List every input file of a command that writes no file per input; see `plan`.

    Raises:
        InputError: if an input is missing or a folder holds no such file.
        UsageError: for standard input, which can be read only once.
    """
    if "" in inputs or STREAM in inputs:
        raise UsageError("give files, folders or quoted globs: standard input is not read here")
    return [path for text in inputs for path, _ in _expand(text, suffixes)]


def standard_input() -> BinaryIO:
    """Standard input as a binary stream.

    Raises:
        UsageError: if it is a terminal or closed.
    """
    if is_closed(sys.stdin) or sys.stdin.isatty():
        raise UsageError("standard input is not a file or pipe: give a file")
    return sys.stdin.buffer


def _expand(text: str, suffixes: frozenset[str], as_video: bool = False) -> list[tuple[Path, Path]]:
    """Files of one argument, each with its path below the output folder."""
    path = Path(text)
    if as_video or (suffixes == VIDEO_SUFFIXES and "%" in path.name and is_pattern(path)):
        list_pictures(path)
        return [(path, Path(path.name))]
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        if suffixes == VIDEO_SUFFIXES and (folders := _picture_folders(path)):
            return [
                (path if path.name else path.resolve(), Path(path.resolve().name))
                if folder == path
                else (folder, folder.relative_to(path))
                for folder in folders
            ]
        return [(file, file.relative_to(path)) for file in _search(path, suffixes)]
    if os.path.exists(path) or not glob.has_magic(text):  # noqa: PTH110
        return [(path, Path(path.name))]
    # Path.glob takes no absolute pattern
    found = (Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207
    matches = sorted(match for match in found if not match.is_dir())
    if not matches:
        raise InputError(f"{text}: no file matches")
    return [(match, Path(match.name)) for match in matches]


def _picture_folders(top: Path) -> list[Path]:
    """Folders of pictures, if there is no video file among them."""
    found = set()
    for path in top.rglob("*"):
        if any(map(is_junk, path.relative_to(top).parts)):
            continue
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            return []
        if path.suffix.lower() in PHOTO_SUFFIXES:
            found.add(path.parent)
    return sorted(found)


def _search(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Files in a folder with one of the suffixes, which may have two parts; says what is left out.

    Hidden files are not counted.
    """
    ends, files = tuple(suffixes), []
    others: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        if any(map(is_junk, path.relative_to(folder).parts)) or not path.is_file():
            continue
        if path.name.lower().endswith(ends):
            files.append(path)
        else:
            others[path.suffix.lower() or "no suffix"] += 1
    if not files:
        some = ", ".join(sorted(suffixes)[:6]) + (" ..." if len(suffixes) > 6 else "")
        raise InputError(f"{folder}: no file in this folder ends in {some}")
    if others and suffixes == VIDEO_SUFFIXES:
        say_warning(f"{folder}: {describe_left_out(others)}")
    return files


def describe_left_out(counts: Counter[str]) -> str:
    """Describe files that are left out, by suffix."""
    left = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items())[:8])
    return f"files left out by their suffix: {left}"


def _refuse_collisions(jobs: list[Job]) -> None:
    """Refuse two inputs with one output, and an output that is itself an input."""
    sources = {_identity(job.source) for job in jobs}
    seen: dict[str, str] = {}
    for job in jobs:
        if job.output == STREAM:
            continue
        key = _identity(job.output)
        if key in sources:
            raise UsageError(f"{job.output}: is an input, it cannot be the output of {job.source}")
        if key in seen:
            raise UsageError(f"{seen[key]} and {job.source} would both be written to {job.output}")
        seen[key] = job.source


def _identity(name: str) -> str:
    return os.path.normcase(os.path.realpath(name))


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
        if is_closed(sys.stdout) or (binary and sys.stdout.isatty()):
            raise UsageError("standard output is not a file or pipe: give -o FILE")
    if any(job.source == STREAM for job in jobs):
        standard_input()
    if len(jobs) == 1:  # of several, each fails alone
        source, output = jobs[0].source, jobs[0].output
        exists = os.path.exists(source) or is_pattern(Path(source))  # noqa: PTH110
        if source != STREAM and not exists:
            raise InputError(f"{source}: no such file")
        if output != STREAM and os.path.exists(output):  # noqa: PTH110
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
        say_warning(with_flags(f"{result.input}: {result.note}"))
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
