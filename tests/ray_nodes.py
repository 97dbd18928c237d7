"""Ray nodes started by `ray start`, with separate folders and ports, and their clean-up."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
"""Environment of all nodes and of their clients."""
START_SECONDS = 300.0
MARK = "VTOK_TEST_MARK"
COMMON = (
    "--block", "--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats",
    "--include-log-monitor=false",
)  # fmt: skip


class Marked:
    """A folder, and processes with a mark in their environment; a context manager.

    At the end the processes are killed and the folder is removed.

    Attributes:
        folder: for temporary files and sockets, which need a short path.
        environment: environment variables of the processes.
    """

    def __init__(self) -> None:
        self._mark = secrets.token_hex(8)
        self.folder = Path(tempfile.mkdtemp(prefix="vtok-test-", dir="/tmp"))
        self.environment = {MARK: self._mark}

    def __enter__(self) -> Marked:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill every process, as if the machine were switched off; can be called twice."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)

    def pids(self) -> list[int]:
        """Ids of the processes and their children."""
        numbers = [path.name for path in Path("/proc").iterdir() if path.name.isdigit()]
        mark = f"{MARK}={self._mark}".encode()
        return [int(number) for number in numbers if mark in _read(number, "environ")]

    def runs(self, words: str) -> bool:
        """Return True if the command line of one of them contains these words."""
        return any(words.encode() in _read(pid, "cmdline") for pid in self.pids())


class Node(Marked):
    """A node of a cluster.

    Args:
        address: address of the head node; None starts a head node.
    """

    def __init__(self, address: str | None = None) -> None:
        super().__init__()
        port = _free_port()
        self.address = address or f"127.0.0.1:{port}"
        role = [f"--address={address}"]
        if address is None:
            role = ["--head", "--include-dashboard=false", f"--port={port}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *COMMON, *role]
        self._said = self.folder / "said"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [*command, f"--temp-dir={self.folder}"],
                env={**os.environ, **TOKEN, **self.environment},
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # for a fair share of a busy machine
            )

    def __enter__(self) -> Node:
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in self._said.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._said.read_text()
                self.kill()
                raise RuntimeError(f"cannot start a Ray node: {said[-500:]}")
            time.sleep(0.2)
        return self

    def kill(self) -> None:
        """See `Marked`."""
        super().kill()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def _read(pid: int | str, name: str) -> bytes:
    """A file of a process in /proc; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
