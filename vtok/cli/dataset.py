"""`vtok dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from vtok.cli import dataset_options as own
from vtok.cli import exits
from vtok.cli import options as opt
from vtok.cli.console import one_line, print_json, say
from vtok.cli.dataset_encode import encode, run_dataset
from vtok.cli.fold import unfolded
from vtok.errors import CodeFileError

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
    from vtok.dataset.status import failed_entries

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
    from vtok.dataset.status import dataset_status

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
    from vtok.dataset.verify import verify_dataset

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
    from vtok.dataset.merge import merge_dataset

    found = merge_dataset(folder, others or ())
    if as_json:
        print_json(found.to_json())
    line = f"{folder}: {found.done:,} clips, {found.failed:,} failed, of {len(found.parts)} parts"
    say(line, quiet=quiet or as_json)
