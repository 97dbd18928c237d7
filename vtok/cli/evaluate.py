"""`vtok eval`, `vtok compare` and `vtok report`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vtok._files import atomic_output, check_output
from vtok.cli import options as opt
from vtok.cli.completion import codecs as complete_codecs
from vtok.cli.completion import some_of, videos
from vtok.cli.console import (
    frames_progress,
    loading,
    print_json,
    say,
    say_warning,
    terminal,
    waiting,
)
from vtok.cli.failures import Failures
from vtok.cli.jobs import find_files, make_folder
from vtok.cli.options import argument, expand_options, option
from vtok.errors import OutputError, UsageError

if TYPE_CHECKING:
    from vtok.evaluation.compare import Comparison, Notify
    from vtok.evaluation.evaluate import EvalOptions, Part
    from vtok.evaluation.report import Exhibit
    from vtok.models.load import LoadedTokenizer

RESULTS, CURVES, VIDEO = "results.json", ("curves.png", "curves.svg"), "side-by-side.mp4"

FirstFrames = Annotated[int | None, option("--frames", "N", "Only the first N frames.")]
Csv = Annotated[bool, option("--csv", None, "One row per rate on standard output.")]
BitsList = Annotated[
    str | None,
    option("--bits", "N,N,...", "Bits per position. [default: of 1, 2, 4, 8 ... and all stages]"),
]
MetricsList = Annotated[
    str | None,
    option(
        "--metrics",
        "NAME,...",
        "Any of psnr, ssim, ms_ssim, vmaf, flicker. [default: all]",
        some_of("psnr", "ssim", "ms_ssim", "vmaf", "flicker"),
    ),
]
Card = Annotated[
    bool,
    option(
        "--card",
        None,
        "As in the model cards: 33 frames, short side at most 384, centre crop of 256x256.",
    ),
]


@dataclass(frozen=True)
class MeasureOptions:
    """Rates, metrics and part of each video to measure; shared with `vtok report`."""

    bits: BitsList = None
    metrics: MetricsList = None
    fast: opt.Fast = False
    effort: opt.Effort = 0
    hysteresis: opt.Hysteresis = 0.0
    compress: opt.Compress = True
    start_seconds: opt.Start = 0.0
    card: Card = False
    timeout_seconds: opt.Timeout = 60.0

    def part(self, frames: int | None, size: str | None, **more: Any) -> Part:
        """The part of each video to measure; raises a UsageError if --card forbids an option."""
        from vtok.evaluation.evaluate import CARD, Part

        if not self.card:
            start, timeout = self.start_seconds, self.timeout_seconds
            return Part(
                frames=frames, size=size, start_seconds=start, timeout_seconds=timeout, **more
            )
        if frames is not None or size is not None or self.start_seconds:
            raise UsageError("--card: chooses the frames, leave out --frames, --size and --start")
        return CARD

    def to_options(self, part: Part) -> EvalOptions:
        """Options of the evaluation; raises a UsageError for lists that cannot be parsed."""
        from vtok.evaluation.evaluate import EvalOptions

        bits, metrics = _numbers(self.bits), words(self.metrics)
        return EvalOptions(
            part, bits, metrics, self.compress, self.effort, self.hysteresis, self.fast
        )


@expand_options
def evaluate(
    inputs: opt.Videos,
    *,
    measure: MeasureOptions,
    frames: FirstFrames = None,
    size: opt.Size = None,
    model: opt.ModelOptions,
    as_csv: Csv = False,
    printing: opt.PrintOptions,
) -> None:
    """Measure bytes, quality and code usage of a model.

    Each video is encoded once and decoded at every rate; with --effort or --hysteresis
    it is encoded for each rate. No file is written. Bytes are those of the code file. Prints a
    table, JSON or CSV for every video and for their mean; docs/evaluation.md defines the metrics.

    \b
      vtok eval clip.mp4
      vtok eval clip.mp4 --bits 9,18,72 --frames 100 --size 256
      vtok eval clips/ --metrics psnr --json | jq .rates
      vtok eval clips/ --card --csv > card.csv
    """
    _check_formats(printing.as_json, as_csv)
    from vtok.video.suffixes import VIDEO_SUFFIXES

    part = measure.part(frames, size)
    paths = find_files(inputs, VIDEO_SUFFIXES)
    with loading(quiet=printing.quiet):
        from vtok.cli.tables import Printer
        from vtok.evaluation.evaluate import evaluate_file, stages_of

        options = measure.to_options(part)
        loaded = model.load()
        stages_of(loaded, options)  # one usage error, not one per input
    printer = Printer(as_json=printing.as_json, as_csv=as_csv)
    results, failures = [], Failures(len(paths), as_json=printing.as_json)
    for number, path in enumerate(paths, start=1):
        place = f"{number}/{len(paths)} " if len(paths) > 1 else ""
        with failures.catch(str(path), input=str(path)):
            with frames_progress(place + path.name, quiet=printing.quiet) as progress:
                result = evaluate_file(path, model=loaded, options=options, progress=progress)
            results.append(result)
            printer.clip(result)
    printer.mean(results)
    failures.raise_if_any()


@expand_options
def compare(
    video: Annotated[str, argument("VIDEO", "Video to encode.", videos)],
    *,
    codecs: Annotated[
        str, option("--with", "NAME,...", "Any of x264, x265, av1.", complete_codecs)
    ] = "x264,x265,av1",
    output: Annotated[
        str | None,
        option("--output -o", "FOLDER", "Folder to write. [default: VIDEO's stem + .compare]"),
    ] = None,
    measure: MeasureOptions,
    show: Annotated[
        int | None,
        option("--show", "N", "Bits per position in the video. [default: the second rate]"),
    ] = None,
    frames: FirstFrames = None,
    size: opt.Size = None,
    model: opt.ModelOptions,
    overwrite: opt.Overwrite = False,
    as_csv: Csv = False,
    printing: opt.PrintOptions,
) -> None:
    """Compare a model with x264, x265 and AV1 at equal bytes.

    Writes a folder with rate-distortion curves (curves.png, curves.svg), original and decoded
    videos side by side (side-by-side.mp4) and results.json, and prints a table with Bjontegaard
    deltas; docs/evaluation.md describes how bytes are matched.

    \b
      vtok compare clip.mp4                        writes clip.compare/
      vtok compare clip.mp4 --with x264,av1 --size 256 --frames 100 -o versus
      vtok compare clip.mp4 --bits 9,18,36,72 --show 18 --json
    """
    _check_formats(printing.as_json, as_csv)
    part = measure.part(frames, size)
    folder = Path(video).with_suffix(".compare") if output is None else Path(output)
    _check_folder(folder, overwrite)
    with loading(quiet=printing.quiet):
        from vtok.cli.tables import Printer
        from vtok.evaluation.compare import compare_file, deltas, write_side_by_side
        from vtok.evaluation.evaluate import stages_of

        names = _codec_names(codecs)
        options = measure.to_options(part)
        loaded = model.load()
        shown = _rate_to_show(list(stages_of(loaded, options)), show)
    source, printer = Path(video), Printer(as_json=printing.as_json, as_csv=as_csv)
    with (
        _status(printing.quiet) as notify,
        compare_file(
            source, model=loaded, codecs=names, options=options, notify=notify
        ) as comparison,
    ):
        make_folder(folder)
        found = deltas(comparison.result.points)
        facts = {**comparison.result.to_json(), "deltas": [one.to_json() for one in found]}
        _write_curves(folder, comparison, overwrite)
        notify(VIDEO, 0, None)
        write_side_by_side(folder / VIDEO, comparison, bits=shown, overwrite=overwrite)
        with atomic_output(folder / RESULTS, overwrite) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n")
    if printing.as_json:
        print_json({"kind": "comparison", **facts, "folder": str(folder), "status": "ok"})
    else:
        printer.clip(comparison.result)
        printer.deltas(found)
    written = ", ".join(sorted(path.name for path in folder.iterdir()))
    say(f"{folder}: {written}", quiet=printing.quiet)


def words(text: str | None) -> tuple[str, ...] | None:
    """Split a list of names such as `psnr,ssim`."""
    return None if text is None else tuple(piece.strip() for piece in text.split(","))


def _codec_names(text: str | None) -> tuple[str, ...]:
    """Split a list of codecs, and check that each is known and can be run."""
    from vtok.evaluation.classic import find_codec

    names = words(text) or ()
    for name in names:
        find_codec(name)
    return names


def _numbers(text: str | None) -> tuple[int, ...] | None:
    pieces = words(text)
    if pieces is None:
        return None
    if not all(piece.isascii() and piece.isdigit() and len(piece) < 7 for piece in pieces):
        raise UsageError(f"--bits {text}: expected numbers such as 9,18")
    return tuple(int(piece) for piece in pieces)


def _check_formats(as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise UsageError("--json and --csv both need standard output: give one of them")


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse outputs that cannot be written, before any work."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, give the name of a folder")
    if folder.is_dir():
        for name in (RESULTS, *CURVES, VIDEO):
            check_output(folder / name, overwrite)


def _rate_to_show(rates: list[int], asked: int | None) -> int:
    if asked is not None and asked not in rates:
        raise UsageError(f"--show {asked}: expected one of {', '.join(map(str, rates))}")
    return asked or rates[min(1, len(rates) - 1)]


def _write_curves(folder: Path, comparison: Comparison, overwrite: bool) -> None:
    from vtok.evaluation.curves import write_curves

    result = comparison.result
    title = f"{Path(result.name).name}, {result.frames} frames {result.width}x{result.height}"
    try:
        write_curves([folder / name for name in CURVES], result.points, title, overwrite)
    except UsageError as error:  # without matplotlib the numbers are still useful
        say_warning(f"no curves: {error}")


@contextmanager
def _status(quiet: bool) -> Iterator[Notify]:
    """Give a function that shows the current phase on a terminal."""
    console = terminal()
    if quiet or not console.is_terminal:
        yield lambda what, done, total: None
        return
    with console.status("vtok") as status:
        update: Callable[[Any], None] = status.update

        def notify(what: str, done: int, total: int | None) -> None:
            update(f"{what} {done}" + ("" if total is None else f" of {total}"))

        yield notify


DEFAULT_SIDE = "360"
MEGABYTE = 1_000_000
MIN_MEGABYTES, MAX_MEGABYTES = 0.1, 200.0
_TEXT_BYTES = 150_000  # of a page without pictures, approximately
_BASE64 = 4 / 3  # bytes of text per byte of picture


@expand_options
def report(
    inputs: opt.Videos,
    *,
    output: Annotated[str, option("--output -o", "FILE", "Page to write.")] = "report.html",
    codecs: Annotated[
        str | None,
        option("--with", "NAME,...", "Also show any of x264, x265, av1.", complete_codecs),
    ] = None,
    measure: MeasureOptions,
    frames: Annotated[int, option("--frames", "N", "Only the first N frames of each.")] = 90,
    megabytes: Annotated[
        float,
        option(
            "--megabytes",
            "X",
            "Approximate limit of the page's size; further frames are measured but not shown.",
        ),
    ] = 15.0,
    size: Annotated[
        str | None,
        option(
            "--size", "SIZE", "Short side (256) or WIDTHxHEIGHT. [default: short side at most 360]"
        ),
    ] = None,
    title: Annotated[
        str | None, option("--title", "TEXT", "Title of the page. [default: the video's name]")
    ] = None,
    model: opt.ModelOptions,
    overwrite: opt.Overwrite = False,
    printing: opt.PrintOptions,
) -> None:
    """Write an HTML page to inspect a model frame by frame.

    The page shows original and reconstruction under a slider, with error maps, code maps, bits
    over time, rate-distortion curves and the figures of `vtok eval`. It is one file that needs no
    network; docs/report.md is its manual.

    \b
      vtok report clip.mp4                          writes report.html
      vtok report clips/ --bits 9,18,36 --frames 60 -o clips.html
      vtok report clip.mp4 --with x264,av1 --size 256 --title 'vtok, x264 and AV1'
    """
    target = _check_page(output, megabytes, overwrite)
    from vtok.video.suffixes import VIDEO_SUFFIXES

    part = _part(measure, frames, size)
    paths = find_files(inputs, VIDEO_SUFFIXES)
    with loading(quiet=printing.quiet):
        from vtok.evaluation.evaluate import stages_of
        from vtok.evaluation.report import check_model, exhibit_file

        names = _codec_names(codecs)
        options = measure.to_options(part)
        loaded = model.load()
        check_model(loaded)
        stages_of(loaded, options)  # one usage error, not one per input
    exhibits: list[Exhibit] = []
    failures = Failures(len(paths), as_json=printing.as_json)
    left = (megabytes * MEGABYTE - _TEXT_BYTES) / _BASE64
    for number, path in enumerate(paths):
        place = f"{number + 1}/{len(paths)} " if len(paths) > 1 else ""
        with failures.catch(str(path), input=str(path)):
            with _phases(place + path.name, quiet=printing.quiet) as notify:
                exhibit = exhibit_file(
                    path,
                    model=loaded,
                    options=options,
                    codecs=names,
                    most_bytes=int(left / (len(paths) - number)),
                    notify=notify,
                )
            left -= exhibit.num_bytes  # bytes that one clip does not need are left to the others
            exhibits.append(exhibit)
            if printing.as_json:
                facts = {**exhibit.result.to_json(), "pictured": exhibit.pictured}
                print_json({"kind": "clip", **facts, "status": "ok"})
    if exhibits:
        _write(target, exhibits, loaded, title, overwrite, printing)
    failures.raise_if_any()


def _check_page(output: str, megabytes: float, overwrite: bool) -> Path:
    """Refuse an output that cannot be written, before any work."""
    if output in ("", "-"):
        raise UsageError(f"-o {output or repr(output)}: give the name of a file, such as page.html")
    if not MIN_MEGABYTES <= megabytes <= MAX_MEGABYTES:
        limits = f"{MIN_MEGABYTES:g} to {MAX_MEGABYTES:g}"
        raise UsageError(f"--megabytes {megabytes:g}: expected {limits}")
    check_output(Path(output), overwrite)
    return Path(output)


def _part(measure: MeasureOptions, frames: int, size: str | None) -> Part:
    if measure.card:
        return measure.part(None, size)
    return measure.part(frames, size or DEFAULT_SIDE, only_shrink=size is None)


@contextmanager
def _phases(name: str, *, quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Give a function that shows the current phase and its progress."""
    from vtok.evaluation.report import PICTURES
    from vtok.evaluation.results import VTOK

    current, progress = "", None
    with ExitStack() as stack:

        def notify(what: str, done: int, total: int | None) -> None:
            nonlocal current, progress
            if what != current:
                stack.close()
                current, progress = what, None
                if what in (VTOK, PICTURES):
                    progress = stack.enter_context(frames_progress(f"{name} {what}", quiet=quiet))
                else:  # a search of unknown length
                    stack.enter_context(waiting(f"{name} {what}", quiet=quiet))
            if progress is not None:
                progress(done, total)

        yield notify


def _write(
    target: Path,
    exhibits: list[Exhibit],
    model: LoadedTokenizer,
    title: str | None,
    overwrite: bool,
    printing: opt.PrintOptions,
) -> None:
    """Write the page whole or not at all, and print what it holds."""
    from vtok.evaluation.report import build_page

    page = build_page(exhibits, model, title)
    with atomic_output(target, overwrite) as temporary:
        try:
            temporary.write_bytes(page)
        except OSError as exc:
            raise OutputError(f"{target}: cannot be written ({exc.strerror})") from exc
    pictured = sum(exhibit.pictured for exhibit in exhibits)
    measured = sum(exhibit.result.frames for exhibit in exhibits)
    if printing.as_json:
        facts = {"clips": len(exhibits), "frames": measured, "pictured": pictured}
        print_json(
            {"kind": "page", "output": str(target), "bytes": len(page), **facts, "status": "ok"}
        )
    clips = "1 clip" if len(exhibits) == 1 else f"{len(exhibits)} clips"
    shown = f"{pictured} of {measured} frames in pictures"
    say(f"{target}: {clips}, {shown}, {len(page) / MEGABYTE:.1f} MB", quiet=printing.silent)
