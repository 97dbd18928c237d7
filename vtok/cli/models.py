"""`vtok models` and `vtok doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtok.cli import completion
from vtok.cli import options as opt
from vtok.cli.console import loading, one_line, print_json, say_error
from vtok.cli.options import argument, option
from vtok.errors import PartialFailure, VtokError

if TYPE_CHECKING:
    from vtok.evaluation.probe import Digest
    from vtok.models.checkpoint import CheckpointInfo

MARKS = {"ok": "ok", "missing": "--", "failed": "FAILED"}
OWN_LICENCE = "Apache-2.0"
Named = Annotated[
    list[str] | None,
    argument("MODEL", "Names or files. [default: all shipped and imported]", completion.models),
]


def models(
    names: Named = None,
    check: Annotated[
        bool, option("--check", None, "Encode a built-in clip; print digests of the result.")
    ] = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """List the shipped and imported models, with licence, shapes and cost.

    Bits are those of a position, all stages together; cost is in thousands of multiply-adds per
    pixel of encoder and decoder. With --check, codes and frames of 17 frames of 64x64 and of
    128x96 are computed in float32 on the CPU, to compare with the original or another machine.

    \b
      vtok models
      vtok models vtok-base --check
      vtok models --json | jq .psnr
    """
    from vtok.models.checkpoint import list_models, read_info

    chosen, failed = names or list_models(), []
    for number, name in enumerate(chosen):
        try:
            info = read_info(name)
            facts = facts_of(info)
            digests = digests_of(name, quiet=as_json) if check else []
        except VtokError as error:
            if len(chosen) == 1:
                raise
            say_error(str(error))
            failed.append(name)
            continue
        if as_json:
            checked = {"digests": [digest.to_dict() for digest in digests]} if check else {}
            print_json({**facts, **checked})
            continue
        if number:
            typer.echo()
        for line in (*_lines(info, facts), *map(digest_line, digests)):
            typer.echo(one_line(line))
    if failed:
        raise PartialFailure(f"{len(failed)} of {len(chosen)} models cannot be read")


def facts_of(info: CheckpointInfo) -> dict[str, Any]:
    """Return the facts about a model that `vtok models --json` prints."""
    from vtok.models.checkpoint import card_quality, read_card, shipped_models, token_learners

    geometry, shipped = info.geometry, info.path.parent.name == "weights"
    shipped = shipped and info.name in shipped_models()
    return {
        "name": info.name,
        "path": str(info.path),
        "shipped": shipped,
        "arch": info.arch,
        "licence": OWN_LICENCE if shipped else info.licence,
        "source": info.source,
        "parameters": info.num_parameters,
        "bytes": info.path.stat().st_size,
        "temporal_compression": geometry.temporal_compression,
        "spatial_compression": geometry.spatial_compression,
        "latent_dim": geometry.latent_dim,
        "entries": geometry.entries,
        "codebook_size": geometry.codebook_size,
        "num_codebooks": geometry.num_codebooks,
        "stages": geometry.num_stages,
        "bits_per_position": round(geometry.num_stages * geometry.bits_per_stage, 2),
        "window_frames": getattr(geometry.plan, "frames", None),
        "kmac_per_pixel": _cost(info),
        "weights_sha256": info.weights_sha256,
        "psnr": card_quality(read_card(info.name)) if shipped else {},
        "token_learners": token_learners(info.name) if shipped else [],
    }


def _cost(info: CheckpointInfo) -> dict[str, float] | None:
    from vtok.evaluation.probe import cost_of

    try:
        encoder, decoder = cost_of(info)
    except VtokError:
        return None
    return {"encoder": round(encoder, 1), "decoder": round(decoder, 1)}


def digests_of(name: str, *, quiet: bool) -> list[Digest]:
    """Compute the digests of a model in float32 on the CPU."""
    with loading(quiet=quiet):
        from vtok.evaluation.probe import make_digests
        from vtok.models.load import load

        return make_digests(load(name, device="cpu", dtype="float32"))


def summary_of(facts: dict[str, Any]) -> str:
    """Describe a model in one line: shapes, vocabulary, bits, cost."""
    time, space = facts["temporal_compression"], facts["spatial_compression"]
    words = [f"{time}x{space}x{space}"]
    if facts["entries"] is None:
        words.append(f"continuous, {facts['latent_dim']} channels")
    else:
        books = facts["num_codebooks"]
        words.append(f"{facts['entries']:,} entries" + (f" x {books} codebooks" * (books > 1)))
        bits = f"{facts['bits_per_position']:g} bits per position"
        words.append(bits + (f" in {facts['stages']} stages" if facts["stages"] > 1 else ""))
    window = facts["window_frames"]
    words.append(f"windows of {window} frames" if window else "streams")
    if cost := facts["kmac_per_pixel"]:
        words.append(f"{cost['encoder']:,.4g} + {cost['decoder']:,.4g} kMAC per pixel")
    return ", ".join(words)


def _lines(info: CheckpointInfo, facts: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{info.name}: {info.arch}, {facts['parameters'] / 1e6:.1f} million parameters, "
        f"{facts['bytes'] / 1e6:.1f} MB, licence {facts['licence'] or 'not stated'}"
    )
    yield f"  {summary_of(facts)}"
    if rates := facts["psnr"].items():
        yield "  bits per position  " + "  ".join(f"{bits:>5}" for bits, _ in rates)
        yield "  PSNR dB            " + "  ".join(f"{value:5.2f}" for _, value in rates)
    if facts["token_learners"]:
        yield "  token learners     " + ", ".join(facts["token_learners"])
    if not facts["shipped"]:
        yield f"  file               {info.path}"


def digest_line(digest: Digest) -> str:
    """Describe the digests of one size in one line."""
    codes = f"codes {digest.codes_sha256}, some {' '.join(map(str, digest.some_codes))}; "
    return (
        f"  check {digest.size}: {codes if digest.codes_sha256 else ''}"
        f"latents {digest.latents_mean} +- {digest.latents_std}; "
        f"frames {digest.frames_sha256}, mean {digest.frames_mean}"
    )


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
