"""docs/cli.md and docs/api.md match the commands and the exported names."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "cli_reference.py"
PAGE = (ROOT / "docs" / "cli.md").read_text()


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_page_is_up_to_date(script: dict[str, Any]) -> None:
    assert script["page"]() == PAGE, "run scripts/cli_reference.py --write"


def test_outdated_page_is_an_error(tmp_path: Path) -> None:
    copy = tmp_path / "scripts" / "cli_reference.py"
    copy.parent.mkdir()
    (tmp_path / "docs").mkdir()
    copy.write_text(SCRIPT.read_text())
    (tmp_path / "docs" / "cli.md").write_text(PAGE.replace("--no-compress", "--packed"))
    done = subprocess.run([sys.executable, copy], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "+| `--compress` / `--no-compress` |" in done.stderr
    assert "scripts/cli_reference.py --write" in done.stderr


def test_every_command_and_option_is_documented(script: dict[str, Any]) -> None:
    group = script["get_command"](script["app"])
    for name, command in script["commands"](group, "vtok"):
        section = PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for param in command.params:
            for option in (*param.opts, *param.secondary_opts):
                assert option.startswith("-") is False or f"`{option}" in section, (name, option)
            assert param.help, f"{name} {param.name} has a help text"
        assert re.search(rf"^{name}( |$)", section, re.MULTILINE), f"{name} has an example"
        assert "[Exit codes](#exit-codes): 0, 1, 2" in section


def test_exit_code_3_only_with_several_inputs() -> None:
    for name, codes in (("encode", "0, 1, 2, 3, 4, 5"), ("train", "0, 1, 2, 4, 5")):
        section = PAGE.partition(f"\n## vtok {name}\n")[2].partition("\n## ")[0]
        assert f"(#exit-codes): {codes}, 130, 143" in section


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unless -o says", "unless `-o` says"),
        ("with --start.", "with `--start`."),
        ("`vtok encode --model` and non-empty", "`vtok encode --model` and non-empty"),
        ("folders or - for standard input", "folders or - for standard input"),
    ],
)
def test_options_in_sentences_are_code(script: dict[str, Any], text: str, shown: str) -> None:
    assert script["marked"](text) == shown


def test_api_page_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "api_reference.py"))
    assert script["page"]() == script["PAGE"].read_text(), "run scripts/api_reference.py --write"
