"""`vtok import`: one command per family of published tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.console import one_line, print_json, say, waiting
from vtok.cli.models import digest_line, digests_of, facts_of, summary_of
from vtok.cli.options import argument, expand_options, option
from vtok.errors import UsageError

Source = Annotated[
    str, argument("PATH", "File or folder, or hf:ORG/REPO or hf:ORG/REPO/FILE to download.")
]


@dataclass(frozen=True)
class TargetOptions:
    """Checkpoint to write."""

    output: Annotated[
        Path | None,
        option(
            "--output -o", "FILE", "Checkpoint to write. [default: NAME in the folder of models]"
        ),
    ] = None
    name: Annotated[
        str | None,
        option("--name", "NAME", "Name of the model. [default: that of the output or the input]"),
    ] = None
    check: Annotated[
        bool,
        option("--check", None, "Also print digests of a built-in clip, as `vtok models --check`."),
    ] = False
    overwrite: opt.Overwrite = False


@expand_options
def cosmos(
    path: Source,
    *,
    window: Annotated[
        int, option("--window", "N", "Frames of an independent window, such as 49; 0: a stream.")
    ] = 17,
    compression: Annotated[
        str | None,
        option("--compression", "TxHxW", "Such as 8x8x8, for a file that fits several."),
    ] = None,
    target: TargetOptions,
    printing: opt.PrintOptions,
) -> None:
    """Import NVIDIA's Cosmos, discrete (DV) and continuous (CV).

    PATH is a folder with encoder.jit and decoder.jit, or autoencoder.jit, model.pt or safetensors.
    TorchScript is not executed: only the weights are read.

    \b
      vtok import cosmos hf:nvidia/Cosmos-0.1-Tokenizer-DV8x8x8 --name dv8x8x8
      vtok encode clip.mp4 --model dv8x8x8
    """
    _run("cosmos", path, target, printing, window=window, compression=compression)


@expand_options
def vidtok(
    path: Source,
    *,
    version: Annotated[
        str | None,
        option("--version", "V", "1.0 or 1.1. [default: as in --config or the file name]"),
    ] = None,
    config: Annotated[
        Path | None, option("--config", "FILE", "YAML file of the model, from VidTok's configs/.")
    ] = None,
    target: TargetOptions,
    printing: opt.PrintOptions,
) -> None:
    """Import Microsoft's VidTok, FSQ and KL, causal and not.

    PATH is a .ckpt or .safetensors file. Versions 1.0 and 1.1 have the same tensors but compute
    different results, so a file with another name needs --version.

    \b
      vtok import vidtok vidtok_fsq_causal_488_32768.ckpt --name vidtok
      vtok encode clip.mp4 --model vidtok
    """
    _run("vidtok", path, target, printing, version=version, config=config)


Ema = Annotated[
    bool | None,
    option("--ema/--no-ema", None, "Use the averaged weights. [default: as the original code]"),
]


@expand_options
def open_magvit2(
    path: Source, *, ema: Ema = None, target: TargetOptions, printing: opt.PrintOptions
) -> None:
    """Import Open-MAGVIT2 of SEED-Voken, video and image.

    \b
      vtok import open-magvit2 video_128_262144.ckpt --name open-magvit2
      vtok encode clip.mp4 --model open-magvit2
    """
    _run("open-magvit2", path, target, printing, ema=ema)


@expand_options
def one_x(
    path: Source, *, ema: Ema = None, target: TargetOptions, printing: opt.PrintOptions
) -> None:
    """Import the tokenizer of 1X's world model, frame by frame.

    \b
      vtok import 1x magvit2.ckpt --name 1x
      vtok encode clip.mp4 --model 1x
    """
    _run("1x", path, target, printing, ema=ema)


@expand_options
def o2_magvit2(path: Source, *, target: TargetOptions, printing: opt.PrintOptions) -> None:
    """Import O2-MAGVIT2.

    \b
      vtok import o2-magvit2 model.safetensors --name o2-magvit2
      vtok encode clip.mp4 --model o2-magvit2
    """
    _run("o2-magvit2", path, target, printing)


@expand_options
def taehv(path: Source, *, target: TargetOptions, printing: opt.PrintOptions) -> None:
    """Import taehv, for latents of Wan, Hunyuan, CogVideoX or LTX.

    PATH is a .pth or .safetensors file.

    \b
      vtok import taehv taew2_1.pth --name taew2.1
      vtok encode clip.mp4 --model taew2.1 --to safetensors
    """
    _run("taehv", path, target, printing)


@expand_options
def emu3(path: Source, *, target: TargetOptions, printing: opt.PrintOptions) -> None:
    """Import the vision tokenizer of Emu3.

    PATH is its folder or model.safetensors.

    \b
      vtok import emu3 hf:BAAI/Emu3-VisionTokenizer --name emu3
      vtok encode clip.mp4 --model emu3
    """
    _run("emu3", path, target, printing)


@expand_options
def diffusers(
    path: Source,
    *,
    window: Annotated[int, option("--window", "N", "Frames of an independent window.")] = 17,
    target: TargetOptions,
    printing: opt.PrintOptions,
) -> None:
    """Import video autoencoders of diffusers: Wan, LTX and others.

    Also CogVideoX and HunyuanVideo. PATH is a folder of `save_pretrained`, or one that has it as
    vae/. Needs vtok[diffusers].

    \b
      vtok import diffusers Wan2.1-T2V-1.3B-Diffusers/ --name wan
      vtok encode clip.mp4 --model wan --to safetensors
    """
    _run("diffusers", path, target, printing, window=window)


@expand_options
def magvit2(
    path: Source,
    *,
    config: Annotated[
        Path,
        option("--config", "FILE", "TOML file with the arguments of its VideoTokenizer."),
    ],
    target: TargetOptions,
    printing: opt.PrintOptions,
) -> None:
    """Import a checkpoint of magvit2-pytorch 0.5.1.

    Only tensors are read, never the pickled configuration: state that in a TOML file. Arguments
    that are left out have the defaults of magvit2-pytorch; docs/benchmarks.md lists what is equal
    and what cannot be converted.

    \b
      vtok import magvit2 tokenizer.pt -o mine.safetensors --config tokenizer.toml
      vtok encode clip.mp4 --model mine.safetensors
    """
    from vtok.training.config import read_config

    with waiting("loading torch", quiet=printing.quiet):
        from vtok.models.magvit2 import Magvit2Config

        try:
            stated = Magvit2Config.from_dict(read_config(config))
            stated.check_unconditioned()
        except UsageError as exc:
            text = str(exc)
            raise UsageError(text if text.startswith(str(config)) else f"{config}: {text}") from exc
    _run("magvit2", path, target, printing, config=stated)


COMMANDS = {
    "cosmos": cosmos, "vidtok": vidtok, "open-magvit2": open_magvit2, "1x": one_x,
    "o2-magvit2": o2_magvit2, "taehv": taehv, "emu3": emu3, "diffusers": diffusers,
    "magvit2": magvit2,
}  # fmt: skip


def _run(
    family: str, path: str, target: TargetOptions, printing: opt.PrintOptions, **options: Any
) -> None:
    """Import, and print what was written."""
    with waiting("reading the weights", quiet=printing.quiet):
        from vtok.models.imports import import_checkpoint

        made = import_checkpoint(
            family, path, target.output, name=target.name, overwrite=target.overwrite, **options
        )
    info = made.info
    digests = digests_of(str(info.path), quiet=printing.quiet) if target.check else []
    facts = facts_of(info)
    if printing.as_json:
        paths = {"input": path, "output": str(info.path), "status": "ok"}
        checked = {"digests": [digest.to_dict() for digest in digests]} if target.check else {}
        print_json({**paths, **facts, "notes": list(made.notes), **checked})
    if printing.silent:
        return
    for note in made.notes:
        say(f"note: {note}")
    say(f"{path} -> {info.path}: {info.num_parameters:,} parameters, {summary_of(facts)}")
    if info.licence:
        say(f"licence of the weights: {info.licence}")
    for digest in digests:
        typer.echo(one_line(digest_line(digest)))
