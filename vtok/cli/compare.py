"""`vtok compare`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtok._files import atomic_output, check_output
from vtok.cli import options as opt
from vtok.cli.completion import some_codecs, videos
from vtok.cli.console import print_json, say, say_warning
from vtok.cli.eval import (
    BitsList,
    Card,
    Csv,
    FirstFrames,
    MetricsList,
    check_formats,
    make_part,
    numbers,
    words,
)
from vtok.errors import OutputError, UsageError

if TYPE_CHECKING:
    from vtok.evaluation.compare import Comparison, Notify

RESULTS, CURVES, VIDEO = "results.json", ("curves.png", "curves.svg"), "side-by-side.mp4"


def compare(
    video: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO",
            show_default=False,
            help="The video to code.",
            autocompletion=videos,
        ),
    ],
    codecs: Annotated[
        str,
        typer.Option(
            "--with", metavar="NAME,...", help="Of x264, x265, av1.", autocompletion=some_codecs
        ),
    ] = "x264,x265,av1",
    output: Annotated[
        str | None,
        typer.Option(
            *("--output", "-o"),
            metavar="FOLDER",
            help="Where to put the curves and the video. [default: VIDEO's name .compare]",
        ),
    ] = None,
    bits: BitsList = None,
    show: Annotated[
        int | None,
        typer.Option("--show", metavar="N", help="Bits of the video. [default: second rate]"),
    ] = None,
    metrics: MetricsList = None,
    compress: opt.Compress = True,
    frames: FirstFrames = None,
    size: opt.Size = None,
    start: opt.Start = 0.0,
    card: Card = False,
    model: opt.ModelName = "vtok-base",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    timeout: opt.Timeout = 60.0,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
    as_csv: Csv = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Compare a model with classic codecs that take the same bytes for the same frames.

    Writes rate-distortion curves (curves.png, curves.svg), the original beside what each coder
    makes of it (side-by-side.mp4) and results.json into a folder, and prints a table with
    Bjontegaard deltas; docs/evaluation.md says how codecs are matched.

    \b
      vtok compare clip.mp4                        writes clip.compare/
      vtok compare clip.mp4 --with x264,av1 --size 256 --frames 100 -o versus
      vtok compare clip.mp4 --bits 9,18,36,72 --show 18 --json
    """
    check_formats(as_json, as_csv)
    part = make_part(frames, size, start, timeout, card)
    folder = Path(video).with_suffix(".compare") if output is None else Path(output)
    _check_folder(folder, overwrite)
    from vtok.cli.progress import waiting

    with waiting("loading the model", quiet=quiet):  # torch alone takes seconds to import
        from vtok.cli.tables import Printer
        from vtok.evaluation.classic import find_codec
        from vtok.evaluation.compare import compare_file, deltas
        from vtok.evaluation.evaluate import EvalOptions, stages_of
        from vtok.models.load import load

        names = words(codecs) or ()
        for name in names:
            find_codec(name)
        how = EvalOptions(part, numbers("--bits", bits), words(metrics), compress)
        loaded = load(model, device=device, dtype=dtype)
        shown = _rate_to_show(list(stages_of(loaded, how.bits)), show)
    source, printer = Path(video), Printer(as_json=as_json, as_csv=as_csv)
    with (
        _status(quiet) as notify,
        compare_file(source, model=loaded, codecs=names, options=how, notify=notify) as comparison,
    ):
        _make_folder(folder)
        found = deltas(comparison.result.points)
        facts = {**comparison.result.to_json(), "deltas": [one.to_json() for one in found]}
        _write_curves(folder, comparison, overwrite)
        from vtok.evaluation.compare import write_side_by_side

        notify(VIDEO, 0, None)
        write_side_by_side(
            folder / VIDEO,
            comparison,
            source=source,
            part=part,
            model=loaded,
            bits=shown,
            overwrite=overwrite,
        )
        with atomic_output(folder / RESULTS, overwrite) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
    if as_json:
        print_json({"kind": "comparison", **facts, "folder": str(folder), "status": "ok"})
    else:
        printer.clip(comparison.result)
        printer.deltas(found)
    say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}", quiet=quiet)


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Find out early what could not be written."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, give the name of a folder")
    if folder.is_dir():
        for name in (RESULTS, *CURVES, VIDEO):
            check_output(folder / name, overwrite)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{folder}: cannot be made ({exc.strerror})") from exc


def _rate_to_show(rates: list[int], asked: int | None) -> int:
    """Bits of the video: those asked for, or the second rate, which most would use."""
    if asked is not None and asked not in rates:
        raise UsageError(f"--show {asked}: expected one of {', '.join(map(str, rates))}")
    return asked or rates[min(1, len(rates) - 1)]


def _write_curves(folder: Path, comparison: Comparison, overwrite: bool) -> None:
    from vtok.evaluation.curves import write_curves

    result = comparison.result
    title = f"{Path(result.name).name}, {result.frames} frames {result.width}x{result.height}"
    try:
        write_curves([folder / name for name in CURVES], result.points, title, overwrite)
    except UsageError as error:  # no matplotlib: the numbers are worth having all the same
        say_warning(f"no curves: {error}")


@contextmanager
def _status(quiet: bool) -> Iterator[Notify]:
    """A function that says what is being done, on a terminal."""
    from vtok.cli.progress import terminal

    console = terminal()
    if quiet or not console.is_terminal:
        yield lambda what, done, total: None
        return
    with console.status("vtok") as status:
        update: Callable[[Any], None] = status.update

        def notify(what: str, done: int, total: int | None) -> None:
            update(f"{what} {done}" + ("" if total is None else f" of {total}"))

        yield notify
