"""Shared parts of the benchmark scripts: machine facts, frames, tables, options and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vtok import __version__
from vtok._files import atomic_output
from vtok.video.decoder_process import Decoder
from vtok.video.frames import Frames
from vtok.video.reader import VideoReader
from vtok.video.writer import VideoWriter

BEE = Path(__file__).resolve().parent.parent / "examples" / "bee.mp4"
CPU, MEMORY = Path("/proc/cpuinfo"), Path("/proc/meminfo")
THREADS = min(2, os.cpu_count() or 1)


def facts(threads: int, dtype: str, packages: Iterable[str] = ("vtok", "torch")) -> dict[str, str]:
    """Collect the date, the machine and versions of packages, for JSON and for `describe`."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory_gigabytes('MemTotal'):.0f} GB",
        "threads": str(threads),
        "dtype": dtype,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def describe(facts: dict[str, Any]) -> str:
    """Format facts as one line of text."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def processor() -> str:
    """Return the name of the processor, or its family if the system gives no name."""
    lines = CPU.read_text().splitlines() if CPU.exists() else []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(name: str) -> str:
    """Return the version of a package, or "missing"."""
    if name == "vtok":  # the metadata of an editable installation can be older than the code
        return __version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def memory_gigabytes(field: str = "MemAvailable") -> float:
    """Return the available memory, or another field of /proc/meminfo; 0 if there is none."""
    lines = MEMORY.read_text().splitlines() if MEMORY.exists() else []
    return next((int(text.split()[1]) for text in lines if text.startswith(field)), 0) / 2**20


def log(text: str) -> None:
    """Print a line of progress to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures to FILE")
    return parser


def add_quick(parser: argparse.ArgumentParser) -> None:
    """Add an option for a run of a few seconds."""
    parser.add_argument(
        "--quick", action="store_true", help="run on tiny clips, to check that the script works"
    )


def write_json(path: Path | None, figures: Any) -> None:
    """Write figures to a JSON file, if one was asked for."""
    if path is not None:
        with atomic_output(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format rows of cells as a Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def read_frames(path: Path, size: str | None = None) -> Frames:
    """Read all frames of a video, uint8 [T, H, W, 3]."""
    with VideoReader(path, size=size) as reader:
        return np.concatenate(list(reader))


def read_and_discard(path: Path, decoder: Decoder | None = None) -> int:
    """Read a video and return its number of frames."""
    with VideoReader(path, decoder=decoder) as reader:
        return sum(map(len, reader))


def crop_square(frames: Frames) -> Frames:
    """Crop wide frames to their centre square."""
    side = frames.shape[1]
    left = (frames.shape[2] - side) // 2
    return np.ascontiguousarray(frames[:, :, left : left + side])


def write_video(path: Path, frames: Frames) -> None:
    """Write frames as an mp4 at 30 frames/s."""
    size = {"width": frames.shape[2], "height": frames.shape[1]}
    with VideoWriter(path, **size, fps=Fraction(30), overwrite=True) as writer:
        writer.write(frames)
