"""docs/benchmarks.md: each command parses, runs, and fills the section that it names."""

import argparse
import re
import runpy
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from vtok.cli.app import app

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
FILLED = re.compile(r"(?P<made>(?P<script>scripts/\S+).*) \| scripts/fill_page\.py (?P<to>.*)")
SHORTER = {  # options for a run of a few seconds, and a part of the output
    "scripts/benchmark_peers.py": ("--quick --only vtok-base magvit2-pytorch", "| vtok-base | "),
    "scripts/benchmark.py": ("--quick --threads 1", "| model encode |"),
    "scripts/benchmark_commands.py": ("--quick --threads 1", "| `vtok encode`, `vtok decode` |"),
    "scripts/benchmark_memory.py": ("--quick", "| 64x64 | small | encode | 9 | 18 |"),
    "scripts/roofline.py": ("--threads 1 --size 32 --repeats 1", "| encoder |"),
    "scripts/faithful.py": ("--frames 9 --size 32", "| one step per model call | 1.000000 |"),
    "scripts/peers/magvit2_parity.py": ("--only residual", "| residual | 5 | 1.000000 |"),
}
NEEDS = {"scripts/peers/magvit2_parity.py": "magvit2_pytorch"}


def commands(page: str) -> list[str]:
    """Return the lines of all sh blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s+# .*", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def commands_with(start: str) -> list[str]:
    return [line for line in commands(PAGE) if line.startswith(start)]


class Parsed(Exception):
    """A script has parsed its command line."""


def test_all_commands_of_the_page_are_tested() -> None:
    kinds = ("scripts/", "vtok ", "pip install ")
    assert [line for line in commands(PAGE) if not line.startswith(kinds)] == []
    found = [FILLED.fullmatch(line) for line in commands_with("scripts/")]
    assert all(found), "a script on this page must fill a section"
    assert {match["script"] for match in found if match} == set(SHORTER)
    parts = [match["to"].split() for match in found if match]
    assert [part[0] for part in parts] == ["docs/benchmarks.md"] * len(parts)
    assert [part[1] for part in parts] == re.findall(r"<!-- begin (\w+) -->", PAGE)


@pytest.mark.parametrize("line", commands_with("scripts/"))
def test_scripts_accept_the_options_on_the_page(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, args: Any = None, *_: Any) -> NoReturn:
        parse(self, args)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    script, *arguments = line.partition(" | ")[0].split()
    path = ROOT / script
    assert path.stat().st_mode & 0o111, f"{script}: not executable"
    monkeypatch.syspath_prepend(path.parent)
    for given in (arguments, [*arguments, *SHORTER[script][0].split()]):
        monkeypatch.setattr(sys, "argv", [script, *given])
        with pytest.raises(Parsed):
            runpy.run_path(str(path), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("line", commands_with("scripts/"))
def test_scripts_fill_their_section(line: str, tmp_path: Path) -> None:
    match = FILLED.fullmatch(line)
    assert match
    script, part = match["script"], match["to"].split()[-1]
    if script in NEEDS and find_spec(NEEDS[script]) is None:
        pytest.skip(f"{NEEDS[script]} is not installed")
    (tmp_path / "docs").mkdir()
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    page = tmp_path / "docs" / "benchmarks.md"
    page.write_text(PAGE)
    shorter, expected = SHORTER[script]
    run = runpy.run_path(str(ROOT / "scripts" / "run_docs.py"))["run"]
    run(["bash", "-o", "pipefail", "-c", line.replace(" | ", f" {shorter} | ", 1)], tmp_path)
    begin, end = f"<!-- begin {part} -->", f"<!-- end {part} -->"
    before, after = (text.partition(begin) for text in (PAGE, page.read_text()))
    assert expected in after[2].partition(end)[0]
    assert before[0] + before[2].partition(end)[2] == after[0] + after[2].partition(end)[2]


def test_installed_packages_match_the_project() -> None:
    extras = (ROOT / "pyproject.toml").read_text()
    version = runpy.run_path(str(ROOT / "scripts" / "peers" / "magvit2_peer.py"))["VERSION"]
    first, second = commands_with("pip install ")
    assert all(f"\n{name} = [" in extras for name in re.findall(r"\.\[(\w+)\]", first))
    assert (ROOT / "constraints.txt").exists()
    assert second.endswith(f"magvit2-pytorch=={version}")


def test_commands_import_a_checkpoint_and_encode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("pt", "toml"):
        source = ROOT / "tests" / "golden" / f"magvit2.{kind}"
        shutil.copy(source, tmp_path / f"tokenizer.{kind}")
    shutil.copy(ROOT / "examples" / "bee.mp4", tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    for line in commands_with("vtok "):
        shorter = ["--size", "32", "--duration", "0.2"] if line.startswith("vtok encode") else []
        done = CliRunner().invoke(app, [*line.split()[1:], *shorter])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "clip.vtok").exists()
