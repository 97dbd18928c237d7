"""`vtok verify`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.console import one_line, print_json
from vtok.cli.failures import as_vtok_error, raise_failures, report_failure
from vtok.cli.inputs import STREAM, plan
from vtok.errors import UsageError, VtokError


def verify(
    inputs: opt.Inputs,
    deep: Annotated[bool, typer.Option("--deep", help="Decode all frames as well.")] = False,
    model: opt.ModelInstead = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Check every byte of code files, and that they were made with the model that they name.

    A model that is neither shipped nor given is not at hand, which is said and is no failure; for
    --deep it is needed. The exit code is 0 where all is well, 4 for a damaged file or another
    model, 5 for a missing file, 3 where only some of several failed.

    \b
      vtok verify clip.vtok
      vtok verify codes/ --deep
      vtok encode clip.mp4 -o - | vtok verify -
    """
    sources = [job.source for job in plan(inputs, None, ".verified", frozenset({".vtok"}))]
    if STREAM in sources and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("standard input is no file and no pipe: give a file")
    from vtok.models.load import ModelCache, pick_device, pick_dtype
    from vtok.pipeline.verify import verify_file

    pick_dtype(dtype, pick_device(device))
    models = ModelCache(model, device=device, dtype=dtype) if deep else None
    failures: list[VtokError] = []
    for name in sources:
        source: Any = sys.stdin.buffer if name == STREAM else name
        try:
            facts = verify_file(source, model=models or model, decode=deep)
        except Exception as error:  # whatever one file brings about, the others are still checked
            known = as_vtok_error(error, name)
            known.__cause__ = None if known is error else error  # for --debug
            failures.append(known)
            report_failure({"name": name}, known, as_json=as_json, silent=len(sources) == 1)
            continue
        if as_json:
            print_json({**facts, "status": "ok"})
        elif not quiet:
            typer.echo(one_line(_line(facts)))
    raise_failures(failures, len(sources))


def _line(facts: dict[str, Any]) -> str:
    about = f"the model {facts['model']}"
    model = f"made with {about}" if facts["model_matches"] else f"{about} is not at hand to compare"
    done = "whole, and decodes" if facts["decoded"] else "whole"
    return (
        f"{facts['name']}: {done}: {facts['frames']} frames in {facts['chunks']} chunks, "
        f"{facts['bytes']:,} bytes; {model}"
    )
