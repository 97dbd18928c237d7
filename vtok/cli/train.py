"""`vtok train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtok.cli import options as opt
from vtok.cli.completion import models, training_data
from vtok.errors import OptionError, UsageError
from vtok.training.processes import is_main_process


def train(
    data: opt.TrainingData,
    out: opt.Run,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="A TOML file. [default: the run's own, else defaults]"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set one key of the config; may be given again."
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="NAME",
            help="Start from a shipped checkpoint's weights, or a file's. [default: fresh weights]",
            autocompletion=models,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", help="Steps in all. [default: the config's]"),
    ] = None,
    validate: Annotated[
        list[str] | None,
        typer.Option(
            "--validate",
            metavar="DATA",
            help="What to measure on; may be given again. [default: videos set aside, if 20 are "
            "there]",
            autocompletion=training_data,
        ),
    ] = None,
    device: opt.Device = "auto",
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", help="Threads on the CPU. [default: torch's own]"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a step on standard output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but alarms.")] = False,
    debug: opt.Debug = False,
) -> None:
    """Train a tokenizer on videos and photos; the same command goes on with a stopped run.

    RUN gets model.safetensors for `vtok encode --model`, config.toml, states to go on from,
    log.csv, TensorBoard events, and pictures of what was learned.

    \b
      vtok train videos/ photos/ --out run
      vtok train videos/ --out run --init vtok-base --steps 500   teach it your videos
      vtok train videos/ --out run --set batch=8 --set model.num_stages=4
      accelerate launch -m vtok train videos/ --out run           several devices
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: expected 1 or more")
    from vtok.cli.train_display import train_display

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
        try:
            chosen = RunFolder(out).resolve_config(config, over, accelerated=accelerated)
        except OptionError as exc:  # names a key of the config, which is not an option
            raise UsageError(str(exc)) from exc
        run(
            data,
            out,
            chosen,
            observer=observer,
            device=device,
            threads=threads,
            validation=validate or (),
        )
