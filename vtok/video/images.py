"""Pictures: read as a clip of one frame, or of the pages of a stack; written from one frame.

imageio is imported where it is used, so that reading a video does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import unpack_from
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps, features

from vtok._files import atomic_output
from vtok.errors import OutputError, ShapeError, UsageError, VideoError, VtokError
from vtok.video.frames import (
    DEFAULT_FPS,
    DEFAULT_READING,
    MAX_PIXELS,
    DepthRange,
    Frames,
    ReadOptions,
)

PNG = b"\x89PNG\r\n\x1a\n"
SIGNATURES = (PNG, b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*", b"RIFF")
"""First bytes of PNG, JPEG, BMP, TIFF and (among other RIFF files) WebP."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")  # names of the pictures that can be written
JPEG_QUALITY = 95
TIFF_TAGS = (254, 255, 256)  # the first tag of a TIFF picture is one of these
MAX_JPEG = 1 << 26  # bytes in which the first picture of a stream must end
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Pages:
    """A picture, or the pages of a TIFF or WebP file.

    Attributes:
        width, height: pixels of each page, upright.
        times: seconds at which each is shown, and the end.
        read: returns a page by its number, uint8 [H, W, 3].
        notes: remarks about the file, one line each.
    """

    width: int
    height: int
    times: tuple[Fraction, ...]
    read: Callable[[int], Frames]
    notes: tuple[str, ...] = ()


def open_pages(path: Path, reading: ReadOptions = DEFAULT_READING) -> Pages | None:
    """Open a picture or a stack of pages of one size; None for videos, which animated PNGs are.

    Pictures are rotated upright by their EXIF data.

    Args:
        path: File.
        reading: Treatment of pixels.

    Raises:
        VideoError: The picture is damaged, too large, or needs a depth range.
    """
    with path.open("rb") as file:
        head = file.read(12)
    if not head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] != b"WEBP"):
        return None
    if find_demuxer(path) is not None:
        return None
    try:
        with Image.open(path) as image:
            if image.format == "PNG" and getattr(image, "is_animated", False):
                return None
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise VideoError(f"{path}: {width}x{height} is larger than {MAX_PIXELS} pixels")
            count, notes = _count_frames(image, path)
            times = [Fraction(0)]
            for number in range(count):
                image.seek(number)
                shown = Fraction(round(image.info.get("duration") or 0), 1000)
                times.append(times[-1] + (shown or 1 / DEFAULT_FPS))
        first = _read_page(path, 0, reading)
    except _BROKEN as exc:
        raise _damaged(path, exc) from exc

    def read(number: int) -> Frames:
        try:
            return first if number == 0 else _read_page(path, number, reading)
        except _BROKEN as exc:
            raise _damaged(path, exc) from exc

    return Pages(first.shape[1], first.shape[0], tuple(times), read, notes)


def read_picture(path: Path) -> Frames:
    """Read a picture, or the first page of a stack; see `open_pages`.

    Returns:
        uint8 [H, W, 3].

    Raises:
        VideoError: It is no picture, or damaged, too large, or of more than 8 bits.
    """
    pages = open_pages(path)
    if pages is None:
        raise VideoError(f"{path}: not a picture")
    return pages.read(0)


def _count_frames(image: Image.Image, path: Path) -> tuple[int, tuple[str, ...]]:
    """Return the number of pages that are frames, and remarks about the others."""
    count = getattr(image, "n_frames", 1)
    if count == 1 and image.format == "TIFF" and _holds_another_tiff(path):
        raise VideoError(
            f"{path}: TIFF pictures one after another cannot be split: save each as a file"
        )
    if count == 1 or image.format not in ("TIFF", "WEBP"):
        return 1, ()  # a camera's picture has previews
    size = image.size
    for number in range(count):
        image.seek(number)
        if image.size != size:
            return 1, (f"has {count} pages of several sizes, the first is read",)
    return count, ()


def _read_page(path: Path, number: int, reading: ReadOptions) -> Frames:
    with Image.open(path) as image:
        image.seek(number)
        if image.mode.startswith(("I", "F")):
            values = np.asarray(ImageOps.exif_transpose(image))
            return map_depth(
                values, reading.depth_range, f"{path}: a picture of {image.mode} values"
            )
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            return composite(np.asarray(upright.convert("RGBA")), reading.background)
        return np.array(upright.convert("RGB"))


def composite(pixels: Frames, background: str) -> Frames:
    """Draw pixels over a color.

    Args:
        pixels: uint8 [..., 4] RGBA, not premultiplied.
        background: CSS name or #rrggbb.

    Returns:
        uint8 [..., 3] RGB.
    """
    behind = np.array(ImageColor.getrgb(background)[:3], np.uint16)
    alpha = pixels[..., 3:].astype(np.uint16)
    mixed: Frames = ((pixels[..., :3] * alpha + behind * (255 - alpha) + 127) // 255).astype(
        np.uint8
    )
    return mixed


def map_depth(values: npt.NDArray[Any], depth_range: DepthRange, name: str) -> Frames:
    """Map values [H, W] to uint8 [H, W, 3], clipped to a range.

    Raises:
        VideoError: There is no range; `name` begins the message.
    """
    if depth_range is None:
        least, most = float(np.nanmin(values)), float(np.nanmax(values))
        raise VideoError(
            f"{name} from {least:g} to {most:g}, more than 8 bits hold: give `depth_range` LO,HI, "
            "the values that become black and white"
        )
    low, high = depth_range
    levels = (np.nan_to_num(values.astype(np.float64), nan=low) - low) * (255 / (high - low))
    gray: Frames = np.rint(levels.clip(0, 255)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def _damaged(path: Path, error: Exception) -> VideoError:
    reason = str(error).replace(str(path), "file").partition("\n")[0]
    return VideoError(f"{path}: damaged picture ({reason})")


def find_demuxer(path: Path) -> str | None:
    """Return ffmpeg's name for pictures that follow each other in one file; None for others.

    `ffmpeg -f image2pipe` writes such files.
    """
    with path.open("rb") as file:
        head = file.read(12)
        if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
            end = 8 + int.from_bytes(head[4:8], "little")
            return "webp_pipe" if _follows(file, end, b"RIFF") else None
        if head.startswith(PNG):
            return "png_pipe" if _follows(file, _end_of_png(file), PNG) else None
        if head.startswith(b"BM"):
            size = int.from_bytes(head[2:6], "little")
            return "bmp_pipe" if size > 26 and _follows(file, size, b"BM") else None
        if head.startswith(b"\xff\xd8\xff"):
            file.seek(0)
            data = file.read(MAX_JPEG)
            end = _end_of_jpeg(data)
            return "mjpeg" if end and data[end : end + 3] == b"\xff\xd8\xff" else None
    return None


def _holds_another_tiff(path: Path) -> bool:
    """Return True if a second TIFF header with a list of tags follows in a file."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for signature, order in ((b"II*\x00", "<"), (b"MM\x00*", ">")):
            place = 7
            while (place := data.find(signature, place + 1)) >= 0 and place + 8 <= size:
                tags = place + unpack_from(f"{order}I", data, place + 4)[0]
                if tags + 4 <= size:
                    count, first = unpack_from(f"{order}HH", data, tags)
                    if 0 < count < 200 and first in TIFF_TAGS:
                        return True
    return False


def _follows(file: BinaryIO, place: int, signature: bytes) -> bool:
    file.seek(place)
    return file.read(len(signature)) == signature


def _end_of_png(file: BinaryIO) -> int:
    """Return the place after the last chunk of the first picture."""
    place, kind = 8, b""
    while kind != b"IEND":
        file.seek(place)
        length, kind = file.read(4), file.read(4)
        if len(kind) < 4:
            return place
        place += 12 + int.from_bytes(length, "big")
    return place


def _end_of_jpeg(data: bytes) -> int:
    """Return the place after the first picture; 0 if it is cut, or has previews after it."""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 4 <= len(data) + 2:
        kind = data[place + 1 : place + 2]
        if kind == b"\xd9":
            return place + 2
        if kind in (b"", b"\x00", b"\xff", b"\x01") or b"\xd0" <= kind <= b"\xd8":
            place += 1 if kind == b"\xff" else 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == b"\xe2" and data[place + 4 : place + 8] == b"MPF\x00":
            return 0  # a camera's picture with previews
        place += 2 + length
    return 0


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
