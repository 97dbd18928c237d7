"""The parent's side of the decoding child: start it, hear it with a time limit."""

import contextlib
import json
import selectors
import time
from typing import Any

from vtok.media.ffmpeg import ffmpeg_path
from vtok.media.process import ChildProcess


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
        super().__init__("vtok.media.worker", memory, buffered=False, environment=ffmpeg)
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
