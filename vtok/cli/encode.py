"""`vtok encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtok.cli import options as opt
from vtok.cli.inputs import plan
from vtok.cli.run import Manner, run_jobs
from vtok.errors import UsageError
from vtok.media.kinds import VIDEO_SUFFIXES

SUFFIXES = {"vtok": ".vtok", "npy": ".npy", "safetensors": ".safetensors"}


def encode(
    inputs: opt.Inputs,
    output: opt.Output = None,
    to: opt.Format = None,
    stages: opt.Stages = None,
    bits: opt.Bits = None,
    min_psnr: opt.MinPsnr = None,
    max_bpp: opt.MaxBpp = None,
    compress: opt.Compress = False,
    size: opt.Size = None,
    fps: opt.Rate = None,
    start: opt.Start = 0.0,
    duration: opt.Duration = None,
    model: opt.ModelName = "vtok-base",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    timeout: opt.Timeout = 60.0,
    overwrite: opt.Overwrite = False,
    skip_existing: opt.SkipExisting = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Encode videos to code files, beside them unless -o says otherwise.

    \b
      vtok encode clip.mp4                         writes clip.vtok
      vtok encode clip.mp4 --bits 18 --compress -o small.vtok
      vtok encode clip.mp4 --min-psnr 28         bits where the picture needs them
      vtok encode clip.mp4 --start 60 --duration 5 --fps 10 --size 256
      vtok encode videos/ -o codes/ --size 256     a whole folder, tree mirrored
      vtok encode 'raw/*.mkv' -o codes/ --to npy   arrays [K, t, h, w]
      vtok encode - < clip.mp4 > clip.vtok
    """
    to = to or _format_of(output)
    if to not in SUFFIXES:
        raise UsageError(f"--to {to}: expected one of {', '.join(SUFFIXES)}")
    manner = Manner(overwrite, skip_existing, as_json, quiet)
    jobs = plan(inputs, output, SUFFIXES[to], VIDEO_SUFFIXES)
    manner.check(jobs)
    with manner.waiting("loading the model"):  # torch alone takes seconds to import
        from vtok.codec.encode import EncodeOptions, encode_file, stages_for
        from vtok.codec.existing import is_encoded
        from vtok.media.frames import parse_fps
        from vtok.model import load_model

        how = EncodeOptions(
            to=to,
            size=size,
            fps=None if fps is None else parse_fps(fps),
            start_seconds=start,
            duration_seconds=duration,
            num_stages=stages,
            num_bits=bits,
            min_psnr=min_psnr,
            max_bpp=max_bpp,
            compress=compress,
            overwrite=overwrite or skip_existing,  # what is left to do replaces what does not fit
            timeout_seconds=timeout,
        )
        loaded = load_model(model, device=device, dtype=dtype)
        stages_for(loaded, stages, bits)  # an error of usage comes once, not for every input

    def work(source: Any, target: Any, progress: Any) -> Any:
        return encode_file(source, target, model=loaded, options=how, progress=progress)

    run_jobs(jobs, work, manner, lambda made, source: is_encoded(made, source, loaded, how))


def _format_of(output: str | None) -> str:
    """The format that the suffix of an output stands for; `vtok` where it is none of them."""
    suffix = Path(output or "").suffix.lower()
    return next((to for to, usual in SUFFIXES.items() if usual == suffix), "vtok")
