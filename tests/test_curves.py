"""Bjontegaard deltas of curves with known distances."""

import math

import pytest

from vtok.evaluation.curves import bd_quality, bd_rate

ANCHOR = [(0.1, 30.0), (0.2, 33.0), (0.4, 35.0), (0.8, 36.0)]


def test_half_the_rate_is_minus_50_percent() -> None:
    half = [(rate / 2, quality) for rate, quality in ANCHOR]
    assert bd_rate(half, ANCHOR) == pytest.approx(-50)
    assert bd_rate(ANCHOR, half) == pytest.approx(100)


def test_constant_offset_of_quality() -> None:
    better = [(rate, quality + 1.5) for rate, quality in ANCHOR]
    assert bd_quality(better, ANCHOR) == pytest.approx(1.5)
    assert bd_quality(ANCHOR, better) == pytest.approx(-1.5)


def test_straight_lines() -> None:
    line = [(2.0**k, 3.0 * k) for k in range(5)]  # 3 a doubling, from 1 to 16
    steep = [(2.0**k, 4.0 * k) for k in range(1, 4)]  # 4 a doubling, from 2 to 8
    assert bd_quality(steep, line) == pytest.approx(2.0)  # (1 + 2 + 3) / 3 by symmetry
    # at quality q the rates are 2^(q/4) and 2^(q/3); from 4 to 12 the mean of q is 8
    assert bd_rate(steep, line) == pytest.approx(100 * (2 ** (8 / 4 - 8 / 3) - 1))


def test_order_of_points_does_not_matter() -> None:
    better = [(0.15, 33.5), (0.3, 34.5), (0.6, 36.5)]
    assert bd_quality(better[::-1], ANCHOR[::-1]) == bd_quality(better, ANCHOR)


def test_only_the_common_range_counts() -> None:
    longer = [*ANCHOR, (100.0, 36.5)]
    far = bd_quality([(rate, quality + 1) for rate, quality in longer], ANCHOR)
    assert far == pytest.approx(1, abs=0.2)  # the slope at the end depends on the next point


def test_curve_does_not_overshoot() -> None:
    # a cubic polynomial through these points would fall below 10
    stair = [(1.0, 10.0), (2.0, 10.001), (4.0, 20.0), (8.0, 20.001)]
    flat = [(1.0, 10.0), (2.0, 10.0)]
    assert 0 <= bd_quality(stair, flat) <= 0.001


def test_curves_without_a_common_range_have_no_distance() -> None:
    assert bd_quality([(1.0, 5.0), (2.0, 6.0)], [(3.0, 5.0), (4.0, 6.0)]) is None
    assert bd_rate([(1.0, 1.0), (2.0, 2.0)], [(1.0, 5.0), (2.0, 6.0)]) is None
    assert bd_rate(ANCHOR[:1], ANCHOR) is None
    assert bd_rate([], ANCHOR) is None


def test_falling_curve_has_no_bd_rate() -> None:
    falling = [(0.1, 33.0), (0.2, 32.0), (0.4, 34.0)]
    assert bd_rate(falling, ANCHOR) is None
    assert math.isfinite(bd_quality(falling, ANCHOR))


def test_matches_scipy_pchip() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    curve = [(0.11, 29.0), (0.2, 29.5), (0.33, 34.0), (0.9, 34.2)]
    logs = [[math.log(rate) for rate, _ in points] for points in (curve, ANCHOR)]
    low, high = max(logs[0][0], logs[1][0]), min(logs[0][-1], logs[1][-1])
    areas = [
        interpolate.PchipInterpolator(x, [quality for _, quality in points]).integrate(low, high)
        for x, points in zip(logs, (curve, ANCHOR), strict=True)
    ]
    assert bd_quality(curve, ANCHOR) == pytest.approx((areas[0] - areas[1]) / (high - low))
