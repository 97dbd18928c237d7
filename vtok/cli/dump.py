"""`vtok dump` and its inverse, `vtok pack`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.completion import dumps, one_of
from vtok.cli.inputs import plan
from vtok.cli.run import Manner, never_done, run_jobs
from vtok.errors import UsageError

SUFFIXES = {"jsonl": ".jsonl", "text": ".txt", "bin": ".bin"}


def dump(
    inputs: opt.Inputs,
    output: opt.Output = "-",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="jsonl, text or bin.",
            autocompletion=one_of("jsonl", "text", "bin"),
        ),
    ] = "jsonl",
    stages: opt.Stages = None,
    bits: opt.Bits = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Write the codes of code files for other programs, on standard output unless -o is given.

    The first line is JSON with the header. Codes come chunk by chunk and stage by stage, in the
    order time, row, column: with jsonl as lists on one line a chunk, with text as one line of
    numbers a latent step, with bin as little-endian integers of 16 bits (32 where they must).
    `vtok pack` makes the same code file of them again.

    \b
      vtok dump clip.vtok | head -c 2000
      vtok dump clip.vtok --stages 1 --format text | grep -v '#'
      vtok dump codes/ -o dumps/ --format bin
    """
    if form not in SUFFIXES:
        raise UsageError(f"--format {form}: expected one of {', '.join(SUFFIXES)}")
    manner = Manner(overwrite, False, as_json, quiet)
    jobs = plan(inputs, output, SUFFIXES[form], frozenset({".vtok"}))
    manner.check(jobs, binary=form == "bin")
    from vtok.codec.dump import DumpOptions, dump_file

    how = DumpOptions(form, stages, bits, overwrite)

    def work(source: Any, target: Any, progress: Any) -> Any:
        return dump_file(source, target, options=how, progress=progress)

    run_jobs(jobs, work, manner, never_done)


def pack(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            show_default=False,
            help="Dumps of any format, folders of them, quoted globs, or - for standard input.",
            autocompletion=dumps,
        ),
    ],
    output: opt.Output = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Make code files of what `vtok dump` wrote, or of what another program wrote in its form.

    \b
      vtok pack clip.jsonl                        writes clip.vtok
      vtok dump a.vtok | ./change | vtok pack - -o b.vtok
    """
    manner = Manner(overwrite, False, as_json, quiet)
    jobs = plan(inputs, output, ".vtok", frozenset(SUFFIXES.values()))
    manner.check(jobs)
    from vtok.codec.dump import pack_file

    def work(source: Any, target: Any, progress: Any) -> Any:
        return pack_file(source, target, overwrite=overwrite, progress=progress)

    run_jobs(jobs, work, manner, never_done)
