"""Escape codes, --quiet, shell completion and errors with advice."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import encode, tiny_checkpoint, tiny_model, vtok
from token_models import tiny_tokens
from training import tiny_config_file, tiny_data
from typer.main import get_command
from typer.testing import Result
from videos import make_video

from vtok.cli import completion
from vtok.cli.app import app

ESCAPE = "\x1b"
STYLE = re.compile(r"\x1b\[[0-9;]*m")
MODEL = ("--model", "tiny.safetensors", "--device", "cpu", "--dtype", "float32")
QUICK = (*MODEL, "--frames", "5", "--metrics", "psnr", "--bits", "6,12")
SILENT = {"info", "models", "doctor", "dataset status"}
"""Commands without progress and without --quiet."""
RUNS: dict[str, tuple[str, ...]] = {
    "encode": ("a.mp4", "-o", "{}.vtok", *MODEL),
    "decode": ("ready.vtok", "-o", "{}.mp4", *MODEL),
    "info": ("ready.vtok",),
    "cut": ("ready.vtok", "-o", "{}.vtok", "--stages", "1"),
    "cat": ("ready.vtok", "ready.vtok", "-o", "{}.vtok"),
    "verify": ("ready.vtok",),
    "dump": ("ready.vtok", "-o", "{}.jsonl"),
    "pack": ("ready.jsonl", "-o", "{}.vtok"),
    "eval": ("a.mp4", *QUICK),
    "compare": ("a.mp4", *QUICK, "--with", "x264", "--no-compress", "-o", "{}"),
    "report": ("a.mp4", *QUICK, "--no-compress", "-o", "{}.html"),
    "models": (),
    "tokens show": ("a.mp4", "-o", "{}.png", "--token-learner", "learner", *MODEL),
    "dataset encode": ("few", "-o", "{}", "--workers", "1", *MODEL),
    "dataset status": ("set",),
    "dataset verify": ("set",),
    "dataset merge": ("set",),
}
SLOW: dict[str, tuple[str, ...]] = {
    "doctor": ("--model", "tiny.safetensors", "--device", "cpu"),
    "train": ("few", "--out", "{}", "--config", "tiny.toml", "--steps", "1", "--device", "cpu"),
    "tokens train": (
        *("few", "--out", "{}", "--model", "tiny.safetensors", "--device", "cpu", "--steps", "1"),
        *("--set", "pixel_steps=1", "--set", "bank=8", "--set", "batch=2", "--set", "crop=32"),
        *("--set", "frames=5", "--set", "pixel_batch=1", "--set", "pipeline.dim=16"),
    ),
    "dataset retry": ("set", "--workers", "1", "--model", "tiny.safetensors"),
}
CASES = [*RUNS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
LOUD = [
    *(name for name in RUNS if name not in SILENT),
    *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW if name not in SILENT),
]
"""Commands that have --quiet."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comfort")
    _, learner = tiny_tokens(folder)
    learner.rename(folder / "learner")
    make_video(folder / "a.mp4", 5)
    tiny_data(folder / "few", 1)
    encode(folder / "a.mp4", folder / "ready.vtok", tiny_model(folder))
    vtok("dump", folder / "ready.vtok", "-o", folder / "ready.jsonl")
    checkpoint = tiny_checkpoint(folder)
    vtok("dataset", "encode", folder / "few", "-o", folder / "set", "--model", checkpoint)
    tiny_config_file(folder)
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return folder


def run(name: str, output: str, *more: str) -> Result:
    arguments = [text.replace("{}", f"made-{output}") for text in {**RUNS, **SLOW}[name]]
    result = vtok(*name.split(), *arguments, *more)
    assert result.exit_code == 0, (result.stdout, result.stderr)
    return result


def commands(group: Any = None, *names: str) -> Iterator[tuple[str, Any]]:
    """All commands by name, without `vtok`."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name)), command


def options(command: Any) -> set[str]:
    return {name for param in command.params for name in param.opts}


@pytest.mark.parametrize("name", CASES)
def test_piped_output_has_no_escape_codes(name: str, here: Path) -> None:
    result = run(name, f"{name}-piped")
    assert ESCAPE not in result.stdout + result.stderr


@pytest.mark.parametrize("name", CASES)
def test_no_color_disables_styles(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # makes rich treat pipes as a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    result = run(name, f"{name}-plain")
    assert not STYLE.search(result.stdout + result.stderr)


@pytest.mark.parametrize("name", LOUD)
def test_quiet_disables_progress(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert run(name, f"{name}-quiet", "--quiet").stderr == ""


def test_terminal_shows_coloured_progress(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert STYLE.search(run("encode", "drawn").stderr), "otherwise the tests above are void"


def test_every_command_has_quiet_and_debug() -> None:
    for name, command in commands():
        assert "--debug" in options(command), name
        assert ("--quiet" in options(command)) == (name not in SILENT), name


def test_options_are_consistent_across_commands() -> None:
    """Options of the same name have the same secondary names everywhere."""
    seen: dict[str, tuple[str, object]] = {}
    for name, command in commands():
        for param in command.params:
            for option in (*param.opts, *param.secondary_opts):
                if option.startswith("--no-") or option in ("--compress", "--json", "--quiet"):
                    before = seen.setdefault(option, (name, param.secondary_opts))
                    assert before[1] == param.secondary_opts, f"{option}: {before[0]}, {name}"
    compressing = {n for n, command in commands() if "--compress" in options(command)}
    assert compressing == {"encode", "eval", "compare", "report", "dataset encode"}


def complete(words: str, folder: Path) -> list[str]:
    """Completions that bash gets for the last of these words."""
    environment = {
        **os.environ,
        "_VTOK_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "vtok"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.split()


def test_shell_completes_videos_and_learners(tmp_path: Path) -> None:
    for name in ("bee.mp4", "bees.MKV", "beer.txt", "beer.vtok"):
        (tmp_path / name).touch()
    assert complete("vtok encode bee", tmp_path) == ["bee.mp4", "bees.MKV"]
    assert complete("vtok decode be", tmp_path) == ["beer.vtok"]
    assert complete("vtok encode --token-learner v1", tmp_path) == ["v10", "v11"]


def test_completion_by_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips" / "more").mkdir(parents=True)
    for name in ("one.mp4", "two.vtok", ".three.mp4", "clips/four.webm", "clips/more/five.gif"):
        (tmp_path / name).touch()
    assert completion.videos("") == ["clips/", "one.mp4"]
    assert completion.codes("t") == ["two.vtok"]
    assert completion.videos(".t") == [".three.mp4"]
    # the only matching folder is listed with its contents
    assert completion.videos("cl") == ["clips/", "clips/four.webm", "clips/more/"]
    assert completion.videos(f"{tmp_path}/o") == [f"{tmp_path}/one.mp4"]
    assert completion.videos("./o") == ["./one.mp4"]
    assert completion.videos("nowhere/") == []
    (tmp_path / "one more.mp4").touch()
    assert completion.videos("one") == [], (
        "names with spaces are left to the shell, which quotes them"
    )


def test_completion_of_lists() -> None:
    assert completion.some_of("psnr", "ssim", "vmaf")("psnr,") == ["psnr,ssim", "psnr,vmaf"]
    assert completion.some_of("psnr", "ssim", "vmaf")("ps") == ["psnr"]


def test_completed_names_are_valid() -> None:
    from vtok.dataset.options import FORMATS
    from vtok.evaluation.classic import CODECS
    from vtok.evaluation.metrics import METRICS
    from vtok.nn.config import BASELINES, LEARNERS

    offered = {
        (name, param.name): {item.value for item in param.shell_complete(None, "")}
        for name, command in commands()
        for param in command.params
        if param.name in ("codecs", "metrics", "learner", "to")
    }
    assert offered["eval", "metrics"] == offered["report", "metrics"] == set(METRICS)
    assert offered["compare", "codecs"] == offered["report", "codecs"] == set(CODECS)
    assert offered["tokens train", "learner"] == {*LEARNERS, *BASELINES}
    assert offered["dataset encode", "to"] == set(FORMATS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    result = vtok("--show-completion", shell)
    assert result.exit_code == 0
    assert "COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("encod a.mp4", "encode"),
        ("encode", "give files"),
        ("encode nothing.mp4", "no such file"),
        ("encode a.mp4 --bits 3", "--bits 3"),
        ("encode a.mp4 --stages 9 {}", "--stages 9"),
        ("encode a.mp4 --size big {}", "256"),
        ("encode a.mp4 --to zip", "expected one of vtok"),
        ("encode a.mp4 -o ready.vtok {}", "--overwrite"),
        ("encode a.mp4 --model no-such", "vtok-base"),
        ("encode a.mp4 --device abacus", "cpu"),
        ("decode a.mp4", "vtok"),
        ("decode ready.vtok --model ready.jsonl", "ready.jsonl"),
        ("dataset status few", "few"),
        ("tokens show a.mp4 -o x.png --token-learner nothing {}", "vtok tokens train"),
        ("eval a.mp4 --metrics beauty {}", "psnr"),
        ("compare a.mp4 --with mpeg2 {}", "x264"),
        ("report a.mp4 -o -", "page.html"),
    ],
)
def test_errors_are_one_line_with_advice(arguments: str, says: str, here: Path) -> None:
    result = vtok(*arguments.replace("{}", " ".join(MODEL[:2])).split())
    assert result.exit_code in (1, 2, 4, 5)
    last = result.stderr.splitlines()[-1]
    assert says in last, result.stderr
    assert "Traceback" not in result.stderr
