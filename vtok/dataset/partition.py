"""Partitions: split the items of a data set between several runs by the hash of their ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vtok.errors import OptionError


@dataclass(frozen=True)
class Partition:
    """Partition `index`, from 0, of `count`; the default is the whole data set."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return "all" if self.count == 1 else f"{self.index:04d}-of-{self.count:04d}"

    def has(self, id_: str) -> bool:
        """Return True if the item with this id belongs to the partition."""
        if self.count == 1:
            return True
        number = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:8], "big")
        return number % self.count == self.index


WHOLE = Partition()


def parse_partition(text: str | None, environment: Mapping[str, str]) -> Partition:
    """Parse "0/8", "auto" or "auto/8".

    `auto` reads index and count of a Slurm array task. Kubernetes sets only the index of a job's
    pod, so the count has to be given: "auto/8".

    Args:
        text: partition; the whole data set if None.
        environment: environment variables.

    Raises:
        OptionError: invalid text, or `auto` outside Slurm and Kubernetes.
    """
    if text is None:
        return WHOLE
    match = re.fullmatch(r"(auto|\d{1,6})(?:/(\d{1,6}))?", text.strip(), re.ASCII)
    if match is None or (match[1] != "auto" and match[2] is None):
        raise OptionError("partition", text, "0/8 to 7/8, auto, or auto/8")
    count = None if match[2] is None else int(match[2])
    if match[1] != "auto":
        index = int(match[1])
    else:
        index, known = _from_job_system(environment)
        count = known if count is None else count
    if count is None:
        raise OptionError("partition", text, "auto/COUNT: this job system does not set the count")
    if not 0 <= index < count:
        raise OptionError("partition", text, f"an index from 0 to {count - 1}, but it is {index}")
    return Partition(index, count)


def _from_job_system(environment: Mapping[str, str]) -> tuple[int, int | None]:
    """Index and count that Slurm or Kubernetes set; None for an unknown count."""
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
        step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
        index = (_number(environment, "SLURM_ARRAY_TASK_ID", 0) - first) // max(1, step)
        count = environment.get("SLURM_ARRAY_TASK_COUNT")
        return index, None if count is None else _number(environment, "SLURM_ARRAY_TASK_COUNT", 0)
    if "JOB_COMPLETION_INDEX" in environment:
        return _number(environment, "JOB_COMPLETION_INDEX", 0), None
    raise OptionError(
        "partition", "auto", "0/8: neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"
    )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise OptionError("partition", "auto", f"a number in {name}, but it is {text[:40]!r}")
    return int(text)
