"""Run a command and measure it: seconds, those of processors, peak memory of all that it starts."""

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
class Ran:
    """What a command took.

    Attributes:
        seconds: by the clock, start included.
        cpu_seconds: of processors, all its processes together.
        peak_mb: the most memory that its processes had at one time.
        output: what it wrote to standard output.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str


def run_command(command: Sequence[str | Path], threads: int | None = None) -> Ran:
    """Run a command to its end; `threads` is how many libraries for arithmetic may take.

    Raises:
        SystemExit: with what it says, if it fails.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        begin, peak = time.perf_counter(), 0.0
        process = subprocess.Popen(words, stdout=out, stderr=log, env=environment)
        try:
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                peak = max(peak, memory_of(process.pid))
                time.sleep(SAMPLE_SECONDS)
        except BaseException:
            process.kill()
            raise
        seconds, (_, status, usage) = time.perf_counter() - begin, ended
        process.returncode = os.waitstatus_to_exitcode(status)
        said = [_text(file) for file in (out, log)]
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: exit {process.returncode}\n{said[1]}")
    if not PROCESSES.exists():
        peak = usage.ru_maxrss / 2**20  # macOS, where this does not begin with the parent's
    return Ran(seconds, usage.ru_utime + usage.ru_stime, peak, said[0])


def cpu_seconds() -> float:
    """Seconds of processors so far, of this process and of all below it, ended or not.

    Where there is no /proc, of those that have ended.
    """
    own, ended = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    waited = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    return waited + sum(_cpu_of(each) for each in _below(os.getpid()))


def _cpu_of(pid: int) -> float:
    """Seconds of processors of a process and of those it has waited for; 0 if it is gone."""
    with suppress(OSError):
        fields = (PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def memory_of(pid: int) -> float:
    """Megabytes that a process and those below it have had at most, each for itself.

    Not what `getrusage` says: Linux counts there what the parent had when it started the process.
    """
    return _high_water(pid) + sum(_high_water(each) for each in _below(pid))


def _high_water(pid: int) -> float:
    """Megabytes a process has had at most; 0 if it is gone."""
    with suppress(OSError):
        for text in (PROCESSES / str(pid) / "status").read_text().splitlines():
            if text.startswith("VmHWM"):
                return int(text.split()[1]) / 1024
    return 0.0


def _below(pid: int) -> Iterator[int]:
    """The processes that a process has started, and those that these have.

    One with the command line of its parent has not begun yet: all its memory is the parent's.
    """
    with suppress(OSError):
        line = _command_line(pid)
        for task in (PROCESSES / str(pid) / "task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if _command_line(child) != line:
                    yield child
                    yield from _below(child)


def _command_line(pid: int) -> bytes:
    return (PROCESSES / str(pid) / "cmdline").read_bytes()


def _text(file: tempfile._TemporaryFileWrapper) -> str:  # type: ignore[type-arg]
    file.seek(0)
    return bytes(file.read()).decode(errors="replace")
