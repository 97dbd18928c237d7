"""Contact sheets of frames, and the colour scales of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtok.video.frames import Frames

MARGIN, LINE, FONT_SIZE = 6, 20, 15
BACKGROUND, INK = (18, 18, 20), (235, 235, 235)


def draw_sheet(
    rows: Sequence[Sequence[Frames]],
    *,
    titles: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
) -> Frames:
    """Draw rows of equally sized pictures on one sheet.

    Args:
        rows: rows of one length, of pictures uint8 [H, W, 3].
        titles: text above each column.
        captions: text below each picture.

    Returns:
        uint8 [H', W', 3].
    """
    height, width = rows[0][0].shape[:2]
    top = MARGIN if titles is None else MARGIN + LINE
    step = height + MARGIN + (0 if captions is None else LINE)
    size = (MARGIN + len(rows[0]) * (width + MARGIN), top + len(rows) * step)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_SIZE)
    for column, title in enumerate(titles or ()):
        draw.text((MARGIN + column * (width + MARGIN), 4), title, INK, font=font)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            left, upper = MARGIN + column * (width + MARGIN), top + row * step
            sheet.paste(Image.fromarray(picture), (left, upper))
            if captions is not None:
                draw.text((left, upper + height + 1), captions[row][column], INK, font=font)
    return np.asarray(sheet)


_GOLDEN_ANGLE = 180 * (3 - math.sqrt(5))  # degrees; its multiples never repeat a hue
_DARKEST, _LIGHTEST = 0.12, 0.97
_FIRST_HUE, _LAST_HUE = 290.0, 460.0  # violet to yellow through red and orange
_CHROMA = 0.2

Colour = tuple[int, int, int]
"""Red, green and blue, 0..255."""


def heat_scale(count: int = 256) -> list[Colour]:
    """Colour scale from nearly black through violet, red and yellow to nearly white.

    Lightness rises in equal steps, so the scale also reads correctly in grey and with most kinds
    of colour blindness.
    """
    shares = [k / (count - 1) for k in range(count)]
    return [
        oklch_to_rgb(
            _DARKEST + share * (_LIGHTEST - _DARKEST),
            _CHROMA * math.sin(math.pi * min(1.0, 0.1 + share)) ** 0.5 if share < 0.9 else 0.13,
            _FIRST_HUE + share * (_LAST_HUE - _FIRST_HUE),
        )
        for share in shares
    ]


def code_palette(count: int = 256) -> list[Colour]:
    """Categorical colours for codes; neighbours differ in hue and lightness."""
    return [
        oklch_to_rgb(0.45 + 0.1 * (k % 5), 0.09 + 0.03 * (k % 3), _GOLDEN_ANGLE * k)
        for k in range(count)
    ]


def oklch_to_rgb(lightness: float, chroma: float, hue: float) -> Colour:
    """Convert OKLCh (B. Ottosson, "A perceptual color space for image processing") to sRGB.

    Args:
        lightness: 0..1.
        chroma: 0 for grey; reduced as far as needed if sRGB has no such colour.
        hue: in degrees.
    """
    low, high = 0.0, chroma
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if _in_gamut(_linear(lightness, middle, hue)) else (low, middle)
    valid = chroma if _in_gamut(_linear(lightness, chroma, hue)) else low
    red, green, blue = (_gamma(x) for x in _linear(lightness, valid, hue))
    return red, green, blue


def _linear(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCh to linear sRGB, outside 0..1 if sRGB has no such colour."""
    a, b = (chroma * f(math.radians(hue)) for f in (math.cos, math.sin))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )


def _in_gamut(colour: tuple[float, float, float]) -> bool:
    return all(-1e-6 <= x <= 1 + 1e-6 for x in colour)


def _gamma(x: float) -> int:
    """Linear 0..1 to an sRGB level 0..255."""
    x = min(1.0, max(0.0, x))
    return round(255 * (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055))


_TILE_WIDTH = 300  # smaller frames are enlarged to make room for the caption


def side_by_side(columns: dict[str, Frames], numbers: list[int]) -> Frames:
    """Draw frames of several videos in columns under their labels.

    Args:
        columns: videos uint8 [T, H, W, 3] of one shape, by label.
        numbers: indices of the frames to show, one row each.

    Returns:
        uint8 [H', W', 3].
    """
    rows = [[frames[number] for frames in columns.values()] for number in numbers]
    return draw_sheet(rows, titles=list(columns))


def labelled_tiles(frames: Sequence[Frames], labels: Sequence[str]) -> Frames:
    """Draw frames in rows of up to three (four frames: two rows of two), each over its label.

    Args:
        frames: frames uint8 [H, W, 3] of one shape; small ones are enlarged by an integer factor.
        labels: one text for each frame.

    Returns:
        uint8 [H', W', 3], both sides even.
    """
    scale = -(-_TILE_WIDTH // frames[0].shape[1])
    tiles = [frame.repeat(scale, axis=0).repeat(scale, axis=1) for frame in frames]
    columns = 2 if len(tiles) == 4 else min(3, len(tiles))
    missing = -len(tiles) % columns
    tiles += [np.full_like(tiles[0], BACKGROUND[0])] * missing
    captions = [*labels, *[""] * missing]
    starts = range(0, len(tiles), columns)
    sheet = draw_sheet(
        [tiles[k : k + columns] for k in starts],
        captions=[captions[k : k + columns] for k in starts],
    )
    odd = [(0, side % 2) for side in sheet.shape[:2]]
    return np.pad(sheet, (*odd, (0, 0)), mode="edge")
