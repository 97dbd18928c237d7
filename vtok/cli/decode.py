"""`vtok decode`."""

from __future__ import annotations

from typing import Any

from vtok.cli import options as opt
from vtok.cli.inputs import plan
from vtok.cli.run import Manner, run_jobs
from vtok.errors import UsageError


def decode(
    inputs: opt.Inputs,
    output: opt.Output = None,
    stages: opt.Stages = None,
    bits: opt.Bits = None,
    start: opt.Start = 0.0,
    duration: opt.Duration = None,
    crf: opt.Crf = 16,
    salvage: opt.Salvage = False,
    model: opt.ModelInstead = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    overwrite: opt.Overwrite = False,
    skip_existing: opt.SkipExisting = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Decode code files to videos of the size, frame rate and length that were encoded.

    An output lies beside its input, as clip.decoded.mp4, unless -o says otherwise. The suffix of
    -o chooses the format: mp4, mkv, mov, webm, gif; png or jpg for one frame. With --start and
    --duration no more is read and decoded than those frames need.

    \b
      vtok decode clip.vtok                       writes clip.decoded.mp4
      vtok decode clip.vtok -o clip.webm --bits 18
      vtok decode clip.vtok --start 60 --duration 2
      vtok decode codes/ -o videos/               a whole folder, tree mirrored
      vtok decode - < clip.vtok > clip.mp4
    """
    if not 0 <= crf <= 51:
        raise UsageError(f"--crf {crf}: expected 0 to 51")
    manner = Manner(overwrite, skip_existing, as_json, quiet)
    jobs = plan(inputs, output, ".decoded.mp4", frozenset({".vtok"}))
    manner.check(jobs)
    with manner.waiting("loading the model"):  # torch alone takes seconds to import
        from vtok.codec.decode import DecodeOptions, decode_file
        from vtok.codec.existing import is_decoded
        from vtok.model import Models, pick_device, pick_dtype

        how = DecodeOptions(
            num_stages=stages,
            num_bits=bits,
            crf=crf,
            overwrite=overwrite or skip_existing,
            salvage=salvage,
            start_seconds=start,
            duration_seconds=duration,
        )
        # an error of usage comes once, not for every input
        pick_dtype(dtype, pick_device(device))
        models = Models(model, device=device, dtype=dtype)
        if model is not None:
            models.get(model)

    def work(source: Any, target: Any, progress: Any) -> Any:
        return decode_file(source, target, models=models, options=how, progress=progress)

    run_jobs(jobs, work, manner, lambda made, source: is_decoded(made, source, how))
