"""Documentation: commands print what the pages show, and links exist."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vtok.cli.app import app
from vtok.models.imports import FAMILIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


PAGES = runpy.run_path(str(ROOT / "scripts" / "run_docs.py"))["PAGES"]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_pages_show_real_output(page: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "run_docs.py", page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_readme_links_exist() -> None:
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / name).exists(), name


def test_pages_have_no_placeholders() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "vtok").rglob("*.md")]
    assert len(pages) > 15
    left = {page.name: re.findall(r"@[A-Z0-9]+@", page.read_text()) for page in pages}
    assert not any(left.values()), left


@pytest.mark.parametrize(
    "name",
    [
        *("encode", "decode", "info", "cut", "cat", "verify", "dump", "pack"),
        *("train", "eval", "compare", "report", "models", "doctor", "dataset encode"),
        *(f"import {family}" for family in FAMILIES),
    ],
)
def test_every_command_shows_examples(name: str) -> None:
    shown = CliRunner().invoke(app, [*name.split(), "--help"])
    assert shown.exit_code == 0
    assert re.search(rf"vtok {name} \S+", shown.stdout)
    assert f"vtok {name.split()[0] if name.startswith('import') else name}" in README


@pytest.mark.parametrize(
    "script",
    [
        "quality.py",
        "effort.py",
        "sizes.py",
        "token_quality.py",
        "token_probe.py",
        "results.py",
        "benchmark.py",
        "benchmark_commands.py",
        "benchmark_peers.py",
        "roofline.py",
        "faithful.py",
        "fill_page.py",
        "benchmark_memory.py",
        "benchmark_dataset.py",
        "make_golden.py",
        "api_reference.py",
        "run_docs.py",
        "fetch_corpus",
    ],
)
def test_scripts_have_help(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "scripts" / script
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage")


def test_long_blocks_run_with_short_arguments(tmp_path: Path) -> None:
    refresh = runpy.run_path(str(ROOT / "scripts" / "run_docs.py"))["refresh"]
    page = "<!-- short: > {} -->\n```console\n$ echo it ran\nlong\n```\n"
    page += "\n```console\n$ ls\nold\n```\n"
    shown = refresh(page.format("made"), tmp_path)
    assert shown == page.format("made").replace("$ ls\nold", "$ ls\nmade")
    assert (tmp_path / "made").read_text() == "it ran\n"
    with pytest.raises(SystemExit, match="exit 1"):
        refresh(page.format("made; false"), tmp_path)


@pytest.mark.parametrize(
    ("shown", "real", "same"),
    [
        ("121 frames  1,044 bytes 0.127 bpp", "121 frames 998 bytes 0.131 bpp", True),
        ("121 frames", "120 frames", False),
        ("bytes 510,137", "bytes 440,000", False),
        ("PSNR 25.1 dB", "PSNR 28.1 dB", False),
        ("one word", "another word", False),
        ("av1  -3.98  +245 % bytes", "av1  -4.04  +248 % bytes", True),
        ("av1  -3.98  +245 % bytes", "av1  -4.04  +298 % bytes", False),
    ],
)
def test_tolerance_between_machines(shown: str, real: str, same: bool) -> None:
    alike = runpy.run_path(str(ROOT / "scripts" / "run_docs.py"))["alike"]
    assert alike(shown, real) == same
