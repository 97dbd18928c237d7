"""Colours that mean something: a scale for errors, and a set to tell codes apart.

Both are laid out in OKLab (Bjorn Ottosson, "A perceptual color space for image processing", 2020),
where equal steps look about equal, and where a colour is too strong for a screen it is paled.
"""

from __future__ import annotations

import math

GOLDEN_ANGLE = 180 * (3 - math.sqrt(5))  # degrees: hues that never meet again
_LEAST_LIGHT, _MOST_LIGHT = 0.12, 0.97
_FIRST_HUE, _LAST_HUE = 290.0, 460.0  # violet, by way of red and orange to yellow
_STRENGTH = 0.2

Colour = tuple[int, int, int]
"""Red, green and blue, 0..255."""


def heat_scale(count: int = 256) -> list[Colour]:
    """From nearly black to nearly white by way of violet, red and yellow.

    Lightness rises by equal steps, so that the scale reads right in grey and for most kinds of
    colour blindness.
    """
    shares = [k / (count - 1) for k in range(count)]
    return [
        oklch_to_rgb(
            _LEAST_LIGHT + share * (_MOST_LIGHT - _LEAST_LIGHT),
            _STRENGTH * math.sin(math.pi * min(1.0, 0.1 + share)) ** 0.5 if share < 0.9 else 0.13,
            _FIRST_HUE + share * (_LAST_HUE - _FIRST_HUE),
        )
        for share in shares
    ]


def code_palette(count: int = 256) -> list[Colour]:
    """Colours to tell codes apart: neighbours in the list differ in hue and in lightness."""
    return [
        oklch_to_rgb(0.45 + 0.1 * (k % 5), 0.09 + 0.03 * (k % 3), GOLDEN_ANGLE * k)
        for k in range(count)
    ]


def oklch_to_rgb(lightness: float, chroma: float, hue: float) -> Colour:
    """A colour of OKLab by lightness 0..1, chroma (0 is grey) and hue in degrees, as sRGB.

    Where a screen has no such colour, the strongest of that lightness and hue that it has.
    """
    low, high = 0.0, chroma
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if _is_shown(_linear(lightness, middle, hue)) else (low, middle)
    strongest = chroma if _is_shown(_linear(lightness, chroma, hue)) else low
    red, green, blue = (_gamma(x) for x in _linear(lightness, strongest, hue))
    return red, green, blue


def _linear(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCh to linear sRGB, in 0..1 where a screen has the colour."""
    a, b = (chroma * f(math.radians(hue)) for f in (math.cos, math.sin))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )


def _is_shown(colour: tuple[float, float, float]) -> bool:
    return all(-1e-6 <= x <= 1 + 1e-6 for x in colour)


def _gamma(x: float) -> int:
    """Linear 0..1 to a level of sRGB."""
    x = min(1.0, max(0.0, x))
    return round(255 * (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055))
