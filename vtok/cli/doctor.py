"""`vtok doctor` and `vtok models`."""

from __future__ import annotations

from typing import Any

import typer

from vtok.cli import options as opt
from vtok.cli.console import one_line, print_json
from vtok.errors import VtokError

MARKS = {"ok": "ok", "missing": "--", "failed": "FAILED"}


def doctor(
    model: opt.ModelName = "vtok-base",
    device: opt.Device = "auto",
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Say what vtok finds on this machine, and try a round trip on a video made for it.

    Versions, the extras, ffmpeg with the codecs and VMAF that `vtok compare` and `vtok eval` use,
    the device and the number type that auto means. The exit code is 1 where something needed fails.

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
        raise VtokError(f"not well: {', '.join(failed)}")


def models(as_json: opt.Json = False, debug: opt.Debug = False) -> None:
    """List the shipped models: size, PSNR at each rate as their cards have it, token learners.

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
            f"{facts['bytes'] / 1e6:.1f} MB, {facts['stages']} stages of codes"
        )
        rates = facts["psnr"].items()
        typer.echo("  bits a position  " + "  ".join(f"{bits:>5}" for bits, _ in rates))
        typer.echo("  PSNR dB          " + "  ".join(f"{value:5.2f}" for _, value in rates))
        if facts["token_learners"]:
            typer.echo("  token learners   " + ", ".join(facts["token_learners"]))


def _facts(name: str) -> dict[str, Any]:
    from vtok.models.checkpoint import card_quality, read_card, token_learners
    from vtok.pipeline.inspect import inspect_checkpoint

    kept = ("name", "path", "parameters", "bytes", "codebook_size", "num_codebooks", "stages")
    facts = inspect_checkpoint(name)
    psnr, learners = card_quality(read_card(name)), token_learners(name)
    return {**{key: facts[key] for key in kept}, "psnr": psnr, "token_learners": learners}
