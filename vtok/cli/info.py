"""`vtok info`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.console import one_line, print_json
from vtok.cli.failures import as_vtok_error, raise_failures, report_failure
from vtok.cli.inputs import STREAM
from vtok.errors import UsageError, VtokError


def info(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="Videos, code files, checkpoints or names of shipped ones; or -.",
        ),
    ],
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Say what a video, a code file or a checkpoint holds.

    \b
      vtok info clip.mp4 clip.vtok vtok-base
      vtok info clip.vtok --json | jq .bpp
      vtok encode clip.mp4 -o - | vtok info -
    """
    failures: list[VtokError] = []
    for number, name in enumerate(files):
        try:
            facts = _inspect(name)
        except Exception as error:  # whatever one file brings about, the others are still shown
            known = as_vtok_error(error, name)
            known.__cause__ = None if known is error else error  # for --debug
            failures.append(known)
            report_failure({"name": name}, known, as_json=as_json, silent=len(files) == 1)
            continue
        if as_json:
            print_json({**facts, "status": "ok"})
        else:
            _print_facts(facts, spaced=number > 0)
    raise_failures(failures, len(files))


def _inspect(name: str) -> dict[str, Any]:
    from vtok.pipeline.inspect import inspect_file, inspect_stream

    if name != STREAM:
        return inspect_file(name)
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("standard input is no file and no pipe: give a file")
    return inspect_stream(sys.stdin.buffer)


def _print_facts(facts: dict[str, Any], *, spaced: bool) -> None:
    width = max(map(len, facts)) + 2
    if spaced:
        typer.echo()
    for key, value in facts.items():
        typer.echo(key.replace("_", " ").ljust(width) + one_line(_text(value)))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "unknown" if value is None else str(value)
