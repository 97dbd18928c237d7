"""Parent side of the decoding process, which is kept from one video to the next."""

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
from pathlib import Path
from typing import Any

from vtok._files import open_closed_streams
from vtok.errors import VideoError
from vtok.video.ffmpeg import ffmpeg_path
from vtok.video.worker import create_memory


class ChildTimeout(Exception):
    """The child sent nothing for too long."""


class ChildDied(Exception):
    """The child ended without a last message; the message says how."""


class DecodingChild:
    """Child process that decodes one video after another.

    It runs in a separate session, so that Ctrl-C reaches only the parent, and ends with `kill`,
    with this object, and with the parent.

    Args:
        memory: File descriptor of the shared memory for frames.
        memory_limit: Largest private memory in bytes of the child and of each program that it
            starts; None sets no limit.
    """

    def __init__(self, memory: int, memory_limit: int | None = None) -> None:
        lifeline, held = os.pipe()  # the child sees its end close when this process ends
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vtok.video.worker"],
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
        self._finalizer = weakref.finalize(self, _end_process, self._process, held, os.getpid())
        self._unread = b""
        start = {"memory": memory, "lifeline": lifeline, "limit": memory_limit}
        self._write(json.dumps(start))

    def is_alive(self) -> bool:
        """Return True unless the child has ended by itself."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the child and everything it started, at once."""
        self._finalizer()

    def request(self, fields: dict[str, Any]) -> None:
        """Start a video, described as by `Request`, after the previous one has ended."""
        self._write(json.dumps(fields))

    def receive(self, timeout_seconds: float) -> dict[str, Any]:
        """Wait for the next message, ignoring heartbeats.

        Args:
            timeout_seconds: Longest silence.

        Raises:
            ChildTimeout: Nothing arrived for that long.
            ChildDied: The child has ended.
        """
        while True:
            message: dict[str, Any] = json.loads(self._read_line(timeout_seconds))
            if message["kind"] != "alive":
                return message

    def release_slot(self) -> None:
        """Tell the child that the oldest batch has been copied."""
        self._write("")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` reports a dead child
            self._process.stdin.write(line.encode() + b"\n")

    def _read_line(self, timeout_seconds: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ChildTimeout
                received = self._process.stdout.read(65536)
                if not received:
                    raise ChildDied(self._describe_end())
                self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _describe_end(self) -> str:
        _kill_group(self._process)
        status = self._process.wait()
        if status < 0:
            return f"the decoder crashed ({signal.Signals(-status).name})"
        return f"the decoder ended (exit status {status})"


def _environment() -> dict[str, str]:
    """Make the environment of the child: this process's modules, one thread per library."""
    package_folder = str(Path(__file__).absolute().parents[2])
    modules = [package_folder, *(folder for folder in sys.path if folder)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(modules)),
        "PYTHONSAFEPATH": "1",  # files in the working folder must not be imported as modules
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "IMAGEIO_FFMPEG_EXE": ffmpeg_path(),  # found once, here
    }


def _end_process(process: subprocess.Popen[bytes], held: int, owner: int) -> None:
    """Kill a child and its group, and close its pipes."""
    if os.getpid() != owner:  # this is a fork of the owner, which still needs the child
        return
    _kill_group(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    os.close(held)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group of a child, unless its number may have been reused."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


class Decoder:
    """Decoding process for one video after another, replaced by a new one if it fails.

    Starting a process takes ten times as long as decoding a short clip. Not thread-safe.

    Args:
        memory_limit: Largest private memory of the process in bytes; None sets no limit. Not all
            systems enforce it.

    Attributes:
        memory: File descriptor of the shared memory for frames.
    """

    def __init__(self, memory_limit: int | None = None) -> None:
        open_closed_streams()  # the descriptor below must not be one of theirs
        self.memory, self._limit = create_memory(), memory_limit
        self._child: DecodingChild | None = None
        self._expected: dict[str, Any] | None = None
        self._finalizer = weakref.finalize(self, os.close, self.memory)

    def expect(self, request: dict[str, Any]) -> None:
        """Start a video that `start` will probably be called for next.

        Args:
            request: Result of `make_request`; its path names a regular file.

        Raises:
            VideoError: The decoder was closed.
        """
        self.start(request)
        self._expected = request

    def start(self, request: dict[str, Any]) -> DecodingChild:
        """Start a video, after the previous one has ended or the process was stopped.

        Raises:
            VideoError: The decoder was closed.
        """
        if not self._finalizer.alive:
            raise VideoError(f"{request['path']}: the decoder was closed")
        expected, self._expected = self._expected, None
        if expected not in (None, request):
            self.stop()  # the wrong video was expected
        if self._child is None or not self._child.is_alive():
            self.stop()
            self._child, expected = DecodingChild(self.memory, self._limit), None
        if expected is None:
            self._child.request(request)
        return self._child

    def stop(self) -> None:
        """End the process at once; `start` starts a new one."""
        if self._child is not None:
            self._child.kill()
            self._child = self._expected = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and release the memory. Closing twice is fine."""
        self.stop()
        self._finalizer()
