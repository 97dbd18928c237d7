"""encode_dataset: many clips into a folder, from their sources to codes and a manifest."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtok._files import ScratchFolder
from vtok.dataset.engine import Engine, LocalEngine
from vtok.dataset.folder import DatasetFolder
from vtok.dataset.item import Entry, Fault
from vtok.dataset.journal import Journal
from vtok.dataset.plan import SCRATCH, Plan, scratch_plan
from vtok.dataset.scheduler import Manner, Run, Totals, Watcher, fill_plan
from vtok.dataset.shards import Shards
from vtok.dataset.sources import Inputs, find_entries
from vtok.dataset.worker import Record, Settings
from vtok.dataset.writers import SHARDED, TREE, Sink, Tree, shard_format
from vtok.errors import UsageError
from vtok.models.checkpoint import CheckpointInfo, read_info
from vtok.pipeline.options import EncodeOptions, choose_stages

if TYPE_CHECKING:
    from vtok.models.load import LoadedTokenizer

FORMATS = (*TREE, *SHARDED)
ENGINES = ("local", "ray")
GPU_BATCH = 8


@dataclass(frozen=True)
class DatasetOptions:
    """How to make a data set.

    Attributes:
        to: what to write: vtok, npy or safetensors for a file a clip; tar, tar-vtok, memmap or
            parquet for shards.
        codec: how each clip is encoded; its format, part and overwriting are this module's.
        shard_size: clips in a shard.
        measure: whether to decode the codes again and measure the PSNR.
        workers: clips under way at once; as many as there are cores if None, at least a batch.
        batch: clips of a pass through the model; 1 on a CPU and 8 elsewhere if None.
        memory_limit: most bytes of a decoding process; None sets no limit.
        clip_seconds: most seconds for one clip; None sets no limit.
        model, device, dtype: as for `load`.
        engine: local, or ray.
        ray_address: of a cluster, such as auto; one is started on this machine if None.
        manner: how to treat what is found.
    """

    to: str = "vtok"
    codec: EncodeOptions | None = None
    shard_size: int = 1000
    measure: bool = False
    workers: int | None = None
    batch: int | None = None
    memory_limit: int | None = 4 * 2**30
    clip_seconds: float | None = None
    model: str = "vtok-base"
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "local"
    ray_address: str | None = None
    manner: Manner = field(default_factory=Manner)

    def __post_init__(self) -> None:
        """Refuse what no data set could be made by.

        Raises:
            UsageError: naming the option.
        """
        if self.engine not in ENGINES:
            raise UsageError(f"--engine {self.engine}: expected one of {', '.join(ENGINES)}")
        if self.to not in FORMATS:
            raise UsageError(f"--to {self.to}: expected one of {', '.join(FORMATS)}")
        for name, least in (("shard_size", 1), ("workers", 1), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} {value}: expected {least} or more")
        if self.memory_limit is not None and self.memory_limit < 2**28:
            raise UsageError("--memory: a decoder takes 256 MB at the least")
        if self.clip_seconds is not None and not self.clip_seconds > 0:
            raise UsageError(f"--clip-timeout {self.clip_seconds:g}: expected more than 0 seconds")
        size = None if self.codec is None else self.codec.size
        if self.to == "memmap" and (size is None or "x" not in size):
            raise UsageError("--to memmap: all clips must have one size: give --size WIDTHxHEIGHT")


def encode_dataset(
    inputs: Inputs | Sequence[str | Path],
    output: str | Path,
    *,
    options: DatasetOptions | None = None,
    watcher: Watcher | None = None,
) -> Totals:
    """Encode many clips into a folder; the same call goes on with what was stopped.

    Every clip of the inputs ends in the folder or in its `errors.jsonl`. Those that are there
    already, of the same bytes and made in the same way, are left as they are.

    Args:
        inputs: where clips come from: what a command line names, or an `Inputs`.
        output: the folder.
        options: how.
        watcher: is told how it goes.

    Raises:
        InputError: an input is missing.
        UsageError: for options that do not fit, or a folder that was made in another way.
        OutputError: the folder cannot be written, or another run works on it.
        PartialFailure: more clips failed than may.
    """
    options = options or DatasetOptions()
    if not isinstance(inputs, Inputs):
        inputs = Inputs(tuple(map(str, inputs)))
    found = find_entries(replace(inputs, skip=Path(output)))
    with prepared(found, Path(output), options, watcher or Silent(), inputs.names) as ready:
        return ready.run.go(ready.engine, ready.sink)


class Silent:
    """A watcher that says nothing."""

    def planned(self, totals: Totals) -> None:
        """See `Watcher`."""

    def ended(self, record: Record, totals: Totals) -> None:
        """See `Watcher`."""


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs, with nothing done yet.

    Attributes:
        run: does it.
        plan: what was found.
        engine: encodes.
        sink: says where codes go.
    """

    run: Run
    plan: Plan
    engine: Engine
    sink: Sink


@contextmanager
def prepared(
    found: Iterable[Entry | Fault],
    output: Path,
    options: DatasetOptions,
    watcher: Watcher,
    origins: Sequence[str] = (),
) -> Iterator[Prepared]:
    """Open a data set for a run; raises as `encode_dataset`."""
    info, output = read_info(options.model), output.absolute()
    codec = codec_options(options)
    folder, manner = DatasetFolder(output), options.manner
    recipe = make_recipe(options, codec, info, choose_dtype(options, folder))
    with ExitStack() as stack:
        stack.enter_context(folder.opened(manner.part, recipe, overwrite=manner.overwrite))
        scratch = stack.enter_context(ScratchFolder(SCRATCH))
        plan = stack.enter_context(scratch_plan(scratch))
        fill_plan(plan, found, folder, manner.part)
        journal = stack.enter_context(Journal(folder.journal(manner.part)))
        run = Run(folder, plan, journal, recipe, scratch, manner, watcher, origins)
        sink: Sink
        if options.to in TREE:
            sink = Tree(output, options.to)
        else:
            form = shard_format(options.to)
            sink = Shards(folder, manner.part, plan, form, options.shard_size, run.note)
        settings = Settings(
            options=codec,
            root=output,
            tmp=folder.tmp(manner.part),
            scratch=scratch,
            measure=options.measure,
            memory_limit=options.memory_limit,
            clip_seconds=options.clip_seconds,
        )
        options = replace(options, dtype=recipe["dtype"])  # the same on all machines
        yield Prepared(run, plan, make_engine(options, settings), sink)


def make_engine(options: DatasetOptions, settings: Settings) -> Engine:
    """What encodes.

    Raises:
        UsageError: it is not installed.
    """
    if options.engine == "ray":
        from vtok.dataset.ray_engine import RayEngine

        return RayEngine(options, settings, options.ray_address)
    return LocalEngine(lambda: load(options), settings, num_workers(options))


def load(options: DatasetOptions) -> LoadedTokenizer:
    """The model, for the threads of this process to share."""
    from vtok.models.load import resolve
    from vtok.pipeline._runtime import batched

    model = resolve(options.model, device=options.device, dtype=options.dtype)
    batch = options.batch or (1 if model.device.type == "cpu" else GPU_BATCH)
    return batched(model, batch)


def num_workers(options: DatasetOptions) -> int:
    """Clips under way at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(options.workers or cores or 1, options.batch or 1)


def codec_options(options: DatasetOptions) -> EncodeOptions:
    """How each clip is encoded."""
    to = options.to if options.to in TREE else shard_format(options.to).codec_format
    return replace(options.codec or EncodeOptions(), to=to)


def choose_dtype(options: DatasetOptions, folder: DatasetFolder) -> str:
    """What the model computes in: `auto` is what the data set was begun with, if it was.

    So machines of several kinds can work on one; and where nothing is to be done, torch, which
    takes seconds to import, is not asked what this machine is good at.

    Raises:
        UsageError: for a device or type that this machine does not have.
    """
    begun = folder.read_about()["recipe"]["dtype"] if folder.about.exists() else None
    if begun is not None and options.dtype in ("auto", begun):
        return str(begun)
    from vtok.models.load import pick_device, pick_dtype

    dtype = pick_dtype(options.dtype, pick_device(options.device))
    return str(dtype).removeprefix("torch.")


def make_recipe(
    options: DatasetOptions, codec: EncodeOptions, info: CheckpointInfo, dtype: str
) -> dict[str, Any]:
    """Everything that has a say in the codes of a clip, as JSON types."""
    config = info.config
    bits = config.num_codebooks * (config.codebook_size.bit_length() - 1)
    return {
        "to": options.to,
        "size": codec.size,
        "fps": None if codec.fps is None else str(codec.fps),
        "stages": choose_stages(codec.num_stages, codec.num_bits, config.num_stages, bits),
        "min_psnr": codec.min_psnr,
        "max_bpp": codec.max_bpp,
        "compress": codec.compress and codec.to == "vtok",
        "model": info.name,
        "config_sha256": info.config_sha256,
        "weights_sha256": info.weights_sha256,
        "dtype": dtype,
    }


def recorded_options(
    recipe: dict[str, Any], model: str | None, timeout_seconds: float
) -> DatasetOptions:
    """The options that a data set was made with, as far as they have a say in its codes.

    Args:
        recipe: of its dataset.json.
        model: the file of its model, where that is not shipped.
        timeout_seconds: how long a decoder may go without giving frames.
    """
    codec = EncodeOptions(
        size=recipe["size"],
        fps=None if recipe["fps"] is None else Fraction(recipe["fps"]),
        num_stages=recipe["stages"],
        min_psnr=recipe["min_psnr"],
        max_bpp=recipe["max_bpp"],
        compress=recipe["compress"],
        timeout_seconds=timeout_seconds,
    )
    return DatasetOptions(
        to=recipe["to"],
        codec=codec,
        model=model or recipe["model"],
        dtype=recipe["dtype"],
        manner=Manner(retry_failed=True),
    )
