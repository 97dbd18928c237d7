"""A child process that ends with this one, however that ends, and takes along what it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path


class ChildProcess:
    """A module of ours that runs in a session of its own, so that Ctrl-C reaches only the parent.

    It ends with `kill`, with this object, and with the parent, if it heeds the lifeline.

    Attributes:
        pid: of the process.
        lifeline: file descriptor, in the child, of a pipe that closes when the parent is gone.
    """

    def __init__(
        self,
        module: str,
        memory: int,
        *,
        buffered: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            module: what to run.
            memory: file descriptor that it is to have, by the same number.
            buffered: whether the pipes to and from it are.
            environment: what to add to its environment.
        """
        self.lifeline, held = os.pipe()  # the child sees its end close when this process is gone
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=-1 if buffered else 0,
                env={**_environment(), **(environment or {})},
                pass_fds=(memory, self.lifeline),
                start_new_session=True,
            )
        except BaseException:
            os.close(held)
            raise
        finally:
            os.close(self.lifeline)
        self.pid = self._process.pid
        self._finish = weakref.finalize(self, _end_process, self._process, held, os.getpid())

    def is_alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it and all that it started, at once."""
        self._finish()

    def end(self) -> str:
        """Wait for one that has closed its pipes, end what it started, and say how it ended."""
        _kill_group(self._process)
        status = self._process.wait()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _environment() -> dict[str, str]:
    """The environment of a child: the modules of this process, and one thread per library."""
    package_folder = str(Path(__file__).absolute().parents[2])
    modules = [package_folder, *(folder for folder in sys.path if folder)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(modules)),
        "PYTHONSAFEPATH": "1",  # a file in the working folder must not pass for a module
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _end_process(process: subprocess.Popen[bytes], held: int, owner: int) -> None:
    """Kill a child and its group, and free what belongs to it."""
    if os.getpid() != owner:  # a fork of this process ends: the child is not its own
        return
    _kill_group(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not read yet is lost with the reader
            if pipe is not None:
                pipe.close()
    os.close(held)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill all processes in the group of a child, unless its number may be another's by now."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
