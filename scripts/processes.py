"""Run a command and measure its wall time, CPU time and peak memory, child processes included."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

VTOK = (sys.executable, "-m", "vtok")
SAMPLE_SECONDS = 0.02
PROCESSES = Path("/proc")


@dataclass(frozen=True)
class CommandResult:
    """Measurements of a finished command and its child processes."""

    seconds: float  # wall time, start-up included
    cpu_seconds: float  # CPU time of all processes
    peak_mb: float  # peak memory of all processes in MiB
    output: str  # standard output


def run_command(command: Sequence[str | Path], threads: int | None = None) -> CommandResult:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        threads: Value of OMP_NUM_THREADS; None keeps the present one.

    Raises:
        SystemExit: The command failed; the message contains its standard error.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        begin, peak = time.perf_counter(), 0.0
        process = subprocess.Popen(words, stdout=out, stderr=errors, env=environment)
        try:
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                peak = max(peak, peak_memory(process.pid))
                time.sleep(SAMPLE_SECONDS)
        except BaseException:
            process.kill()
            raise
        seconds, (_, status, usage) = time.perf_counter() - begin, ended
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        output, log = (file.read().decode(errors="replace") for file in (out, errors))
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit {process.returncode}\n{log}")
    if not PROCESSES.exists():
        peak = usage.ru_maxrss / 2**20  # macOS: bytes, not inherited from the parent
    return CommandResult(seconds, usage.ru_utime + usage.ru_stime, peak, output)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and all its child processes so far.

    On systems without /proc, child processes count only after they have ended.
    """
    own, ended = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    waited = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    return waited + sum(_cpu_of(child) for child in _descendants(os.getpid()))


def _cpu_of(pid: int) -> float:
    """CPU seconds of a process and its ended children; 0 if it has ended."""
    with suppress(OSError):
        fields = (PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def peak_memory(pid: int) -> float:
    """Return the sum of the peak resident memory in MiB of a process and its descendants.

    `getrusage` is not used because on Linux it includes the parent's memory at the fork.
    """
    return _high_water(pid) + sum(_high_water(child) for child in _descendants(pid))


def _high_water(pid: int) -> float:
    """Peak resident memory of a process in MiB; 0 if it has ended."""
    with suppress(OSError):
        for text in (PROCESSES / str(pid) / "status").read_text().splitlines():
            if text.startswith("VmHWM"):
                return int(text.split()[1]) / 1024
    return 0.0


def _descendants(pid: int) -> Iterator[int]:
    """List descendants, except forks that have not yet executed a program.

    A fork with its parent's command line still shares the parent's memory.
    """
    with suppress(OSError):
        line = _command_line(pid)
        for task in (PROCESSES / str(pid) / "task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if _command_line(child) != line:
                    yield child
                    yield from _descendants(child)


def _command_line(pid: int) -> bytes:
    return (PROCESSES / str(pid) / "cmdline").read_bytes()
