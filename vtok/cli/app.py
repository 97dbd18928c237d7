"""The Typer application, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import vtok
from vtok.cli.console import say_error
from vtok.cli.decode import decode
from vtok.cli.encode import encode
from vtok.cli.info import info
from vtok.errors import OutputError, VtokError

EPILOG = """
Exit codes: 0 all done, 1 nothing could be done, 2 wrong usage, 3 some inputs failed, 4 damaged
or incompatible code file or checkpoint, 5 missing or unreadable input, 130 interrupted,
143 terminated.
"""


class ErrorBoundary(TyperGroup):
    """Turns every error into one line on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except VtokError as error:
            say_error(str(error))
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as error:
            # whoever reads our output went away; python must not complain at exit as well
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OutputError.exit_code) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(128 + signal.SIGINT) from error
        except (typer.Exit, typer.Abort, SystemExit):
            raise
        except MemoryError as error:
            say_error("out of memory: try a smaller --size")
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=ErrorBoundary,
    no_args_is_help=True,
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(encode)
app.command()(decode)
app.command()(info)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vtok {vtok.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
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
    """


def _terminate(number: int, frame: FrameType | None) -> None:
    # an exception, so that every half-written output is removed on the way out
    sys.exit(128 + number)


def main() -> None:
    """The `vtok` command."""
    signal.signal(signal.SIGTERM, _terminate)
    app()
