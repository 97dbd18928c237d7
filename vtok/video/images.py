"""Pictures: one read as a clip of one frame, one frame written as a picture.

imageio is imported where it is used: whoever reads a video should not wait for it.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, features

from vtok._files import atomic_output
from vtok.errors import OutputError, ShapeError, UsageError, VideoError, VtokError
from vtok.video.frames import MAX_PIXELS, Frames

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")
"""First bytes of PNG, JPEG, BMP, TIFF and (among other RIFF files) WebP."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Names of the pictures that can be written."""
JPEG_QUALITY = 95


def is_picture(path: Path) -> bool:
    """Tell from its first bytes whether a file is a still picture; animations are videos."""
    with path.open("rb") as file:
        head = file.read(12)
    if not head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] != b"WEBP"):
        return False
    try:
        with Image.open(path) as image:
            return image.format not in ("PNG", "WEBP") or not getattr(image, "is_animated", False)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True  # a damaged picture, which read_picture will say


def read_picture(path: Path) -> Frames:
    """Read a picture upright, as its camera noted; transparency is dropped.

    Returns:
        uint8 [H, W, 3].

    Raises:
        VideoError: The picture is damaged or too large.
    """
    import imageio.v3 as iio

    try:
        with Image.open(path) as image:
            (width, height), mode = image.size, image.mode
        if width * height > MAX_PIXELS:
            raise VideoError(f"{path}: {width}x{height} is larger than {MAX_PIXELS} pixels")
        if mode.startswith("I"):  # 16-bit gray, whose high byte Pillow would not take by itself
            gray = iio.imread(path, plugin="pillow", index=0, rotate=True).clip(0, 65535)
            return (gray >> 8).astype(np.uint8)[..., None].repeat(3, axis=-1)
        pixels: Frames = iio.imread(path, plugin="pillow", index=0, rotate=True, mode="RGB")
        return pixels
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        reason = str(exc).replace(str(path), "file").partition("\n")[0]
        raise VideoError(f"{path}: damaged picture ({reason})") from exc


def write_png(path: Path, image: Frames, overwrite: bool = False) -> None:
    """Write a PNG picture; it appears whole or not at all.

    Args:
        path: File to write, ending in .png.
        image: uint8 [H, W, 3] RGB.
        overwrite: Replace an existing file.

    Raises:
        UsageError: The name does not end in .png.
        OutputError: The file exists or cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: the name of a PNG picture must end in .png")
    save_picture(path, image, overwrite)


def save_picture(path: Path, image: Frames, overwrite: bool) -> None:
    """Write a picture in the format of its name; it appears whole or not at all.

    Args:
        path: File to write, ending in one of `PICTURE_SUFFIXES`.
        image: uint8 [H, W, 3] RGB.
        overwrite: Replace an existing file.

    Raises:
        OutputError: The file exists or cannot be written.
    """
    import imageio.v3 as iio

    suffix = path.suffix.lower()
    encoded = iio.imwrite(  # a PNG takes no notice of the quality
        "<bytes>", image, plugin="pillow", extension=suffix, quality=JPEG_QUALITY
    )
    with atomic_output(path, overwrite) as temporary:
        try:
            temporary.write_bytes(encoded)
        except OSError as exc:
            raise OutputError(f"{path}: cannot be written ({exc.strerror})") from exc


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
