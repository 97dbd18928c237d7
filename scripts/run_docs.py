#!/usr/bin/env python
"""Run every command and Python block of the README and docs, and compare or update the output.

    scripts/run_docs.py            fails if a page shows other output
    scripts/run_docs.py README.md  only that page
    scripts/run_docs.py --write    updates the output

Blocks marked `console` hold commands after `$ ` and their output. All blocks of a page run in one
folder that holds bee.mp4 and examples/. Speeds are not compared, nor whether a machine encodes in
float32 or in bfloat16. Encoders differ slightly between machines, and with them codes, bytes and
quality: fractions, integers of 1,000 and more, perplexities and percentages of bytes may differ by
5 %; everything else must be equal.

`<!-- short: ARGUMENTS -->` on the line above a block is for commands that take minutes: they run
with these arguments added and must succeed; their output in the page is not compared.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)
SHORT = re.compile(r"<!-- short: (.*?) ?-->\n$")
PAGES = (
    *("README.md", "docs/training.md", "docs/evaluation.md", "docs/report.md"),
    *("docs/tokens.md", "docs/datasets.md", "docs/examples.md"),
    *("docs/quickstart.md", "docs/api.md"),
)
SPEED = re.compile(r"\d+(\.\d+)? frames/s")
NUMBER_TYPE = re.compile(r"\bbfloat16\b")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.])")
TOLERANCE = 0.05


def run_console(block: str, folder: Path, added: str = "") -> str:
    """Run the commands of a block, with added arguments, and return it with their output."""
    lines = []
    for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
        done = run(["bash", "-o", "pipefail", "-c", f"{command} {added}"], folder)
        lines += [f"$ {command}", *done.stdout.rstrip().splitlines()]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with this interpreter's vtok on the path; stderr is merged into stdout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
    return done


def refresh(text: str, folder: Path) -> str:
    """Run every block of a page and return the page with their output."""

    def replace(match: re.Match[str]) -> str:
        kind, block = match.groups()
        if kind == "python":
            run([sys.executable, "-c", block], folder)
            return match.group(0)
        if short := SHORT.search(text[: match.start()]):
            run_console(block, folder, short.group(1))
            return match.group(0)
        return f"```console\n{run_console(block, folder)}```"

    return BLOCK.sub(replace, text)


def check(page: Path, write: bool) -> str:
    """Run one page and return the differences; empty if there are none."""
    old = page.read_text()
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(ROOT / "examples" / "bee.mp4", name)
        (Path(name) / "examples").symlink_to(ROOT / "examples")
        new = refresh(old, Path(name))
    if write:
        page.write_text(new)
        return ""
    shown, real = (
        NUMBER_TYPE.sub("float32", SPEED.sub("N frames/s", text)).splitlines()
        for text in (old, new)
    )
    if len(shown) == len(real):
        real = [a if alike(a, b) else b for a, b in zip(shown, real, strict=True)]
    return "\n".join(difflib.unified_diff(shown, real, page.name, "real", lineterm=""))


def alike(shown: str, real: str) -> bool:
    """Compare two lines, ignoring spaces and differences between machines."""
    texts = [NUMBER.sub("#", " ".join(line.split())) for line in (shown, real)]
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(real), strict=False)
    exact = not (shown.startswith("perplexity") or shown.endswith("% bytes"))
    return texts[0] == texts[1] and all(near(a, b, exact) for a, b in pairs)


def near(shown: str, real: str, exact: bool) -> bool:
    """Compare two numbers, with a tolerance for those that differ between machines."""
    a, b = (float(text.replace(",", "")) for text in (shown, real))
    if exact and "." not in shown + real and max(a, b) < 1000:
        return a == b
    return abs(a - b) <= TOLERANCE * max(a, b)


def main() -> None:
    """Compare or update the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", default=PAGES, help=" ".join(PAGES))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    differences = [check(ROOT / page, args.write) for page in args.pages]
    if any(differences):
        shown = "\n".join(filter(None, differences))
        raise SystemExit(f"{shown}\nscripts/run_docs.py --write updates the output")


if __name__ == "__main__":
    main()
