"""What the documentation shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vtok.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_commands_print_what_the_pages_show() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "run_docs.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_readme_names_only_files_that_exist() -> None:
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "name", ["encode", "decode", "info", "cut", "cat", "verify", "dump", "pack", "train"]
)
def test_every_command_teaches_by_example(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert re.search(rf"vtok {name} \S+", shown.stdout)
    assert f"vtok {name}" in README


def test_scripts_explain_themselves() -> None:
    for script in (
        "quality.py",
        "sizes.py",
        "benchmark.py",
        "make_golden.py",
        "run_docs.py",
        "fetch_corpus",
    ):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / script, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout
