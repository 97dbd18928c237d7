"""What a run would do: how many clips, which are no clips, and about how long and how large."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vtok._files import ScratchFolder
from vtok.dataset.api import (
    DatasetOptions,
    choose_dtype,
    codec_options,
    load,
    make_recipe,
    num_workers,
)
from vtok.dataset.folder import DatasetFolder, recipe_digest
from vtok.dataset.item import Entry, Fault, file_name
from vtok.dataset.plan import SCRATCH, scratch_plan
from vtok.dataset.scheduler import fill_plan
from vtok.dataset.worker import ClipEncoder, Settings, Task, current_signature
from vtok.models.checkpoint import read_info

SHOWN = 20
"""Faults that are listed in full."""


@dataclass
class Forecast:
    """What a run would do.

    Attributes:
        clips: in the inputs.
        repeated: clips that the inputs name again.
        there: encoded already, as far as the journals tell.
        failed_before: tried already, and left unless asked for.
        todo: to be encoded.
        num_faults: what is no clip, such as one of two clips of one id.
        faults: the first of them.
        sampled: clips that were encoded for the estimate.
        sample_failed: how many of them failed.
        seconds: estimated wall time; None without a sample.
        bytes: estimated size of all codes; None without a sample.
        first: the first outputs, by id.
    """

    clips: int = 0
    repeated: int = 0
    there: int = 0
    failed_before: int = 0
    todo: int = 0
    num_faults: int = 0
    faults: list[str] = field(default_factory=list)
    sampled: int = 0
    sample_failed: int = 0
    seconds: float | None = None
    bytes: int | None = None
    first: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def forecast(
    found: Iterable[Entry | Fault], output: Path, options: DatasetOptions, sample: int
) -> Forecast:
    """Look at the inputs and the journals, and encode a few clips into a folder that is removed.

    Nothing is written into the output folder.

    Args:
        found: the inputs' clips.
        output: the folder of the data set, which need not exist.
        options: how it would be made.
        sample: how many clips to encode for an estimate, evenly from all.

    Raises:
        UsageError, InputError: as `encode_dataset`.
    """
    codec, folder = codec_options(options), DatasetFolder(output)
    info, options = read_info(options.model), replace(options, dtype=choose_dtype(options, folder))
    recipe = recipe_digest(make_recipe(options, codec, info, options.dtype))
    seen = Forecast()
    with ExitStack() as stack:
        scratch = stack.enter_context(ScratchFolder(SCRATCH))
        plan = stack.enter_context(scratch_plan(scratch))
        fill_plan(plan, found, folder, options.manner.part)
        for entry, record in plan.known_entries():
            seen.clips += 1
            if record is not None and record["status"] == "failed":
                seen.failed_before += 1
                if not options.manner.retry_failed and record["stage"] != "plan":
                    continue
            elif record is not None and current_signature(entry, record, recipe, scratch):
                seen.there += 1
                continue
            plan.mark(entry.id)
            seen.todo += 1
            if len(seen.first) < 5:
                seen.first[entry.id] = file_name(entry.id)
        for fault in plan.faults():
            seen.num_faults += 1
            if len(seen.faults) < SHOWN:
                seen.faults.append(fault.message)
        seen.repeated = plan.repeated
        every = max(1, seen.todo // max(1, sample))
        chosen = [
            entry for number, entry in enumerate(plan.entries(todo=True)) if number % every == 0
        ]
        settings = Settings(codec, scratch, scratch, scratch, memory_limit=options.memory_limit)
        _estimate(seen, chosen[:sample], options, settings)
    return seen


def _estimate(
    seen: Forecast, chosen: list[Entry], options: DatasetOptions, settings: Settings
) -> None:
    if not chosen:
        return
    settings = replace(settings, clip_seconds=options.clip_seconds, measure=options.measure)
    encoder = ClipEncoder(load(options), settings)
    try:
        records = [
            encoder.encode(Task(entry, settings.tmp / f"sample-{number}", True))
            for number, entry in enumerate(chosen)
        ]
    finally:
        encoder.close()
    share = seen.todo / len(records)
    seen.sampled = len(records)
    seen.sample_failed = sum(record["status"] != "ok" for record in records)
    seen.seconds = share * sum(record["seconds"] for record in records) / num_workers(options)
    seen.bytes = round(share * sum(record.get("bytes", 0) for record in records))
