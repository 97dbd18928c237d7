"""`vtok dataset`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vtok.cli import dataset_options as own
from vtok.cli import failures as exits
from vtok.cli import options as opt
from vtok.cli.console import one_line, print_json, say
from vtok.cli.options import unfolded
from vtok.errors import CodeFileError, PartialFailure, UsageError, VtokError

if TYPE_CHECKING:
    from vtok.dataset.api import DatasetOptions
    from vtok.dataset.item import Entry, Fault
    from vtok.dataset.scheduler import Totals
    from vtok.dataset.sources import Inputs


@unfolded
def encode(
    inputs: own.Inputs = None,
    *,
    output: own.Output,
    to: own.Format = "vtok",
    files_from: opt.FilesFrom = None,
    null: opt.Null = False,
    input_column: own.InputColumn = None,
    id_column: own.IdColumn = None,
    start_column: own.StartColumn = None,
    end_column: own.EndColumn = None,
    stages: opt.Stages = None,
    bits: opt.Bits = None,
    min_psnr: opt.MinPsnr = None,
    max_bpp: opt.MaxBpp = None,
    compress: opt.Compress = True,
    size: opt.Size = None,
    fps: opt.Rate = None,
    shard_size: own.ShardSize = 1000,
    shard: own.Shard = None,
    model: opt.ModelName = "vtok-base",
    dtype: opt.Dtype = "auto",
    means: own.Means,
    engine: own.Engine = "local",
    ray_address: own.RayAddress = None,
    timeout: opt.Timeout = own.TIMEOUT,
    psnr: own.Psnr = False,
    retry_failed: own.RetryFailed = False,
    max_failures: own.MaxFailures = None,
    overwrite: own.Overwrite = False,
    dry_run: own.DryRun = False,
    sample: own.Sample = 3,
    as_json: own.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Encode many clips into a folder; the same command goes on with what was stopped or killed.

    The folder gets a manifest with a row for each clip, and one of those that failed. Exit code
    3 says that some did.

    \b
      vtok dataset encode videos/ -o codes --size 256 --bits 18
      vtok dataset encode clips.csv -o codes --to tar         columns id, input, start, end ...
      find videos -name '*.mp4' -print0 | vtok dataset encode --files-from - -0 -o codes
      vtok dataset encode 'shards/*.tar' -o codes --to memmap --size 256x256
      vtok dataset encode videos/ -o codes --shard auto       in a Slurm array: one share a task
    """
    from vtok.dataset.api import DatasetOptions
    from vtok.dataset.partition import parse_share
    from vtok.dataset.scheduler import Limit, Manner
    from vtok.pipeline.options import EncodeOptions
    from vtok.video.frames import parse_fps

    found = _inputs(inputs, files_from, null, (input_column, id_column, start_column, end_column))
    codec = EncodeOptions(
        to="vtok" if to not in ("npy", "safetensors") else to,
        size=size,
        fps=None if fps is None else parse_fps(fps),
        num_stages=stages,
        num_bits=bits,
        min_psnr=min_psnr,
        max_bpp=max_bpp,
        compress=compress,
        timeout_seconds=timeout,
    )
    manner = Manner(
        part=parse_share(shard, os.environ),
        retry_failed=retry_failed,
        overwrite=overwrite,
        max_failures=None if max_failures is None else Limit.parse(max_failures),
    )
    options = DatasetOptions(
        to=to,
        codec=codec,
        shard_size=shard_size,
        measure=psnr,
        model=model,
        dtype=dtype,
        engine=engine,
        ray_address=ray_address,
        manner=manner,
    )
    options = means.put_into(options)
    if dry_run:
        _forecast(found, Path(output), options, sample, as_json=as_json)
    else:
        _encode(found, output, options, as_json=as_json, quiet=quiet)


def _inputs(
    names: list[str] | None,
    lists: list[str] | None,
    null: bool,
    columns: tuple[str | None, ...],
) -> Inputs:
    from vtok.dataset.sources import Inputs
    from vtok.dataset.tables import Columns

    if not names and not lists:
        raise UsageError("nothing to encode: give folders, files, tables, or --files-from")
    if "-" in (names or ()):
        raise UsageError("- is no clip: --files-from - reads a list from standard input")
    if null and not lists:
        raise UsageError("-0 goes with --files-from")
    if lists and lists.count("-") > 1:
        raise UsageError("--files-from -: standard input can be read once only")
    if "-" in (lists or ()) and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("--files-from -: standard input is no file and no pipe")
    opened = [sys.stdin.buffer if name == "-" else name for name in lists or ()]
    return Inputs(tuple(names or ()), tuple(opened), null, Columns(*columns))


def _encode(
    inputs: Inputs, output: str, options: DatasetOptions, *, as_json: bool, quiet: bool
) -> None:
    from vtok.dataset.sources import find_entries

    found = find_entries(replace(inputs, skip=Path(output)))
    run_dataset(found, output, options, inputs.names, as_json=as_json, quiet=quiet)


def run_dataset(
    found: Iterable[Entry | Fault],
    output: str,
    options: DatasetOptions,
    origins: Sequence[str],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Encode clips into a folder and show how it goes; see `prepared`.

    Raises:
        PartialFailure: some of the clips failed.
        VtokError: none could be encoded.
    """
    from vtok.cli.dataset_display import dataset_display, summary_line
    from vtok.dataset.api import prepared

    with (
        dataset_display(quiet=quiet, as_json=as_json) as display,
        prepared(found, Path(output), options, display, origins) as ready,
    ):
        totals = ready.run.go(ready.engine, ready.sink)
    if as_json:
        print_json({"kind": "summary", **asdict(totals)})
    say(summary_line(totals), quiet=quiet or as_json)
    _raise_failures(totals, output)


def _raise_failures(totals: Totals, output: str) -> None:
    if not totals.bad:
        return
    text = f"{totals.bad} of {totals.clips + totals.faults} clips failed: see {output}/errors"
    error = PartialFailure if totals.done + totals.there else VtokError
    raise error(f"{text}*.jsonl; --retry-failed tries them again")


def _forecast(
    inputs: Inputs, output: Path, options: DatasetOptions, sample: int, *, as_json: bool
) -> None:
    from vtok.dataset.dry_run import forecast
    from vtok.dataset.sources import find_entries

    seen = forecast(find_entries(replace(inputs, skip=output)), output, options, sample)
    if as_json:
        print_json(seen.to_json())
        return
    typer.echo(f"{seen.clips:,} clips, {seen.there:,} there already, {seen.failed_before:,} "
               f"failed before, {seen.todo:,} to do, {seen.repeated:,} named again")  # fmt: skip
    for fault in seen.faults:
        typer.echo(one_line(f"no clip: {fault}"))
    if seen.num_faults > len(seen.faults):
        typer.echo(f"... and {seen.num_faults - len(seen.faults):,} more")
    for id_, name in seen.first.items():
        typer.echo(one_line(f"{id_} -> {name}"))
    if seen.seconds is not None:
        typer.echo(
            f"by {seen.sampled} clips, of which {seen.sample_failed} failed: about "
            f"{timedelta(seconds=round(seen.seconds))} and {seen.bytes:,} bytes"
        )


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Many clips into training-ready codes: every clip once, whatever happens on the way.",
)
app.command(epilog=exits.ALL)(encode)


@app.command(epilog=exits.ALL)
@unfolded
def retry(
    folder: own.Folder,
    *,
    model: opt.ModelInstead = None,
    means: own.Means,
    timeout: opt.Timeout = own.TIMEOUT,
    as_json: own.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Try again the clips of a data set that failed, in the way that the others were made.

    \b
      vtok dataset retry codes --timeout 600 --memory 16000
    """
    from vtok.dataset.api import recorded_options
    from vtok.dataset.folder import DatasetFolder
    from vtok.dataset.maintenance import failed_entries

    about = DatasetFolder(Path(folder))
    options = means.put_into(recorded_options(about.read_about()["recipe"], model, timeout))
    failed = list(failed_entries(about))
    run_dataset(failed, folder, options, (), as_json=as_json, quiet=quiet)


@app.command(epilog=exits.WHOLE)
def status(folder: own.Folder, as_json: own.Json = False, debug: opt.Debug = False) -> None:
    """Say how far a data set is, and why clips failed; also while runs work on it.

    \b
      vtok dataset status codes
    """
    from vtok.dataset.maintenance import dataset_status

    found = dataset_status(folder)
    if as_json:
        print_json(found.to_json())
        return
    rows: dict[str, Any] = {
        "clips done": f"{found.done:,}",
        "clips failed": f"{found.failed:,}",
        "frames": f"{found.frames:,}",
        "bytes": f"{found.bytes:,}",
        "shards": f"{found.shards:,} written, {found.waiting:,} clips wait for theirs",
        "parts": " ".join(found.parts),
        "made by": " ".join(f"{key}={value}" for key, value in found.recipe.items()
                            if value not in (None, False) and not key.endswith("sha256")),
    }  # fmt: skip
    rows |= {f"failed: {cause}": f"{count:,}" for cause, count in found.causes.most_common()}
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(one_line(f"{name:<{width}}  {value}"))


@app.command(epilog=exits.WHOLE)
def verify(
    folder: own.Folder,
    as_json: own.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Check that every clip's codes are there, once, and what was written. Exit code 4 if not.

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
            f"{folder}: {bad} findings, {good} clips are whole: remove the files that are damaged, "
            "and the command that made the data set makes them anew"
        )
    say(f"{folder}: the codes of {good:,} clips are whole", quiet=quiet)


@app.command(epilog=exits.WHOLE)
def merge(
    folder: own.Folder,
    others: own.Inputs = None,
    as_json: own.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Make one manifest of what several runs with --shard did, in one folder or in several.

    \b
      vtok dataset merge codes
      vtok dataset merge codes from-machine-1 from-machine-2
    """
    from vtok.dataset.maintenance import merge_dataset

    found = merge_dataset(folder, others or ())
    if as_json:
        print_json(found.to_json())
    line = f"{folder}: {found.done:,} clips, {found.failed:,} failed, of {len(found.parts)} parts"
    say(line, quiet=quiet or as_json)
