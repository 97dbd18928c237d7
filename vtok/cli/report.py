"""`vtok report`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vtok._files import atomic_output, check_output
from vtok.cli import options as opt
from vtok.cli.completion import codecs as complete_codecs
from vtok.cli.console import frames_progress, loading, print_json, say, waiting
from vtok.cli.evaluate import MeasureOptions, words
from vtok.cli.failures import Failures
from vtok.cli.inputs import find_files
from vtok.cli.options import expand_options, option
from vtok.errors import OutputError, UsageError

if TYPE_CHECKING:
    from vtok.evaluation.evaluate import Part
    from vtok.evaluation.report import Exhibit
    from vtok.models.load import LoadedTokenizer

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
    from vtok.video.frames import VIDEO_SUFFIXES

    part = _part(measure, frames, size)
    paths = find_files(inputs, VIDEO_SUFFIXES)
    with loading(quiet=printing.quiet):
        from vtok.evaluation.classic import find_codec
        from vtok.evaluation.evaluate import stages_of
        from vtok.evaluation.report import exhibit_file

        names = words(codecs) or ()
        for name in names:
            find_codec(name)
        options = measure.to_options(part)
        loaded = model.load()
        stages_of(loaded, options.bits)  # one usage error, not one per input
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
