"""Rate-distortion curves: Bjontegaard deltas and plots.

The deltas follow G. Bjontegaard, "Calculation of average PSNR differences between RD-curves",
ITU-T VCEG-M33 (2001): the mean distance of two curves over their common range, with the rate on a
logarithmic axis. In place of one cubic polynomial, which oscillates between unevenly spaced points,
the curves are monotone piecewise cubics (F. N. Fritsch and J. Butland, SIAM J. Sci. Stat. Comput.
5, 1984), as in later practice of the standards bodies. They are integrated exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vtok._files import atomic_output
from vtok.errors import OutputError, UsageError
from vtok.evaluation.quality import METRICS
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
    return _mean_distance(*(_by_rate(points) for points in (curve, anchor)))


def bd_rate(curve: Sequence[RatePoint], anchor: Sequence[RatePoint]) -> float | None:
    """Mean difference of rate, `curve` against `anchor`, at the same quality, in percent.

    Returns:
        The mean over the qualities that both curves cover, below 0 if `curve` needs fewer bits;
        None if they share no range, a curve has fewer than two points or does not rise.
    """
    distance = _mean_distance(*(_by_quality(points) for points in (curve, anchor)))
    return None if distance is None else 100 * float(np.expm1(distance))


Curve = tuple[Values, Values]


def _by_rate(points: Sequence[RatePoint]) -> Curve | None:
    x, y = np.array(sorted(points), np.float64).reshape(-1, 2).T
    return _checked(np.log(x), y)


def _by_quality(points: Sequence[RatePoint]) -> Curve | None:
    rate, quality = np.array(sorted(points), np.float64).reshape(-1, 2).T
    return _checked(quality, np.log(rate))


def _checked(x: Values, y: Values) -> Curve | None:
    """The curve, or None unless x has two points or more and rises strictly."""
    return (x, y) if len(x) > 1 and bool((np.diff(x) > 0).all()) else None


def _mean_distance(curve: Curve | None, anchor: Curve | None) -> float | None:
    """Mean of `curve` minus `anchor` over the range of x that both cover."""
    if curve is None or anchor is None:
        return None
    low = max(curve[0][0], anchor[0][0])
    high = min(curve[0][-1], anchor[0][-1])
    if low >= high:
        return None
    return (_integral(curve, low, high) - _integral(anchor, low, high)) / float(high - low)


def _integral(curve: Curve, low: float, high: float) -> float:
    """Integral from `low` to `high` of the piecewise cubic through the points of a curve."""
    x, y = curve
    slopes = _slopes(x, y)
    total = 0.0
    for k in range(len(x) - 1):
        left, right = max(low, x[k]), min(high, x[k + 1])
        if left < right:
            width = x[k + 1] - x[k]
            piece = _hermite(y[k : k + 2], slopes[k : k + 2], width).integ()
            total += width * (piece((right - x[k]) / width) - piece((left - x[k]) / width))
    return float(total)


def _hermite(ends: Values, slopes: Values, width: float) -> np.polynomial.Polynomial:
    """Cubic over 0..1 with the given values and slopes (per unit of x) at its ends."""
    rise, (first, last) = ends[1] - ends[0], slopes * width
    return np.polynomial.Polynomial(
        [ends[0], first, 3 * rise - 2 * first - last, first + last - 2 * rise]
    )


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
        figure = _draw(points, title)
    except ImportError as exc:
        raise UsageError("drawing curves needs matplotlib: pip install 'vtok[plot]'") from exc
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
    place.set_xlabel("bits per pixel")
    place.set_title(metric.label + ("" if metric.rises else " (lower is better)"), fontsize=10)
    ticks = sorted({round(point.bpp, 2 if point.bpp > 0.1 else 3) for point in points
                    if point.coder == points[0].coder})  # fmt: skip
    place.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    place.minorticks_off()
    place.grid(alpha=0.3)


def _render(figure: Figure, kind: str) -> bytes:
    import matplotlib

    data = BytesIO()
    # no date and a fixed salt make the output reproducible
    with matplotlib.rc_context({"svg.hashsalt": "vtok", "svg.fonttype": "none"}):
        figure.savefig(data, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {})
    return data.getvalue()
