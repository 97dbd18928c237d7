"""Pictures that follow each other in a file or pipe, stacks of pages, 16-bit and float values."""

from pathlib import Path

import numpy as np
import pytest
from commands import rows, tiny_checkpoint, vtok
from PIL import Image, features
from videos import Frames, barcode_frames, make_video, read_barcodes, run_ffmpeg

from vtok.errors import OptionError, VideoError
from vtok.pipeline.options import EncodeOptions
from vtok.video.frames import ReadOptions
from vtok.video.images import find_demuxer
from vtok.video.reader import VideoReader

CODECS = ("mjpeg", "png", "bmp", "libwebp")


def read(path: Path, **options: object) -> Frames:
    with VideoReader(path, **options) as reader:  # type: ignore[arg-type]
        return np.concatenate(list(reader))


def pictures(folder: Path, codec: str) -> Path:
    """Write 30 pictures after each other, as a pipe gets them; the name tells nothing."""
    path = folder / "pictures"
    make_video(path, 30, arguments=("-c:v", codec, "-f", "image2pipe"))
    return path


@pytest.mark.parametrize("codec", CODECS)
def test_all_pictures_are_read(tmp_path: Path, codec: str) -> None:
    path = pictures(tmp_path, codec)
    assert read_barcodes(read(path)) == list(range(30))
    assert read_barcodes(read(path, start_frame=5, num_frames=3)) == [5, 6, 7]
    make_video(tmp_path / "a.mjpeg", 30, arguments=("-c:v", "mjpeg"))
    assert read_barcodes(read(tmp_path / "a.mjpeg")) == list(range(30))


@pytest.mark.parametrize("codec", CODECS)
def test_pictures_from_standard_input(tmp_path: Path, codec: str) -> None:
    model = tiny_checkpoint(tmp_path)
    output = tmp_path / "a.vtok"
    data = pictures(tmp_path, codec).read_bytes()
    result = vtok("encode", "-", "-o", output, "--model", model, "--json", data=data)
    assert rows(result)[0]["frames"] == 30, result.output


def test_single_pictures_stay_pictures(tmp_path: Path) -> None:
    frame = barcode_frames(range(5, 6))[0]
    small = Image.fromarray(frame).resize((16, 12))
    comment = b"\xff\xd8\xff\xd9"
    image = Image.fromarray(frame)
    image.save(tmp_path / "a.jpg", comment=comment, progressive=True, quality=95)
    Image.fromarray(frame).save(
        tmp_path / "b.jpg", "MPO", save_all=True, append_images=[small.copy()], quality=95
    )
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"\0" * 500)
    for name in ("d.png", "e.bmp", "f.tif"):
        Image.fromarray(frame).save(tmp_path / name)
    Image.fromarray(frame).save(tmp_path / "g.tif", save_all=True, append_images=[small.copy()])
    for path in sorted(tmp_path.iterdir()):
        assert find_demuxer(path) is None
        assert read_barcodes(read(path)) == [5], path.name


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.avif", "a.gif"])
def test_stacks_and_animations(tmp_path: Path, name: str) -> None:
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow does not write AVIF")
    first, *others = map(Image.fromarray, barcode_frames(range(12)))
    path = tmp_path / name
    first.save(path, save_all=True, append_images=others, duration=40)
    with VideoReader(path) as reader:
        assert read_barcodes(np.concatenate(list(reader))) == list(range(12))
        assert (reader.info.num_frames, reader.output_fps) == (12, 25)
    assert read_barcodes(read(path, start_seconds=0.2, duration_seconds=0.08)) == [5, 6]


def ramp(dtype: str, scale: float) -> np.ndarray:
    return np.broadcast_to(np.arange(64) * scale, (48, 64)).astype(dtype)


@pytest.mark.parametrize(
    ("name", "values", "depth"),
    [
        ("float.tif", ramp("float32", 1 / 63), (0.0, 1.0)),
        ("depth.png", ramp("uint16", 1000), (0.0, 63000.0)),
        ("depth.tif", ramp("uint16", 10), (0.0, 630.0)),
    ],
)
def test_values_of_more_than_8_bits_need_a_range(
    tmp_path: Path, name: str, values: np.ndarray, depth: tuple[float, float]
) -> None:
    path = tmp_path / name
    Image.fromarray(values).save(path)
    with pytest.raises(VideoError, match=r"more than 8 bits hold: give `depth_range` LO,HI"):
        read(path)
    (frame,) = read(path, reading=ReadOptions(depth_range=depth))
    np.testing.assert_array_equal(frame[0, :, 1], np.rint(np.arange(64) * 255 / 63))
    result = vtok("encode", path, "-o", tmp_path / "x.vtok")
    assert (result.exit_code, "--depth-range LO,HI" in result.stderr) == (5, True)


def test_depth_video(tmp_path: Path) -> None:
    raw = np.stack([ramp("<u2", 1000)] * 3).tobytes()
    path = tmp_path / "depth.mkv"
    source = ("-f", "rawvideo", "-pix_fmt", "gray16le", "-s", "64x48", "-r", "30", "-i", "-")
    run_ffmpeg(*source, "-c:v", "ffv1", path, data=raw)
    with pytest.raises(VideoError, match=r"gray16le values .* `depth_range`"):
        read(path)
    frames = read(path, reading=ReadOptions(depth_range=(0, 63000)))
    np.testing.assert_array_equal(frames[2, 5, :, 0], np.rint(np.arange(64) * 255 / 63))


def test_depth_range_is_checked_and_recorded(tmp_path: Path) -> None:
    for wrong in ((1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)):
        with pytest.raises(OptionError, match=r"^depth_range="):
            EncodeOptions(depth_range=wrong)
    path = tmp_path / "depth.png"
    Image.fromarray(ramp("uint16", 1000)).save(path)
    model = ("--model", tiny_checkpoint(tmp_path), "--json", "--skip-existing")
    for given, status in (("0,63000", "ok"), ("0,63000", "skipped"), ("0,50000", "ok")):
        result = vtok("encode", path, "-o", tmp_path / "x.vtok", "--depth-range", given, *model)
        assert rows(result)[0]["status"] == status
    for wrong in ("5", "a,b", "1,2,3"):
        result = vtok("encode", path, "--depth-range", wrong)
        assert (result.exit_code, "--depth-range" in result.stderr) == (2, True)
