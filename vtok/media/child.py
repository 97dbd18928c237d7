"""The parent's side of the decoding child: start it, hear it with a time limit, kill it."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

from vtok.media.ffmpeg import ffmpeg_path


class ChildTimeout(Exception):
    """The child said nothing for too long."""


class ChildDied(Exception):
    """The child ended without a last message; the message says how."""


class DecodingChild:
    """A child process in a session of its own, so that Ctrl-C reaches only the parent.

    It reads one video after another, and ends with `kill`, with this object, and with the parent,
    however that ends.
    """

    def __init__(self, memory: int, memory_limit: int | None = None) -> None:
        """Start the child.

        Args:
            memory: File descriptor of the memory for frames.
            memory_limit: Most bytes that it, and each program that it starts, may have of its own;
                None sets no limit.
        """
        lifeline, held = os.pipe()  # the child sees its end close when this process is gone
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vtok.media.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=_environment(),
                pass_fds=(memory, lifeline),
                start_new_session=True,
            )
        except BaseException:
            os.close(held)
            raise
        finally:
            os.close(lifeline)
        self.pid = self._process.pid
        self._end = weakref.finalize(self, _end_process, self._process, held, os.getpid())
        self._unread = b""
        self._write(json.dumps({"memory": memory, "lifeline": lifeline, "limit": memory_limit}))

    def request(self, fields: dict[str, Any]) -> None:
        """Ask for a video, as `Request` describes it; the one before must have come to its end."""
        self._write(json.dumps(fields))

    def receive(self, timeout_seconds: float) -> dict[str, Any]:
        """Wait for the next message that is no mere sign of life.

        Args:
            timeout_seconds: Longest silence to bear.

        Raises:
            ChildTimeout: Nothing was heard for that long.
            ChildDied: The child is gone.
        """
        while True:
            message: dict[str, Any] = json.loads(self._read_line(timeout_seconds))
            if message["kind"] != "alive":
                return message

    def is_alive(self) -> bool:
        """Whether the child has not ended by itself."""
        return self._process.poll() is None

    def release_slot(self) -> None:
        """Tell the child that the oldest batch has been taken."""
        self._write("")

    def kill(self) -> None:
        """End the child and all that it started, at once."""
        self._end()

    def _write(self, line: str) -> None:
        """Send a line; a dead child is noticed when it is next heard."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")

    def _read_line(self, timeout_seconds: float) -> bytes:
        """Read one line of the child's output."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ChildTimeout
                received = self._process.stdout.read(65536)
                if not received:
                    _kill_group(self._process)  # the child itself has ended, not all it started
                    raise ChildDied(_describe_end(self._process.wait()))
                self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _environment() -> dict[str, str]:
    """The environment of the child: the modules of this process, and one thread per library."""
    package_folder = str(Path(__file__).absolute().parents[2])
    modules = [package_folder, *(folder for folder in sys.path if folder)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(modules)),
        "PYTHONSAFEPATH": "1",  # a file in the working folder must not pass for a module
        "IMAGEIO_FFMPEG_EXE": ffmpeg_path(),  # looked for and tried once, here
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _end_process(process: "subprocess.Popen[bytes]", held: int, owner: int) -> None:
    """Kill a child and its group, and free what belongs to it."""
    if os.getpid() != owner:  # a fork of this process ends: the child is not its own
        return
    _kill_group(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    os.close(held)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill all processes in the group of a child, unless its number may be another's by now."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _describe_end(status: int) -> str:
    """Say how a process ended."""
    if status < 0:
        return f"the decoder crashed ({signal.Signals(-status).name})"
    return f"the decoder ended (exit status {status})"
