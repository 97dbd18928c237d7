"""`vtok dataset`: encode many clips, resumably, and maintain the result."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.completion import one_of
from vtok.cli.console import one_line, print_json, say, say_warning
from vtok.cli.jobs import STREAM, describe_left_out, standard_input
from vtok.cli.options import argument, expand_options, option
from vtok.errors import CodeFileError, PartialFailure, UsageError, VtokError

if TYPE_CHECKING:
    from vtok.dataset.api import DryRun
    from vtok.dataset.scheduler import RunObserver, Totals
    from vtok.dataset.sources import Inputs

FORMATS = ("vtok", "npy", "safetensors", "tar", "tar-vtok", "memmap", "parquet")

Sources = Annotated[
    list[str] | None,
    argument(
        "INPUT",
        "Folders, files, quoted globs, tables (CSV, TSV, JSONL, parquet), tar shards, URLs.",
    ),
]
Folder = Annotated[str, argument("FOLDER", "Folder of the data set.")]
Json = Annotated[
    bool, option("--json", None, "One JSON object per clip on standard output, then a summary.")
]


@dataclass(frozen=True)
class ColumnOptions:
    """Columns of input tables."""

    input_column: Annotated[
        str | None, option("--input-column", "NAME", "Column of paths. [default: input]")
    ] = None
    id_column: Annotated[
        str | None, option("--id-column", "NAME", "Column of ids. [default: id, if present]")
    ] = None
    start_column: Annotated[
        str | None, option("--start-column", "NAME", "Column of clip starts in seconds.")
    ] = None
    end_column: Annotated[
        str | None, option("--end-column", "NAME", "Column of clip ends in seconds.")
    ] = None


@dataclass(frozen=True)
class WorkerOptions:
    """Device and limits of the workers."""

    device: opt.Device = "auto"
    workers: Annotated[
        int | None,
        option("--workers", "N", "Clips processed at once. [default: number of cores]"),
    ] = None
    batch: Annotated[
        int | None,
        option("--batch", "N", "Clips per model call. [default: 1, on a GPU 8]"),
    ] = None
    clip_timeout_seconds: Annotated[
        float | None,
        option("--clip-timeout", "SECONDS", "Longest time for one clip. [default: no limit]"),
    ] = None
    memory_mb: Annotated[
        int, option("--memory", "MB", "Memory limit of a decoder process; 0 for none.")
    ] = 4096

    def fields(self) -> dict[str, Any]:
        """The fields as arguments of `DatasetOptions`."""
        return {**vars(self), "memory_mb": self.memory_mb or None}


@expand_options
def encode(
    inputs: Sources = None,
    *,
    output: Annotated[str, option("--output -o", "FOLDER", "Folder of the data set.")],
    to: Annotated[
        str,
        option(
            "--to",
            "FORMAT",
            "One file per clip: vtok, npy, safetensors; shards: tar, tar-vtok, memmap, parquet.",
            one_of(*FORMATS),
        ),
    ] = "vtok",
    files_from: opt.FilesFrom = None,
    null: opt.Null = False,
    columns: ColumnOptions,
    rate: opt.RateOptions,
    size: opt.Size = None,
    fps: opt.Rate = None,
    reading: opt.ReadingOptions,
    audio: Annotated[
        str,
        option(
            "--audio",
            "MODE",
            "copy or none: the compressed sound, in vtok and tar-vtok.",
            one_of("copy", "none"),
        ),
    ] = "none",
    shard_size: Annotated[int, option("--shard-size", "N", "Clips per shard.")] = 1000,
    partition: Annotated[
        str | None,
        option(
            "--shard",
            "I/N",
            "Process part I (from 0) of N; auto in a Slurm array, auto/N in Kubernetes.",
        ),
    ] = None,
    model: opt.ModelName = "vtok-base",
    dtype: opt.Dtype = "auto",
    limits: WorkerOptions,
    engine: Annotated[
        str, option("--engine", "NAME", "local, or ray for a Ray cluster.", one_of("local", "ray"))
    ] = "local",
    ray_address: Annotated[
        str | None,
        option("--ray-address", "ADDRESS", "Ray cluster, such as auto. [default: a local one]"),
    ] = None,
    timeout_seconds: opt.Timeout = 60.0,
    psnr: Annotated[
        bool, option("--psnr", None, "Decode the codes and measure the PSNR: slower.")
    ] = False,
    retry_failed: Annotated[
        bool, option("--retry-failed", None, "Retry clips that failed in earlier runs.")
    ] = False,
    max_failures: Annotated[
        str | None, option("--max-failures", "N|N%", "Stop if more clips have failed.")
    ] = None,
    overwrite: Annotated[
        bool,
        option("--overwrite", None, "Replace unknown files, and codes made with other options."),
    ] = False,
    dry_run: Annotated[
        bool, option("--dry-run -n", None, "Print what would be encoded and skipped.")
    ] = False,
    as_json: Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Encode many clips into a folder, or continue a stopped run.

    Run the same command again after an interruption: finished clips are kept. The folder gets a
    manifest with one row per clip, and a list of clips that failed. The exit code is 3 if some
    failed.

    \b
      vtok dataset encode videos/ -o codes --size 256 --bits 18
      vtok dataset encode clips.csv -o codes --to tar      columns id, input, start, end ...
      find videos -name '*.mp4' -print0 | vtok dataset encode --files-from - -0 -o codes
      vtok dataset encode 'shards/*.tar' -o codes --to memmap --size 256x256
      vtok dataset encode videos/ -o codes --shard auto    in a Slurm array: one part per task
    """
    from vtok.dataset import api
    from vtok.dataset.folder import parse_partition
    from vtok.dataset.options import DatasetOptions
    from vtok.pipeline.options import EncodeOptions

    found = _inputs(inputs, files_from, null, columns)
    options = DatasetOptions(
        to=to,
        encode=EncodeOptions(
            to="vtok" if to not in ("npy", "safetensors") else to,
            size=size,
            fps=opt.parse_rate(fps),
            **reading.to_fields(),
            **vars(rate),
            audio=audio,
            timeout_seconds=timeout_seconds,
        ),
        shard_size=shard_size,
        psnr=psnr,
        dtype=dtype,
        engine=engine,
        ray_address=ray_address,
        partition=parse_partition(partition, os.environ),
        retry_failed=retry_failed,
        overwrite=overwrite,
        max_failures=max_failures,
        **limits.fields(),
    )
    if dry_run:
        _print_dry_run(api.dry_run(found, output, model=model, options=options), as_json=as_json)
        return

    def run(observer: RunObserver) -> Totals:
        return api.encode_dataset(found, output, model=model, options=options, observer=observer)

    _run(run, output, found.left_out, as_json=as_json, quiet=quiet)


def _inputs(
    names: list[str] | None, lists: list[str] | None, null: bool, columns: ColumnOptions
) -> Inputs:
    from vtok.dataset.sources import Inputs

    if not names and not lists:
        raise UsageError("nothing to encode: give folders, files, tables, or --files-from")
    if STREAM in (names or ()):
        raise UsageError("- is not a clip: --files-from - reads a list from standard input")
    if null and not lists:
        raise UsageError("-0 needs --files-from")
    if lists and lists.count(STREAM) > 1:
        raise UsageError("--files-from -: standard input can be read only once")
    opened = [standard_input() if name == STREAM else name for name in lists or ()]
    return Inputs(tuple(names or ()), tuple(opened), null, **vars(columns))


def _run(
    run: Callable[[RunObserver], Totals],
    output: str,
    left_out: Counter[str] | None = None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Encode clips into a folder and show the progress; report files that are left out.

    Raises:
        PartialFailure: some of the clips failed.
        VtokError: no clip could be encoded.
    """
    from vtok.cli.display import dataset_display, summary_line

    with dataset_display(quiet=quiet, as_json=as_json) as display:
        totals = run(display)
    if as_json:
        print_json({"kind": "summary", **asdict(totals), "left_out": dict(left_out or {})})
    if left_out and not quiet:
        say_warning(describe_left_out(left_out))
    say(summary_line(totals), quiet=quiet or as_json)
    _raise_failures(totals, output)


def _raise_failures(totals: Totals, output: str) -> None:
    if not totals.bad:
        return
    text = f"{totals.bad} of {totals.items + totals.faults} clips failed: see {output}/errors"
    error = PartialFailure if totals.done + totals.up_to_date else VtokError
    raise error(f"{text}*.jsonl; --retry-failed retries them")


def _print_dry_run(found: DryRun, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    typer.echo(f"{found.items:,} clips, {found.up_to_date:,} up to date, {found.failed_before:,} "
               f"failed before, {found.todo:,} to do, {found.duplicates:,} duplicates")  # fmt: skip
    for fault in found.faults:
        typer.echo(one_line(f"not a clip: {fault}"))
    if found.num_faults > len(found.faults):
        typer.echo(f"... and {found.num_faults - len(found.faults):,} more")
    for id_, name in found.first.items():
        typer.echo(one_line(f"{id_} -> {name}"))


@expand_options
def retry(
    folder: Folder,
    *,
    model: opt.ModelInstead = None,
    limits: WorkerOptions,
    timeout_seconds: opt.Timeout = 60.0,
    as_json: Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Retry the clips of a data set that failed.

    They are encoded with the options of the data set.

    \b
      vtok dataset retry codes --timeout 600 --memory 16000
    """
    from vtok.dataset import api
    from vtok.dataset.options import DatasetOptions
    from vtok.pipeline.options import EncodeOptions

    encode = EncodeOptions(timeout_seconds=timeout_seconds)
    options = DatasetOptions(encode=encode, **limits.fields())

    def run(observer: RunObserver) -> Totals:
        return api.retry_dataset(folder, model=model, options=options, observer=observer)

    _run(run, folder, as_json=as_json, quiet=quiet)


def status(folder: Folder, as_json: Json = False, debug: opt.Debug = False) -> None:
    """Print progress and causes of failures.

    Can be used while runs are active.

    \b
      vtok dataset status codes
    """
    from vtok.dataset.maintenance import dataset_status

    found = dataset_status(folder)
    if as_json:
        print_json(asdict(found))
        return
    rows: dict[str, Any] = {
        "clips done": f"{found.done:,}",
        "clips failed": f"{found.failed:,}",
        "frames": f"{found.frames:,}",
        "bytes": f"{found.bytes:,}",
        "shards": f"{found.shards:,} written, {found.waiting:,} clips pending",
        "parts": " ".join(found.partitions),
        "made with": " ".join(f"{key}={value}" for key, value in found.recipe.items()
                              if value not in (None, False) and not key.endswith("sha256")),
    }  # fmt: skip
    rows |= {f"failed: {cause}": f"{count:,}" for cause, count in found.causes.items()}
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(one_line(f"{name:<{width}}  {value}"))


def verify(
    folder: Folder, as_json: Json = False, quiet: opt.Quiet = False, debug: opt.Debug = False
) -> None:
    """Check that the codes of every clip are present and undamaged.

    The exit code is 4 if they are not.

    \b
      vtok dataset verify codes
    """
    from vtok.dataset.maintenance import verify_dataset

    good = bad = 0
    for id_, fault in verify_dataset(folder):
        good, bad = good + (fault is None), bad + (fault is not None)
        if as_json:
            print_json({"id": id_, "status": "ok" if fault is None else "failed", "message": fault})
        elif fault is not None:
            typer.echo(one_line(f"{id_}: {fault}"))
    if bad:
        raise CodeFileError(
            f"{folder}: {bad} problems, {good} clips are good: remove the damaged files and run "
            "`vtok dataset encode` again"
        )
    say(f"{folder}: the codes of {good:,} clips are good", quiet=quiet)


def merge(
    folder: Folder,
    others: Sources = None,
    as_json: Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Merge the results of runs with --shard into one manifest.

    The parts may be in one folder or in several.

    \b
      vtok dataset merge codes
      vtok dataset merge codes from-machine-1 from-machine-2
    """
    from vtok.dataset.maintenance import merge_dataset

    found = merge_dataset(folder, others or ())
    if as_json:
        print_json(asdict(found))
    line = (
        f"{folder}: {found.done:,} clips, {found.failed:,} failed, of {len(found.partitions)} parts"
    )
    say(line, quiet=quiet or as_json)
