"""`vtok tokens train` and `show`, and `vtok encode` where learned tokens are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtok.cli import failures as exits
from vtok.cli import options as opt
from vtok.cli.completion import one_of, videos
from vtok.cli.console import print_json, say
from vtok.cli.options import unfolded
from vtok.cli.progress import loading
from vtok.cli.run import Manner, Work
from vtok.errors import OptionError, UsageError

if TYPE_CHECKING:
    from vtok.models.load import LoadedTokenizer
    from vtok.pipeline.options import EncodeOptions
    from vtok.video.decoder_process import Decoder

SMALL = opt.Part(size="256")

tokens = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Train learners of a few tokens a frame, and see what the tokens look at.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True)
class TokenChoice:
    """What `vtok encode` was asked to do with learned tokens.

    Attributes:
        as_floats: write them themselves; else their bits, in a code file.
        count: of each latent step; 8 if None.
        learner: a name or a file; v11 if None.
    """

    as_floats: bool
    count: int | None
    learner: str | None


def token_work(
    model: LoadedTokenizer, how: EncodeOptions, asked: TokenChoice, manner: Manner, decoder: Decoder
) -> tuple[Work, Manner, Callable[[Path, Path], bool]]:
    """What `run_jobs` needs to encode to learned tokens."""
    from vtok.pipeline.up_to_date import are_tokens_encoded
    from vtok.tokens.encode import check_token_options, encode_token_codes_file, encode_tokens_file
    from vtok.tokens.model import DEFAULT_LEARNER, DEFAULT_TOKENS, load_token_model

    check_token_options(how)
    loaded = load_token_model(asked.learner or DEFAULT_LEARNER, model=model)
    count = DEFAULT_TOKENS if asked.count is None else asked.count
    loaded.check_count(count)
    encode = encode_tokens_file if asked.as_floats else encode_token_codes_file

    def work(source: Any, target: Any, progress: Any) -> Any:
        return encode(
            source,
            target,
            model=loaded,
            num_tokens=count,
            options=how,
            progress=progress,
            decoder=decoder,
        )

    def is_done(made: Path, source: Path) -> bool:
        return are_tokens_encoded(made, source, loaded, count, how)

    return work, manner, is_done


@tokens.command(epilog=exits.WHOLE)
def train(
    data: opt.TrainingData,
    out: opt.Run,
    learner: Annotated[
        str,
        typer.Option(
            "--learner",
            metavar="NAME",
            help="v10, v11, grouped; or to compare with: average, average_lifted.",
            autocompletion=one_of("v10", "v11", "grouped", "average", "average_lifted"),
        ),
    ] = "v11",
    model: opt.ModelName = "vtok-base",
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="FOLDER",
            help="Of latents and decoded frames; runs may share one. [default: RUN/cache]",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="On latents. [default: 3000]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set anything of the run; may be given again."
        ),
    ] = None,
    device: opt.Device = "auto",
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", help="Threads on the CPU. [default: torch's own]"),
    ] = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Train a token learner for a model; the same command goes on with a stopped run.

    The model stays as it is. Its latents of random clips are computed once and kept; the learner
    learns to give them back, and at the end to give back pixels through the model's decoder.
    RUN/tokens.safetensors is for `vtok encode --token-learner`.

    \b
      vtok tokens train videos/ photos/ --out run
      vtok tokens train videos/ --out run --learner v10 --steps 6000
      vtok tokens train videos/ --out run --set batch=16 --set pipeline.dim=384
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: expected 1 or more")
    with Manner(False, False, False, quiet).waiting("loading the model"):
        from vtok.models.load import load
        from vtok.training.config import parse_settings
        from vtok.training.token_trainer import TokenTraining, train_tokens

        loaded = load(model, device=device, dtype="float32")
    over = parse_settings(settings or []) | ({} if steps is None else {"steps": steps})
    try:
        config = TokenTraining.from_settings(loaded.tokenizer.quantizer.dim, learner, over)
    except OptionError as exc:  # names a key of the config, which is not an option
        raise UsageError(str(exc)) from exc

    def tell(line: str) -> None:
        say(line, quiet=quiet)

    made = train_tokens(data, out, config, loaded, cache=cache, threads=threads, say=tell)
    tell(f"{made}: the weights")


@tokens.command(epilog=exits.WHOLE)
@unfolded
def show(
    *,
    video: Annotated[
        Path,
        typer.Argument(
            metavar="VIDEO", show_default=False, help="The video to look at.", autocompletion=videos
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            *("--output", "-o"),
            metavar="PATH",
            show_default=False,
            help="A picture (png, jpg) of the frame at --start, or a video (mp4, webm, gif ...).",
        ),
    ],
    num_tokens: Annotated[
        int, typer.Option("--num-tokens", metavar="S", help="Tokens of a latent step, 1 to 64.")
    ] = 8,
    token_learner: opt.TokenLearner = None,
    part: opt.Part = SMALL,
    model: opt.ModelName = "vtok-base",
    running: opt.Running,
    overwrite: opt.Overwrite = False,
    saying: opt.Saying,
) -> None:
    """Draw which parts of the frame each learned token looks at.

    The first picture is the frame; each other one is the frame in gray, in colour where a token
    looks: the brighter, the more. Its caption says on what share of the frame half of the token's
    attention lies.

    \b
      vtok tokens show clip.mp4 -o maps.png --start 2
      vtok tokens show clip.mp4 -o maps.mp4 --num-tokens 16
    """
    with loading(quiet=saying.quiet):
        from vtok.models.load import load
        from vtok.pipeline.encode import EncodeOptions
        from vtok.tokens.model import DEFAULT_LEARNER, load_token_model
        from vtok.tokens.show import show_tokens

        how = EncodeOptions(
            size=part.size,
            fps=part.rate,
            start_seconds=part.start,
            duration_seconds=part.duration,
            overwrite=overwrite,
        )
        loaded = load(model, device=running.device, dtype=running.dtype)
        pipeline = load_token_model(token_learner or DEFAULT_LEARNER, model=loaded)
    from vtok.cli.progress import frames_progress

    with frames_progress(video.name, quiet=saying.quiet) as progress:
        shown = show_tokens(
            video, output, model=pipeline, num_tokens=num_tokens, options=how, progress=progress
        )
    if saying.as_json:
        print_json({"input": str(video), "output": str(output), "frames": shown, "status": "ok"})
    silent = saying.quiet or saying.as_json
    say(f"{video} -> {output}: {num_tokens} tokens, {shown} frames", quiet=silent)
