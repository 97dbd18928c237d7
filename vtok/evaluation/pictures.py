"""Pictures of what was lost: original and reconstruction next to each other."""

from __future__ import annotations

from vtok.evaluation.metrics import Frames
from vtok.media.sheet import draw_sheet


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
