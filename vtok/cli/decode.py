"""`vtok decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from vtok.cli import options as opt
from vtok.cli.completion import learners, one_of
from vtok.cli.console import loading
from vtok.cli.jobs import STREAM, Job, check_jobs, plan, run_jobs
from vtok.cli.options import expand_options, option
from vtok.errors import OptionError, UsageError
from vtok.video.suffixes import OUTPUT_FORMATS, PICTURE_NAMES

PICTURES = (".png", ".jpg", ".jpeg")
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
        int, option("--crf", "N", "Quality of mp4, mkv, mov and webm, 0 (lossless) to 51.")
    ] = 16,
    constant_rate: Annotated[
        bool,
        option("--constant-rate", None, "Show all frames equally long. [default: source times]"),
    ] = False,
    no_audio: opt.NoAudio = False,
    salvage: Annotated[
        bool, option("--salvage", None, "Decode the intact parts of a damaged file.")
    ] = False,
    to: Annotated[
        str | None,
        option(
            "--to",
            "FORMAT",
            "mp4, mkv, mov, webm, gif, y4m, npy, or png: one picture per frame, in a folder. "
            "[default: by the suffix of -o, else mp4]",
            one_of(*OUTPUT_FORMATS),
        ),
    ] = None,
    array: opt.ArrayOptions,
    model: opt.StoredModelOptions,
    overwrite: opt.Overwrite = False,
    skip_existing: opt.SkipExisting = False,
    printing: opt.PrintOptions,
) -> None:
    """Decode code files, arrays of codes and tokens to videos.

    Size, frame rate and number of frames are those that were encoded, and so are the times of
    frames at a variable rate, unless --constant-rate is given. Each output is written
    next to its input, as clip.decoded.mp4, unless -o is given. The suffix of -o chooses the
    format: mp4, mkv, mov, webm, gif, y4m; npy for an array of frames; png or jpg for one frame,
    or for all with a number in the name, such as frame_%04d.png. With --start and --duration
    only the needed parts of the file are read and decoded.

    Arrays of codes (.npy, .safetensors, .pt) and items of shards (.tar, .parquet, video_N.bin)
    decode too. Rate, size, frames and model are those of the file, of a file .json beside it, or
    of the data set that it is in; options give them otherwise. An array is [t, h, w],
    [K, t, h, w] or [S, K, t, h, w]: stages, codebooks, time, height, width.

    \b
      vtok decode clip.vtok                       writes clip.decoded.mp4
      vtok decode clip.vtok -o clip.webm --bits 18
      vtok decode clip.vtok --start 60 --duration 2
      vtok decode clip.vtok -o frames --to png    frames/000000.png ...
      vtok decode clip.vtok -o - --to y4m | x265 --y4m - -o clip.hevc
      vtok decode clip.tokens.safetensors         from learned tokens
      vtok decode codes/ -o videos/               a folder, with sub-folders
      vtok decode predicted.npy --model vtok-base --fps 30 --size 640x360
      vtok decode 000000.tar --id clip7 -o clip7.mp4
      vtok decode - < clip.vtok > clip.mp4
    """
    if not 0 <= crf <= 51:
        raise UsageError(f"--crf {crf}: expected 0 to 51")
    if to is not None and to not in OUTPUT_FORMATS:
        raise OptionError("to", to, f"one of {', '.join(OUTPUT_FORMATS)}")
    jobs = plan(inputs, output, ".decoded" if to == "png" else f".decoded.{to or 'mp4'}", CODES)
    if len(jobs) > 1 and output is not None and "%" in output and output.endswith(PICTURES):
        raise UsageError(f"-o {output}: a pattern is for one input: give a folder, and --to png")
    if to == "png":
        is_single = len(jobs) == 1 and not Path(inputs[0]).is_dir()
        jobs = _into_folders(jobs, output if is_single else None)
    check_jobs(jobs, printing, overwrite=overwrite, skip_existing=skip_existing)
    with loading(quiet=printing.quiet):
        from vtok.pipeline.array_files import is_latent_file, kind_of
        from vtok.pipeline.decode import decode_file
        from vtok.pipeline.inspect import is_decoded
        from vtok.pipeline.options import DecodeOptions
        from vtok.tokens.decode import decode_tokens_file
        from vtok.tokens.file import seems_tokens
        from vtok.tokens.model import TokenModels

        options = DecodeOptions(
            **vars(selected),
            **array.to_fields(),
            num_tokens=num_tokens,
            crf=crf,
            to=to,
            constant_rate=constant_rate,
            audio=not no_audio,
            overwrite=overwrite or skip_existing,
            salvage=salvage,
        )
        models, tokens = model.cache(), TokenModels(token_learner)
        if model.model is not None:
            models.get(model.model)

    def work(source: Any, target: Any, progress: Any) -> Any:
        others = kind_of(source) is not None or is_latent_file(source)
        tokens_only = seems_tokens(source) and not others
        decode = decode_tokens_file if tokens_only else decode_file
        return decode(
            source, target, model=models, tokens=tokens, options=options, progress=progress
        )

    def is_done(made: Any, source: Any) -> bool:
        return is_decoded(made, source, options)

    run_jobs(jobs, work, printing, is_done if skip_existing else None)


def _into_folders(jobs: list[Job], folder: str | None) -> list[Job]:
    """Write the pictures of each job into a folder: of one job the one given, unless a pattern."""
    made = []
    for job in jobs:
        target = folder or job.output
        if target != STREAM and not target.endswith(".png"):
            target = str(Path(target) / PICTURE_NAMES)
        made.append(Job(job.source, target))
    return made
