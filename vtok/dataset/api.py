"""encode_dataset: encode many items into a folder, from their sources to codes and a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtok.dataset.folder import WHOLE, DatasetFolder, recipe_digest
from vtok.dataset.item import Fault, Item, Member, file_name
from vtok.dataset.options import DatasetOptions, make_recipe, with_recipe
from vtok.dataset.plan import Journal, Plan, opened_plan
from vtok.dataset.scheduler import RunObserver, Scheduler, Totals, plan_items
from vtok.dataset.sources import Inputs, find_items
from vtok.dataset.worker import Job, encode_in_threads
from vtok.dataset.writers import make_writer
from vtok.models.checkpoint import read_info

if TYPE_CHECKING:
    from vtok.models.load import ModelLike

DEFAULT_MODEL = "vtok-base"
FIRST_SHOWN = 5
FAULTS_SHOWN = 20


def encode_dataset(
    inputs: Inputs | Sequence[str | Path],
    output: str | Path,
    *,
    model: ModelLike | None = None,
    options: DatasetOptions | None = None,
    observer: RunObserver | None = None,
) -> Totals:
    """Encode many videos into a folder; the same call continues an interrupted run.

    Every item of the inputs ends in the folder or in its `errors.jsonl`. Items are skipped if their
    codes exist and their source, recipe and model are unchanged.

    Args:
        inputs: folders, files, globs, tables, tar shards or URLs; or `Inputs`.
        output: folder of the data set.
        model: a name, a path, a loaded tokenizer or a `VideoTokenizer`; `vtok-base` if None.
        options: output format, sizes, workers and so on.
        observer: receives the progress.

    Raises:
        InputError: an input is missing.
        UsageError: options that do not fit, or the folder was made with other options.
        OutputError: the folder cannot be written, or another run works on it.
        PartialFailure: more items failed than `max_failures` allows.
    """
    inputs = _as_inputs(inputs, output)
    return _run(find_items(inputs), output, model or DEFAULT_MODEL, options, observer, inputs.names)


def retry_dataset(
    output: str | Path,
    *,
    model: ModelLike | None = None,
    options: DatasetOptions | None = None,
    observer: RunObserver | None = None,
) -> Totals:
    """Encode the failed items of a data set again, with the recipe that it was made with.

    Args:
        output: folder of the data set.
        model: model of the data set, if it is not a shipped one.
        options: workers, limits and so on; whatever determines the codes is ignored.
        observer: receives the progress.

    Raises:
        InputError: no data set.
        UsageError, OutputError, PartialFailure: as `encode_dataset`.
    """
    folder = DatasetFolder(Path(output))
    recipe = folder.recipe()
    options = with_recipe(options or DatasetOptions(), recipe)
    options = replace(options, retry_failed=True, partition=WHOLE)
    failed = list(failed_items(folder))
    return _run(failed, output, model or recipe["model"], options, observer)


def failed_items(folder: DatasetFolder) -> Iterator[Item | Fault]:
    """Yield the items that failed, and the faults, from the journals of a data set."""
    with opened_plan(folder.journals()) as plan:
        for record in plan.records():
            if record["status"] == "ok":
                continue
            if record.get("phase") == "plan":
                yield Fault(record["id"], record["input"], record["message"], record["origin"])
                continue
            member = record["member"] and Member(*record["member"])
            yield Item(record["id"], record["source"], member, record["start"], record["end"],
                       record["columns"], record.get("start_frame"),
                       record.get("num_frames"))  # fmt: skip


@dataclass
class DryRun:
    """Items that a run would encode and skip.

    Attributes:
        items, up_to_date, failed_before, todo, duplicates: as in `Totals`.
        num_faults: unusable rows and duplicate ids.
        faults: messages of the first faults.
        first: names of the first outputs, by id.
    """

    items: int = 0
    up_to_date: int = 0
    failed_before: int = 0
    todo: int = 0
    duplicates: int = 0
    num_faults: int = 0
    faults: list[str] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)


def dry_run(
    inputs: Inputs | Sequence[str | Path],
    output: str | Path,
    *,
    model: ModelLike | None = None,
    options: DatasetOptions | None = None,
) -> DryRun:
    """Decide what `encode_dataset` would do with the same arguments, and write nothing.

    Raises:
        InputError, UsageError: as `encode_dataset`.
    """
    options = options or DatasetOptions()
    folder = DatasetFolder(Path(output).absolute())
    _, options, recipe = _complete(options, model or DEFAULT_MODEL, folder)
    found = find_items(_as_inputs(inputs, output))
    result = DryRun()
    with opened_plan(folder.journals()) as plan:
        _fill(plan, found, options)
        writer = make_writer(folder, plan, options, lambda record: None)
        digest = recipe_digest(recipe)
        for item, decision, _ in plan_items(plan, writer, digest, options.retry_failed):
            result.items += 1
            setattr(result, decision, getattr(result, decision) + 1)
            if decision == "todo" and len(result.first) < FIRST_SHOWN:
                result.first[item.id] = file_name(item.id)
        result.duplicates, result.num_faults = plan.duplicates, plan.num_faults
        result.faults = [fault.message for fault in islice(plan.faults(), FAULTS_SHOWN)]
    return result


def _as_inputs(inputs: Inputs | Sequence[str | Path], output: str | Path) -> Inputs:
    if not isinstance(inputs, Inputs):
        inputs = Inputs(tuple(map(str, inputs)))
    return replace(inputs, skip=Path(output))


def _run(
    found: Iterable[Item | Fault],
    output: str | Path,
    model: ModelLike,
    options: DatasetOptions | None,
    observer: RunObserver | None,
    origins: Sequence[str] = (),
) -> Totals:
    folder = DatasetFolder(Path(output).absolute())
    model, options, recipe = _complete(options or DatasetOptions(), model, folder)
    with opened_run(folder, found, recipe, options, observer or RunObserver(), origins) as run:
        job = Job(model, options, folder.root, folder.tmp(options.partition), run.plan.scratch)
        if options.engine == "ray":
            from vtok.dataset.ray_engine import RayEngine

            return run.run(RayEngine(job).run)
        all_cores = not hasattr(os, "sched_getaffinity")
        cores = os.cpu_count() if all_cores else len(os.sched_getaffinity(0))
        workers = max(options.workers or cores or 1, options.batch or 1)
        return run.run(partial(encode_in_threads, job, workers))


@contextmanager
def opened_run(
    folder: DatasetFolder,
    found: Iterable[Item | Fault],
    recipe: dict[str, Any],
    options: DatasetOptions,
    observer: RunObserver,
    origins: Sequence[str] = (),
) -> Iterator[Scheduler]:
    """Lock a folder and give the scheduler of a run."""
    with (
        folder.opened(options.partition, recipe, overwrite=options.overwrite),
        opened_plan(folder.journals()) as plan,
    ):
        _fill(plan, found, options)
        with Journal(folder.journal(options.partition), plan) as journal:
            writer = make_writer(folder, plan, options, journal.note)
            digest = recipe_digest(recipe)
            yield Scheduler(folder, plan, journal, writer, digest, options, observer, origins)


def _fill(plan: Plan, found: Iterable[Item | Fault], options: DatasetOptions) -> None:
    for entry in found:
        if options.partition.has(entry.id):
            plan.add(entry)


def _complete(
    options: DatasetOptions, model: ModelLike, folder: DatasetFolder
) -> tuple[ModelLike, DatasetOptions, dict[str, Any]]:
    """Resolve a model that is not a name or path; add the number type, and make the recipe."""
    if isinstance(model, (str, Path)):
        info, dtype = read_info(model), _choose_dtype(options, folder)
    else:
        from vtok.models.load import resolve

        model = resolve(model)
        info, dtype = model.info, model.dtype_name
    options = replace(options, dtype=dtype)
    return model, options, make_recipe(options, info, dtype)


def _choose_dtype(options: DatasetOptions, folder: DatasetFolder) -> str:
    """The number type; `auto` is the one that the data set was started with.

    So machines of several kinds can share one; and if everything is up to date, torch, which takes
    seconds to import, is not needed.
    """
    started = folder.recipe()["dtype"] if folder.about.exists() else None
    if started is not None and options.dtype in ("auto", started):
        return str(started)
    from vtok.models.load import pick_device, pick_dtype

    dtype = pick_dtype(options.dtype, pick_device(options.device))
    return str(dtype).removeprefix("torch.")
