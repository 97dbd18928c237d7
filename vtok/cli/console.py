"""What a person reads: messages on stderr, so that stdout holds nothing but data."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Literal

import typer


def one_line(text: str) -> str:
    """Text with everything escaped that would break the line, or steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(message: str, *, quiet: bool = False) -> None:
    """One line for a person."""
    if not quiet:
        typer.echo(one_line(message), err=True)


def say_error(message: str) -> None:
    """One line that says what went wrong."""
    typer.echo(_coloured("error:", typer.colors.RED) + " " + one_line(message), err=True)


def say_warning(message: str) -> None:
    """One line that says what to beware of."""
    typer.echo(_coloured("warning:", typer.colors.YELLOW) + " " + one_line(message), err=True)


def print_json(row: dict[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def colours() -> Literal["auto"] | None:
    """Rich's `color_system`: None, which is no style at all, where NO_COLOR is set."""
    return None if os.environ.get("NO_COLOR") else "auto"


def _coloured(word: str, colour: str) -> str:
    plain = colours() is None or not sys.stderr.isatty()
    return word if plain else typer.style(word, fg=colour, bold=True)
