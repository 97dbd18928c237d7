"""Client of a tokenizer in a separate process (measure.py), which can be stopped at any time."""

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
START_SECONDS = 600  # limit for imports and random weights, also on a busy machine


@dataclass
class Child:
    """Process of a peer."""

    name: str  # name of the peer
    process: subprocess.Popen[str]  # answers each line of JSON with a line of JSON

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and return the answer, which has an `error` if the request failed.

        The process is ended if it dies or takes longer than `seconds`.
        """
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
        """Explain why a process closed its output."""
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
    """Start a peer.

    Args:
        name: Name of the peer.
        threads: Number of torch threads.
        dtype: `float32` or `bfloat16`.
        memory: Memory limit in GB, weights excluded.
        peers: Folder with the packages of the peers.
        debug: Show the output of the peer.

    Returns:
        The process, and its first answer: the number of parameters, or an `error`.
    """
    command = [sys.executable, str(MEASURE), name, "--threads", str(threads)]
    command += ["--dtype", dtype, "--memory", f"{memory:.1f}"]
    command += ["--peers", peers] if peers else []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    quiet = None if debug else subprocess.DEVNULL
    child = Child(name, subprocess.Popen(command, text=True, stderr=quiet, **pipes))
    return child, child.ask({}, START_SECONDS)
