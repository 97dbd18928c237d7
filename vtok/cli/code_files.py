"""`vtok info`, `verify`, `cut`, `cat`, `dump` and `pack`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.completion import codes, dumps, one_of
from vtok.cli.console import one_line, print_json
from vtok.cli.failures import Failures
from vtok.cli.jobs import (
    STREAM,
    STREAM_NAMES,
    Job,
    check_jobs,
    plan,
    print_result,
    run_jobs,
    standard_input,
)
from vtok.cli.options import argument, expand_options, option
from vtok.errors import UsageError

CODE_FILES = frozenset({".vtok"})
DUMP_SUFFIXES = {"jsonl": ".jsonl", "text": ".txt", "bin": ".bin"}


def info(
    files: Annotated[
        list[str], argument("FILE", "Videos, code files, checkpoints, names of models; or -.")
    ],
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Describe videos, code files and checkpoints.

    \b
      vtok info clip.mp4 clip.vtok vtok-base
      vtok info clip.vtok --json | jq .bpp
      vtok encode clip.mp4 -o - | vtok info -
    """
    failures = Failures(len(files), as_json=as_json)
    for number, name in enumerate(files):
        with failures.catch(name, name=name):
            facts = _inspect(name)
            if as_json:
                print_json({**facts, "status": "ok"})
            else:
                _print_facts(facts, spaced=number > 0)
    failures.raise_if_any()


def _inspect(name: str) -> dict[str, Any]:
    from vtok.pipeline.inspect import inspect_file, inspect_stream

    return inspect_stream(standard_input()) if name in STREAM_NAMES else inspect_file(name)


def _print_facts(facts: dict[str, Any], *, spaced: bool) -> None:
    width = max(map(len, facts)) + 2
    if spaced:
        typer.echo()
    for key, value in facts.items():
        typer.echo(key.replace("_", " ").ljust(width) + one_line(_text(value)))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "unknown" if value is None else str(value)


@expand_options
def verify(
    inputs: opt.CodeFiles,
    *,
    deep: Annotated[bool, option("--deep", None, "Also decode all frames.")] = False,
    model: opt.StoredModelOptions,
    printing: opt.PrintOptions,
) -> None:
    """Check that code files are undamaged and match their model.

    Every byte is read. A model that is neither shipped nor given cannot be compared, which is
    reported but is no failure; --deep needs it. The exit code is 0 if all files are good, 4 for
    a damaged file or another model, 5 for a missing file, 3 if some of several files failed.

    \b
      vtok verify clip.vtok
      vtok verify codes/ --deep
      vtok encode clip.mp4 -o - | vtok verify -
    """
    sources = [job.source for job in plan(inputs, None, ".verified", CODE_FILES)]
    if STREAM in sources:
        standard_input()
    from vtok.pipeline.inspect import verify_file

    cache = model.cache()
    failures = Failures(len(sources), as_json=printing.as_json)
    for name in sources:
        with failures.catch(name, name=name):
            source: Any = sys.stdin.buffer if name == STREAM else name
            facts = verify_file(source, model=cache if deep else model.model, decode=deep)
            if printing.as_json:
                print_json({**facts, "status": "ok"})
            elif not printing.quiet:
                typer.echo(one_line(_verified_line(facts)))
    failures.raise_if_any()


def _verified_line(facts: dict[str, Any]) -> str:
    name = f"the model {facts['model']}"
    model = f"made with {name}" if facts["model_matches"] else f"{name} is not available to compare"
    done = "whole, and decodes" if facts["decoded"] else "whole"
    return (
        f"{facts['name']}: {done}: {facts['frames']} frames in {facts['chunks']} chunks, "
        f"{facts['bytes']:,} bytes; {model}"
    )


@expand_options
def cut(
    inputs: opt.CodeFiles,
    *,
    output: opt.Output = None,
    selected: opt.RangeOptions,
    max_bytes: Annotated[
        int | None,
        option("--max-bytes", "N", "Drop the last stages until the file has at most N bytes."),
    ] = None,
    no_audio: opt.NoAudio = False,
    overwrite: opt.Overwrite = False,
    printing: opt.PrintOptions,
) -> None:
    """Cut code files to a time range, fewer stages or a file size.

    No model is needed: the codes stay as they are. The frames are exactly those of the whole file:
    latent steps that the decoder needs before the start are kept, and decoded but not shown. The
    sound is cut to the same part. Chunks of unknown types are left out.

    \b
      vtok cut clip.vtok                          writes clip.cut.vtok
      vtok cut clip.vtok -o small.vtok --stages 2
      vtok cut clip.vtok -o part.vtok --start 60 --duration 5
      vtok cut clip.vtok -o mail.vtok --max-bytes 1000000
    """
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"--max-bytes {max_bytes}: expected 1 or more")
    jobs = plan(inputs, output, ".cut.vtok", CODE_FILES)
    check_jobs(jobs, printing, overwrite=overwrite)
    from vtok.pipeline.edit import cut_file
    from vtok.pipeline.options import CutOptions

    options = CutOptions(
        **vars(selected), max_bytes=max_bytes, audio=not no_audio, overwrite=overwrite
    )

    def work(source: Any, target: Any, progress: Any) -> Any:
        return cut_file(source, target, options=options, progress=progress)

    run_jobs(jobs, work, printing)


@expand_options
def cat(
    inputs: Annotated[list[str], argument("INPUT", "Code files in order; one may be -.", codes)],
    *,
    output: Annotated[str, option("--output -o", "PATH", "File, or - for standard output.")],
    overwrite: opt.Overwrite = False,
    printing: opt.PrintOptions,
) -> None:
    """Join code files into one without re-encoding.

    All must have the same model, size and frame rate. Bytes are copied, and no model is needed.
    Each file becomes a segment: decoders reset at its start, so its frames do not change. Frames
    keep their times. Sound is joined; that of another codec than the first is left out, which is
    reported, as are files without sound.

    \b
      vtok cat first.vtok second.vtok -o both.vtok
      vtok cat part*.vtok -o - | vtok decode - -o whole.mp4
    """
    if inputs.count(STREAM) > 1:
        raise UsageError("- reads standard input, which can be read only once")
    for name in inputs:
        if STREAM not in (name, output) and _are_one(Path(name), Path(output)):
            raise UsageError(f"{output}: is an input, it cannot be the output")
        check_jobs([Job(name, output)], printing, overwrite=overwrite)
    from vtok.pipeline.edit import join_files

    sources: list[Any] = [sys.stdin.buffer if name == STREAM else name for name in inputs]
    target: Any = sys.stdout.buffer if output == STREAM else output
    print_result(join_files(sources, target, overwrite=overwrite), printing)


def _are_one(source: Path, output: Path) -> bool:
    return source.exists() and output.exists() and source.samefile(output)


@expand_options
def dump(
    inputs: opt.CodeFiles,
    *,
    output: opt.Output = "-",
    kind: Annotated[
        str, option("--format", "FORMAT", "jsonl, text or bin.", one_of(*DUMP_SUFFIXES))
    ] = "jsonl",
    num_stages: opt.Stages = None,
    num_bits: opt.Bits = None,
    overwrite: opt.Overwrite = False,
    printing: opt.PrintOptions,
) -> None:
    """Write codes as JSON lines, text or raw integers.

    They go to standard output unless -o is given. The first line is JSON with the header. Codes
    follow chunk by chunk and stage by stage, in the order time, row, column: for jsonl one line
    of nested lists per chunk, for text one line of numbers per latent step, for bin little-endian
    16-bit integers (32-bit if the codebook needs them). `vtok pack` is the inverse.

    \b
      vtok dump clip.vtok | head -c 2000
      vtok dump clip.vtok --stages 1 --format text | grep -v '#'
      vtok dump codes/ -o dumps/ --format bin
    """
    if kind not in DUMP_SUFFIXES:
        raise UsageError(f"--format {kind}: expected one of {', '.join(DUMP_SUFFIXES)}")
    jobs = plan(inputs, output, DUMP_SUFFIXES[kind], CODE_FILES)
    check_jobs(jobs, printing, overwrite=overwrite, binary=kind == "bin")
    from vtok.pipeline.edit import dump_file
    from vtok.pipeline.options import DumpOptions

    options = DumpOptions(kind, num_stages, num_bits, overwrite)

    def work(source: Any, target: Any, progress: Any) -> Any:
        return dump_file(source, target, options=options, progress=progress)

    run_jobs(jobs, work, printing)


@expand_options
def pack(
    inputs: Annotated[
        list[str],
        argument("INPUT", "Dumps of any format, folders, quoted globs, or -.", dumps),
    ],
    *,
    output: opt.Output = None,
    overwrite: opt.Overwrite = False,
    printing: opt.PrintOptions,
) -> None:
    """Convert dumps back to code files.

    Takes what `vtok dump` wrote, or another program in the same format.

    \b
      vtok pack clip.jsonl                        writes clip.vtok
      vtok dump a.vtok | ./change | vtok pack - -o b.vtok
    """
    jobs = plan(inputs, output, ".vtok", frozenset(DUMP_SUFFIXES.values()))
    check_jobs(jobs, printing, overwrite=overwrite)
    from vtok.pipeline.edit import pack_file

    def work(source: Any, target: Any, progress: Any) -> Any:
        return pack_file(source, target, overwrite=overwrite, progress=progress)

    run_jobs(jobs, work, printing)
