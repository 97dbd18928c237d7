"""`vtok train`, `vtok tokens train` and `vtok tokens show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vtok.cli import options as opt
from vtok.cli.completion import models, one_of, training_data, videos
from vtok.cli.console import frames_progress, loading, print_json, say
from vtok.cli.options import argument, expand_options, option
from vtok.errors import UsageError

SMALL = opt.PartOptions(size="256")
Settings = Annotated[
    list[str] | None,
    option("--set", "KEY=VALUE", "Set one key of the configuration; can be repeated."),
]


def train(
    data: opt.TrainingData,
    out: opt.Run,
    config: Annotated[
        Path | None,
        option("--config", "FILE", "TOML file. [default: that of the run, else defaults]"),
    ] = None,
    settings: Settings = None,
    init: Annotated[
        str | None,
        option(
            "--init",
            "NAME",
            "Start from the weights of a model or checkpoint file. [default: random weights]",
            models,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        option("--steps", "N", "Total number of steps. [default: from the configuration]"),
    ] = None,
    validate: Annotated[
        list[str] | None,
        option(
            "--validate",
            "DATA",
            "Validation data; can be repeated. [default: some videos, if there are at least 20]",
            training_data,
        ),
    ] = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    as_json: Annotated[
        bool, option("--json", None, "One JSON object per step on standard output.")
    ] = False,
    quiet: Annotated[bool, option("--quiet -q", None, "Print only alarms.")] = False,
    debug: opt.Debug = False,
) -> None:
    """Train a tokenizer on videos and photos, or continue a run.

    RUN gets model.safetensors for `vtok encode --model`, config.toml, states to continue from,
    log.csv, TensorBoard events, and pictures of reconstructions.

    \b
      vtok train videos/ photos/ --out run
      vtok train videos/ --out run --init vtok-base --steps 500   fine-tune
      vtok train videos/ --out run --set batch=8 --set model.num_stages=4
      accelerate launch -m vtok train videos/ --out run           several devices
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: expected 1 or more")
    from vtok.cli.display import train_display
    from vtok.training.processes import is_main_process

    is_main = is_main_process()
    with train_display(quiet=quiet or not is_main, as_json=as_json and is_main) as observer:
        from vtok.models.load import pick_device
        from vtok.training.config import parse_settings
        from vtok.training.state import RunFolder
        from vtok.training.trainer import train as run

        given = {"init": init, "steps": steps}
        over = parse_settings(settings or [])
        over |= {key: value for key, value in given.items() if value is not None}
        accelerated = pick_device(device).type != "cpu"
        chosen = RunFolder(out).resolve_config(config, over, accelerated=accelerated)
        run(
            data,
            out,
            chosen,
            observer=observer,
            device=device,
            threads=threads,
            validation=validate or (),
        )


def train_learner(
    data: opt.TrainingData,
    out: opt.Run,
    learner: Annotated[
        str,
        option(
            "--learner",
            "NAME",
            "v10, v11, grouped; or a baseline: average, average_lifted.",
            one_of("v10", "v11", "grouped", "average", "average_lifted"),
        ),
    ] = "v11",
    model: opt.ModelName = "vtok-base",
    init: Annotated[
        Path | None,
        option(
            "--init",
            "FILE",
            "Start from a token learner of this or another model. [default: random weights]",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        option(
            "--cache",
            "FOLDER",
            "Cache of latents and decoded frames; runs can share one. [default: RUN/cache]",
        ),
    ] = None,
    steps: Annotated[
        int | None, option("--steps", "N", "Training steps on latents. [default: 3000]")
    ] = None,
    settings: Settings = None,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Train a token learner for a model, or continue a stopped run.

    The model does not change. Its latents of random clips are computed once and cached; the
    learner is trained to reconstruct them, and at the end to reconstruct pixels through the
    model's decoder. RUN/tokens.safetensors is for `vtok encode --token-learner`.

    \b
      vtok tokens train videos/ photos/ --out run
      vtok tokens train videos/ --out run --learner v10 --steps 6000
      vtok tokens train videos/ --out run --set batch=16 --set pipeline.dim=384
      vtok tokens train videos/ --out run --init old/tokens.safetensors --set muon_rate=0.003
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: expected 1 or more")
    with loading(quiet=quiet):
        from vtok.models.load import load, require_own
        from vtok.training.config import parse_settings
        from vtok.training.token_trainer import TokenTraining, train_tokens

        loaded = load(model, device=device, dtype="float32")
        require_own(loaded.info, "learned tokens")
    over = parse_settings(settings or []) | ({} if steps is None else {"steps": steps})
    config = TokenTraining.from_settings(loaded.geometry.latent_dim, learner, over)

    def tell(line: str) -> None:
        say(line, quiet=quiet)

    made = train_tokens(
        data, out, config, loaded, init=init, cache=cache, threads=threads, say=tell
    )
    tell(f"{made}: the weights")


@expand_options
def show(
    *,
    video: Annotated[Path, argument("VIDEO", "Video to show.", videos)],
    output: Annotated[
        Path,
        option(
            "--output -o",
            "PATH",
            "Picture (png, jpg) of the frame at --start, or video (mp4, webm, gif ...).",
        ),
    ],
    num_tokens: Annotated[int, option("--num-tokens", "S", "Tokens per latent step, 1 to 64.")] = 8,
    token_learner: opt.TokenLearner = None,
    part: opt.PartOptions = SMALL,
    model: opt.ModelOptions,
    overwrite: opt.Overwrite = False,
    printing: opt.PrintOptions,
) -> None:
    """Draw the attention map of each learned token.

    The first picture is the frame. Each other one is the frame in gray, with colour where a
    token attends: the brighter, the more. Its caption is the share of the frame that holds half
    of the token's attention.

    \b
      vtok tokens show clip.mp4 -o maps.png --start 2
      vtok tokens show clip.mp4 -o maps.mp4 --num-tokens 16
    """
    with loading(quiet=printing.quiet):
        from vtok.pipeline.options import EncodeOptions
        from vtok.tokens.model import DEFAULT_LEARNER, load_token_model
        from vtok.tokens.show import show_tokens

        options = EncodeOptions(**part.to_fields(), overwrite=overwrite)
        learner = load_token_model(token_learner or DEFAULT_LEARNER, model=model.load())
    with frames_progress(video.name, quiet=printing.quiet) as progress:
        shown = show_tokens(
            video, output, model=learner, num_tokens=num_tokens, options=options, progress=progress
        )
    if printing.as_json:
        print_json({"input": str(video), "output": str(output), "frames": shown, "status": "ok"})
    say(f"{video} -> {output}: {num_tokens} tokens, {shown} frames", quiet=printing.silent)
