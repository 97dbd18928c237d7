"""`vtok info` of videos, code files, checkpoints and other files."""

from pathlib import Path

import pytest
from commands import encode, rows, tiny_checkpoint, vtok
from videos import make_video

from vtok.models.checkpoint import list_models
from vtok.models.load import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video, a code file, a checkpoint, and damaged or other files."""
    folder = tmp_path_factory.mktemp("files")
    checkpoint = tiny_checkpoint(folder)
    model = load(checkpoint)
    video = make_video(folder / "a.mp4", 10, fps="30000/1001")
    encode(video, folder / "a.vtok", model, num_stages=2)
    encode(video, folder / "codes.safetensors", model, to="safetensors")
    (folder / "cut.vtok").write_bytes((folder / "a.vtok").read_bytes()[:-10])
    (folder / "text.mp4").write_text("hello\n")
    (folder / "empty.vtok").touch()
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_video() -> None:
    (row,) = rows(vtok("info", "a.mp4", "--json"))
    assert row == {
        "kind": "video",
        "name": "a.mp4",
        "status": "ok",
        "width": 64,
        "height": 48,
        "fps": "30000/1001",
        "frames": 10,
        "missing_frames": 0,
        "seconds": 0.334,
        "variable_frame_rate": False,
        "rotation": 0,
        "codec": "h264",
        "reader": "av",
        "bytes": Path("a.mp4").stat().st_size,
    }


def test_code_file() -> None:
    (row,) = rows(vtok("info", "a.vtok", "--json"))
    size = Path("a.vtok").stat().st_size
    assert (row["kind"], row["frames"], row["fps"]) == ("code file", 10, "30000/1001")
    assert (row["codes"], row["stages"], row["bits_per_position"]) == ([2, 4, 12, 16], 2, 12)
    assert (row["bytes"], row["bpp"]) == (size, round(8 * size / (10 * 64 * 48), 6))
    assert row["kbps"] == round(8 * size / 1000 / (10 * 1001 / 30000), 2)
    assert (row["model"], row["source"]) == ("tiny", "a.mp4 64x48")
    assert row["weights_sha256"] == load("tiny.safetensors").info.weights_sha256


def test_checkpoint() -> None:
    (row,) = rows(vtok("info", "tiny.safetensors", "--json"))
    model = load("tiny.safetensors")
    assert (row["kind"], row["name"], row["stages"]) == ("checkpoint", "tiny", 3)
    assert row["parameters"] == sum(p.numel() for p in model.tokenizer.state_dict().values())
    assert row["weights_sha256"] == model.info.weights_sha256


def test_shipped_checkpoint_by_name() -> None:
    for name in list_models():
        (row,) = rows(vtok("info", name, "--json"))
        assert (row["kind"], row["name"]) == ("checkpoint", name)


def test_one_line_per_fact() -> None:
    result = vtok("info", "a.mp4", "tiny.safetensors")
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = result.stdout.split("\n\n")
    assert "variable frame rate  no\n" in first
    assert "kind            checkpoint\n" in second
    assert "parameters      13,810\n" in second


@pytest.mark.parametrize("name", ["a.mp4", "a.vtok"])
def test_stream_gives_the_same_facts_as_file(name: str) -> None:
    (piped,) = rows(vtok("info", "-", "--json", data=Path(name).read_bytes()))
    (filed,) = rows(vtok("info", name, "--json"))
    assert piped == {**filed, "name": "-"}


BAD = {
    "nix": (5, "nix: no such file, and no shipped checkpoint ("),
    "text.mp4": (5, "text.mp4: not a video file"),
    ".": (5, ".: is a folder, not a video file"),
    "empty.vtok": (5, "empty.vtok: empty file (0 bytes)"),
    "cut.vtok": (4, "cut.vtok: no index at its end: it was cut or is not finished"),
    "codes.safetensors": (4, "codes.safetensors: a safetensors file, but not a vtok checkpoint"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_one_line(name: str) -> None:
    code, message = BAD[name]
    result = vtok("info", name)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_failed_files_do_not_stop_the_others() -> None:
    result = vtok("info", "nix", "a.mp4", "cut.vtok", "a.vtok", "--json")
    assert result.exit_code == 3
    assert [row["status"] for row in rows(result)] == ["failed", "ok", "failed", "ok"]
    assert [row["name"] for row in rows(result)] == ["nix", "a.mp4", "cut.vtok", "a.vtok"]
    assert [row.get("exit_code") for row in rows(result)] == [5, None, 4, None]
    assert result.stderr.splitlines()[-1] == "error: 2 of 4 inputs failed"
    assert vtok("info", "nix", "text.mp4").exit_code == 5


def test_empty_standard_input() -> None:
    result = vtok("info", "-", data=b"")
    assert (result.exit_code, result.stderr) == (5, "error: standard input: is empty\n")
