"""`vtok decode`."""

from __future__ import annotations

from typing import Annotated, Any

from vtok.cli import options as opt
from vtok.cli.completion import learners
from vtok.cli.console import loading
from vtok.cli.jobs import check_jobs, plan, run_jobs
from vtok.cli.options import expand_options, option
from vtok.errors import UsageError

CODES = frozenset({".vtok", ".tokens.safetensors"})


@expand_options
def decode(
    inputs: opt.CodeFiles,
    *,
    output: opt.Output = None,
    selected: opt.RangeOptions,
    num_tokens: Annotated[
        int | None,
        option("--num-tokens", "S", "Use the first S learned tokens. [default: all]"),
    ] = None,
    token_learner: Annotated[
        str | None,
        option(
            "--token-learner",
            "NAME",
            "Token learner's checkpoint. [default: the one named in each token file]",
            learners,
        ),
    ] = None,
    crf: Annotated[
        int, option("--crf", "N", "Quality of the written video, 0 (lossless) to 51.")
    ] = 16,
    salvage: Annotated[
        bool, option("--salvage", None, "Decode the intact parts of a damaged file.")
    ] = False,
    model: opt.StoredModelOptions,
    overwrite: opt.Overwrite = False,
    skip_existing: opt.SkipExisting = False,
    printing: opt.PrintOptions,
) -> None:
    """Decode code files or learned tokens to videos.

    Size, frame rate and number of frames are those that were encoded. Each output is written
    next to its input, as clip.decoded.mp4, unless -o is given. The suffix of -o chooses the
    format: mp4, mkv, mov, webm, gif; png or jpg for one frame. With --start and --duration only
    the needed parts of the file are read and decoded.

    \b
      vtok decode clip.vtok                       writes clip.decoded.mp4
      vtok decode clip.vtok -o clip.webm --bits 18
      vtok decode clip.vtok --start 60 --duration 2
      vtok decode clip.tokens.safetensors         from learned tokens
      vtok decode codes/ -o videos/               a folder, with sub-folders
      vtok decode - < clip.vtok > clip.mp4
    """
    if not 0 <= crf <= 51:
        raise UsageError(f"--crf {crf}: expected 0 to 51")
    jobs = plan(inputs, output, ".decoded.mp4", CODES)
    check_jobs(jobs, printing, overwrite=overwrite, skip_existing=skip_existing)
    with loading(quiet=printing.quiet):
        from vtok.pipeline.decode import decode_file
        from vtok.pipeline.inspect import is_decoded
        from vtok.pipeline.latents import is_latent_file
        from vtok.pipeline.options import DecodeOptions
        from vtok.tokens.decode import decode_tokens_file
        from vtok.tokens.file import seems_tokens
        from vtok.tokens.model import TokenModels

        options = DecodeOptions(
            **vars(selected),
            num_tokens=num_tokens,
            crf=crf,
            overwrite=overwrite or skip_existing,
            salvage=salvage,
        )
        models, tokens = model.cache(), TokenModels(token_learner)
        if model.model is not None:
            models.get(model.model)

    def work(source: Any, target: Any, progress: Any) -> Any:
        tokens_only = seems_tokens(source) and not is_latent_file(source)
        decode = decode_tokens_file if tokens_only else decode_file
        return decode(
            source, target, model=models, tokens=tokens, options=options, progress=progress
        )

    def is_done(made: Any, source: Any) -> bool:
        return is_decoded(made, source, options)

    run_jobs(jobs, work, printing, is_done if skip_existing else None)
