"""Frames as small WebP pictures: a seventh of a PNG's bytes, and every browser shows them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, features

from vtok.errors import ShapeError, VtokError
from vtok.media.frames import Frames

QUALITY = 92
MAX_SIDE = 16383
"""Pixels: more than that the format cannot say."""
_EFFORT = 2  # of 0..6: beyond it, twice the time saves a few percent of the bytes


def frame_to_webp(frame: Frames, quality: int = QUALITY) -> bytes:
    """One frame uint8 [H, W, 3] as a lossy WebP file.

    Args:
        frame: to write.
        quality: 0 to 100.

    Raises:
        ShapeError: for sides of more than `MAX_SIDE` pixels.
        VtokError: if this Pillow was built without WebP.
    """
    height, width = frame.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise ShapeError(f"frames of {width}x{height}: WebP holds up to {MAX_SIDE} pixels a side")
    if not features.check("webp"):
        raise VtokError("this Pillow cannot write WebP: pip install --upgrade pillow")
    data = BytesIO()
    Image.fromarray(frame).save(data, "WEBP", quality=quality, method=_EFFORT)
    return data.getvalue()


def webp_to_frame(data: bytes) -> Frames:
    """What `frame_to_webp` wrote, as it will be seen, uint8 [H, W, 3]."""
    with Image.open(BytesIO(data), formats=("WEBP",)) as image:
        return np.asarray(image.convert("RGB"))
