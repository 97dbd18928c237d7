"""Which share of the clips a run does, said outright or by the job system that started it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vtok.dataset.folder import WHOLE, Part
from vtok.errors import UsageError


def parse_share(text: str | None, environment: Mapping[str, str]) -> Part:
    """A share from "0/8", "auto" or "auto/8".

    `auto` takes the number of a Slurm array task and how many there are. Kubernetes says only the
    number of a job's pod, so there the total has to be given.

    Args:
        text: what is asked for; everything if None.
        environment: variables of the process.

    Raises:
        UsageError: for anything else, or where nothing is known.
    """
    if text is None:
        return WHOLE
    match = re.fullmatch(r"(auto|\d{1,6})(?:/(\d{1,6}))?", text.strip(), re.ASCII)
    if match is None or (match[1] != "auto" and match[2] is None):
        raise UsageError(f"--shard {text}: expected 0/8 to 7/8, auto, or auto/8")
    total = None if match[2] is None else int(match[2])
    if match[1] != "auto":
        index = int(match[1])
    else:
        index, known = _find(environment)
        total = known if total is None else total
    if total is None:
        raise UsageError(f"--shard {text}: how many there are is not known here: give auto/TOTAL")
    if not 0 <= index < total:
        raise UsageError(f"--shard {text}: number {index} of {total}: they count from 0")
    return Part(index, total)


def _find(environment: Mapping[str, str]) -> tuple[int, int | None]:
    """Number and total that a job system states."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
        step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
        number = (_number(environment, "SLURM_ARRAY_TASK_ID", 0) - first) // max(1, step)
        count = environment.get("SLURM_ARRAY_TASK_COUNT")
        return number, None if count is None else _number(environment, "SLURM_ARRAY_TASK_COUNT", 0)
    if "JOB_COMPLETION_INDEX" in environment:
        return _number(environment, "JOB_COMPLETION_INDEX", 0), None
    raise UsageError(
        "--shard auto: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set: give 0/8"
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise UsageError(f"--shard auto: {name} is {text[:40]!r}, not a number")
    return int(text)
