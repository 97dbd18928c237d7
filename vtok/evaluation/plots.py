"""Rate-distortion curves as a picture, by matplotlib (the extra `vtok[plot]`)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from vtok.atomic import atomic_output
from vtok.errors import OutputError, UsageError
from vtok.evaluation.quality import METRICS
from vtok.evaluation.results import VTOK, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#d1495b", "#30638e", "#edae49", "#66a182", "#8d6a9f")
"""Of the tokenizer, then of the codecs; told apart by most kinds of colour blindness."""
MARKS = "osD^v"
FORMATS = (".png", ".svg")


def check_plotting() -> None:
    """Find out early whether curves can be drawn.

    Raises:
        UsageError: if matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise UsageError("drawing curves needs matplotlib: pip install 'vtok[plot]'") from exc


def write_curves(
    paths: Sequence[Path], points: Sequence[Point], title: str, overwrite: bool = False
) -> None:
    """Draw every metric over bits a pixel, a curve for each coder; each file whole or not at all.

    Args:
        paths: to write, ending in one of `FORMATS`.
        points: of one clip, or means over clips.
        title: over the picture.
        overwrite: whether existing files may be replaced.

    Raises:
        UsageError: if matplotlib is missing.
        OutputError: if a file cannot be written.
    """
    check_plotting()
    figure = _draw(points, title)
    for path in paths:
        data = _render(figure, path.suffix.removeprefix("."))
        with atomic_output(path, overwrite) as temporary:
            try:
                temporary.write_bytes(data)
            except OSError as exc:
                raise OutputError(f"{path}: cannot be written ({exc.strerror})") from exc


def _draw(points: Sequence[Point], title: str) -> Figure:
    from matplotlib.figure import Figure

    names = [name for name in METRICS if any(p.quality.get(name) is not None for p in points)]
    columns = 2 if len(names) == 4 else min(3, max(1, len(names)))
    rows = -(-len(names) // columns) or 1
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for name, place in zip(names, axes, strict=False):
        _draw_metric(place, name, points)
    for place in axes[len(names) :]:
        place.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title)
    return figure


def _draw_metric(place: Axes, name: str, points: Sequence[Point]) -> None:
    for number, coder in enumerate(dict.fromkeys(point.coder for point in points)):
        pairs = [(p.bpp, p.quality.get(name)) for p in points if p.coder == coder]
        known = sorted((x, y) for x, y in pairs if y is not None)
        if not known:
            continue
        place.plot(
            [x for x, _ in known],
            [y for _, y in known],
            label=coder,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKS[number % len(MARKS)],
            markersize=5,
            linewidth=2.2 if coder == VTOK else 1.4,
        )
    metric = METRICS[name]
    place.set_xscale("log")
    place.set_xlabel("bits a pixel")
    place.set_title(metric.label + ("" if metric.rises else " (less is better)"), fontsize=10)
    ticks = sorted({round(point.bpp, 2 if point.bpp > 0.1 else 3) for point in points
                    if point.coder == points[0].coder})  # fmt: skip
    place.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    place.minorticks_off()
    place.grid(alpha=0.3)


def _render(figure: Figure, kind: str) -> bytes:
    import matplotlib

    data = BytesIO()
    # the same bytes every time
    with matplotlib.rc_context({"svg.hashsalt": "vtok", "svg.fonttype": "none"}):
        figure.savefig(data, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {})
    return data.getvalue()
