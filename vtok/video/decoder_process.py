"""Parent side of the decoding process, which is kept from one video to the next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from multiprocessing.connection import Pipe
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from vtok._files import open_closed_streams
from vtok.errors import VideoError
from vtok.video.ffmpeg import child_environment
from vtok.video.frames import Frames, map_ring

MEMORY_BYTES = 16 * 2**20  # shared memory of a new process; enough for small videos
MAX_MESSAGE = 2**26  # bytes; durations of frames and blocks of sound take most


class ChildTimeout(Exception):
    """The child sent nothing for too long."""


class ChildDied(Exception):
    """The child ended without a last message; the message says how."""


class DecodingChild:
    """Child process that decodes one video after another; `vtok.video.worker` has the protocol.

    It runs in a separate session, so that Ctrl-C reaches only the parent, and ends with `kill`,
    with this object, and with the parent. It is started without `multiprocessing.Process`, which
    would import the main script of the user again and is refused in daemonic processes.

    Args:
        memory_limit: Largest private memory of the child in bytes; None sets no limit.
    """

    def __init__(self, memory_limit: int | None = None) -> None:
        self._connection, theirs = Pipe()
        handle = theirs.fileno()
        command = [sys.executable, "-m", "vtok.video.worker", str(handle), str(memory_limit or 0)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # the child sees it close when this process ends
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=child_environment(),
                **_inheriting(handle),
            )
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._memory = _Memory(MEMORY_BYTES)
        self._finalizer = weakref.finalize(
            self, _end_process, self._process, self._connection, self._memory, os.getpid()
        )

    def is_alive(self) -> bool:
        """Return True unless the child has ended by itself."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the child at once."""
        self._finalizer()

    def request(self, fields: dict[str, Any]) -> None:
        """Start a video, described as by `Request`, after the previous one has ended."""
        self._send(json.dumps({**fields, **self._memory.fields()}).encode())

    def receive(self, timeout_seconds: float) -> dict[str, Any]:
        """Wait for the next message, ignoring heartbeats.

        Args:
            timeout_seconds: Longest silence.

        Raises:
            ChildTimeout: Nothing arrived for that long.
            ChildDied: The child has ended.
        """
        while True:
            message: dict[str, Any] = json.loads(self._read(timeout_seconds, MAX_MESSAGE))
            if message["kind"] != "alive":
                self._memory.unlink()  # the child has opened it
                return message

    def provide_ring(self, num_bytes: int) -> None:
        """Replace the shared memory by a larger one, if the child waits for it."""
        if num_bytes > self._memory.size:
            self._memory.replace(num_bytes)
            self._send(json.dumps(self._memory.fields()).encode())

    def take_batch(
        self, slot: int, count: int, shape: tuple[int, int, int], timeout_seconds: float
    ) -> Frames:
        """Copy a batch and release its slot.

        Args:
            slot: Number of the slot.
            count: Number of frames.
            shape: Frames of a full batch, height and width in pixels.
            timeout_seconds: Longest silence, where there is no shared memory.

        Returns:
            uint8 [count, height, width, 3].
        """
        if self._memory.shared is None:
            data = self._read(timeout_seconds, count * shape[1] * shape[2] * 3)
            frames = np.frombuffer(data, np.uint8).reshape(count, *shape[1:], 3)
        else:
            frames = map_ring(self._memory.shared.buf, *shape)[slot, :count]
        copied: Frames = frames.copy()
        self._send(b"")
        return copied

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # `receive` reports a dead child
            self._connection.send_bytes(message)

    def _read(self, timeout_seconds: float, max_bytes: int) -> bytes:
        try:
            if self._connection.poll(timeout_seconds):
                return self._connection.recv_bytes(max_bytes)
        except (EOFError, OSError) as exc:
            raise ChildDied(self._describe_end()) from exc
        raise ChildTimeout

    def _describe_end(self) -> str:
        self._process.kill()  # it may only have closed its end
        status = self._process.wait()
        if status < 0:
            return f"the decoder crashed ({signal.Signals(-status).name})"
        return f"the decoder ended (exit status {status})"


class _Memory:
    """Shared memory, created here and opened by the child by its name.

    The name is removed as soon as the child has opened it, so that no end of either process leaves
    memory behind; until then the resource tracker of Python would remove it.

    Attributes:
        shared: The memory; None if the system has too little.
        size: Bytes asked for.
    """

    def __init__(self, size: int) -> None:
        self.shared: SharedMemory | None = None
        self.size = 0
        self._is_named = False
        self.replace(size)

    def replace(self, size: int) -> None:
        """Release the memory and create another."""
        self.close()
        self.size = size
        with suppress(OSError):
            self.shared = SharedMemory(create=True, size=size)
            self._is_named = True
        if self.shared is not None and hasattr(os, "posix_fallocate"):
            try:  # a full /dev/shm would otherwise crash the child when it writes
                os.posix_fallocate(self.shared._fd, 0, size)  # type: ignore[attr-defined]
            except OSError:
                self.close()

    def fields(self) -> dict[str, Any]:
        """Return the fields of a message that names the memory."""
        return {"memory": self.shared and self.shared.name, "memory_bytes": self.size}

    def unlink(self) -> None:
        """Remove the name; both processes keep the memory."""
        if self.shared is not None and self._is_named:
            self._is_named = False
            with suppress(OSError):
                self.shared.unlink()

    def close(self) -> None:
        """Release the memory."""
        self.unlink()
        if self.shared is not None:
            self.shared.close()
            self.shared = None


def _inheriting(handle: int) -> dict[str, Any]:
    """Return arguments of Popen for a child that inherits a handle and ignores Ctrl-C."""
    if sys.platform == "win32":
        os.set_handle_inheritable(handle, True)
        startup = subprocess.STARTUPINFO(lpAttributeList={"handle_list": [handle]})
        return {"startupinfo": startup, "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"pass_fds": (handle,), "start_new_session": True}


def _end_process(
    process: subprocess.Popen[bytes], connection: Any, memory: _Memory, owner: int
) -> None:
    """Kill a child, and release its connection and memory."""
    if os.getpid() != owner:  # this is a fork of the owner, which still needs the child
        return
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
    connection.close()
    memory.close()


class Decoder:
    """Decoding process for one video after another, replaced by a new one if it fails.

    Starting a process takes ten times as long as decoding a short clip. Not thread-safe.

    Args:
        memory_limit: Largest private memory of the process in bytes; None sets no limit. Not all
            systems enforce it.
    """

    def __init__(self, memory_limit: int | None = None) -> None:
        open_closed_streams()  # the pipes to the child must not be one of theirs
        self._limit, self._is_closed = memory_limit, False
        self._child: DecodingChild | None = None
        self._expected: dict[str, Any] | None = None

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
        if self._is_closed:
            raise VideoError(f"{request['path']}: the decoder was closed")
        expected, self._expected = self._expected, None
        if expected not in (None, request):
            self.stop()  # the wrong video was expected
        if self._child is None or not self._child.is_alive():
            self.stop()
            self._child, expected = DecodingChild(self._limit), None
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
        """End the process. Closing twice is fine."""
        self.stop()
        self._is_closed = True
