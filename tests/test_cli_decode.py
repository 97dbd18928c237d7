"""`vtok decode`: outputs, messages and exit codes."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from commands import encode, rows, tiny_checkpoint, vtok
from videos import make_video

from vtok.codefile.reader import CodeFileReader
from vtok.models.load import ModelCache, load
from vtok.pipeline.decode import decode_file
from vtok.video.frames import VideoInfo
from vtok.video.reader import VideoReader, probe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> bytes:
    """A code file of 40 frames, two chunks, 63x47 at 25 frames/s."""
    folder = tmp_path_factory.mktemp("codes")
    arguments = ("-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p")
    video = make_video(folder / "a.mp4", 40, width=63, height=47, fps="25", arguments=arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vtok.pipeline.encode.CHUNK_STEPS", 8)
        return encode(video, folder / "a.vtok", load(checkpoint)).read_bytes()


@pytest.fixture
def here(codes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a.vtok, damaged files and files that are not code files."""
    (tmp_path / "a.vtok").write_bytes(codes)
    (tmp_path / "cut.vtok").write_bytes(codes[:-600])
    (tmp_path / "stub.vtok").write_bytes(codes[:1200])
    (tmp_path / "text.vtok").write_text("hello\n")
    (tmp_path / "empty.vtok").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def shape(info: VideoInfo) -> tuple[int, int, Fraction, int | None]:
    return info.width, info.height, info.fps, info.num_frames


def read(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.concatenate(list(reader))


def test_output_is_written_next_to_the_code_file(here: Path, checkpoint: Path) -> None:
    before = names(here)
    result = vtok("decode", "a.vtok", "--model", checkpoint)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("a.vtok -> a.decoded.mp4: 40 frames 63x47, ")
    assert result.stderr.count("\n") == 1
    assert names(here) == before | {"a.decoded.mp4"}
    assert shape(probe(here / "a.decoded.mp4")) == (63, 47, 25, 40)


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".webm", ".gif"])
def test_suffix_selects_the_format(here: Path, checkpoint: Path, suffix: str) -> None:
    assert vtok("decode", "a.vtok", "-o", f"x{suffix}", "--model", checkpoint).exit_code == 0
    assert shape(probe(here / f"x{suffix}")) == (63, 47, 25, 40)


def test_stages_and_bits_select_the_same_stages(here: Path, checkpoint: Path) -> None:
    for options in (["--stages", 1], ["--bits", 6], ["--stages", 3]):
        name = f"{options[0][2:]}{options[1]}.mkv"
        vtok("decode", "a.vtok", "-o", name, "--crf", 0, "--model", checkpoint, *options)
    np.testing.assert_array_equal(read(here / "stages1.mkv"), read(here / "bits6.mkv"))
    assert (read(here / "stages1.mkv") != read(here / "stages3.mkv")).mean() > 0.5


def test_json_counts_only_used_stages(here: Path, checkpoint: Path) -> None:
    (row,) = rows(vtok("decode", "a.vtok", "--json", "--stages", 1, "--model", checkpoint))
    assert (row["frames"], row["fps"], row["status"]) == (40, "25/1", "ok")
    assert row["code_shape"] == [1, 11, 12, 16]
    assert row["bytes"] < len((here / "a.vtok").read_bytes())


BAD = {
    "missing.vtok": (5, "missing.vtok: no such file"),
    "empty.vtok": (4, "empty.vtok: not a vtok code file (empty)"),
    "text.vtok": (4, "text.vtok: not a vtok code file"),
    "cut.vtok": (
        4,
        "cut.vtok: no index at its end: it was cut or is not finished",
    ),
    "a.vtok --stages 9": (2, "--stages 9: expected 1 to 3"),
    "a.vtok --crf 99": (2, "--crf 99: expected 0 to 51"),
    "a.vtok --dtype float8": (2, "--dtype float8: expected auto, float32, bfloat16, float16"),
    "a.vtok --model nix": (5, "nix: no such checkpoint: pass a file or a name"),
    "a.vtok -o x.xyz": (2, "x.xyz: unknown video format .xyz (use .mp4"),
    "a.vtok -o x.png": (1, "x.png: a picture holds one frame, this video has more"),
    "a.vtok -o text.vtok": (
        1,
        "text.vtok: exists already (--overwrite replaces it, or give another name)",
    ),
}


@pytest.mark.parametrize("arguments", BAD)
def test_errors_are_one_line(here: Path, checkpoint: Path, arguments: str) -> None:
    before = names(here)
    code, message = BAD[arguments]
    result = vtok("decode", "--model", checkpoint, *arguments.split())
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert names(here) == before


def test_folder_with_damaged_files_is_a_partial_failure(here: Path, checkpoint: Path) -> None:
    result = vtok("decode", ".", "-o", "out", "--model", checkpoint)
    assert result.exit_code == 3
    assert names(here / "out") == {"a.decoded.mp4"}
    assert result.stderr.splitlines()[-1] == "error: 4 of 5 inputs failed"
    assert vtok("decode", "cut.vtok", "text.vtok", "--model", checkpoint).exit_code == 4


def test_model_with_other_weights_is_refused(here: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path, "other", seed=1)
    result = vtok("decode", "a.vtok", "--model", other)
    assert result.exit_code == 4
    assert result.stderr.startswith("error: a.vtok: made with the model tiny (weights ")
    assert "), not with other (weights " in result.stderr
    assert result.stderr.endswith("): give the former as --model\n")


def test_model_name_in_a_code_file_is_never_a_path(here: Path, checkpoint: Path) -> None:
    (here / "tiny").write_bytes(checkpoint.read_bytes())
    result = vtok("decode", "a.vtok")
    message = "error: a.vtok: the model tiny is not shipped with vtok: pass its file as --model\n"
    assert (result.exit_code, result.stderr) == (5, message)


def test_salvage_decodes_complete_chunks_and_warns(here: Path, checkpoint: Path) -> None:
    result = vtok("decode", "cut.vtok", "--salvage", "--model", checkpoint)
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: cut.vtok: the file ends at byte ")
    assert "; 29 frames were saved, 11 lost (29 to 39)\n" in result.stderr
    assert shape(probe(here / "cut.decoded.mp4")) == (63, 47, 25, 29)


def test_salvage_without_complete_chunks_fails(here: Path, checkpoint: Path) -> None:
    before = names(here)
    result = vtok("decode", "stub.vtok", "--salvage", "--model", checkpoint)
    assert result.exit_code == 4
    assert result.stderr.startswith("error: stub.vtok: the file ends at byte 1200, in the middle")
    assert result.stderr.endswith("; it holds no frames\n")
    assert names(here) == before


def test_skip_existing_keeps_only_complete_videos(here: Path, checkpoint: Path) -> None:
    arguments = ["decode", "a.vtok", "--skip-existing", "--json", "--model", checkpoint]
    assert [row["status"] for row in rows(vtok(*arguments))] == ["ok"]
    assert [row["status"] for row in rows(vtok(*arguments))] == ["skipped"]
    output = here / "a.decoded.mp4"
    output.write_bytes(output.read_bytes()[:-700])
    assert [row["status"] for row in rows(vtok(*arguments))] == ["ok"]
    assert probe(output).num_frames == 40


def test_stream_gives_the_same_frames_as_file(here: Path, codes: bytes, checkpoint: Path) -> None:
    result = vtok("decode", "-", "--model", checkpoint, "--crf", "0", data=codes)
    assert result.exit_code == 0
    (here / "piped.mp4").write_bytes(result.stdout_bytes)
    vtok("decode", "a.vtok", "--model", checkpoint, "--crf", "0")
    np.testing.assert_array_equal(read(here / "piped.mp4"), read(here / "a.decoded.mp4"))


def test_error_of_a_damaged_stream_names_standard_input(codes: bytes, checkpoint: Path) -> None:
    result = vtok("decode", "-", "-o", "x.mp4", "--model", checkpoint, data=codes[:-600])
    assert result.exit_code == 4
    assert result.stderr.startswith("error: standard input: ")


def test_decode_file_accepts_open_streams(codes: bytes, checkpoint: Path) -> None:
    reader = CodeFileReader(io.BytesIO(codes))
    out = io.BytesIO()
    result = decode_file(io.BytesIO(codes), out, model=ModelCache(checkpoint))
    assert (result.frames, result.input, result.output) == (reader.num_frames, "-", "-")
    assert out.getvalue()[4:8] == b"ftyp"
