"""`vtok verify`: whole files pass, errors are named with the documented exit code."""

import io
from pathlib import Path

import pytest
from codefiles import load_tiny, random_file
from commands import rows, vtok

from vtok.codefile.reader import CodeFileReader
from vtok.pipeline.edit import cut_file, join_files
from vtok.pipeline.options import CutOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of version 1.0 and 1.1, and files that are wrong."""
    folder = tmp_path_factory.mktemp("files")
    model = load_tiny(folder)
    load_tiny(folder, "classic")
    whole = folder / "whole.vtok"
    whole.write_bytes(random_file(model, 70))
    cut_file(whole, folder / "part.vtok", options=CutOptions(start_seconds=1.5))
    join_files([str(whole), str(folder / "part.vtok")], folder / "both.vtok")
    data = whole.read_bytes()
    (folder / "cut.vtok").write_bytes(data[:-300])
    flipped = bytearray(data)
    flipped[1000] ^= 1
    (folder / "flipped.vtok").write_bytes(flipped)
    (folder / "text.vtok").write_text("hello")
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    ("name", "version", "frames", "chunks", "segments"),
    [
        ("whole.vtok", "1.0", 70, 3, 1),
        ("part.vtok", "1.1", 32, 2, 1),
        ("both.vtok", "1.1", 102, 5, 2),
    ],
)
@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_whole_files_pass(
    name: str, version: str, frames: int, chunks: int, segments: int, deep: list[str]
) -> None:
    (row,) = rows(vtok("verify", name, "--json", "--model", "fast.safetensors", *deep))
    assert row == {
        "name": name,
        "version": version,
        "frames": frames,
        "chunks": chunks,
        "segments": segments,
        "bytes": Path(name).stat().st_size,
        "model": "tiny",
        "model_matches": True,
        "decoded": bool(deep),
        "status": "ok",
    }
    piped = vtok(
        "verify", "-", "--json", "--model", "fast.safetensors", *deep, data=Path(name).read_bytes()
    )
    assert rows(piped) == [{**row, "name": "-"}]


def test_missing_model_fails_only_if_needed() -> None:
    result = vtok("verify", "whole.vtok")
    size = Path("whole.vtok").stat().st_size
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        f"whole.vtok: whole: 70 frames in 3 chunks, {size:,} bytes; "
        "the model tiny is not available to compare\n"
    )
    result = vtok("verify", "whole.vtok", "--deep")
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.startswith("error: whole.vtok: the model tiny is not shipped with vtok")


BAD = {
    "cut.vtok": (4, "cut.vtok: the file ends at byte 2366, in the middle of a record; complete"),
    "flipped.vtok": (4, "flipped.vtok: "),
    "text.vtok": (4, "text.vtok: not a vtok code file"),
    "nix.vtok": (5, "nix.vtok: no such file"),
    "whole.vtok --model classic.safetensors": (4, "whole.vtok: made with the model tiny (weights"),
    "whole.vtok --dtype float8": (2, "--dtype float8: expected"),
}


@pytest.mark.parametrize("arguments", BAD)
@pytest.mark.parametrize("deep", [False, True])
def test_errors_are_one_line(arguments: str, deep: bool) -> None:
    code, message = BAD[arguments]
    model = [] if "--model" in arguments else ["--model", "fast.safetensors"]
    result = vtok("verify", *arguments.split(), *model, *(["--deep"] if deep else []))
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_folder_with_damaged_files() -> None:
    result = vtok("verify", ".", "--json")
    assert result.exit_code == 3
    status = {row["name"]: row["status"] for row in rows(result)}
    assert [name for name in status if status[name] == "ok"] == [
        "both.vtok",
        "part.vtok",
        "whole.vtok",
    ]
    assert len(status) == 6
    assert vtok("verify", "cut.vtok", "text.vtok").exit_code == 4


def test_salvage_reports_number_of_lost_frames(folder: Path) -> None:
    data = Path("whole.vtok").read_bytes()
    offsets = [entry.offset for entry in CodeFileReader(io.BytesIO(data)).chunks]
    Path("short.vtok").write_bytes(data[: offsets[2] + 40])
    arguments = ["--salvage", "--model", "fast.safetensors", "--overwrite"]
    result = vtok("decode", "short.vtok", "-o", "short.mkv", *arguments)
    assert result.exit_code == 0
    assert "; 61 frames were saved, 9 lost (61 to 69)\n" in result.stderr
    flipped = bytearray(data)
    flipped[offsets[1] + 60] ^= 1
    Path("short.vtok").write_bytes(flipped)
    result = vtok("decode", "short.vtok", "-o", "short.mkv", *arguments)
    assert "; 38 frames were saved, 32 lost (29 to 60)\n" in result.stderr
    part = [*arguments, "--start", 0.5, "--duration", 1]  # frames 13 to 37
    result = vtok("decode", "short.vtok", "-o", "short.mkv", *part)
    assert "short.vtok: stage 1 at frame 29 does" in result.stderr
    assert "; 16 frames were saved, 9 lost (29 to 37)\n" in result.stderr
    Path("short.vtok").unlink()
