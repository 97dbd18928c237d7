"""A tokenizer in a process of its own, which can be asked, and ended: see measure.py."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURE = Path(__file__).resolve().parent / "measure.py"
START_SECONDS = 600  # to import and to make random weights, even on a machine that is busy


@dataclass
class Child:
    """A peer in its process.

    Attributes:
        name: of the peer.
        process: answers a line of JSON with one.
    """

    name: str
    process: subprocess.Popen[str]

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One request; an answer with `error` where it failed; one that hangs or dies is ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            ready = select.select([self.process.stdout], [], [], seconds)[0]
            line = self.process.stdout.readline() if ready else ""
        except OSError:
            ready, line = [self.process.stdout], ""
        if line:
            return dict(json.loads(line))
        failure = self._death() if ready else f"more than {seconds:,.0f} s"
        self.process.kill()
        return {"error": failure}

    def _death(self) -> str:
        """What a process died of that closed its output."""
        try:
            code = self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its output"
        if code >= 0:
            return f"ended with exit code {code}"
        hint = ", as when memory runs out" if -code in (signal.SIGKILL, signal.SIGABRT) else ""
        return f"died of {signal.Signals(-code).name}{hint}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def start(
    name: str,
    *,
    threads: int,
    dtype: str,
    memory: float,
    peers: str | None = None,
    debug: bool = False,
) -> tuple[Child, dict[str, Any]]:
    """Start a peer; returns it and its first answer: its parameters, or an `error`.

    Args:
        name: of the peer.
        threads: of the processor.
        dtype: `float32` or `bfloat16`.
        memory: gigabytes that it may take beside its weights.
        peers: where packages of peers were installed apart.
        debug: show what it prints.
    """
    command = [sys.executable, str(MEASURE), name, "--threads", str(threads)]
    command += ["--dtype", dtype, "--memory", f"{memory:.1f}"]
    command += ["--peers", peers] if peers else []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    quiet = None if debug else subprocess.DEVNULL
    child = Child(name, subprocess.Popen(command, text=True, stderr=quiet, **pipes))
    return child, child.ask({}, START_SECONDS)
