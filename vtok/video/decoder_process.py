"""What decodes: a child process that outlives a video, so that the next one need not start it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtok.errors import VideoError
from vtok.video.ffmpeg import ffmpeg_path
from vtok.video.worker import create_memory


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


class ChildTimeout(Exception):
    """The child said nothing for too long."""


class ChildDied(Exception):
    """The child ended without a last message; the message says how."""


class DecodingChild(ChildProcess):
    """A process that reads one video after another."""

    def __init__(self, memory: int, memory_limit: int | None = None) -> None:
        """Start the child.

        Args:
            memory: File descriptor of the memory for frames.
            memory_limit: Most bytes that it, and each program that it starts, may have of its own;
                None sets no limit.
        """
        ffmpeg = {"IMAGEIO_FFMPEG_EXE": ffmpeg_path()}  # looked for and tried once, here
        super().__init__("vtok.video.worker", memory, buffered=False, environment=ffmpeg)
        self._unread = b""
        start = {"memory": memory, "lifeline": self.lifeline, "limit": memory_limit}
        self._write(json.dumps(start))

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

    def release_slot(self) -> None:
        """Tell the child that the oldest batch has been taken."""
        self._write("")

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
                    how = self.end()
                    word = "crashed" if how.startswith("SIG") else "ended"
                    raise ChildDied(f"the decoder {word} ({how})")
                self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line


class Decoder:
    """A decoding process for one video after another; where one ends it, the next has a new one.

    Starting a process takes ten times as long as a short clip takes to decode. Not to be used by
    two threads at once.

    Args:
        memory_limit: Most bytes that the process may have of its own; None sets no limit. Not all
            systems keep to it.
    """

    memory: int
    """File descriptor of the memory in which it leaves frames."""

    def __init__(self, memory_limit: int | None = None) -> None:
        self.memory, self._limit = create_memory(), memory_limit
        self._child: DecodingChild | None = None
        self._expected: dict[str, Any] | None = None
        self._free = weakref.finalize(self, os.close, self.memory)

    def expect(self, request: dict[str, Any]) -> None:
        """Begin with a video that `start` is likely to be asked for next.

        Args:
            request: as `make_request` checked it; its path names a regular file.

        Raises:
            VideoError: it was closed.
        """
        self.start(request)
        self._expected = request

    def start(self, request: dict[str, Any]) -> DecodingChild:
        """Begin with a video; the one before has come to its end, or the process was stopped.

        Raises:
            VideoError: it was closed.
        """
        if not self._free.alive:
            raise VideoError(f"{request['path']}: the decoder was closed")
        expected, self._expected = self._expected, None
        if expected not in (None, request):
            self.stop()  # nobody will take what it is at
        if self._child is None or not self._child.is_alive():
            self.stop()
            self._child, expected = DecodingChild(self.memory, self._limit), None
        if expected is None:
            self._child.request(request)
        return self._child

    def stop(self) -> None:
        """End the process at once, whatever it does; `start` begins a new one."""
        if self._child is not None:
            self._child.kill()
            self._child = self._expected = None

    def __enter__(self) -> Decoder:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End the process and give the memory back. Closing twice is fine."""
        self.stop()
        self._free()
