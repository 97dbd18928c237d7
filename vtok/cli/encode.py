"""`vtok encode`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtok.cli import options as opt
from vtok.cli.inputs import STREAM, Job, plan, with_listed
from vtok.cli.options import unfolded
from vtok.cli.progress import loading
from vtok.cli.run import Manner, run_jobs
from vtok.cli.tokens import TokenChoice, token_work
from vtok.errors import UsageError
from vtok.video.frames import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from vtok.pipeline.options import EncodeOptions
    from vtok.video.decoder_process import Decoder

SUFFIXES = {
    "vtok": ".vtok",
    "npy": ".npy",
    "tokens": ".tokens.safetensors",
    "safetensors": ".safetensors",
}


@unfolded
def encode(
    inputs: opt.InputsOrList = None,
    *,
    output: opt.Output = None,
    files_from: opt.FilesFrom = None,
    null: opt.Null = False,
    to: opt.Format = None,
    stages: opt.Stages = None,
    bits: opt.Bits = None,
    min_psnr: opt.MinPsnr = None,
    max_bpp: opt.MaxBpp = None,
    compress: opt.Compress = True,
    num_tokens: opt.NumTokens = None,
    token_learner: opt.TokenLearner = None,
    part: opt.Part,
    model: opt.ModelName = "vtok-base",
    running: opt.Running,
    timeout: opt.Timeout = 60.0,
    overwrite: opt.Overwrite = False,
    skip_existing: opt.SkipExisting = False,
    saying: opt.Saying,
) -> None:
    """Encode videos to code files, beside them unless -o says otherwise.

    \b
      vtok encode clip.mp4                         writes clip.vtok
      vtok encode clip.mp4 --bits 18 -o small.vtok
      vtok encode clip.mp4 --min-psnr 28         bits where the picture needs them
      vtok encode clip.mp4 --start 60 --duration 5 --fps 10 --size 256
      vtok encode videos/ -o codes/ --size 256     a whole folder, tree mirrored
      vtok encode 'raw/*.mkv' -o codes/ --to npy   arrays [K, t, h, w]
      vtok encode clip.mp4 --to tokens             8 learned tokens a step
      vtok encode clip.mp4 --num-tokens 8          their bits: a very low rate
      vtok encode - < clip.mp4 > clip.vtok
      find videos -name '*.mp4' -print0 | vtok encode --files-from - -0 --json
    """
    to = to or _format_of(output)
    if to not in SUFFIXES:
        raise UsageError(f"--to {to}: expected one of {', '.join(SUFFIXES)}")
    by_tokens = to == "tokens" or num_tokens is not None
    if token_learner is not None and not by_tokens:
        raise UsageError("--token-learner: give --to tokens or --num-tokens with it")
    if by_tokens and to not in ("tokens", "vtok"):
        raise UsageError(f"--to {to}: --num-tokens is for --to tokens and --to vtok")
    manner = Manner(overwrite, skip_existing, saying.as_json, saying.quiet)
    names = with_listed(inputs, files_from, null)
    jobs = plan(names, output, SUFFIXES[to], VIDEO_SUFFIXES)
    manner.check(jobs)
    from vtok.pipeline.options import EncodeOptions
    from vtok.video.decoder_process import Decoder

    how = EncodeOptions(
        to="vtok" if to == "tokens" else to,
        size=part.size,
        fps=part.rate,
        start_seconds=part.start,
        duration_seconds=part.duration,
        num_stages=stages,
        num_bits=bits,
        min_psnr=min_psnr,
        max_bpp=max_bpp,
        compress=compress,
        overwrite=overwrite or skip_existing,  # what is left to do replaces what does not fit
        timeout_seconds=timeout,
    )
    with Decoder() as decoder:
        _begin(jobs, how, manner, decoder)
        with loading(quiet=saying.quiet):
            from vtok.models.load import load
            from vtok.pipeline.encode import encode_file, stages_for
            from vtok.pipeline.up_to_date import is_encoded

            loaded = load(model, device=running.device, dtype=running.dtype)
            stages_for(loaded, stages, bits)  # an error of usage comes once, not for every input

        if by_tokens:
            asked = TokenChoice(to == "tokens", num_tokens, token_learner)
            run_jobs(jobs, *token_work(loaded, how, asked, manner, decoder))
            return

        def work(source: Any, target: Any, progress: Any) -> Any:
            return encode_file(
                source, target, model=loaded, options=how, progress=progress, decoder=decoder
            )

        run_jobs(jobs, work, manner, lambda made, source: is_encoded(made, source, loaded, how))


def _begin(jobs: Sequence[Job], how: EncodeOptions, manner: Manner, decoder: Decoder) -> None:
    """Have the first video read while torch is imported."""
    from vtok.pipeline.options import expect_video

    if jobs[0].source != STREAM and not manner.skip_existing:
        expect_video(Path(jobs[0].source), how, decoder)


def _format_of(output: str | None) -> str:
    """The format that the suffix of an output stands for; `vtok` where it is none of them."""
    name = Path(output or "").name.lower()
    return next((to for to, usual in SUFFIXES.items() if name.endswith(usual)), "vtok")
