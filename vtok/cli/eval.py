"""`vtok eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vtok.cli import options as opt
from vtok.cli.completion import some_of
from vtok.cli.failures import as_vtok_error, raise_failures, report_failure
from vtok.cli.inputs import find_files
from vtok.errors import UsageError, VtokError
from vtok.video.frames import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from vtok.evaluation.clips import Part

BitsList = Annotated[
    str | None,
    typer.Option(
        "--bits",
        metavar="N,N,...",
        help="Bits a position. [default: of 1, 2, 4, 8 ... stages and of all]",
    ),
]
FirstFrames = Annotated[
    int | None, typer.Option("--frames", metavar="N", help="Only the first N frames.")
]
Card = Annotated[
    bool,
    typer.Option(
        "--card",
        help="As for the model cards: 33 frames, short side at most 384, the centre 256x256.",
    ),
]
MetricsList = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="NAME,...",
        help="Of psnr, ssim, ms_ssim, vmaf, flicker. [default: all]",
        autocompletion=some_of("psnr", "ssim", "ms_ssim", "vmaf", "flicker"),
    ),
]
Csv = Annotated[bool, typer.Option("--csv", help="A row a rate on standard output.")]


def evaluate(
    inputs: opt.Videos,
    bits: BitsList = None,
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
    as_json: opt.Json = False,
    as_csv: Csv = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure what a model makes of videos: bytes, quality and code usage at each rate.

    Each video is encoded once and decoded at every rate; nothing is written. Bytes are those of the
    code file. A table, or JSON or CSV, of every video and of their mean; docs/evaluation.md defines
    the metrics.

    \b
      vtok eval clip.mp4
      vtok eval clip.mp4 --bits 9,18,72 --frames 100 --size 256
      vtok eval clips/ --metrics psnr --json | jq .rates
      vtok eval clips/ --card --csv > card.csv
    """
    check_formats(as_json, as_csv)
    part = make_part(frames, size, start, timeout, card)
    paths = find_files(inputs, VIDEO_SUFFIXES)
    from vtok.cli.progress import frames_progress, waiting

    with waiting("loading the model", quiet=quiet):  # torch alone takes seconds to import
        from vtok.cli.tables import Printer
        from vtok.evaluation.evaluate import EvalOptions, evaluate_file, stages_of
        from vtok.models.load import load

        how = EvalOptions(part, numbers("--bits", bits), words(metrics), compress)
        loaded = load(model, device=device, dtype=dtype)
        stages_of(loaded, how.bits)  # an error of usage comes once, not for every input
    printer = Printer(as_json=as_json, as_csv=as_csv)
    results, failures = [], list[VtokError]()
    for number, path in enumerate(paths, start=1):
        place = f"{number}/{len(paths)} " if len(paths) > 1 else ""
        try:
            with frames_progress(place + path.name, quiet=quiet) as progress:
                result = evaluate_file(path, model=loaded, options=how, progress=progress)
        except BrokenPipeError:
            raise  # nobody listens any more
        except Exception as error:  # whatever one clip brings about, the others are still measured
            known = as_vtok_error(error, str(path))
            known.__cause__ = None if known is error else error  # for --debug
            failures.append(known)
            report_failure({"input": str(path)}, known, as_json=as_json, silent=len(paths) == 1)
            continue
        results.append(result)
        printer.clip(result)
    printer.mean(results)
    raise_failures(failures, len(paths))


def check_formats(as_json: bool, as_csv: bool) -> None:
    """Refuse JSON and CSV at once."""
    if as_json and as_csv:
        raise UsageError("--json and --csv both want standard output: give one of them")


def make_part(
    frames: int | None, size: str | None, start: float, timeout: float, card: bool
) -> Part:
    """The part of each video that the options name."""
    from vtok.evaluation.clips import CARD, Part

    if not card:
        return Part(frames=frames, size=size, start_seconds=start, timeout_seconds=timeout)
    if frames is not None or size is not None or start:
        raise UsageError("--card: says itself which frames, leave out --frames, --size and --start")
    return CARD


def numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """The numbers of an option such as `9,18`."""
    if text is None:
        return None
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isascii() and piece.isdigit() and len(piece) < 7 for piece in pieces):
        raise UsageError(f"{option} {text}: expected numbers such as 9,18")
    return tuple(int(piece) for piece in pieces)


def words(text: str | None) -> tuple[str, ...] | None:
    """The names of an option such as `psnr,ssim`."""
    return None if text is None else tuple(piece.strip() for piece in text.split(","))
