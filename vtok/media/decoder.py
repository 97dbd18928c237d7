"""What decodes: a child process that outlives a video, so that the next one need not start it."""

import os
import weakref
from typing import Any

from vtok.errors import VideoError
from vtok.media.child import DecodingChild
from vtok.media.ring import create_memory


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

    def __enter__(self) -> "Decoder":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """End the process and give the memory back. Closing twice is fine."""
        self.stop()
        self._free()
