"""What figures were measured on: the facts that stand above each table of a benchmark."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

CPU, MEMORY = Path("/proc/cpuinfo"), Path("/proc/meminfo")


def facts(threads: int, dtype: str, packages: Iterable[str] = ("vtok", "torch")) -> dict[str, str]:
    """Date, machine and versions, by name, as they are shown and as JSON holds them."""
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


def line(found: dict[str, str]) -> str:
    """The facts in one line, for people."""
    return ", ".join(f"{name} {value}" for name, value in found.items())


def processor() -> str:
    """The name of the processor; its family where the system has none."""
    lines = CPU.read_text().splitlines() if CPU.exists() else []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(name: str) -> str:
    """The version of an installed package, or that it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def memory_gigabytes(field: str = "MemAvailable") -> float:
    """Memory that can be taken now, or another field of /proc/meminfo; 0 where there is none."""
    lines = MEMORY.read_text().splitlines() if MEMORY.exists() else []
    return next((int(text.split()[1]) for text in lines if text.startswith(field)), 0) / 2**20
