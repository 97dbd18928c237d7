"""Contact sheets of frames, and the colour scales of the report."""

from __future__ import annotations

import colorsys
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


HEAT = ("07001d", "2d0041", "5e0056", "960059", "c8274a", "e55f3b", "f09853", "e7cea9", "fff7c4")


def heat_scale(count: int = 256) -> list[str]:
    """Colours such as `#07001d`, from nearly black through violet, red and orange to nearly white.

    Lightness rises in nearly equal steps, so the scale also reads correctly in grey and with most
    kinds of colour blindness.
    """
    points = np.array([list(bytes.fromhex(colour)) for colour in HEAT])
    at = np.linspace(0, len(HEAT) - 1, count)
    levels = [np.interp(at, range(len(HEAT)), channel) for channel in points.T]
    return [f"#{bytes(colour).hex()}" for colour in np.stack(levels, -1).round().astype(np.uint8)]


def code_palette(count: int = 256) -> list[str]:
    """Categorical colours for codes; neighbours differ in hue and lightness."""
    golden = (3 - math.sqrt(5)) / 2  # its multiples never repeat a hue
    colours = (
        colorsys.hls_to_rgb(golden * k % 1, 0.35 + 0.09 * (k % 5), 0.45 + 0.1 * (k % 3))
        for k in range(count)
    )
    return [f"#{bytes(round(255 * x) for x in colour).hex()}" for colour in colours]


def labelled_tiles(frames: Sequence[Frames], labels: Sequence[str]) -> Frames:
    """Draw frames in rows of up to three (four frames: two rows of two), each over its label.

    Args:
        frames: frames uint8 [H, W, 3] of one shape; small ones are enlarged by an integer factor.
        labels: one text for each frame.

    Returns:
        uint8 [H', W', 3], both sides even.
    """
    scale = -(-300 // frames[0].shape[1])  # makes room for the labels
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
