"""`vtok models`, `vtok doctor` and `vtok import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vtok.cli import options as opt
from vtok.cli.console import one_line, print_json, say, waiting
from vtok.cli.options import argument, expand_options, option
from vtok.errors import UsageError, VtokError

MARKS = {"ok": "ok", "missing": "--", "failed": "FAILED"}
CARD_FACTS = ("name", "path", "parameters", "bytes", "codebook_size", "num_codebooks", "stages")


def models(as_json: opt.Json = False, debug: opt.Debug = False) -> None:
    """List the shipped models with size and PSNR at each rate.

    \b
      vtok models
      vtok models --json | jq .psnr
    """
    from vtok.models.checkpoint import list_models

    for number, name in enumerate(list_models()):
        facts = _facts(name)
        if as_json:
            print_json(facts)
            continue
        if number:
            typer.echo()
        typer.echo(
            f"{name}: {facts['parameters'] / 1e6:.1f} million parameters, "
            f"{facts['bytes'] / 1e6:.1f} MB, {facts['stages']} quantizer stages"
        )
        rates = facts["psnr"].items()
        typer.echo("  bits per position  " + "  ".join(f"{bits:>5}" for bits, _ in rates))
        typer.echo("  PSNR dB            " + "  ".join(f"{value:5.2f}" for _, value in rates))
        if facts["token_learners"]:
            typer.echo("  token learners     " + ", ".join(facts["token_learners"]))


def _facts(name: str) -> dict[str, Any]:
    from vtok.models.checkpoint import card_quality, read_card, token_learners
    from vtok.pipeline.inspect import inspect_checkpoint

    facts = inspect_checkpoint(name)
    psnr, learners = card_quality(read_card(name)), token_learners(name)
    return {**{key: facts[key] for key in CARD_FACTS}, "psnr": psnr, "token_learners": learners}


def doctor(
    model: opt.ModelName = "vtok-base",
    device: opt.Device = "auto",
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Check this installation with a short round trip.

    Prints versions, optional packages, ffmpeg with the codecs and VMAF that `vtok compare` and
    `vtok eval` use, and the device and number type that auto selects. The exit code is 1 if a
    required part fails.

    \b
      vtok doctor
      vtok doctor --device cuda --json
    """
    from vtok.evaluation.doctor import examine

    failed = []
    for finding in examine(model, device):
        if as_json:
            print_json({"name": finding.name, "state": finding.state, "text": finding.text})
        else:
            mark = MARKS[finding.state].ljust(7)
            typer.echo(one_line(f"{mark} {finding.name.ljust(15)} {finding.text}"))
        if finding.state == "failed":
            failed.append(finding.name)
    if failed:
        raise VtokError(f"checks failed: {', '.join(failed)}")


@expand_options
def magvit2(
    checkpoint: Annotated[Path, argument("CHECKPOINT", "File saved by magvit2-pytorch.")],
    *,
    output: Annotated[Path, option("--output -o", "PATH", "Checkpoint to write.")],
    config: Annotated[
        Path,
        option("--config", "FILE", "TOML file with the arguments of its VideoTokenizer."),
    ],
    name: Annotated[
        str | None, option("--name", "NAME", "Model name for code files. [default: PATH's stem]")
    ] = None,
    overwrite: opt.Overwrite = False,
    printing: opt.PrintOptions,
) -> None:
    """Convert a checkpoint of magvit2-pytorch 0.5.1.

    The converted model gives the same codes and frames. Only tensors are read, never the pickled
    configuration: state that in a TOML file. Arguments that are left out have the defaults of
    magvit2-pytorch; docs/benchmarks.md lists what is equal and what cannot be converted.

    \b
      vtok import magvit2 tokenizer.pt -o mine.safetensors --config tokenizer.toml
      vtok encode clip.mp4 --model mine.safetensors
    """
    from vtok._files import check_output

    check_output(output, overwrite)
    with waiting("reading the checkpoint", quiet=printing.quiet):
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
                f"{config}: conditioned layers: a vtok checkpoint cannot hold their stem; "
                "in Python, vtok.models.magvit2.read_magvit2 returns it with the tokenizer"
            )
        imported = read_magvit2(checkpoint, stated)
        save_checkpoint(output, imported.tokenizer, name or output.stem)
        info = read_info(output)
    tokenizer = imported.tokenizer
    time, space = tokenizer.temporal_compression, tokenizer.spatial_compression
    if printing.as_json:
        names = {"input": str(checkpoint), "output": str(output), "name": info.name}
        numbers = {"temporal_compression": time, "spatial_compression": space}
        numbers |= {"parameters": info.num_parameters, "left_out": imported.left_out}
        print_json({**names, "status": "ok", "weights_sha256": info.weights_sha256, **numbers})
    bits = tokenizer.quantizer.bits_per_stage
    say(
        f"{checkpoint} -> {output}: {info.num_parameters:,} parameters, {time}x{space}x{space}, "
        f"{bits} bits per position; left out {imported.left_out} tensors that no code depends on",
        quiet=printing.silent,
    )
