"""Sheets of pictures: a grid, with words over its columns or under each of its pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtok.media.frames import Frames

MARGIN, LINE, FONT_SIZE = 6, 20, 15
BACKGROUND, INK = (18, 18, 20), (235, 235, 235)


def draw_sheet(
    rows: Sequence[Sequence[Frames]],
    *,
    titles: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
) -> Frames:
    """Draw pictures of one size in rows.

    Args:
        rows: uint8 [H, W, 3] each, as many in each row.
        titles: words over each column.
        captions: words under each picture, as many in as many rows.

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
