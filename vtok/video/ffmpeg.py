"""Child processes: the ffmpeg program, which writes videos, and its log; limited Pythons."""

from __future__ import annotations

import faulthandler
import importlib
import math
import os
import re
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vtok.errors import VtokError

HANG_SECONDS = 600.0  # without progress, after which a child ends that no parent has killed
WATCH_SECONDS = 1.0  # between two settings of the timer, which takes a thread switch
# options for a log that is parsed line by line
QUIET = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info")


@dataclass(frozen=True)
class LogLine:
    """One line of the log of ffmpeg."""

    source: str  # part of ffmpeg that wrote it, such as "in#0/mp4" or "h264"; empty for the program
    level: str  # "info", "warning", "error" or "fatal"
    text: str  # the message


def ffmpeg_path() -> str:
    """Find the ffmpeg program.

    Raises:
        VtokError: It is not installed.
    """
    if named := os.environ.get("IMAGEIO_FFMPEG_EXE"):
        return named  # like imageio, but without its slow import in every child
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as exc:
        raise VtokError("no ffmpeg program found: reinstall imageio-ffmpeg") from exc


def input_arguments(path: Path) -> list[str]:
    """Make arguments that open exactly this file: no name is parsed as an option or a URL."""
    return ["-protocol_whitelist", "file", "-i", f"file:{path.absolute()}"]


def parse_log_line(line: str) -> LogLine:
    """Split a line written with `QUIET` into source, level and message."""
    match = re.match(r"((?:\[[^\]]* @ [^\]]*\] )*)\[(\w+)\] (.*)", line)
    if match is None:
        return LogLine("", "info", line)
    source = re.match(r"\[(\S*)", match[1])
    return LogLine(source[1] if source else "", match[2], match[3])


def child_environment() -> dict[str, str]:
    """Make the environment of a Python child: this process's modules, one thread per library."""
    package_folder = str(Path(__file__).absolute().parents[2])
    modules = [package_folder, *(folder for folder in sys.path if folder)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(modules)),
        "PYTHONSAFEPATH": "1",  # files in the working folder must not be imported as modules
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def limit_memory(num_bytes: int) -> None:
    """Limit the private memory of this process, on systems that can."""
    with suppress(ImportError, AttributeError, OSError, ValueError):
        resource = importlib.import_module("resource")  # not on Windows
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


class Watchdog:
    """Timer that ends this process if it hangs, even if it holds the interpreter lock."""

    def __init__(self) -> None:
        self._since = -math.inf

    def progress(self) -> None:
        """Allow `HANG_SECONDS` from now on."""
        if time.monotonic() - self._since > WATCH_SECONDS:
            self._since = time.monotonic()
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)

    def pause(self) -> None:
        """Allow any time until the next progress."""
        faulthandler.cancel_dump_traceback_later()
        self._since = -math.inf


def describe_end(name: str, status: int) -> str:
    """Describe the exit status of a child that has failed."""
    if status < 0:
        return f"{name} was stopped by {signal.Signals(-status).name}"
    return f"{name} ended with status {status}"
