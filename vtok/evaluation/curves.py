"""Rate-distortion curves: Bjontegaard deltas and plots.

The deltas follow G. Bjontegaard, "Calculation of average PSNR differences between RD-curves",
ITU-T VCEG-M33 (2001): the mean distance of two curves over their common range, with the rate on a
logarithmic axis. In place of one cubic polynomial, which oscillates between unevenly spaced points,
the curves are monotone piecewise cubics (F. N. Fritsch and J. Butland, SIAM J. Sci. Stat. Comput.
5, 1984), as in later practice of the standards bodies. They are integrated exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vtok._files import atomic_output
from vtok.errors import OutputError, UsageError
from vtok.evaluation.metrics import METRICS
from vtok.evaluation.results import VTOK, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]
RatePoint = tuple[float, float]
"""Rate (above 0, in any unit) and quality (in any unit)."""


def bd_quality(curve: Sequence[RatePoint], anchor: Sequence[RatePoint]) -> float | None:
    """Mean difference of quality, `curve` minus `anchor`, at the same rate.

    Returns:
        The mean over the logarithms of the rates that both curves cover, in the unit of the
        quality; None if they share no range or a curve has fewer than two points.
    """
    by_rate = ([(np.log(x), y) for x, y in sorted(points)] for points in (curve, anchor))
    return _mean_distance(*by_rate)


def bd_rate(curve: Sequence[RatePoint], anchor: Sequence[RatePoint]) -> float | None:
    """Mean difference of rate, `curve` against `anchor`, at the same quality, in percent.

    Returns:
        The mean over the qualities that both curves cover, below 0 if `curve` needs fewer bits;
        None if they share no range, a curve has fewer than two points or does not rise.
    """
    by_quality = ([(y, np.log(x)) for x, y in sorted(points)] for points in (curve, anchor))
    distance = _mean_distance(*by_quality)
    return None if distance is None else 100 * float(np.expm1(distance))


def quality_at(rate: float, curve: Sequence[RatePoint]) -> float | None:
    """Interpolate the quality of a curve at a rate; None outside its range."""
    x, y = np.array(list(dict(sorted(curve)).items()), np.float64).reshape(-1, 2).T
    if len(x) < 2 or not x[0] <= rate <= x[-1]:
        return None
    return float(_interpolate(np.log(x), y, np.log([rate]))[0])


def _mean_distance(curve: Sequence[RatePoint], anchor: Sequence[RatePoint]) -> float | None:
    """Mean of `curve` minus `anchor` over the range of x that both cover; None if undefined."""
    (x, y), (x2, y2) = (np.array(c, np.float64).reshape(-1, 2).T for c in (curve, anchor))
    if any(len(values) < 2 or (np.diff(values) <= 0).any() for values in (x, x2)):
        return None
    low, high = max(x[0], x2[0]), min(x[-1], x2[-1])
    if low >= high:
        return None
    # between the points of both, the curves are cubics, which two nodes integrate exactly
    ends = np.unique(np.concatenate((x, x2)).clip(low, high))
    half, middle = np.diff(ends) / 2, (ends[1:] + ends[:-1]) / 2
    total = 0.0
    for at in (middle - half / np.sqrt(3), middle + half / np.sqrt(3)):
        total += float(half @ (_interpolate(x, y, at) - _interpolate(x2, y2, at)))
    return total / float(high - low)


def _interpolate(x: Values, y: Values, at: Values) -> Values:
    """Values of the piecewise cubic through the points (x, y)."""
    k = np.searchsorted(x, at).clip(1, len(x) - 1) - 1
    slopes = _slopes(x, y)
    width, rise = x[k + 1] - x[k], y[k + 1] - y[k]
    t, first, last = (at - x[k]) / width, slopes[k] * width, slopes[k + 1] * width
    cubic = first + t * (3 * rise - 2 * first - last + t * (first + last - 2 * rise))
    values: Values = y[k] + t * cubic
    return values


def _slopes(x: Values, y: Values) -> Values:
    """Slope at each point that keeps the curve between neighbouring points."""
    widths, secants = np.diff(x), np.diff(y) / np.diff(x)
    if len(x) == 2:
        return np.repeat(secants, 2)
    slopes = np.zeros(len(x))
    before, after = 2 * widths[1:] + widths[:-1], widths[1:] + 2 * widths[:-1]
    same = secants[:-1] * secants[1:] > 0
    slopes[1:-1][same] = (before + after)[same] / (
        before[same] / secants[:-1][same] + after[same] / secants[1:][same]
    )
    slopes[0] = _end_slope(widths[0], widths[1], secants[0], secants[1])
    slopes[-1] = _end_slope(widths[-1], widths[-2], secants[-1], secants[-2])
    return slopes


def _end_slope(width: float, next_width: float, secant: float, next_secant: float) -> float:
    """Three-point slope at an end, limited so that the curve stays monotone there."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    if slope * secant <= 0:
        return 0.0
    if secant * next_secant <= 0 and abs(slope) > 3 * abs(secant):
        return 3 * secant
    return float(slope)


COLOURS = ("#d1495b", "#30638e", "#edae49", "#66a182", "#8d6a9f")
"""Colours of the tokenizer and of the codecs, distinguishable with colour blindness."""
MARKS = "osD^v"


def write_curves(
    paths: Sequence[Path], points: Sequence[Point], title: str, overwrite: bool = False
) -> None:
    """Plot every metric over bits per pixel, with one curve per coder.

    Args:
        paths: files to write atomically, ending in .png or .svg.
        points: points of one clip, or means over clips.
        title: title of the figure.
        overwrite: replace existing files.

    Raises:
        UsageError: if matplotlib is missing.
        OutputError: if a file cannot be written.
    """
    try:
        import matplotlib

        figure = _draw(points, title)
    except ImportError as exc:
        raise UsageError("drawing curves needs matplotlib: pip install 'vtok[plot]'") from exc
    for path in paths:
        kind = path.suffix.removeprefix(".")
        facts = {"Date": None} if kind == "svg" else {}  # no date makes the output reproducible
        with (
            matplotlib.rc_context({"svg.hashsalt": "vtok", "svg.fonttype": "none"}),
            atomic_output(path, overwrite) as temporary,
        ):
            try:
                figure.savefig(temporary, format=kind, dpi=110, metadata=facts)
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
        if known:
            place.plot(
                *zip(*known, strict=True),
                label=coder,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKS[number % len(MARKS)],
                markersize=5,
                linewidth=2.2 if coder == VTOK else 1.4,
            )
    metric, first = METRICS[name], points[0].coder
    place.set_xscale("log")
    place.set_xlabel("bits per pixel")
    place.set_title(metric.label + ("" if metric.rises else " (lower is better)"), fontsize=10)
    ticks = sorted({round(p.bpp, 2 if p.bpp > 0.1 else 3) for p in points if p.coder == first})
    place.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    place.minorticks_off()
    place.grid(alpha=0.3)
