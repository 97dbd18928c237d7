"""Pictures and arrays read as videos: folders, patterns, globs, NumPy and HDF5 files, y4m."""

from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import rows, tiny_checkpoint, vtok
from PIL import Image
from videos import Frames, barcode_frame, barcode_frames, make_video, read_barcodes

from vtok.errors import InputError, VideoError
from vtok.pipeline.inspect import inspect_file
from vtok.video.reader import VideoReader

NUMBERS = range(12)


def make_pictures(folder: Path, name: str = "frame_%04d.png", first: int = 1) -> Path:
    """Write one picture per number, so that sorting by text would mix up `frame_%d`."""
    folder.mkdir()
    for number in NUMBERS:
        Image.fromarray(barcode_frame(number)).save(folder / (name % (number + first)))
    return folder


def read(path: Path, fps: Fraction | None = None, **part: object) -> Frames:
    with VideoReader(path, fps=fps, **part) as reader:  # type: ignore[arg-type]
        frames = np.concatenate(list(reader))
        assert reader.missing_frames == 0
    return frames


@pytest.mark.parametrize("name", ["frame_%04d.png", "%d.png", "f%03d.bmp", "frame.%d.png"])
@pytest.mark.parametrize("kind", ["folder", "pattern", "glob"])
def test_pictures_are_frames_in_the_order_of_their_numbers(
    tmp_path: Path, name: str, kind: str
) -> None:
    folder = make_pictures(tmp_path / "frames", name, first=7)
    (folder / "notes.txt").write_text("no picture")
    (folder / "._hidden.png").write_bytes(b"x")
    source = {
        "folder": folder, "pattern": folder / name, "glob": folder / f"*{Path(name).suffix}",
    }[kind]  # fmt: skip
    assert read_barcodes(read(source)) == list(NUMBERS)


def make_array(path: Path) -> Path:
    frames = barcode_frames(NUMBERS)
    if path.suffix == ".npy":
        np.save(path, frames)
    elif path.suffix == ".npz":
        np.savez_compressed(path, actions=np.zeros((12, 7)), video=frames)
    else:
        with h5py.File(path, "w") as file:
            file["observations/image"] = frames
            file["observations/state"] = np.zeros((12, 7))
    return path


ARRAYS = ["a.npy", "a.npz", "a.h5", "a.hdf5"]


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_frames(tmp_path: Path, name: str) -> None:
    assert np.array_equal(read(make_array(tmp_path / name)), barcode_frames(NUMBERS))


@pytest.mark.parametrize("name", ["frames", "a.npy"])
@pytest.mark.parametrize("fps", [None, Fraction(10), Fraction(30000, 1001)])
def test_fps_is_the_rate_of_frames_without_times(
    tmp_path: Path, name: str, fps: Fraction | None
) -> None:
    path = tmp_path / name
    make_array(path) if path.suffix else make_pictures(path)
    rate = fps or Fraction(25)
    with VideoReader(path, fps=fps) as reader:
        assert read_barcodes(np.concatenate(list(reader))) == list(NUMBERS)
        assert reader.output_fps == reader.info.fps == rate
        assert reader.info.duration_seconds == pytest.approx(float(12 / rate))
    assert read_barcodes(read(path, fps, start_seconds=4 / rate, duration_seconds=3 / rate)) == [
        4, 5, 6,
    ]  # fmt: skip
    assert read_barcodes(read(path, fps, start_frame=9)) == [9, 10, 11]


def test_y4m_is_read(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.y4m", 12, arguments=("-pix_fmt", "yuv420p"))
    assert read_barcodes(read(path)) == list(NUMBERS)


WRONG_ARRAYS = {
    "floats": np.zeros((2, 8, 8, 3), np.float32),
    "channels first": np.zeros((2, 3, 8, 8), np.uint8),
    "codes": np.zeros((4, 2, 3, 3), np.uint16),
    "no frames": np.zeros((0, 8, 8, 3), np.uint8),
}


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5"])
@pytest.mark.parametrize("kind", WRONG_ARRAYS)
def test_other_arrays_are_refused_with_their_shape(tmp_path: Path, name: str, kind: str) -> None:
    path, array = tmp_path / name, WRONG_ARRAYS[kind]
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["x"] = array
    else:
        (np.save if path.suffix == ".npy" else np.savez)(path, array)
    with pytest.raises(VideoError) as caught:
        read(path)
    message = str(caught.value)
    assert "expected one array uint8 [T, H, W, 3] in it, found" in message
    assert f"{array.dtype} {list(array.shape)}" in message


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.01])
def test_cut_arrays_are_one_clear_line(tmp_path: Path, name: str, kept: float) -> None:
    path = make_array(tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(VideoError, match=r"^[^\n]*: not a (readable|video)[^\n]*$"):
        read(path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(VideoError, match="not a readable array"):
        read(tmp_path / "a.npy")


def test_missing_pictures_are_one_clear_line(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "frames")
    (folder / "frame_0005.png").unlink()
    with pytest.raises(InputError, match=r"frame_0005.png is missing between 1 and 12$"):
        read(folder / "frame_%04d.png")
    with pytest.raises(InputError, match="no file matches this pattern"):
        read(folder / "other_%04d.png")
    with pytest.raises(InputError, match="no file matches"):
        read(folder / "*.jpg")
    (folder / "frame_0003.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(VideoError, match=r"frame_0003.png: damaged picture"):
        read(folder)


def test_pictures_of_other_sizes_are_scaled_to_the_first(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "frames")
    Image.fromarray(barcode_frame(4, 128, 96)).save(folder / "frame_0005.png")
    assert read_barcodes(read(folder)) == list(NUMBERS)


def test_info_describes_pictures(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "frames")
    for source in (folder, folder / "frame_%04d.png"):
        facts = inspect_file(str(source))
        assert (facts["kind"], facts["frames"], facts["width"]) == ("video", 12, 64)
        assert facts["bytes"] == sum(path.stat().st_size for path in folder.iterdir())


def test_encode_pictures_as_videos(tmp_path: Path) -> None:
    model = ("--model", tiny_checkpoint(tmp_path))
    top = tmp_path / "top"
    top.mkdir()
    one = make_pictures(top / "one")
    make_pictures(top / "v1.2")
    cases = {
        "folder": ((one,), [top / "one.vtok"]),
        "pattern": ((one / "frame_%04d.png",), [one / "frame.vtok"]),
        "with -o": ((one, "-o", str(tmp_path / "named/")), [tmp_path / "named"]),
        "glob": ((one / "*.png", "--as-video"), [one / "one.vtok"]),
        "folders": ((top, "-o", tmp_path / "out"), [
            tmp_path / "out/one.vtok", tmp_path / "out/v1.2.vtok",
        ]),
    }  # fmt: skip
    make_pictures(tmp_path / "more")
    (tmp_path / "more/._x.mp4").write_bytes(b"x")
    cases["beside its folder"] = ((tmp_path / "more",), [tmp_path / "more.vtok"])
    for name, (arguments, outputs) in cases.items():
        result = vtok("encode", *arguments, "--fps", "12", *model, "--json")
        assert result.exit_code == 0, (name, result.output)
        assert [Path(row["output"]) for row in rows(result)] == outputs, name
        assert all(row["frames"] == 12 and row["fps"] == "12/1" for row in rows(result)), name
