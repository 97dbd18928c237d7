#!/usr/bin/env python
"""The page of every command, docs/cli.md, made from the commands themselves.

scripts/cli_reference.py           fails where the page and the commands differ
scripts/cli_reference.py --write   writes the page
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from vtok.cli import failures as exits
from vtok.cli.app import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
DEFAULT = re.compile(r"\s*\[default: (.*)\]$", re.DOTALL)
OPTION_NAME = re.compile(r"(?<![\w`-])--?[a-zA-Z0-9][\w-]*(?![\w`])")
REMARK = re.compile(r"^(\S.*?\S)  +(\S.*)$")
ARGUMENT = ("argument", "what it is")
OPTION = ("option", "what it does", "default")
COMMAND = ("command", "what it does")
EXAMPLES = "\b\n"
"""Typer leaves a paragraph that begins so as it is laid out; here they are the examples."""


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command and sub-command, with its full name, in the order of the help."""
    for own, command in group.commands.items():
        full = f"{name} {own}"
        if hasattr(command, "commands"):
            yield from commands(command, full)
        else:
            yield full, command


def section(name: str, command: Any) -> str:
    """One command: what it is for, how it is called, what it takes, how it ends."""
    text, _, examples = command.help.partition(EXAMPLES)
    shown = [param for param in command.params if not param.hidden]
    arguments = [param for param in shown if param.param_type_name == "argument"]
    options = [param for param in shown if param.param_type_name == "option"]
    parts = [
        f"## {name}",
        marked(text.strip()),
        f"```sh\n{' '.join([name, '[OPTIONS]', *map(usage, arguments)])}\n```",
        table(ARGUMENT, [(f"`{usage(param)}`", about(param)[0]) for param in arguments]),
        table(OPTION, [(names(param), *about(param)) for param in options]),
        f"```sh\n{aligned(examples)}\n```" if examples else "",
        endings(command.epilog or exits.WHOLE),
    ]
    return "\n\n".join(part for part in parts if part)


def usage(argument: Any) -> str:
    """An argument as the line of usage shows it."""
    name = argument.metavar + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def names(option: Any) -> str:
    """All names of an option, the short one first, and what it takes."""
    first = sorted(option.opts, key=len)
    value = "" if option.is_flag else f" {option.metavar}"
    shown = ", ".join(f"`{name}`" for name in [*first[:-1], first[-1] + value])
    return " / ".join([shown, *(f"`{name}`" for name in option.secondary_opts)])


def about(param: Any) -> tuple[str, str]:
    """What a parameter is for, and its default in words."""
    text = marked(param.help or "")
    found = DEFAULT.search(text)
    if found:
        return DEFAULT.sub("", text), found.group(1)
    if param.required:
        return text, "must be given"
    if getattr(param, "is_flag", False):
        return text, f"`{param.opts[0]}`" if param.default else ""
    return text, "" if param.default in (None, ()) else f"`{param.default}`"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table, nothing where it would have no rows."""
    if not rows:
        return ""
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines
    )


def aligned(examples: str) -> str:
    """Lines of shell, with what is said of them as remarks."""
    lines = [REMARK.sub(r"\1  # \2", line.strip()) for line in examples.strip().splitlines()]
    width = max((line.find("  # ") for line in lines), default=0)
    parts = (line.partition("  # ") for line in lines)
    return "\n".join(f"{a:<{width}}  # {b}" if b else a for a, _, b in parts)


def exit_codes(epilog: str) -> list[tuple[str, ...]]:
    """Each exit code that the end of a help text names, and what it means."""
    codes = " ".join(epilog.split()).partition(": ")[2].rstrip(".")
    return re.findall(r"(\d+) ([^,]+)", codes)


def endings(epilog: str) -> str:
    """A command's exit codes in one line."""
    codes = ", ".join(number for number, _ in exit_codes(epilog))
    return f"[Exit codes](#exit-codes): {codes}"


def marked(text: str) -> str:
    """Text in which the names of options look like what they are."""
    return OPTION_NAME.sub(r"`\g<0>`", text)


def page() -> str:
    """The whole page."""
    group = get_command(app)
    found = list(commands(group, "vtok"))
    general = [param for param in group.params if param.name in ("debug", "version")]
    parts = (
        "# Commands",
        "Written by `scripts/cli_reference.py` from the commands themselves: `vtok COMMAND "
        "--help` says the same. Messages and progress go to standard error, so standard output "
        "holds nothing but data; off a terminal, or with `NO_COLOR` set, nothing is coloured.",
        table(COMMAND, [(linked(name), marked(first(command))) for name, command in found]),
        table(OPTION, [(names(param), *about(param)) for param in general]),
        "## Exit codes",
        table(("code", "what it means"), exit_codes(group.epilog)),
        *(section(name, command) for name, command in found),
    )
    return "\n\n".join(parts) + "\n"


def linked(name: str) -> str:
    """A command's name, which leads to its section."""
    return f"[`{name}`](#{name.replace(' ', '-')})"


def first(command: Any) -> str:
    """The first sentence of a command's help."""
    return re.split(r"(?<=\.)\s", " ".join(command.help.split()))[0]


def main() -> None:
    """Compare or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true", help="the default")
    args = parser.parse_args()
    made = page()
    if args.write:
        PAGE.write_text(made)
        return
    old = PAGE.read_text() if PAGE.exists() else ""
    difference = difflib.unified_diff(old.splitlines(), made.splitlines(), PAGE.name, "commands",
                                      lineterm="")  # fmt: skip
    text = "\n".join(difference)
    if text:
        raise SystemExit(f"{text}\nscripts/cli_reference.py --write writes the page anew")


if __name__ == "__main__":
    main()
