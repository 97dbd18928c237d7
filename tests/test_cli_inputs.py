"""Inputs and outputs of commands, help texts and unexpected errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import vtok
from typer.main import get_command

import vtok as package
from vtok.cli.app import app
from vtok.cli.console import one_line
from vtok.cli.jobs import Job, plan
from vtok.errors import InputError, UsageError
from vtok.video.suffixes import VIDEO_SUFFIXES


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return paths


def plan_videos(*inputs: str | Path, output: str | Path | None = None) -> list[Job]:
    texts = [str(text) for text in inputs]
    return plan(texts, None if output is None else str(output), ".vtok", VIDEO_SUFFIXES)


def outputs(*inputs: str | Path, output: str | Path | None = None) -> list[str]:
    return [job.output for job in plan_videos(*inputs, output=output)]


def test_output_is_next_to_its_input(tmp_path: Path) -> None:
    a, b = touch(tmp_path, "a.mp4", "sub/b.c.mkv")
    assert plan_videos(a, b) == [
        Job(str(a), str(tmp_path / "a.vtok")),
        Job(str(b), str(tmp_path / "sub" / "b.c.vtok")),
    ]


def test_one_input_to_a_named_file(tmp_path: Path) -> None:
    (a,) = touch(tmp_path, "a.mp4")
    assert outputs(a, output="codes/x.bin") == ["codes/x.bin"]
    assert outputs(a, output="-") == ["-"]


@pytest.mark.parametrize("name", ["out", "new/"])
def test_one_input_into_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (a,) = touch(tmp_path, "a.mp4")
    folder = f"{tmp_path}/{name}"
    assert outputs(a, output=folder) == [str(Path(folder) / "a.vtok")]


def test_folder_is_mirrored_in_order(tmp_path: Path) -> None:
    touch(tmp_path / "in", "z.mp4", "deep/er/a.MKV", "deep/b.webm", "notes.txt", "c.vtok")
    assert [os.path.relpath(name, tmp_path) for name in outputs(tmp_path / "in", output="out")] == [
        os.path.relpath(Path("out", name), tmp_path)
        for name in ("deep/b.vtok", "deep/er/a.vtok", "z.vtok")
    ]


def test_globs_are_sorted_and_recursive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "b.mp4", "a.mp4", "deep/er/c.mp4", "folder.mp4/x.txt")
    assert [Path(job.source).name for job in plan_videos(tmp_path / "*.mp4")] == ["a.mp4", "b.mp4"]
    monkeypatch.chdir(tmp_path)
    assert [job.source for job in plan_videos("**/[ac].mp4")] == ["a.mp4", "deep/er/c.mp4"]


def test_existing_file_named_like_a_glob(tmp_path: Path) -> None:
    path, _ = touch(tmp_path, "a[1]*.mp4", "a1.mp4")
    assert [job.source for job in plan_videos(path)] == [str(path)]


@pytest.mark.parametrize(
    "name", ["sp ace.mp4", "-dash.mp4", "new\nline.mp4", "ünï東.mp4", "\udcff.mp4", ".mp4"]
)
def test_unusual_names(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    (job,) = plan_videos(tmp_path / name)
    assert job.source == str(tmp_path / name)
    assert Path(job.output).parent == tmp_path
    assert job.output.endswith(".vtok")


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["-", "a.mp4"], None, "^- reads standard input: it cannot be one of several inputs$"),
        (["-"], "sub", "^-o sub: is a folder, standard input needs a file name$"),
        (
            ["a.mp4", "b.mp4"],
            "-",
            "^-o - takes one input: several outputs cannot share standard output$",
        ),
        (["a.mp4", "b.mp4"], "b.txt", "^-o b.txt: is a file, several inputs need a folder$"),
        (["sub"], "b.txt", "^-o b.txt: is a file, several inputs need a folder$"),
        ([""], None, "^an empty name: give a file or a folder"),
        (["a.mp4"], "", "^an empty name: give a file or a folder"),
        (["a.mp4", "a.mkv"], None, "^a.mp4 and a.mkv would both be written to a.vtok$"),
        (["a.mp4", "./a.mp4"], "new", "^a.mp4 and a.mp4 would both be written to new/a.vtok$"),
        (
            ["a.mp4", "link/a.mkv"],
            None,
            "^a.mp4 and link/a.mkv would both be written to link/a.vtok$",
        ),
        (["a.mp4"], "a.mp4", "^a.mp4: is an input, it cannot be the output of a.mp4$"),
        (["a.mp4"], "link/a.mp4", "^link/a.mp4: is an input, it cannot be the output of a.mp4$"),
    ],
)
def test_conflicting_inputs_and_outputs_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    inputs: list[str],
    output: str | None,
    message: str,
) -> None:
    touch(tmp_path, "a.mp4", "a.mkv", "b.mp4", "b.txt", "sub/c.mp4")
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        plan_videos(*inputs, output=output)


def test_empty_folders_and_globs_are_errors(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(InputError, match=r"no file in this folder ends in .* \.\.\."):
        plan_videos(tmp_path)
    with pytest.raises(InputError, match=r"\*\.mp4: no file matches$"):
        plan_videos(tmp_path / "*.mp4")


def test_one_line_escapes_control_characters() -> None:
    assert one_line("a\nb\x1b[31m\udcff ü東") == r"a\nb\x1b[31m\udcff ü東"


def test_help_imports_no_heavy_library() -> None:
    code = "import sys; sys.argv[0] = 'vtok'; import atexit\n"
    code += "heavy = {'torch', 'numpy', 'rich', 'av', 'imageio', 'PIL', 'safetensors'}\n"
    code += "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
    code += "from vtok.cli.app import main; main()"
    root = str(Path(package.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.stdout.startswith("Usage: vtok")
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", [[], ["encode"], ["decode"], ["info"]])
def test_help_shows_examples_in_80_columns(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = vtok(*command, "--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    # each example is on its own line
    assert sum(line.startswith(f"    vtok {''.join(command)}") for line in lines) >= 2


@pytest.mark.parametrize("group", [[], ["dataset"], ["tokens"], ["import"]])
def test_help_shows_whole_summaries_in_80_columns(
    group: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = vtok(*group, "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    command = get_command(app)
    for name in group:
        command = command.commands[name]
    for name, sub in command.commands.items():
        (line,) = [line for line in lines if re.match(rf"  {name}  +[A-Z]", line)]
        summary = " ".join(sub.help.split("\n\n")[0].split())
        assert line.split(maxsplit=1)[1] == summary


def test_help_groups_commands() -> None:
    text = vtok("--help").stdout
    headings = re.findall(r"^([A-Z][a-z ]+):$", text, re.MULTILINE)
    assert headings == ["Options", "One video", "Many videos", "Models", "Measuring"]


def test_help_lists_exit_codes_and_version_is_printed() -> None:
    text = " ".join(vtok("--help").stdout.split())
    assert "0 all done, 1 nothing could be done, 2 wrong usage, 3 some inputs failed" in text
    assert vtok("--version").stdout == f"vtok {package.__version__}\n"


@pytest.mark.parametrize("arguments", [["frob"], ["encode"], ["encode", "a.mp4", "--frob"], []])
def test_wrong_usage_exits_2_without_output(arguments: list[str]) -> None:
    result = vtok(*arguments)
    assert result.exit_code == 2
    if arguments:
        assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError("a\nb"), "x: internal error: ZeroDivisionError: a b; run with --debug"),
        (MemoryError(), "x: out of memory: try a smaller --size, or --device cpu"),
        (RuntimeError("you can't allocate memory: 9 GB"), "x: out of memory: try a smaller --size"),
    ],
)
def test_unexpected_error_is_one_line_or_traceback_with_debug(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(name: str) -> dict[str, object]:
        raise error

    monkeypatch.setattr("vtok.cli.code_files._inspect", fail)
    result = vtok("info", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    for arguments in (["info", "x", "--debug"], ["--debug", "info", "x"]):
        result = vtok(*arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("Traceback")
        assert f"error: {message}" in result.stderr
        assert "in fail" in result.stderr
