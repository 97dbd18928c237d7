"""`vtok report`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtok._files import atomic_output, check_output
from vtok.cli import options as opt
from vtok.cli.completion import some_codecs
from vtok.cli.console import print_json, say
from vtok.cli.eval import BitsList, Card, MetricsList, make_part, numbers, words
from vtok.cli.failures import as_vtok_error, raise_failures, report_failure
from vtok.cli.inputs import find_files
from vtok.cli.options import unfolded
from vtok.errors import OutputError, UsageError, VtokError
from vtok.video.frames import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from vtok.evaluation.clips import Part
    from vtok.evaluation.evaluate import EvalOptions
    from vtok.evaluation.report.exhibit import Exhibit
    from vtok.models.load import LoadedTokenizer

USUAL_SIDE = "360"
MEGABYTE = 1_000_000
LEAST_MEGABYTES, MOST_MEGABYTES = 0.1, 200.0
_TEXT_BYTES = 150_000  # of a page without its pictures, about
_BASE64 = 4 / 3  # bytes of text for each byte of a picture


@unfolded
def report(
    inputs: opt.Videos,
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")
    ] = "report.html",
    bits: BitsList = None,
    codecs: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="NAME,...",
            help="Classic codecs beside it: of x264, x265, av1.",
            autocompletion=some_codecs,
        ),
    ] = None,
    metrics: MetricsList = None,
    compress: opt.Compress = True,
    frames: Annotated[
        int, typer.Option("--frames", metavar="N", help="Only the first N frames of each.")
    ] = 90,
    megabytes: Annotated[
        float,
        typer.Option(
            "--megabytes",
            metavar="X",
            help="About how large the page may be; frames beyond it are measured but not shown.",
        ),
    ] = 15.0,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="SIZE",
            help="Short side (256) or WIDTHxHEIGHT. [default: a short side of at most 360]",
        ),
    ] = None,
    start: opt.Start = 0.0,
    card: Card = False,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="[default: the video's name]")
    ] = None,
    model: opt.ModelName = "vtok-base",
    running: opt.Running,
    timeout: opt.Timeout = 60.0,
    overwrite: opt.Overwrite = False,
    saying: opt.Saying,
) -> None:
    """Make a page that shows what a model does to videos: one HTML file, to open in any browser.

    Original and reconstruction in step under a slider, frame by frame, with error maps, code maps,
    bits over time, rate-distortion curves and the figures of `vtok eval`. The file needs no
    network and no other file; docs/report.md is its manual.

    \b
      vtok report clip.mp4                          writes report.html
      vtok report clips/ --bits 9,18,36 --frames 60 -o clips.html
      vtok report clip.mp4 --with x264,av1 --size 256 --title 'Beside x264 and AV1'
    """
    target = _check_page(output, megabytes, overwrite)
    part = _part(frames, size, start, timeout, card)
    paths = find_files(inputs, VIDEO_SUFFIXES)
    from vtok.cli.progress import waiting

    with waiting("loading the model", quiet=saying.quiet):
        from vtok.evaluation.classic import find_codec
        from vtok.evaluation.evaluate import EvalOptions, stages_of
        from vtok.models.load import load

        names = words(codecs) or ()
        for name in names:
            find_codec(name)
        how = EvalOptions(part, numbers("--bits", bits), words(metrics), compress)
        loaded = load(model, device=running.device, dtype=running.dtype)
        stages_of(loaded, how.bits)  # an error of usage comes once, not for every input
    maker = _Maker(loaded, how, names, saying)
    exhibits, failures = maker.make(paths, megabytes * MEGABYTE)
    if exhibits:
        _write(target, exhibits, loaded, title, overwrite, saying)
    raise_failures(failures, len(paths))


class _Maker:
    """Makes an exhibit of each video; one that fails does not stop the others."""

    def __init__(
        self, model: LoadedTokenizer, how: EvalOptions, codecs: tuple[str, ...], saying: opt.Saying
    ) -> None:
        self._model, self._how, self._codecs = model, how, codecs
        self._saying = saying

    def make(self, paths: list[Path], page_bytes: float) -> tuple[list[Exhibit], list[VtokError]]:
        """All exhibits, in order, and what went wrong; what one leaves unused others may use."""
        from vtok.evaluation.report.exhibit import exhibit_file

        exhibits: list[Exhibit] = []
        failures: list[VtokError] = []
        left = (page_bytes - _TEXT_BYTES) / _BASE64
        for number, path in enumerate(paths):
            place = f"{number + 1}/{len(paths)} " if len(paths) > 1 else ""
            try:
                with _phases(place + path.name, quiet=self._saying.quiet) as notify:
                    exhibit = exhibit_file(
                        path,
                        model=self._model,
                        options=self._how,
                        codecs=self._codecs,
                        most_bytes=int(left / (len(paths) - number)),
                        notify=notify,
                    )
            except BrokenPipeError:
                raise  # nobody listens any more
            except Exception as error:  # whatever one clip brings about, the others are still shown
                failures.append(self._failed(path, error, alone=len(paths) == 1))
                continue
            left -= exhibit.num_bytes
            exhibits.append(exhibit)
            if self._saying.as_json:
                facts = {**exhibit.result.to_json(), "pictured": exhibit.pictured}
                print_json({"kind": "clip", **facts, "status": "ok"})
        return exhibits, failures

    def _failed(self, path: Path, error: Exception, *, alone: bool) -> VtokError:
        known = as_vtok_error(error, str(path))
        known.__cause__ = None if known is error else error  # for --debug
        report_failure({"input": str(path)}, known, as_json=self._saying.as_json, silent=alone)
        return known


def _check_page(output: str, megabytes: float, overwrite: bool) -> Path:
    """Find out early what could not be written."""
    if output in ("", "-"):
        raise UsageError(f"-o {output or repr(output)}: give the name of a file, such as page.html")
    if not LEAST_MEGABYTES <= megabytes <= MOST_MEGABYTES:
        limits = f"{LEAST_MEGABYTES:g} to {MOST_MEGABYTES:g}"
        raise UsageError(f"--megabytes {megabytes:g}: expected {limits}")
    check_output(Path(output), overwrite)
    return Path(output)


def _part(frames: int, size: str | None, start: float, timeout: float, card: bool) -> Part:
    """The part of each video that the options name; large ones are made smaller unless asked."""
    from vtok.evaluation.clips import Part

    if card:
        return make_part(None, size, start, timeout, card)
    return Part(
        frames=frames,
        size=size or USUAL_SIDE,
        only_shrink=size is None,
        start_seconds=start,
        timeout_seconds=timeout,
    )


@contextmanager
def _phases(name: str, *, quiet: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """A function that shows what is being done, and how far it is."""
    from vtok.cli.progress import frames_progress, waiting
    from vtok.evaluation.report.exhibit import PICTURES
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
                else:  # a search, of which nobody knows how long it takes
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
    saying: opt.Saying,
) -> None:
    """Write the page whole or not at all, and say so."""
    from vtok.evaluation.report.page import build_page

    page = build_page(exhibits, model, title)
    with atomic_output(target, overwrite) as temporary:
        try:
            temporary.write_bytes(page)
        except OSError as exc:
            raise OutputError(f"{target}: cannot be written ({exc.strerror})") from exc
    pictured = sum(exhibit.pictured for exhibit in exhibits)
    measured = sum(exhibit.result.frames for exhibit in exhibits)
    if saying.as_json:
        facts = {"clips": len(exhibits), "frames": measured, "pictured": pictured}
        print_json(
            {"kind": "page", "output": str(target), "bytes": len(page), **facts, "status": "ok"}
        )
    clips = "1 clip" if len(exhibits) == 1 else f"{len(exhibits)} clips"
    shown = f"{pictured} of {measured} frames in pictures"
    silent = saying.quiet or saying.as_json
    say(f"{target}: {clips}, {shown}, {len(page) / MEGABYTE:.1f} MB", quiet=silent)
