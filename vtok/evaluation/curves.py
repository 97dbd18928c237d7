"""Rate-distortion curves compared: the Bjontegaard deltas.

G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", ITU-T VCEG-M33 (2001):
the mean distance of two curves over what they share, one axis being the logarithm of the rate. Its
cubic polynomial swings where points lie unevenly, so between the points runs a piecewise cubic
Hermite curve that keeps their order (F. N. Fritsch and J. Butland, SIAM J. Sci. Stat. Comput. 5,
1984), as in the later practice of the standards bodies. Its integral is exact, not sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Point = tuple[float, float]
"""Rate (above 0; bits a pixel or any other unit) and quality (in dB or any other unit)."""


def bd_quality(curve: Sequence[Point], anchor: Sequence[Point]) -> float | None:
    """Mean quality that `curve` has above `anchor` at the same rate, in the unit of the quality.

    Returns:
        The mean over the rates that both reach, their logarithms counting alike; None where they
        share none, or a curve has fewer than two points.
    """
    return _mean_distance(*(_by_rate(points) for points in (curve, anchor)))


def bd_rate(curve: Sequence[Point], anchor: Sequence[Point]) -> float | None:
    """How many percent more bits `curve` takes than `anchor` at the same quality; less is better.

    Returns:
        The mean over the qualities that both reach; None where they share none, or where a curve
        has fewer than two points or does not rise with its rate.
    """
    distance = _mean_distance(*(_by_quality(points) for points in (curve, anchor)))
    return None if distance is None else 100 * float(np.expm1(distance))


Curve = tuple[Values, Values]


def _by_rate(points: Sequence[Point]) -> Curve | None:
    x, y = np.array(sorted(points), np.float64).reshape(-1, 2).T
    return _checked(np.log(x), y)


def _by_quality(points: Sequence[Point]) -> Curve | None:
    rate, quality = np.array(sorted(points), np.float64).reshape(-1, 2).T
    return _checked(quality, np.log(rate))


def _checked(x: Values, y: Values) -> Curve | None:
    """A curve over rising places, or None where these are none."""
    return (x, y) if len(x) > 1 and bool((np.diff(x) > 0).all()) else None


def _mean_distance(curve: Curve | None, anchor: Curve | None) -> float | None:
    """Mean of `curve` minus `anchor` over the places that both have."""
    if curve is None or anchor is None:
        return None
    low = max(curve[0][0], anchor[0][0])
    high = min(curve[0][-1], anchor[0][-1])
    if low >= high:
        return None
    return (_integral(curve, low, high) - _integral(anchor, low, high)) / float(high - low)


def _integral(curve: Curve, low: float, high: float) -> float:
    """Of the piecewise cubic through a curve's points, from `low` to `high` within them."""
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
    """The cubic over 0..1 with these values and slopes (by unit of x) at its ends."""
    rise, (first, last) = ends[1] - ends[0], slopes * width
    return np.polynomial.Polynomial(
        [ends[0], first, 3 * rise - 2 * first - last, first + last - 2 * rise]
    )


def _slopes(x: Values, y: Values) -> Values:
    """At each point, so that the curve never runs beyond two neighbouring points."""
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
    """At an end, by three points, held back where it would turn the curve."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    if slope * secant <= 0:
        return 0.0
    if secant * next_secant <= 0 and abs(slope) > 3 * abs(secant):
        return 3 * secant
    return float(slope)
