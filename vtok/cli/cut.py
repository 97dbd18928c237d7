"""`vtok cut`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.inputs import plan
from vtok.cli.run import Manner, never_done, run_jobs
from vtok.errors import UsageError


def cut(
    inputs: opt.Inputs,
    output: opt.Output = None,
    stages: opt.Stages = None,
    bits: opt.Bits = None,
    start: opt.Start = 0.0,
    duration: opt.Duration = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            "--max-bytes",
            metavar="N",
            help="Drop stages, the last ones first, until the file has at most N bytes.",
        ),
    ] = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Cut code files to a part, a number of stages or a size, without encoding anew.

    Bytes are copied and no model is needed; chunks of types that vtok does not know are left out.
    The frames are exactly those of the whole file: what
    the decoder must have seen before them stays in, and is decoded but not shown.

    \b
      vtok cut clip.vtok                          writes clip.cut.vtok
      vtok cut clip.vtok -o small.vtok --stages 2
      vtok cut clip.vtok -o part.vtok --start 60 --duration 5
      vtok cut clip.vtok -o mail.vtok --max-bytes 1000000
    """
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"--max-bytes {max_bytes}: expected 1 or more")
    manner = Manner(overwrite, False, as_json, quiet)
    jobs = plan(inputs, output, ".cut.vtok", frozenset({".vtok"}))
    manner.check(jobs)
    from vtok.codec.copy import CutOptions, cut_file

    how = CutOptions(stages, bits, start, duration, max_bytes, overwrite)

    def work(source: Any, target: Any, progress: Any) -> Any:
        return cut_file(source, target, options=how, progress=progress)

    run_jobs(jobs, work, manner, never_done)
