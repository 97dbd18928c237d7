"""`vtok dump` and its inverse, `vtok pack`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.completion import codes, dumps, one_of
from vtok.cli.inputs import STREAM, Job, plan
from vtok.cli.run import Manner, never_done, report, run_jobs
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
    from vtok.pipeline.edit import join_files

    sources: list[Any] = [sys.stdin.buffer if name == STREAM else name for name in inputs]
    target: Any = sys.stdout.buffer if output == STREAM else output
    report(join_files(sources, target, overwrite=overwrite), manner)


def _are_one(source: Path, output: Path) -> bool:
    return source.exists() and output.exists() and source.samefile(output)


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
    from vtok.pipeline.edit import cut_file
    from vtok.pipeline.options import CutOptions

    how = CutOptions(stages, bits, start, duration, max_bytes, overwrite)

    def work(source: Any, target: Any, progress: Any) -> Any:
        return cut_file(source, target, options=how, progress=progress)

    run_jobs(jobs, work, manner, never_done)


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
    from vtok.pipeline.edit import dump_file
    from vtok.pipeline.options import DumpOptions

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
    from vtok.pipeline.edit import pack_file

    def work(source: Any, target: Any, progress: Any) -> Any:
        return pack_file(source, target, overwrite=overwrite, progress=progress)

    run_jobs(jobs, work, manner, never_done)
