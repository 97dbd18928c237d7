"""Pictures of what was lost: original and reconstruction next to each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Frames = npt.NDArray[np.uint8]
MARGIN, LABEL_HEIGHT = 6, 26
BACKGROUND, INK = (18, 18, 20), (235, 235, 235)


def side_by_side(columns: dict[str, Frames], numbers: list[int]) -> Frames:
    """Rows of the same frame of several videos, each column under its label.

    Args:
        columns: uint8 [T, H, W, 3] by label, all of one shape.
        numbers: which frames to show, one row each.

    Returns:
        uint8 [H', W', 3].
    """
    height, width = next(iter(columns.values())).shape[1:3]
    size = (
        MARGIN + len(columns) * (width + MARGIN),
        LABEL_HEIGHT + len(numbers) * (height + MARGIN),
    )
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for column, (label, frames) in enumerate(columns.items()):
        left = MARGIN + column * (width + MARGIN)
        draw.text((left, 4), label, INK, font=font)
        for row, number in enumerate(numbers):
            top = LABEL_HEIGHT + row * (height + MARGIN)
            sheet.paste(Image.fromarray(frames[number]), (left, top))
    return np.asarray(sheet)
