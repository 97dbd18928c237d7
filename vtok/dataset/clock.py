"""Where the time of a clip goes, and where it was when something failed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

STAGES = ("fetch", "decode", "model", "write")


class Clock:
    """Seconds by stage: the innermost stage that is entered is the one that runs.

    Attributes:
        seconds: so far, by stage.
        failed: the innermost stage that an exception came out of.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.failed: str | None = None
        self._stack: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time in the block for a stage, and not for the one around it."""
        self._switch()
        self._stack.append(name)
        try:
            yield
        except Exception:
            self.failed = self.failed or name
            raise
        finally:
            self._switch()
            self._stack.pop()

    def follow(self, name: str, items: Iterator[T]) -> Iterator[T]:
        """Pass items on; the time that it takes to make them counts for a stage."""
        while True:
            with self.stage(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now
