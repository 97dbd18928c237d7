"""Streams and pixels: choice of the stream, pixel aspect, HDR, interlacing, transparency."""

from pathlib import Path

import numpy as np
import pytest
from commands import rows, tiny_checkpoint, tiny_model, vtok
from videos import LOSSLESS, Frames, make_video, read_barcodes, run_ffmpeg

from vtok.dataset.options import DatasetOptions, make_recipe, with_recipe
from vtok.errors import OptionError, VideoError
from vtok.pipeline.inspect import inspect_video
from vtok.pipeline.options import EncodeOptions
from vtok.video.frames import ReadOptions
from vtok.video.pixels import tone_map
from vtok.video.reader import VideoReader, probe

DEINTERLACE = ReadOptions(deinterlace=True)


def read(path: Path, size: str | None = None, **reading: object) -> Frames:
    with VideoReader(path, size=size, reading=ReadOptions(**reading)) as reader:  # type: ignore[arg-type]
        return np.concatenate(list(reader))


def test_video_stream_selects_a_stream(tmp_path: Path) -> None:
    first = make_video(tmp_path / "first.mkv", 6)
    second = make_video(tmp_path / "second.mkv", 9, width=80)
    both = tmp_path / "both.mkv"
    run_ffmpeg("-i", first, "-i", second, "-map", "0", "-map", "1", "-c", "copy", both)
    assert read(both).shape == (6, 48, 64, 3)
    frames = read(both, video_stream=1)
    assert frames.shape == (9, 48, 80, 3)
    assert read_barcodes(frames) == list(range(9))
    with pytest.raises(OptionError, match=r"^video_stream=2: expected 0 to 1: .* 2 video streams"):
        read(both, video_stream=2)
    with VideoReader(both, reading=ReadOptions(video_stream=1)) as reader:
        assert reader.notes == ["has 2 video streams, number 1 is read"]


@pytest.mark.parametrize(
    ("aspect", "stored", "shown"),
    [("4/3", (48, 48), (64, 48)), ("1/2", (64, 48), (64, 96)), ("1", (64, 48), (64, 48))],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_pixels_become_square(
    tmp_path: Path, aspect: str, stored: tuple[int, int], shown: tuple[int, int], suffix: str
) -> None:
    (width, height), path = stored, tmp_path / f"clip.{suffix}"
    arguments = ("-vf", f"setsar={aspect}", *LOSSLESS)
    make_video(path, 5, width=width, height=height, arguments=arguments)
    frames = read(path)
    assert frames.shape[2:0:-1] == shown
    assert read_barcodes(frames) == list(range(5))
    info = probe(path)
    assert (info.width, info.height) == shown
    assert info.pixel_aspect == (aspect.replace("/", ":") if "/" in aspect else "1:1")
    assert ("pixel_aspect" in inspect_video(path)) == ("/" in aspect)


def test_pixel_aspect_counts_before_rotation(tmp_path: Path) -> None:
    stored, path = tmp_path / "stored.mp4", tmp_path / "turned.mp4"
    make_video(stored, 3, width=48, height=48, arguments=("-vf", "setsar=2,transpose=2", *LOSSLESS))
    run_ffmpeg("-display_rotation", "-90", "-i", stored, "-c", "copy", path)
    info = probe(path)
    wide = info.pixel_aspect == "2:1"  # ffmpeg's transpose may also turn the aspect
    assert (info.width, info.height) == ((48, 96) if wide else (96, 48))
    assert read_barcodes(read(path)) == [0, 1, 2]


@pytest.mark.parametrize("size", [None, "32", "40x30"])
def test_size_refers_to_square_pixels(tmp_path: Path, size: str | None) -> None:
    path = make_video(
        tmp_path / "clip.mp4", 2, width=48, height=48, arguments=("-vf", "setsar=4/3", *LOSSLESS)
    )
    expected = {None: (48, 64), "32": (32, 42), "40x30": (30, 40)}[size]
    assert read(path, size).shape[1:3] == expected


def signal_frames(levels: list[float], size: int = 32) -> bytes:
    """Make gray frames of one level each (0..1), rgb48le."""
    values = np.round(np.array(levels) * 65535).astype("<u2")
    return np.repeat(values, size * size * 3).tobytes()


def make_hdr(path: Path, transfer: str, levels: list[float]) -> Path:
    arguments = (
        *("-f", "rawvideo", "-pix_fmt", "rgb48le", "-s", "32x32", "-r", "10", "-i", "-"),
        *("-vf", "scale=out_color_matrix=bt2020:out_range=tv,format=yuv420p10le"),
        *("-c:v", "libx265", "-x265-params"),
    )
    params = f"log-level=none:lossless=1:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    run_ffmpeg(*arguments, params, path, data=signal_frames(levels))
    return path


BLACK_TO_PEAK = [0, 142, 228, 255]
"""SDR of black, 50, 203 and 1000 cd/m2: the last two are diffuse white and the peak."""


@pytest.mark.parametrize(
    ("transfer", "name", "levels"),
    [
        ("smpte2084", "PQ", [0, 0.440, 0.5807, 0.7518]),
        ("arib-std-b67", "HLG", [0, 0.4963, 0.75, 1]),
    ],
)
def test_hdr_is_tone_mapped_with_a_note(
    tmp_path: Path, transfer: str, name: str, levels: list[float]
) -> None:
    path = make_hdr(tmp_path / "hdr.mp4", transfer, levels)
    frames = read(path)
    assert np.abs(frames.mean(axis=(1, 2)) - np.array(BLACK_TO_PEAK)[:, None]).max() <= 2
    assert np.abs(np.diff(frames.astype(int), axis=-1)).max() <= 2  # gray stays gray
    assert probe(path).notes == (f"{name} HDR is tone-mapped to SDR",)
    with pytest.raises(VideoError, match=f"{name} HDR video, refused without `tone_map`$"):
        read(path, tone_map=False)


def test_tone_mapping_rises_and_keeps_hues() -> None:
    signal = np.linspace(0, 65535, 500).astype(np.uint16)
    for transfer in ("PQ", "HLG"):
        gray = tone_map(np.repeat(signal[:, None], 3, axis=1), transfer)[:, 0].astype(int)
        assert (np.diff(gray) >= 0).all()
        assert gray[0] == 0
        assert gray[-1] == 255
        red = tone_map(signal[:, None] * np.array([1, 0, 0], np.uint16), transfer)
        assert (red[1:, 1:] <= red[1:, :1]).all()


def test_sdr_video_has_no_note_and_allows_no_tone_mapping(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", 3)
    assert probe(path).notes == ()
    assert np.array_equal(read(path, tone_map=False), read(path))


def moving_bar(num_frames: int, fields: bool) -> bytes:
    """Make frames of a bar that moves 4 pixels a field; odd lines may be of the later field."""
    frames = np.zeros((num_frames, 64, 128, 3), np.uint8)
    for number, frame in enumerate(frames):
        for line in range(64):
            at = 8 * number + (4 if fields and line % 2 else 0)
            frame[line, at : at + 16] = 220
    return frames.tobytes()


def make_interlaced(path: Path, fields: bool = True) -> Path:
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x64", "-r", "25", "-i", "-")
    flags = ("-vf", "setfield=tff", "-flags", "+ildct+ilme", "-c:v", "mpeg2video", "-q:v", "2")
    run_ffmpeg(
        *source,
        *(flags if fields else ("-c:v", "mpeg2video", "-q:v", "2")),
        path,
        data=moving_bar(12, fields),
    )
    return path


def combing(frames: Frames) -> float:
    """Mean difference of each line from the mean of its neighbours."""
    gray = frames[2:-2].mean(axis=-1)
    return float(np.abs(gray[:, 1:-1] - (gray[:, :-2] + gray[:, 2:]) / 2).mean())


@pytest.mark.parametrize("suffix", ["mpg", "ts", "mkv", "avi"])
def test_interlaced_video_is_reported_and_mended(tmp_path: Path, suffix: str) -> None:
    path = make_interlaced(tmp_path / f"clip.{suffix}")
    assert probe(path).notes == ("is interlaced: `deinterlace` makes whole frames",)
    stored, mended = read(path), read(path, deinterlace=True)
    assert stored.shape == mended.shape
    assert combing(stored) > 5
    assert combing(mended) < combing(stored) / 5
    with VideoReader(path, start_frame=4, num_frames=3, reading=DEINTERLACE) as reader:
        assert reader.notes == ["is interlaced: was deinterlaced"]
        assert np.array_equal(np.concatenate(list(reader)), mended[4:7])


def test_deinterlacing_leaves_progressive_video_alone(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", 12)
    assert np.array_equal(read(path, deinterlace=True), read(path))


ALPHA = {
    "clip.mov": ("-c:v", "qtrle", "-pix_fmt", "argb"),
    "clip.webm": ("-c:v", "libvpx-vp9", "-lossless", "1", "-pix_fmt", "yuva420p"),
    "clip.mkv": ("-c:v", "ffv1", "-pix_fmt", "bgra"),
    "clip.apng": ("-plays", "0", "-f", "apng", "-pix_fmt", "rgba"),
    "picture.png": ("-frames:v", "1", "-pix_fmt", "rgba"),
}


@pytest.mark.parametrize("name", ALPHA)
@pytest.mark.parametrize(
    ("background", "color"), [("black", (0, 0, 0)), ("#20c040", (32, 192, 64))]
)
def test_transparency_is_composited(
    tmp_path: Path, name: str, background: str, color: tuple[int, int, int]
) -> None:
    frames = np.full((3, 32, 48, 4), 200, np.uint8)
    frames[..., 3] = np.repeat([0, 128, 255], 16)
    source = ("-f", "rawvideo", "-pix_fmt", "rgba", "-s", "48x32", "-r", "10", "-i", "-")
    run_ffmpeg(*source, *ALPHA[name], tmp_path / name, data=frames.tobytes())
    shown = read(tmp_path / name, background=background)[0].astype(int)
    for column, share in ((8, 0), (24, 128 / 255), (40, 1)):
        expected = 200 * share + np.array(color) * (1 - share)
        assert np.abs(shown[16, column] - expected).max() <= 4, column


@pytest.mark.parametrize("background", ["bright", "#12", ""])
def test_unknown_background_is_refused(background: str) -> None:
    with pytest.raises(OptionError, match=r"^background=.*: expected a color such as white"):
        ReadOptions(background=background)


def test_encode_names_the_flags_and_records_the_choices(tmp_path: Path) -> None:
    model = ("--model", tiny_checkpoint(tmp_path))
    path = make_interlaced(tmp_path / "clip.mkv")
    plain = vtok("encode", path, *model)
    assert "is interlaced: --deinterlace makes whole frames" in plain.output
    again = ("encode", path, *model, "--skip-existing", "--json")
    assert [row["status"] for row in rows(vtok(*again))] == ["skipped"]
    mended = vtok(*again, "--deinterlace")
    assert [row["status"] for row in rows(mended)] == ["ok"]
    assert [row["status"] for row in rows(vtok(*again, "--deinterlace"))] == ["skipped"]
    hdr = make_hdr(tmp_path / "hdr.mp4", "smpte2084", [0.5, 0.6])
    refused = vtok("encode", hdr, *model, "--no-tone-map")
    assert refused.exit_code == 5
    assert "hdr.mp4: PQ HDR video, refused without --tone-map" in refused.output
    wrong = vtok("encode", hdr, *model, "--background", "bright")
    assert wrong.exit_code == 2
    assert "--background bright: expected a color such as white" in wrong.output
    missing = vtok("encode", hdr, *model, "--video-stream", "3")
    assert missing.exit_code == 2
    assert "--video-stream 3: expected 0" in missing.output


def test_a_data_set_keeps_the_choices_in_its_recipe(tmp_path: Path) -> None:
    info = tiny_model(tmp_path).info
    plain = DatasetOptions()
    changed = DatasetOptions(encode=EncodeOptions(deinterlace=True, background="white"))
    assert "reading" not in make_recipe(plain, info, "float32")
    recipe = make_recipe(changed, info, "float32")
    assert recipe["reading"] == {"deinterlace": True, "background": "white"}
    assert with_recipe(plain, recipe).encode.reading == changed.encode.reading
