"""`vtok info`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vtok.cli import options as opt
from vtok.cli.console import print_json
from vtok.cli.inputs import STREAM


def info(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Videos, code files, checkpoints or names of shipped ones; or -.",
        ),
    ],
    as_json: opt.Json = False,
) -> None:
    """Say what a video, a code file or a checkpoint holds.

    \b
      vtok info clip.mp4 clip.vtok vtok-base
      vtok info clip.vtok --json | jq .bpp
      vtok encode clip.mp4 -o - | vtok info -
    """
    from vtok.codec.inspect import inspect_code_file, inspect_file

    for number, name in enumerate(files):
        if name == STREAM:
            facts = inspect_code_file(sys.stdin.buffer, "standard input", None)
        else:
            facts = inspect_file(name)
        if as_json:
            print_json(facts)
        else:
            _print_table(facts, spaced=number > 0)


def _print_table(facts: dict[str, Any], *, spaced: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if spaced:
        console.print()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), _text(value))
    console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "unknown" if value is None else str(value)
