"""`vtok import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtok._files import check_output
from vtok.cli import failures as exits
from vtok.cli import options as opt
from vtok.cli.console import print_json, say
from vtok.cli.run import Manner
from vtok.errors import UsageError

import_ = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Make checkpoints of other projects into checkpoints of vtok.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@import_.callback()
def _group() -> None:
    """Keep the name of the other project a word of the command, while there is only one."""


@import_.command(epilog=exits.WHOLE)
def magvit2(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", show_default=False, help="What magvit2-pytorch saved."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", show_default=False, help="To write."),
    ],
    config: Annotated[
        Path,
        typer.Option(
            "--config",
            metavar="FILE",
            show_default=False,
            help="A TOML file: the arguments of its VideoTokenizer, by the same names.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", help="Of the model, as code files keep it. [default: PATH's]"),
    ] = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Import a checkpoint that magvit2-pytorch 0.5.1 saved: same codes, same frames.

    Only its tensors are read, never its pickled config, so state that as TOML. Arguments that are
    left out have magvit2-pytorch's defaults; docs/benchmarks.md says what is equal and what cannot
    be imported.

    \b
      vtok import magvit2 tokenizer.pt -o mine.safetensors --config tokenizer.toml
      vtok encode clip.mp4 --model mine.safetensors
    """
    check_output(output, overwrite)
    with Manner(overwrite, False, as_json, quiet).waiting("reading the checkpoint"):
        from vtok.models.checkpoint import read_info, save_checkpoint
        from vtok.models.magvit2 import Magvit2Config, read_magvit2
        from vtok.training.config import read_config

        try:
            stated = Magvit2Config.from_dict(read_config(config))
        except UsageError as exc:
            text = str(exc)
            raise UsageError(text if text.startswith(str(config)) else f"{config}: {text}") from exc
        if stated.stem_dim is not None:
            raise UsageError(
                f"{config}: conditioned layers: a checkpoint of vtok has no place for their stem; "
                "in Python, vtok.models.magvit2.read_magvit2 gives it beside the tokenizer"
            )
        imported = read_magvit2(checkpoint, stated)
        save_checkpoint(output, imported.tokenizer, name or output.stem)
        info = read_info(output)
    tokenizer = imported.tokenizer
    time, space = tokenizer.temporal_compression, tokenizer.spatial_compression
    if as_json:
        names = {"input": str(checkpoint), "output": str(output), "name": info.name}
        numbers = {"temporal_compression": time, "spatial_compression": space}
        numbers |= {"parameters": info.num_parameters, "left_out": imported.left_out}
        print_json({**names, "status": "ok", "weights_sha256": info.weights_sha256, **numbers})
    bits = tokenizer.quantizer.bits_per_stage
    say(
        f"{checkpoint} -> {output}: {info.num_parameters:,} parameters, {time}x{space}x{space}, "
        f"{bits} bits a position; left out {imported.left_out} tensors that no code depends on",
        quiet=quiet or as_json,
    )
