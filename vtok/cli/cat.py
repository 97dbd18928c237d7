"""`vtok cat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.completion import codes
from vtok.cli.inputs import STREAM, Job
from vtok.cli.run import Manner, report
from vtok.errors import UsageError


def cat(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            show_default=False,
            help="Code files in order; one may be -.",
            autocompletion=codes,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(*("--output", "-o"), metavar="PATH", help="File, or - for standard output."),
    ],
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Join code files of one model, size and frame rate into one, without encoding anew.

    Bytes are copied and no model is needed. Each file begins a segment, at which decoders start
    afresh, so that its frames are those of the file alone.

    \b
      vtok cat first.vtok second.vtok -o both.vtok
      vtok cat part*.vtok -o - | vtok decode - -o whole.mp4
    """
    if inputs.count(STREAM) > 1:
        raise UsageError("- reads standard input, which can be read once only")
    manner = Manner(overwrite, False, as_json, quiet)
    for name in inputs:
        if STREAM not in (name, output) and _are_one(Path(name), Path(output)):
            raise UsageError(f"{output}: is an input, it cannot be the output")
        manner.check([Job(name, output)])
    from vtok.codec.copy import join_files

    sources: list[Any] = [sys.stdin.buffer if name == STREAM else name for name in inputs]
    target: Any = sys.stdout.buffer if output == STREAM else output
    report(join_files(sources, target, overwrite=overwrite), manner)


def _are_one(source: Path, output: Path) -> bool:
    return source.exists() and output.exists() and source.samefile(output)
