"""Damaged frames: an error, left out, or the end, and what is lost is counted."""

from pathlib import Path

import numpy as np
import pytest
from commands import rows, tiny_checkpoint, vtok
from token_models import tiny_tokens
from videos import make_video, read_barcodes, run_ffmpeg

from vtok.errors import OptionError, VideoError
from vtok.pipeline.inspect import inspect_video
from vtok.pipeline.options import EncodeOptions
from vtok.video.decoder_process import Decoder
from vtok.video.frames import ReadOptions
from vtok.video.reader import VideoReader

FIRST, KEY, COUNT = 20, 15, 60  # damaged packet, interval of key frames, frames
CODECS = {
    # FFmpeg reports errors of frames that it conceals
    "h264": ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p",
             "-x264-params", "scenecut=0:bframes=0"),
    # FFmpeg refuses the packet
    "mpeg4": ("-c:v", "mpeg4"),
}  # fmt: skip


@pytest.fixture(scope="module", params=CODECS)
def damaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 60 frames at 30/s with a key frame every 15, and noise in the packet of frame 20."""
    folder = tmp_path_factory.mktemp(request.param)
    arguments = (*CODECS[request.param], "-g", str(KEY))
    film = make_video(folder / "film.mkv", COUNT, arguments=arguments)
    noise = f"noise=amount=15*eq(n\\,{FIRST})"
    run_ffmpeg("-i", film, "-c", "copy", "-bsf:v", noise, folder / "a.mkv")
    return folder / "a.mkv"


def read(path: Path, **options: object) -> tuple[list[int], VideoReader]:
    with VideoReader(path, **options) as reader:  # type: ignore[arg-type]
        return read_barcodes(np.concatenate(list(reader))), reader


def test_damaged_frames_fail(damaged: Path) -> None:
    frames = []
    with (
        pytest.raises(VideoError, match=rf"{FIRST} frames could be read .*`on_damage` skip"),
        VideoReader(damaged) as reader,
    ):
        frames.extend(batch for batch in reader)
    assert read_barcodes(np.concatenate(frames)) == list(range(FIRST))


def test_damaged_frames_are_skipped(damaged: Path) -> None:
    numbers, reader = read(damaged, reading=ReadOptions(on_damage="skip"))
    assert numbers == [*range(FIRST), *range(30, COUNT)]  # up to the next key frame
    assert reader.missing_frames == 30 - FIRST
    assert f"damaged frames are left out, the first after {FIRST} (" in reader.notes[0]
    numbers, reader = read(damaged, reading=ReadOptions(on_damage="skip"), fps=reader.output_fps)
    assert len(numbers) == COUNT
    assert numbers[30:] == list(range(30, COUNT))


def test_damaged_frames_end_the_video(damaged: Path) -> None:
    numbers, reader = read(damaged, reading=ReadOptions(on_damage="stop"))
    assert numbers == list(range(FIRST))
    assert reader.missing_frames == COUNT - FIRST
    assert reader.notes[0].startswith(f"ends early: damaged or cut short: {FIRST} frames could")


@pytest.mark.parametrize("part", [{"start_frame": 30}, {"num_frames": FIRST}])
def test_damage_outside_the_part_does_not_matter(damaged: Path, part: dict[str, int]) -> None:
    numbers, reader = read(damaged, **part)
    assert numbers == list(range(30, COUNT) if "start_frame" in part else range(FIRST))
    assert (reader.missing_frames, reader.notes) == (0, [])


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return a file that ends before its index says so, and the number of its whole frames."""
    folder = tmp_path_factory.mktemp("cut")
    arguments = (*CODECS["h264"], "-g", "5", "-movflags", "+faststart")
    data = make_video(folder / "film.mp4", COUNT, arguments=arguments).read_bytes()
    path = folder / "a.mp4"
    path.write_bytes(data[: len(data) * 2 // 3])
    return path, len(read(path, reading=ReadOptions(on_damage="skip"))[0])


def test_cut_file(cut: tuple[Path, int]) -> None:
    path, count = cut
    assert 5 < count < COUNT - 5
    with pytest.raises(VideoError, match=rf"{count} frames could be read .*`on_damage` skip"):
        read(path)
    for choice in ("skip", "stop"):
        numbers, reader = read(path, reading=ReadOptions(on_damage=choice))
        assert numbers == list(range(count))
        assert reader.missing_frames == COUNT - count
        assert len(reader.notes) == 1
    assert read(path, num_frames=5)[0] == list(range(5))
    facts = inspect_video(path)
    assert (facts["frames"], facts["missing_frames"]) == (count, COUNT - count)
    assert "damaged frames are left out" in facts["note"]


def test_every_cut_file_of_a_process_is_noticed(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", COUNT, arguments=(*CODECS["h264"], "-g", "5"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Decoder() as decoder:  # ffmpeg gives the same message for both
        for _ in range(2):
            _, reader = read(path, reading=ReadOptions(on_damage="skip"), decoder=decoder)
            assert "File ended prematurely" in reader.notes[0]


def test_commands(cut: tuple[Path, int], tmp_path: Path) -> None:
    path, count = cut
    model = ("--model", tiny_checkpoint(tmp_path), "--json")
    result = vtok("encode", path, "-o", tmp_path / "a.vtok", *model)
    assert result.exit_code == 5
    assert "--on-damage skip" in result.stderr
    result = vtok("encode", path, "-o", tmp_path / "a.vtok", "--on-damage", "skip", *model)
    assert result.exit_code == 0, result.output
    (row,) = rows(result)
    assert (row["frames"], row["missing_frames"]) == (count, COUNT - count)
    result = vtok("dataset", "encode", path, "-o", tmp_path / "failed", *model)
    assert "--on-damage skip" in result.stderr
    out = tmp_path / "out"
    result = vtok("dataset", "encode", path, "-o", out, "--on-damage", "stop", *model)
    assert result.exit_code == 0, result.output
    assert f'"missing_frames": {COUNT - count}' in (out / "manifest.jsonl").read_text()
    assert rows(result)[-1]["missing_frames"] == COUNT - count


def test_learned_tokens(cut: tuple[Path, int], tmp_path: Path) -> None:
    path, count = cut
    model, tokens = tiny_tokens(tmp_path)
    given = ("--model", model, "--token-learner", tokens, "--to", "tokens", "--json")
    out = tmp_path / "a.tokens.safetensors"
    result = vtok("encode", path, "-o", out, "--on-damage", "skip", *given)
    assert result.exit_code == 0, result.output
    (row,) = rows(result)
    assert (row["frames"], row["missing_frames"]) == (count, COUNT - count)
    assert "damaged frames are left out" in row["note"]


def test_files_left_out_of_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    make_video(folder / "a.mp4", 5)
    for name in ("a.txt", "sub/b.TXT", "sub/README", ".hidden.txt"):
        (folder / name).touch()
    model = ("--model", tiny_checkpoint(tmp_path))
    result = vtok("dataset", "encode", folder, "-o", tmp_path / "out", "--json", *model)
    assert result.exit_code == 0, result.output
    assert rows(result)[-1]["left_out"] == {".txt": 2, "no suffix": 1}
    assert "files left out by their suffix: 2 .txt, 1 no suffix" in result.stderr


def test_unknown_choice_is_refused(damaged: Path) -> None:
    with pytest.raises(OptionError, match=r"^on_damage="):
        VideoReader(damaged, reading=ReadOptions(on_damage="ignore"))
    with pytest.raises(OptionError, match=r"^on_damage="):
        EncodeOptions(on_damage="ignore")
