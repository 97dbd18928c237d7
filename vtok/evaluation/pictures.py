"""Pictures of what was lost: original and reconstruction next to each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtok.evaluation.metrics import Frames
from vtok.media.sheet import BACKGROUND, draw_sheet

LEAST_WIDTH = 300  # of a tile: smaller frames are enlarged, so that the words fit below


def side_by_side(columns: dict[str, Frames], numbers: list[int]) -> Frames:
    """Rows of the same frame of several videos, each column under its label.

    Args:
        columns: uint8 [T, H, W, 3] by label, all of one shape.
        numbers: which frames to show, one row each.

    Returns:
        uint8 [H', W', 3].
    """
    rows = [[frames[number] for frames in columns.values()] for number in numbers]
    return draw_sheet(rows, titles=list(columns))


def labelled_tiles(frames: Sequence[Frames], labels: Sequence[str]) -> Frames:
    """Frames of one moment in rows of up to three, or two where there are four, words under each.

    Args:
        frames: uint8 [H, W, 3] each, all of one shape; small ones are enlarged pixel by pixel.
        labels: as many.

    Returns:
        uint8 [H', W', 3], both sides even.
    """
    scale = -(-LEAST_WIDTH // frames[0].shape[1])
    tiles = [frame.repeat(scale, axis=0).repeat(scale, axis=1) for frame in frames]
    columns = 2 if len(tiles) == 4 else min(3, len(tiles))
    missing = -len(tiles) % columns
    tiles += [np.full_like(tiles[0], BACKGROUND[0])] * missing
    words = [*labels, *[""] * missing]
    starts = range(0, len(tiles), columns)
    sheet = draw_sheet(
        [tiles[k : k + columns] for k in starts],
        captions=[words[k : k + columns] for k in starts],
    )
    odd = [(0, side % 2) for side in sheet.shape[:2]]
    return np.pad(sheet, (*odd, (0, 0)), mode="edge")
