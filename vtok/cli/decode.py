"""`vtok decode`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.inputs import plan
from vtok.cli.run import Manner, run_jobs


def decode(
    inputs: opt.Inputs,
    output: opt.Output = None,
    stages: opt.Stages = None,
    bits: opt.Bits = None,
    crf: Annotated[
        int,
        typer.Option("--crf", min=0, max=51, help="Quality of the video written: 0 is lossless."),
    ] = 16,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Decode the whole part of a cut or damaged file.")
    ] = False,
    model: opt.ModelName = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    overwrite: opt.Overwrite = False,
    skip_existing: opt.SkipExisting = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Decode code files to videos of the size, frame rate and length that were encoded.

    An output lies beside its input, as clip.decoded.mp4, unless -o says otherwise; its suffix
    chooses the format (mp4, mkv, mov, webm, gif; png or jpg for one frame).

    \b
      vtok decode clip.vtok                       writes clip.decoded.mp4
      vtok decode clip.vtok -o clip.webm --bits 18
      vtok decode codes/ -o videos/               a whole folder, its tree mirrored
      vtok decode - < clip.vtok > clip.mp4
    """
    from vtok.codec.decode import DecodeOptions, decode_file
    from vtok.codec.existing import is_decoded
    from vtok.model import Models

    jobs = plan(inputs, output, ".decoded.mp4", frozenset({".vtok"}))
    manner = Manner(overwrite, skip_existing, as_json, quiet)
    manner.check(jobs)
    models = Models(model, device=device, dtype=dtype)
    how = DecodeOptions(stages, bits, crf, overwrite or skip_existing, salvage)

    def work(source: Any, target: Any, progress: Any) -> Any:
        return decode_file(source, target, models=models, options=how, progress=progress)

    run_jobs(jobs, work, manner, is_decoded)
