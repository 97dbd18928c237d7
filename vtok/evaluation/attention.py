"""Pictures of where learned tokens look: a frame, and the frame under each token's map."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from vtok.evaluation.metrics import Frames
from vtok.media.frames import resize_frames
from vtok.media.sheet import BACKGROUND, draw_sheet

Maps = npt.NDArray[np.float32]
"""float32 [S, h, w]."""
DIMMED = 0.4
"""How bright the frame is where a token does not look."""
SHEET_ASPECT = 1.6
"""Width of a sheet by its height, about."""


def draw_maps(frame: Frames, maps: Maps, position: int) -> Frames:
    """One sheet: the frame, then for each token the frame in gray, glowing where it looks.

    Each map is scaled to its own peak, so that a broad one can be read as well as a sharp one;
    how sharp it is the caption says: on which share of the frame half of its weight lies.

    Args:
        frame: uint8 [H, W, 3].
        maps: float32 [S, h, w], of any sign: the size of a weight counts.
        position: pixels that a position of the maps spans; they may reach beyond the frame.

    Returns:
        uint8 [H', W', 3].
    """
    pictures, captions = [frame], ["the frame"]
    for number, weights in enumerate(np.abs(maps), 1):
        pictures.append(glow(frame, weights, position))
        captions.append(f"token {number}: half on {100 * half_share(weights):.0f} %")
    columns = sheet_columns(len(pictures), frame.shape[1] / frame.shape[0])
    blank = np.full_like(frame, BACKGROUND)
    missing = -len(pictures) % columns
    pictures, captions = pictures + [blank] * missing, captions + [""] * missing
    starts = range(0, len(pictures), columns)
    return draw_sheet(
        [pictures[start : start + columns] for start in starts],
        captions=[captions[start : start + columns] for start in starts],
    )


def glow(frame: Frames, weights: npt.NDArray[np.floating], position: int) -> Frames:
    """A frame in dim gray, and over it weights [h, w] of at least 0 from black over red to white.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = frame.shape[:2]
    peak = float(weights.max())
    levels = np.zeros_like(weights) if peak <= 0 else weights / peak
    coarse = np.repeat((255 * levels).round().astype(np.uint8)[None, ..., None], 3, axis=-1)
    across, down = weights.shape[1] * position, weights.shape[0] * position
    fine = resize_frames(np.ascontiguousarray(coarse), across, down)[0, :height, :width, :1]
    heat = fine.astype(np.float32) / 255
    ramp = np.concatenate([3 * heat, 3 * heat - 1, 3 * heat - 2], axis=-1).clip(0, 1)
    gray = frame.astype(np.float32).mean(-1, keepdims=True) * DIMMED
    shown: Frames = (gray * (1 - heat) + 255 * ramp).clip(0, 255).round().astype(np.uint8)
    return shown


def half_share(weights: npt.NDArray[np.floating]) -> float:
    """The smallest share of all positions on which half of the weight lies, 0..1."""
    ordered = np.sort(weights.ravel())[::-1].astype(np.float64)
    total = ordered.sum()
    if total <= 0:
        return 1.0
    needed = int(np.searchsorted(ordered.cumsum(), total / 2)) + 1
    return min(1.0, needed / ordered.size)


def sheet_columns(pictures: int, aspect: float) -> int:
    """How many pictures of some width by height go into a row of a sheet of a usual shape."""
    columns = round(math.sqrt(pictures * SHEET_ASPECT / aspect))
    return max(1, min(pictures, columns))
