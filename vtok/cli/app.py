"""The Typer application, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import vtok
from vtok.cli import failures as exits
from vtok.cli import options as opt
from vtok.cli.compare import compare
from vtok.cli.console import say_error
from vtok.cli.dataset import app as dataset
from vtok.cli.decode import decode
from vtok.cli.doctor import doctor, models
from vtok.cli.edit import cat, cut, dump, pack
from vtok.cli.encode import encode
from vtok.cli.eval import evaluate
from vtok.cli.failures import as_vtok_error
from vtok.cli.import_ import import_
from vtok.cli.info import info
from vtok.cli.report import report
from vtok.cli.tokens import tokens
from vtok.cli.train import train
from vtok.cli.verify import verify
from vtok.errors import OutputError


class ErrorBoundary(TyperGroup):
    """Turns every error into one line on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError as error:
            # whoever reads our output went away; python must not complain at exit as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OutputError.exit_code) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(128 + signal.SIGINT) from error
        except Exception as error:  # the last line of defence: nothing may become a traceback
            if hasattr(error, "format_message"):
                raise  # wrong usage, which Typer words
            if ctx.meta.get(opt.DEBUG):
                traceback.print_exception(error)
            known = as_vtok_error(error)
            say_error(str(known))
            raise typer.Exit(known.exit_code) from error


app = typer.Typer(
    cls=ErrorBoundary,
    no_args_is_help=True,
    epilog=exits.ALL,
    rich_markup_mode=None,  # plain help keeps the examples as they are laid out, and starts sooner
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=exits.ALL)(encode)
app.command(epilog=exits.ALL)(decode)
app.command(epilog=exits.ALL)(info)
app.command(epilog=exits.ALL)(cut)
app.command(epilog=exits.WHOLE)(cat)
app.command(epilog=exits.ALL)(verify)
app.command(epilog=exits.ALL)(dump)
app.command(epilog=exits.ALL)(pack)
app.command(epilog=exits.WHOLE)(train)
app.add_typer(dataset, name="dataset")
app.add_typer(tokens, name="tokens")
app.add_typer(import_, name="import")
app.command("eval", epilog=exits.ALL)(evaluate)
app.command(epilog=exits.WHOLE)(compare)
app.command(epilog=exits.WHOLE)(models)
app.command(epilog=exits.WHOLE)(doctor)
app.command(epilog=exits.ALL)(report)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vtok {vtok.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: opt.Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Turn video into tokens and back, on a machine that has nothing.

    \b
      vtok encode clip.mp4              writes clip.vtok
      vtok info clip.vtok               says what is in it
      vtok decode clip.vtok             writes clip.decoded.mp4
      vtok encode - < a.mp4 | vtok decode - -o b.mp4
      vtok train videos/ --out run      trains a model on your own
      vtok dataset encode videos/ -o codes   many clips, resumable
      vtok encode --help                all about one command
    """


def _terminate(number: int, frame: FrameType | None) -> None:
    # an exception, so that every half-written output is removed on the way out
    sys.exit(128 + number)


def main() -> None:
    """The `vtok` command."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has hang-ups ignored
            signal.signal(number, _terminate)
    app()
