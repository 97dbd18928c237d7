"""Outputs of `vtok decode` other than video files: pictures, arrays and streams of each format."""

import io
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import encode, rows, tiny_checkpoint, vtok
from videos import Frames, barcode_frames, make_video, read_barcodes

from vtok.errors import OptionError, OutputError, ShapeError
from vtok.models.load import load
from vtok.pipeline.decode import decode_file
from vtok.pipeline.options import DecodeOptions
from vtok.video.images import read_picture
from vtok.video.outputs import open_writer
from vtok.video.reader import VideoReader, probe
from vtok.video.suffixes import OUTPUT_FORMATS

WIDTH, HEIGHT, FRAMES = 63, 47, 10
CONTENT = barcode_frames(range(FRAMES), WIDTH, HEIGHT)


def write(output: Path | io.BytesIO, frames: Frames = CONTENT, **options: Any) -> None:
    size = {"width": WIDTH, "height": HEIGHT, "fps": Fraction(25), "crf": 0}
    with open_writer(output, **{**size, **options}) as writer:
        for start in range(0, len(frames), 4):
            writer.write(frames[start : start + 4])


def read(path: Path) -> Frames:
    with VideoReader(path) as reader:
        return np.concatenate(list(reader))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, a code file, and its frames as a video without loss."""
    folder = tmp_path_factory.mktemp("outputs")
    model = load(tiny_checkpoint(folder))
    video = make_video(folder / "a.mp4", FRAMES, width=64, height=48, fps="25")
    encode(video, folder / "a.vtok", model)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.vtok").write_bytes((made / "a.vtok").read_bytes())
    (tmp_path / "b.vtok").write_bytes((made / "a.vtok").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decode(made: Path, *arguments: Any) -> Any:
    return vtok("decode", *arguments, "--model", made / "tiny.safetensors")


def test_pictures_are_exact_and_numbered_from_zero(tmp_path: Path) -> None:
    write(tmp_path / "f_%03d.png")
    assert names(tmp_path) == [f"f_{number:03d}.png" for number in range(FRAMES)]
    shown = np.stack([read_picture(path) for path in sorted(tmp_path.iterdir())])
    np.testing.assert_array_equal(shown, CONTENT)


def test_pictures_may_be_jpeg_and_without_leading_zeros(tmp_path: Path) -> None:
    write(tmp_path / "%d.jpg", barcode_frames(range(12), WIDTH, HEIGHT))
    assert read_barcodes([read_picture(tmp_path / "11.jpg")]) == [11]
    assert len(names(tmp_path)) == 12


def test_existing_pictures_are_kept_or_replaced_with_those_after_the_end(tmp_path: Path) -> None:
    write(tmp_path / "%04d.png")
    (tmp_path / "notes.png").write_bytes(b"kept")
    with pytest.raises(OutputError, match=r"0000\.png: exists already"):
        write(tmp_path / "%04d.png", CONTENT[:3])
    write(tmp_path / "%04d.png", CONTENT[5:8], overwrite=True)
    assert names(tmp_path) == ["0000.png", "0001.png", "0002.png", "notes.png"]
    assert read_barcodes([read_picture(tmp_path / "0000.png")]) == [5]


@pytest.mark.parametrize("name", ["%04d.png", "a.npy"])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_stopped_output_leaves_nothing(
    tmp_path: Path, name: str, failure: type[BaseException]
) -> None:
    size = {"width": WIDTH, "height": HEIGHT, "fps": Fraction(25), "crf": 0}

    def stop() -> None:
        with open_writer(tmp_path / name, **size) as writer:
            writer.write(CONTENT)
            raise failure("stop")

    with pytest.raises(failure, match="stop"):
        stop()
    with pytest.raises(ShapeError, match=r"do not fit uint8 \[T, 47, 63, 3\]"):
        write(tmp_path / name, CONTENT[:, 1:])
    with pytest.raises(OutputError, match="there is no frame to write"):
        write(tmp_path / name, CONTENT[:0])
    assert names(tmp_path) == []
    with pytest.raises(OutputError, match=r"missing"):
        write(tmp_path / "missing" / name)


def test_array_holds_the_frames(tmp_path: Path) -> None:
    write(tmp_path / "a.npy")
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    np.testing.assert_array_equal(found, CONTENT)
    assert found.dtype == np.uint8
    with pytest.raises(OutputError, match="exists already"):
        write(tmp_path / "a.npy")
    write(tmp_path / "a.npy", CONTENT[:1], overwrite=True)
    assert np.load(tmp_path / "a.npy").shape == (1, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("to", ["mp4", "mkv", "mov", "webm", "gif", "y4m"])
def test_streams_of_all_video_formats(tmp_path: Path, to: str) -> None:
    stream = io.BytesIO()
    write(stream, to=to)
    path = tmp_path / f"a.{to}"
    path.write_bytes(stream.getvalue())
    assert read_barcodes(read(path)) == list(range(FRAMES))
    assert probe(path).fps == 25


def test_array_to_a_stream() -> None:
    stream = io.BytesIO()
    write(stream, to="npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(stream.getvalue())), CONTENT)


@pytest.mark.parametrize("width", [64, 63])
def test_y4m_keeps_colours(tmp_path: Path, width: int) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 100, 50]], np.uint8)
    frames = np.repeat(colours, 16, axis=0)[:width]
    frames = np.tile(frames, (3, 48, 1, 1))
    write(tmp_path / "a.y4m", frames, width=width, height=48)
    assert (tmp_path / "a.y4m").read_bytes().startswith(b"YUV4MPEG2 ")
    errors = np.abs(read(tmp_path / "a.y4m").astype(int) - frames)[:, :, 8::16]
    assert errors.max() <= 5


def test_formats_that_do_not_fit(tmp_path: Path) -> None:
    for output, to in ((tmp_path / "a.mp4", "npy"), (io.BytesIO(), "png"), (io.BytesIO(), "avi")):
        with pytest.raises(OptionError, match=f"to={to}: expected"):
            write(output, to=to)
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_full_stream_is_an_error() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OutputError, match=r"<stream>: cannot be written \(No space left"),
    ):
        write(full, to="npy")


def test_decoded_array_and_pictures_are_equal(here: Path, made: Path) -> None:
    assert decode(made, "a.vtok", "--to", "npy").exit_code == 0
    assert decode(made, "a.vtok", "--to", "png").exit_code == 0
    assert decode(made, "a.vtok", "-o", "x/f%d.png").exit_code == 0
    frames = np.load(here / "a.decoded.npy")
    assert frames.shape == (FRAMES, 48, 64, 3)
    for pattern in ("a.decoded/{:06d}.png", "x/f{}.png"):
        shown = [read_picture(here / pattern.format(number)) for number in range(FRAMES)]
        np.testing.assert_array_equal(np.stack(shown), frames)
    assert len(names(here / "x")) == FRAMES


def test_folder_of_one_input_and_of_several(here: Path, made: Path) -> None:
    (here / "there").mkdir()
    for folder in ("new", "there", "slash/"):
        assert decode(made, "a.vtok", "-o", folder, "--to", "png").exit_code == 0
        assert names(here / folder)[0] == "000000.png"
    assert decode(made, "a.vtok", "b.vtok", "-o", "both", "--to", "png").exit_code == 0
    assert names(here / "both") == ["a.decoded", "b.decoded"]
    assert len(names(here / "both" / "b.decoded")) == FRAMES
    assert decode(made, ".", "-o", "all", "--to", "y4m").exit_code == 0
    assert names(here / "all") == ["a.decoded.y4m", "b.decoded.y4m"]


@pytest.mark.parametrize("to", ["png", "npy", "y4m"])
def test_skip_existing_keeps_complete_outputs(here: Path, made: Path, to: str) -> None:
    arguments = ("a.vtok", "--to", to, "--skip-existing", "--json")
    assert [row["status"] for row in rows(decode(made, *arguments))] == ["ok"]
    assert [row["status"] for row in rows(decode(made, *arguments))] == ["skipped"]
    if to == "png":
        (here / "a.decoded" / "000003.png").unlink()
    else:
        os.truncate(here / f"a.decoded.{to}", 5000)
    assert [row["status"] for row in rows(decode(made, *arguments))] == ["ok"]
    assert [row["status"] for row in rows(decode(made, *arguments))] == ["skipped"]


def test_standard_output_takes_a_format(here: Path, made: Path) -> None:
    result = decode(made, "a.vtok", "-o", "-", "--to", "y4m")
    assert result.exit_code == 0
    assert result.stdout_bytes.startswith(b"YUV4MPEG2 W64 H48 F25:1 ")
    result = decode(made, "a.vtok", "-o", "-", "--to", "npy")
    assert np.load(io.BytesIO(result.stdout_bytes)).shape == (FRAMES, 48, 64, 3)


BAD = {
    "a.vtok --to avi": (2, "--to avi: expected one of mp4, mkv"),
    "a.vtok --to npy -o x.mp4": (2, "--to npy: expected the format of x.mp4, or a name that ends"),
    "a.vtok -o - --to png": (2, "--to png: expected a video format or npy: pictures need a folder"),
    "a.vtok b.vtok -o x/%d.png": (2, "-o x/%d.png: a pattern is for one input: give a folder, and"),
    "a.vtok -o x.png": (1, "x.png: a picture holds one frame, this video has more: give a pattern"),
    "a.vtok -o x.avi": (2, "x.avi: unknown video format .avi (use .mp4"),
}


@pytest.mark.parametrize("arguments", BAD)
def test_errors_are_one_line(here: Path, made: Path, arguments: str) -> None:
    code, message = BAD[arguments]
    result = decode(made, *arguments.split())
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (code, "", 1)
    assert result.stderr.startswith(f"error: {message}")
    assert names(here) == ["a.vtok", "b.vtok"]


def test_library_decodes_to_all_formats(made: Path, tmp_path: Path) -> None:
    for to in OUTPUT_FORMATS:
        output = tmp_path / f"{to}%02d.{to}" if to == "png" else tmp_path / f"a.{to}"
        options = DecodeOptions(to=to)
        result = decode_file(
            made / "a.vtok", output, model=made / "tiny.safetensors", options=options
        )
        assert result.frames == FRAMES
    assert (tmp_path / "png09.png").exists()
