"""The Typer application: its commands, and the conversion of errors to exit codes."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import vtok
from vtok.cli import code_files, dataset, failures, imports, models, train
from vtok.cli import options as opt
from vtok.cli.console import say_error, use_open_streams
from vtok.cli.decode import decode
from vtok.cli.encode import encode
from vtok.cli.evaluate import compare, evaluate, report
from vtok.errors import OutputError

CONTEXT = {"help_option_names": ["-h", "--help"]}
PANELS = ("Commands", "One video", "Many videos", "Models", "Measuring")
COMMANDS, ONE, MANY, MODELS, MEASURING = PANELS
HELP = """A video tokenizer that runs on a CPU: no GPU, no downloads.

\b
  vtok encode clip.mp4                   writes clip.vtok
  vtok info clip.vtok                    describes it
  vtok decode clip.vtok                  writes clip.decoded.mp4
  vtok encode - < a.mp4 | vtok decode - -o b.mp4
  vtok train videos/ --out run           trains a model on your videos
  vtok dataset encode videos/ -o codes   many clips, resumable
  vtok encode --help                     options of one command
"""


class Command(TyperCommand):
    """A command; its parameters name the flags of option fields in error messages."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        failures.use_flags(self.params)
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments by their names alone, and options."""
        records = [(param, param.get_help_record(ctx)) for param in self.get_params(ctx)]
        for kind in ("argument", "option"):
            rows = [row for param, row in records if row and param.param_type_name == kind]
            if rows:
                with formatter.section(f"{kind.capitalize()}s"):
                    # newer versions of Typer add the Python type of an argument
                    formatter.write_dl([(re.sub(r" <.*>$", "", name), help) for name, help in rows])


class Group(TyperGroup):
    """A group of commands, listed in panels with whole summaries."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the first sentence of each command's help."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            rows = panels.setdefault(panel if panel in PANELS else COMMANDS, [])
            rows.append((name, command.get_short_help_str(formatter.width)))
        width = max(len(name) for name in self.commands)
        for panel in sorted(panels, key=PANELS.index):
            rows = [(name.ljust(width), summary) for name, summary in panels[panel]]
            with formatter.section(panel):
                formatter.write_dl(rows)


class App(Group):
    """The `vtok` command: every error becomes one line on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError as error:
            # the reader of our output has exited; Python must not complain at exit as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OutputError.exit_code) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(128 + signal.SIGINT) from error
        except Exception as error:  # no error may become a traceback
            if hasattr(error, "format_message"):
                raise  # a usage error, which Typer prints
            if ctx.meta.get(opt.DEBUG):
                traceback.print_exception(error)
            known = failures.as_vtok_error(error)
            say_error(str(known))
            raise typer.Exit(known.exit_code) from error


def _group(cls: type[TyperGroup], help: str) -> typer.Typer:
    # without markup the help keeps the layout of examples, and does not import rich
    return typer.Typer(
        cls=cls,
        help=help,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT,
    )


def _add(
    group: typer.Typer,
    function: Callable[..., None],
    panel: str | None = None,
    epilog: str = failures.ALL,
    name: str | None = None,
) -> None:
    group.command(name, cls=Command, epilog=epilog, rich_help_panel=panel)(function)


WHOLE = failures.WHOLE
app = _group(App, HELP)
_add(app, encode, ONE)
_add(app, decode, ONE)
_add(app, code_files.info, ONE)
_add(app, code_files.verify, ONE)
_add(app, code_files.cut, ONE)
_add(app, code_files.cat, ONE, WHOLE)
_add(app, code_files.dump, ONE)
_add(app, code_files.pack, ONE)

datasets = _group(Group, "Encode many clips for training, resumably.")
_add(datasets, dataset.encode)
_add(datasets, dataset.retry)
_add(datasets, dataset.status, epilog=WHOLE)
_add(datasets, dataset.verify, epilog=WHOLE)
_add(datasets, dataset.merge, epilog=WHOLE)
app.add_typer(datasets, name="dataset", rich_help_panel=MANY)

_add(app, models.models, MODELS, WHOLE)
_add(app, train.train, MODELS, WHOLE)
tokens = _group(Group, "Train token learners, and draw their attention maps.")
_add(tokens, train.train_learner, epilog=WHOLE, name="train")
_add(tokens, train.show, epilog=WHOLE)
app.add_typer(tokens, name="tokens", rich_help_panel=MODELS)
families = _group(Group, "Import published tokenizers.")
for word, command in imports.COMMANDS.items():
    _add(families, command, epilog=WHOLE, name=word)
app.add_typer(families, name="import", rich_help_panel=MODELS)
_add(app, models.doctor, MODELS, WHOLE)

_add(app, evaluate, MEASURING, name="eval")
_add(app, compare, MEASURING, WHOLE)
_add(app, report, MEASURING)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vtok {vtok.__version__}")
        raise typer.Exit


@app.callback(epilog=failures.ALL)
def options(
    debug: opt.Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options of `vtok` itself; the help is HELP."""


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # an exception, so that unfinished outputs are removed


def main() -> None:
    """Run the `vtok` command."""
    use_open_streams()
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            signal.signal(number, _terminate)
    app()
