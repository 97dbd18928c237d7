"""`vtok encode`: outputs, messages, exit codes, and no partial files."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import rows, tiny_checkpoint, vtok
from safetensors import safe_open
from videos import make_video, run_ffmpeg

import vtok as package
from vtok.codefile.header import Header
from vtok.codefile.reader import CodeFileReader
from vtok.pipeline.encode import encode_file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", 10)
    make_video(folder / "b.mp4", 5, fps="10")
    return folder


@pytest.fixture
def here(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a.mp4, b.mp4 and files that are not videos."""
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((originals / name).read_bytes())
    (tmp_path / "text.mp4").write_text("hello\n")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes((originals / "a.mp4").read_bytes()[:1500])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def open_codes(path: Path | str) -> CodeFileReader:
    return CodeFileReader(io.BytesIO(Path(path).read_bytes()))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_output_is_written_next_to_the_video(here: Path, checkpoint: Path) -> None:
    before = names(here)
    result = vtok("encode", "a.mp4", "--model", checkpoint)
    assert result.exit_code == 0
    assert result.stdout == ""
    size = (here / "a.vtok").stat().st_size
    assert result.stderr.startswith(
        f"a.mp4 -> a.vtok: 10 frames 64x48, 2,304 codes, {size:,} bytes"
    )
    assert result.stderr.count("\n") == 1
    assert names(here) == before | {"a.vtok"}
    assert open_codes("a.vtok").num_frames == 10


def test_json_replaces_the_line(here: Path, checkpoint: Path) -> None:
    result = vtok("encode", "a.mp4", "-o", "new/x.vtok", "--model", checkpoint, "--json")
    assert result.stderr == ""
    (row,) = rows(result)
    size = (here / "new/x.vtok").stat().st_size
    assert row.pop("seconds") > 0
    assert row.pop("frames_per_second") > 0
    assert row == {
        "input": "a.mp4",
        "output": "new/x.vtok",
        "status": "ok",
        "width": 64,
        "height": 48,
        "fps": "30/1",
        "frames": 10,
        "codes": 3 * 4 * 12 * 16,
        "code_shape": [3, 4, 12, 16],
        "bits_per_code": 6,
        "vocab_size": 64,
        "bytes": size,
        "bpp": round(8 * size / (10 * 64 * 48), 6),
        "raw_bpp": round(6 * 3 * 4 * 12 * 16 / (10 * 64 * 48), 6),
        "chunk_stages": {"3": 1},
        "chunk_bits": 8 * size,
        "psnr": None,
        "lost": None,
        "lost_frames": None,
        "gaps": [],
        "note": None,
        "missing_frames": 0,
        "audio_bytes": 0,
    }


@pytest.mark.parametrize(
    ("options", "frames", "shape"),
    [
        (["--size", "24"], 10, (32, 24, "30")),
        (["--size", "33x21"], 10, (33, 21, "30")),
        (["--fps", "15"], 5, (64, 48, "15")),
        (["--start", "0.1", "--duration", "0.2"], 6, (64, 48, "30")),
        (["--stages", "2"], 10, (64, 48, "30")),
    ],
)
def test_size_rate_part_and_stages(
    here: Path, checkpoint: Path, options: list[str], frames: int, shape: tuple[int, int, str]
) -> None:
    assert vtok("encode", "a.mp4", "--model", checkpoint, *options).exit_code == 0
    reader = open_codes("a.vtok")
    transform = reader.header.transform
    assert reader.num_frames == frames
    assert (transform.width, transform.height, str(transform.fps)) == shape
    assert reader.header.format.num_stages == (2 if "--stages" in options else 3)


@pytest.mark.parametrize(("bits", "stages"), [(6, 1), (11, 1), (12, 2), (99, 3)])
def test_bits_select_as_many_stages_as_fit(
    here: Path, checkpoint: Path, bits: int, stages: int
) -> None:
    vtok("encode", "a.mp4", "--model", checkpoint, "--bits", bits)
    assert open_codes("a.vtok").header.format.num_stages == stages


@pytest.mark.parametrize("how", [["--to", "npy"], ["-o", "a.npy"]])
def test_arrays_by_option_or_suffix(here: Path, checkpoint: Path, how: list[str]) -> None:
    assert vtok("encode", "a.mp4", "--model", checkpoint, *how).exit_code == 0
    assert np.load("a.npy").shape == (3, 4, 12, 16)


BAD_OPTIONS = {
    "--to png": "--to png: expected one of vtok, npy, tokens, safetensors, pt",
    "--size 0": "--size 0: expected 1 to 67108864 pixels in all",
    "--size big": "--size big: expected a short side such as 256, or WIDTHxHEIGHT such as 640x360",
    "--fps 0": "--fps 0: expected a rate such as 25, 29.97 or 30000/1001",
    "--fps 1/0": "--fps 1/0: expected a rate such as 25, 29.97 or 30000/1001",
    "--start -1": "--start -1: expected 0 or more seconds",
    "--start nan": "--start nan: expected 0 or more seconds",
    "--duration 0": "--duration 0: expected more than 0 seconds",
    "--duration inf": "--duration inf: expected more than 0 seconds",
    "--timeout 0": "--timeout 0: expected more than 0 seconds",
    "--stages 0": "--stages 0: expected 1 to 3",
    "--stages 99": "--stages 99: expected 1 to 3",
    "--bits 3": "--bits 3: expected 6 or more, one stage",
    "--stages 1 --bits 6": "--stages and --bits set the same thing: give one of them",
    "--dtype float8": "--dtype float8: expected auto, float32, bfloat16, float16",
    "--overwrite --skip-existing": "--overwrite and --skip-existing exclude each other",
    "-o - --json": "--json and the output both need standard output: give -o FILE",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options_exit_2_with_one_line(here: Path, checkpoint: Path, options: str) -> None:
    before = names(here)
    result = vtok("encode", "a.mp4", "--model", checkpoint, *options.split())
    assert (result.exit_code, result.stderr) == (2, f"error: {BAD_OPTIONS[options]}\n")
    assert result.stdout == ""
    assert names(here) == before


def test_bad_options_are_reported_once_for_several_inputs(here: Path, checkpoint: Path) -> None:
    for options in (["--stages", "9"], ["--size", "0"], ["--duration", "0"]):
        result = vtok("encode", "a.mp4", "b.mp4", "--model", checkpoint, *options)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1


def test_unavailable_device_is_named(here: Path, checkpoint: Path) -> None:
    result = vtok("encode", "a.mp4", "--model", checkpoint, "--device", "cuda:99")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --device cuda:99: expected one that is usable here (")
    assert result.stderr.endswith("); try cpu\n")


BAD_INPUTS = {
    "missing.mp4": "missing.mp4: no such file",
    "empty.mp4": "empty.mp4: empty file (0 bytes)",
    "text.mp4": "text.mp4: not a video file",
    "cut.mp4": "cut.mp4: cut short: it ends before its index",
    "sound.wav": "sound.wav: ",
    "*.mkv": "*.mkv: no file matches",
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs_exit_5_with_one_line(here: Path, checkpoint: Path, name: str) -> None:
    run_ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", "sound.wav")
    before = names(here)
    result = vtok("encode", name, "--model", checkpoint)
    assert result.exit_code == 5
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {BAD_INPUTS[name]}")
    assert result.stderr.count("\n") == 1
    assert names(here) == before


def test_start_beyond_the_end_reports_the_duration(here: Path, checkpoint: Path) -> None:
    result = vtok("encode", "a.mp4", "--start", 5, "--model", checkpoint)
    message = "error: a.mp4: no frame in the requested part (the video is 0.333 s long)\n"
    assert (result.exit_code, result.stderr) == (5, message)


@pytest.mark.parametrize(("model", "code"), [("nix", 5), ("text.mp4", 4)])
def test_bad_model_is_named(here: Path, model: str, code: int) -> None:
    result = vtok("encode", "a.mp4", "--model", model)
    assert result.exit_code == code
    assert result.stderr.startswith(f"error: {model}: no")
    assert result.stderr.count("\n") == 1


def test_failed_inputs_do_not_stop_the_others(here: Path, checkpoint: Path) -> None:
    result = vtok("encode", "a.mp4", "text.mp4", "missing.mp4", "b.mp4", "--model", checkpoint)
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert lines[0].startswith("a.mp4 -> a.vtok: ")
    assert lines[1:3] == ["error: text.mp4: not a video file", "error: missing.mp4: no such file"]
    assert lines[3].startswith("b.mp4 -> b.vtok: ")
    assert lines[4:] == ["error: 2 of 4 inputs failed"]
    assert {"a.vtok", "b.vtok"} <= names(here)
    assert "text.vtok" not in names(here)


def test_json_has_rows_for_failed_inputs(here: Path, checkpoint: Path) -> None:
    result = vtok("encode", "text.mp4", "b.mp4", "--json", "--model", checkpoint)
    failed, done = rows(result)
    assert failed == {
        "input": "text.mp4",
        "output": "text.vtok",
        "status": "failed",
        "error": "VideoError",
        "message": "text.mp4: not a video file",
        "exit_code": 5,
    }
    assert (done["input"], done["status"]) == ("b.mp4", "ok")


def test_exit_code_if_all_inputs_fail_alike(here: Path, checkpoint: Path) -> None:
    assert vtok("encode", "text.mp4", "missing.mp4", "--model", checkpoint).exit_code == 5


def test_unexpected_error_does_not_stop_the_others(
    here: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(source: Path, *arguments: object, **options: object) -> object:
        if source.name == "a.mp4":
            raise KeyError("oops")
        return encode_file(source, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("vtok.pipeline.encode.encode_file", work)
    result = vtok("encode", "a.mp4", "b.mp4", "--model", checkpoint)
    assert result.exit_code == 3
    assert "error: a.mp4: internal error: KeyError: 'oops'; run with --debug" in result.stderr
    assert "b.vtok" in names(here)
    debugged = vtok("encode", "a.mp4", "text.mp4", "--model", checkpoint, "--debug", "--json")
    assert debugged.exit_code == 3
    assert "Traceback" in debugged.stderr


def test_existing_output_needs_overwrite(here: Path, checkpoint: Path) -> None:
    (here / "a.vtok").write_bytes(b"precious")
    refused = vtok("encode", "a.mp4", "--model", checkpoint)
    message = "error: a.vtok: exists already (--overwrite replaces it, or give another name)\n"
    assert (refused.exit_code, refused.stderr) == (1, message)
    assert (here / "a.vtok").read_bytes() == b"precious"
    assert vtok("encode", "a.mp4", "--model", checkpoint, "--overwrite").exit_code == 0
    assert open_codes("a.vtok").num_frames == 10


@pytest.mark.parametrize("to", ["vtok", "npy", "safetensors"])
def test_skip_existing_keeps_complete_outputs(here: Path, checkpoint: Path, to: str) -> None:
    arguments = ["encode", "a.mp4", "--to", to, "--model", checkpoint, "--skip-existing", "--json"]
    assert [row["status"] for row in rows(vtok(*arguments))] == ["ok"]
    output = here / f"a.{to}"
    written, inode = output.read_bytes(), output.stat().st_ino
    assert rows(vtok(*arguments)) == [
        {"input": "a.mp4", "output": output.name, "status": "skipped"}
    ]
    assert output.stat().st_ino == inode
    output.write_bytes(written[:-5])
    assert [row["status"] for row in rows(vtok(*arguments))] == ["ok"]
    assert output.read_bytes() == written


@pytest.mark.parametrize(
    "options", [["--stages", "1"], ["--size", "32"], ["--fps", "5"], ["--start", "0.1"]]
)
def test_skip_existing_replaces_outputs_of_other_options(
    here: Path, checkpoint: Path, options: list[str]
) -> None:
    arguments = ["encode", "a.mp4", "--model", checkpoint, "--skip-existing", "--json"]
    vtok(*arguments)
    assert [row["status"] for row in rows(vtok(*arguments, *options))] == ["ok"]
    assert [row["status"] for row in rows(vtok(*arguments, *options))] == ["skipped"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("text.mp4/x.vtok", "text.mp4/x.vtok: its folder cannot be created (File exists)"),
        ("/proc/x.vtok", "/proc/x.vtok: cannot be written (No such file or directory)"),
        ("fifo", "fifo: is not a regular file and cannot be replaced"),
    ],
)
def test_unwritable_outputs_exit_1(here: Path, checkpoint: Path, output: str, message: str) -> None:
    os.mkfifo("fifo")
    result = vtok("encode", "b.mp4", "-o", output, "--model", checkpoint)
    assert (result.exit_code, result.stderr) == (1, f"error: {message}\n")


def test_stream_gives_the_same_codes_as_file(here: Path, checkpoint: Path) -> None:
    vtok("encode", "a.mp4", "--model", checkpoint)
    result = vtok("encode", "-", "--model", checkpoint, data=Path("a.mp4").read_bytes())
    assert result.exit_code == 0
    assert result.stderr.startswith("- -> -: 10 frames 64x48")
    piped, filed = CodeFileReader(io.BytesIO(result.stdout_bytes)), open_codes("a.vtok")
    assert piped.header.source.name is None
    for first, second in zip(piped, filed, strict=True):
        np.testing.assert_array_equal(first.codes, second.codes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "error: standard input: is empty\n"),
        (b"hello\n", "error: standard input: not a video file"),
    ],
)
def test_bad_standard_input_exits_5(checkpoint: Path, data: bytes, message: str) -> None:
    result = vtok("encode", "-", "--model", checkpoint, data=data)
    assert result.exit_code == 5
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert result.stdout_bytes == b""


def test_quiet_prints_nothing(here: Path, checkpoint: Path) -> None:
    result = vtok("encode", "b.mp4", "-q", "--model", checkpoint)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_safetensors_hold_the_header(here: Path, checkpoint: Path) -> None:
    vtok("encode", "a.mp4", "-o", "a.safetensors", "--model", checkpoint)
    with safe_open("a.safetensors", framework="np") as file:
        header = Header.from_json(file.metadata()["vtok"].encode())
    assert header.transform.width == 64
    assert header.source.name == "a.mp4"


START = "from vtok.cli.app import main; main()"


def start(*arguments: str | Path, **options: object) -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(package.__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", START, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


def children(pid: int) -> set[int]:
    """Process ids of the children of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_no_partial_file_and_no_process(
    here: Path, checkpoint: Path, number: signal.Signals
) -> None:
    make_video(here / "long.mp4", 1500, width=128, height=96)
    (here / "out").mkdir()
    process = start("encode", "long.mp4", "-o", "out/x.vtok", "--model", checkpoint)
    with process:
        deadline = time.monotonic() + 60
        while not names(here / "out") and time.monotonic() < deadline:
            time.sleep(0.01)
        (temporary,) = names(here / "out")
        assert temporary != "x.vtok"
        started = children(process.pid)
        assert started
        process.send_signal(number)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert names(here / "out") == set()
    assert log == b""
    end = time.monotonic() + 20  # the tracker of shared memory ends a moment later by itself
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_closed_pipe_gives_no_traceback(here: Path, checkpoint: Path) -> None:
    process = start("encode", "a.mp4", "-o", "-", "--model", checkpoint, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        log = process.stderr.read()
    assert (process.returncode, log) == (1, b"")
