"""Pictures: read as a clip of one frame, written from one frame.

imageio is imported where it is used, so that reading a video does not wait for it.
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
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")  # names of the pictures that can be written
JPEG_QUALITY = 95


def is_picture(path: Path) -> bool:
    """Return True if the first bytes are those of a still picture; animations are videos."""
    with path.open("rb") as file:
        head = file.read(12)
    if not head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] != b"WEBP"):
        return False
    try:
        with Image.open(path) as image:
            return image.format not in ("PNG", "WEBP") or not getattr(image, "is_animated", False)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True  # a damaged picture, reported by read_picture


def read_picture(path: Path) -> Frames:
    """Read a picture, rotated upright by its EXIF data; transparency is dropped.

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
        if mode.startswith("I"):  # 16-bit gray, which Pillow would clip
            gray = iio.imread(path, plugin="pillow", index=0, rotate=True).clip(0, 65535)
            return (gray >> 8).astype(np.uint8)[..., None].repeat(3, axis=-1)
        pixels: Frames = iio.imread(path, plugin="pillow", index=0, rotate=True, mode="RGB")
        return pixels
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        reason = str(exc).replace(str(path), "file").partition("\n")[0]
        raise VideoError(f"{path}: damaged picture ({reason})") from exc


def write_png(path: Path, image: Frames, overwrite: bool = False) -> None:
    """Write a PNG picture atomically.

    Args:
        path: File to write, ending in .png.
        image: uint8 [H, W, 3] RGB.
        overwrite: Replace an existing file.

    Raises:
        UsageError: The name does not end in .png.
        OutputError: The file exists or cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: expected a name that ends in .png")
    with atomic_output(path, overwrite) as temporary:
        write_picture(temporary, image, ".png", str(path))


def write_picture(temporary: Path, image: Frames, suffix: str, name: str) -> None:
    """Write uint8 [H, W, 3] RGB in the format of a suffix; errors show `name`."""
    import imageio.v3 as iio

    encoded = iio.imwrite(  # PNG ignores the quality
        "<bytes>", image, plugin="pillow", extension=suffix, quality=JPEG_QUALITY
    )
    try:
        temporary.write_bytes(encoded)
    except OSError as exc:
        raise OutputError(f"{name}: cannot be written ({exc.strerror})") from exc


QUALITY = 92
MAX_SIDE = 16383  # pixels, a limit of the format
_EFFORT = 2  # 0..6: higher values double the time to save a few percent


def frame_to_webp(frame: Frames, quality: int = QUALITY) -> bytes:
    """Encode one frame as a lossy WebP file.

    Args:
        frame: uint8 [H, W, 3].
        quality: 0 to 100.

    Raises:
        ShapeError: A side is longer than `MAX_SIDE` pixels.
        VtokError: This Pillow was built without WebP.
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
    """Decode a WebP file to uint8 [H, W, 3]."""
    with Image.open(BytesIO(data), formats=("WEBP",)) as image:
        return np.asarray(image.convert("RGB"))
