"""`vtok encode`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.inputs import VIDEO_SUFFIXES, plan
from vtok.cli.run import Manner, run_jobs

SUFFIXES = {"vtok": ".vtok", "npy": ".npy", "safetensors": ".safetensors"}


def encode(
    inputs: opt.Inputs,
    output: opt.Output = None,
    to: Annotated[str, typer.Option("--to", help="vtok, npy or safetensors.")] = "vtok",
    stages: opt.Stages = None,
    bits: opt.Bits = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", help="Short side (256) or WIDTHxHEIGHT. [default: the source's own]"
        ),
    ] = None,
    fps: Annotated[
        str | None,
        typer.Option(
            "--fps", help="Frame rate, such as 10 or 30000/1001. [default: the source's own]"
        ),
    ] = None,
    start: Annotated[float, typer.Option("--start", min=0, help="Seconds to skip.")] = 0.0,
    duration: Annotated[
        float | None,
        typer.Option("--duration", min=0, help="Seconds to encode. [default: to the end]"),
    ] = None,
    model: opt.ModelName = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=1, help="Seconds to wait for the next frames of a video."),
    ] = 60.0,
    overwrite: opt.Overwrite = False,
    skip_existing: opt.SkipExisting = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Encode videos to code files, or to arrays of codes.

    An output lies beside its input, as clip.vtok, unless -o says otherwise.

    \b
      vtok encode clip.mp4                        writes clip.vtok
      vtok encode clip.mp4 --bits 18 -o small.vtok
      vtok encode videos/ -o codes/ --size 256    a whole folder, its tree mirrored
      vtok encode 'raw/*.mkv' -o codes/ --to npy  arrays [K, t, h, w]
      vtok encode - < clip.mp4 > clip.vtok
    """
    from vtok.codec.encode import FORMATS, EncodeOptions, encode_file
    from vtok.codec.existing import is_encoded
    from vtok.errors import UsageError
    from vtok.media.frames import parse_fps
    from vtok.model import load_model

    if to not in FORMATS:
        raise UsageError(f"--to {to}: expected one of {', '.join(FORMATS)}")
    jobs = plan(inputs, output, SUFFIXES[to], VIDEO_SUFFIXES)
    manner = Manner(overwrite, skip_existing, as_json, quiet)
    manner.check(jobs)
    loaded = load_model(model or "vtok-base", device=device, dtype=dtype)
    how = EncodeOptions(
        to=to,
        size=size,
        fps=None if fps is None else parse_fps(fps),
        start_seconds=start,
        duration_seconds=duration,
        num_stages=stages,
        num_bits=bits,
        overwrite=overwrite or skip_existing,  # what is left to do then replaces what does not fit
        timeout_seconds=timeout,
    )

    def work(source: Any, target: Any, progress: Any) -> Any:
        return encode_file(source, target, model=loaded, options=how, progress=progress)

    run_jobs(jobs, work, manner, lambda target, _: is_encoded(target, loaded, how))
