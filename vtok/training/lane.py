"""The parent's side of one worker: its process, its queue, and a new process where it dies."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from vtok import errors
from vtok.errors import VtokError
from vtok.media.process import ChildProcess
from vtok.media.ring import create_memory
from vtok.training.clips import Clip, ClipSpec
from vtok.training.draws import note_skipped
from vtok.training.worker import map_clip

LIVES = 3
"""How many worker processes may die over one request."""


class Lane:
    """One worker process at a time, that does one request after the other.

    Args:
        start: what the worker is told first, but for the file descriptors.
        spec: what clips it makes.
        skipped: where it notes what cannot be read.
    """

    def __init__(
        self, start: dict[str, Any], spec: ClipSpec, skipped: MutableMapping[str, str]
    ) -> None:
        self._start, self._skipped = start, skipped
        self._memory = create_memory()
        self._slot = map_clip(self._memory, spec)
        self._lock, self._closed = threading.Lock(), False
        self._process = self._new_process()
        self._queue = ThreadPoolExecutor(1, thread_name_prefix="vtok-clips")

    def clip(self, step: int, index: int) -> Future[Clip]:
        """Ask for a clip, float32 [3, frames, crop, crop] in -1..1."""
        return self._queue.submit(self._clip, {"step": step, "index": index})

    def prepare(self, position: int) -> Future[bool]:
        """Ask for all parts of a source to be put into the cache; True where that is full."""
        return self._queue.submit(self._ask, {"prepare": position})

    def close(self) -> None:
        """End the process and drop what is queued. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._process.kill()
        self._queue.shutdown(wait=True, cancel_futures=True)
        os.close(self._memory)
        del self._slot

    def _clip(self, request: dict[str, Any]) -> Clip:
        self._ask(request)
        return self._slot.copy()

    def _ask(self, request: dict[str, Any]) -> bool:
        """Have a request done, whatever happens to the process; True where the cache is full.

        A clip depends on its number only, so a new process makes the same one.
        """
        end = ""
        for _ in range(LIVES):
            process = self._living_process()
            answer = process.ask(request)
            if answer is not None:
                return self._take(answer)
            end = process.end()
        raise VtokError(
            f"a process that reads clips died {LIVES} times in a row ({end}):"
            " if memory is short, use fewer workers"
        )

    def _living_process(self) -> WorkerProcess:
        """The process, or a new one where it has died."""
        with self._lock:
            if self._closed:
                raise VtokError("the pool of clips is closed")
            if not self._process.alive:
                self._process = self._new_process()
            return self._process

    def _new_process(self) -> WorkerProcess:
        return WorkerProcess({**self._start, "skipped": dict(self._skipped)}, self._memory)

    def _take(self, answer: dict[str, Any]) -> bool:
        """Note what an answer says; raise the error in it."""
        for name, reason in answer["skipped"].items():
            note_skipped(self._skipped, name, reason)
        if answer["error"] is not None:
            kind: type[VtokError] = getattr(errors, answer["error"]["type"])
            raise kind(answer["error"]["message"])
        return bool(answer["full"])


class WorkerProcess(ChildProcess):
    """A process that makes clips.

    Args:
        start: what it is told first, but for the file descriptors.
        memory: file descriptor of the memory for a clip.
    """

    def __init__(self, start: dict[str, Any], memory: int) -> None:
        super().__init__("vtok.training.worker", memory)
        self.alive = True
        first = {**start, "memory": memory, "lifeline": self.lifeline}
        self._first: dict[str, Any] | None = first

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Have a request done and return the answer; None where the process dies over it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            for message in (self._first, request):
                if message is not None:
                    self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._first = None
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (OSError, ValueError):  # it died before it had read this, or was closed meanwhile
            line = b""
        self.alive = line.endswith(b"\n")
        return json.loads(line) if self.alive else None
