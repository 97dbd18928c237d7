"""Frames without times: folders, patterns and globs of pictures, and arrays in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vtok.errors import UsageError, VideoError
from vtok.video.frames import DEFAULT_FPS, MAX_PIXELS, Frames, ReadOptions, resize_frames
from vtok.video.images import Pages, open_pages
from vtok.video.suffixes import is_pattern, list_pictures

NUMPY, ZIP, HDF5 = b"\x93NUMPY", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"


def open_sequence(path: Path, fps: Fraction | None, reading: ReadOptions) -> Pages | None:
    """Open frames without times; None for all other files.

    Args:
        path: Folder, pattern or glob of pictures, or a file with an array.
        fps: Rate of the frames; 25/s if None.
        reading: Treatment of pixels.

    Raises:
        InputError: There are no such pictures.
        VideoError: The first picture or the array cannot be read.
        UsageError: An HDF5 file, and h5py is not installed.
    """
    if path.is_dir() or is_pattern(path):
        width, height, count, read = _open_pictures(path, reading)
    elif (frames := _open_array(path)) is not None:
        count, height, width = frames.shape[:3]

        def read(number: int) -> Frames:
            page: Frames = np.asarray(frames[number])
            return page

    else:
        return None
    times = tuple(number / (fps or DEFAULT_FPS) for number in range(count + 1))
    return Pages(width, height, times, read)


def _open_pictures(
    path: Path, reading: ReadOptions
) -> tuple[int, int, int, Callable[[int], Frames]]:
    files = list_pictures(path)

    def read(number: int) -> Frames:
        pages = open_pages(files[number], reading)
        if pages is None or len(pages.times) > 2:
            raise VideoError(f"{files[number]}: not a single picture")
        return pages.read(0)

    first = read(0)
    height, width = first.shape[:2]

    def read_resized(number: int) -> Frames:
        page: Frames = resize_frames(read(number)[None], width, height)[0]
        return page

    return width, height, len(files), read_resized


def _open_array(path: Path) -> Any:
    """Return the array of a NumPy or HDF5 file, uint8 [T, H, W, 3]; None for other files."""
    with path.open("rb") as file:
        head = file.read(8)
    with _naming(path):
        if head.startswith(NUMPY):
            found: dict[str, Any] = {"array": np.load(path, mmap_mode="r", allow_pickle=False)}
        elif head.startswith(ZIP) and path.suffix.lower() == ".npz":
            archive = np.load(path, allow_pickle=False)
            found = {name: archive[name] for name in archive.files}
        elif head.startswith(HDF5):
            found = _open_hdf5(path)
        else:
            return None
    frames = [one for one in found.values() if _holds_frames(one)]
    if len(frames) != 1:
        listed = [f"{name} {one.dtype} {list(one.shape)}" for name, one in found.items()]
        shown = ", ".join(listed[:5]) or "no array"
        raise VideoError(f"{path}: expected one array uint8 [T, H, W, 3] in it, found {shown}")
    height, width = frames[0].shape[1:3]
    if height * width > MAX_PIXELS:
        raise VideoError(f"{path}: {width}x{height} is larger than {MAX_PIXELS} pixels")
    return frames[0]


def _holds_frames(array: npt.NDArray[Any]) -> bool:
    shape = array.shape
    return array.dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and 0 not in shape


def _open_hdf5(path: Path) -> dict[str, Any]:
    """Return the data sets of an HDF5 file by name; the file stays open."""
    try:
        import h5py
    except ImportError as exc:
        raise UsageError(f"{path}: needs h5py: pip install 'vtok[hdf5]'") from exc
    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = node

    h5py.File(path, "r").visititems(visit)
    return found


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Replace errors of NumPy and HDF5 by one line with the file's name."""
    try:
        yield
    except UsageError:
        raise
    except Exception as exc:  # zipfile, zlib, NumPy and HDF5 raise many types
        reason = " ".join(str(exc).split())[:150]
        raise VideoError(f"{path}: not a readable array ({reason})") from exc
