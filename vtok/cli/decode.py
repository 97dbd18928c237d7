"""`vtok decode`."""

from __future__ import annotations

from typing import Any

from vtok.cli import options as opt
from vtok.cli.inputs import plan
from vtok.cli.options import unfolded
from vtok.cli.progress import loading
from vtok.cli.run import Manner, run_jobs
from vtok.errors import UsageError

TOKENS = ".tokens.safetensors"


@unfolded
def decode(
    inputs: opt.Inputs,
    *,
    output: opt.Output = None,
    stages: opt.Stages = None,
    bits: opt.Bits = None,
    start: opt.Start = 0.0,
    duration: opt.Duration = None,
    num_tokens: opt.TokensUsed = None,
    token_learner: opt.TokenLearnerInstead = None,
    crf: opt.Crf = 16,
    salvage: opt.Salvage = False,
    model: opt.ModelInstead = None,
    running: opt.Running,
    overwrite: opt.Overwrite = False,
    skip_existing: opt.SkipExisting = False,
    saying: opt.Saying,
) -> None:
    """Decode code files or learned tokens to videos of the size, rate and length encoded.

    An output lies beside its input, as clip.decoded.mp4, unless -o says otherwise. The suffix of
    -o chooses the format: mp4, mkv, mov, webm, gif; png or jpg for one frame. With --start and
    --duration no more is read and decoded than those frames need.

    \b
      vtok decode clip.vtok                       writes clip.decoded.mp4
      vtok decode clip.vtok -o clip.webm --bits 18
      vtok decode clip.vtok --start 60 --duration 2
      vtok decode clip.tokens.safetensors         what 8 tokens a step have kept
      vtok decode codes/ -o videos/               a whole folder, tree mirrored
      vtok decode - < clip.vtok > clip.mp4
    """
    if not 0 <= crf <= 51:
        raise UsageError(f"--crf {crf}: expected 0 to 51")
    manner = Manner(overwrite, skip_existing, saying.as_json, saying.quiet)
    jobs = plan(inputs, output, ".decoded.mp4", frozenset({".vtok", TOKENS}))
    manner.check(jobs)
    with loading(quiet=saying.quiet):
        from vtok.models.load import ModelCache, pick_device, pick_dtype
        from vtok.pipeline.decode import DecodeOptions, decode_file
        from vtok.pipeline.up_to_date import is_decoded
        from vtok.tokens.decode import decode_tokens_file
        from vtok.tokens.file import seems_tokens
        from vtok.tokens.model import TokenModels

        how = DecodeOptions(
            num_stages=stages,
            num_bits=bits,
            num_tokens=num_tokens,
            crf=crf,
            overwrite=overwrite or skip_existing,
            salvage=salvage,
            start_seconds=start,
            duration_seconds=duration,
        )
        # an error of usage comes once, not for every input
        pick_dtype(running.dtype, pick_device(running.device))
        tokens = TokenModels(token_learner)
        models = ModelCache(model, device=running.device, dtype=running.dtype)
        if model is not None:
            models.get(model)

    def work(source: Any, target: Any, progress: Any) -> Any:
        made = decode_tokens_file if seems_tokens(source) else decode_file
        return made(source, target, model=models, tokens=tokens, options=how, progress=progress)

    run_jobs(jobs, work, manner, lambda made, source: is_decoded(made, source, how))
