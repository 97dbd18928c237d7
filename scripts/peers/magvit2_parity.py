#!/usr/bin/env python
"""Check that models of `vtok import magvit2` give the codes and frames of magvit2-pytorch 0.5.1.

scripts/peers/magvit2_parity.py [--peers FOLDER]

docs/benchmarks.md tells how to install magvit2-pytorch. The cases cover every layer kind and
several widths, codebooks and lengths, with random weights. magvit2-pytorch builds and saves each
model, vtok reads it, and both encode and decode the same random clips.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from magvit2_peer import README, add_path, as_lists, make_peer
from safetensors.torch import save_file
from torch import Tensor, nn

from vtok.models.checkpoint import load_checkpoint, save_checkpoint
from vtok.models.magvit2 import Magvit2Config, read_magvit2
from vtok.nn.quantize import FIRST_SCALE

SMALL: dict[str, Any] = {
    "image_size": 16,
    "init_dim": 8,
    "codebook_size": 64,
    "input_conv_kernel_size": (7, 3, 3),
}
MIXED = (
    "residual", ("compress_space", 12), ("consecutive_residual", 2), "linear_attend_space",
    ("compress_time", 16), "attend_space", "attend_time", "compress_time", "gateloop_time",
)  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], int]] = {  # arguments and frames
    **{
        kind: ({**SMALL, "layers": (kind,)}, 5)
        for kind in (
            *("residual", "compress_space", "compress_time", "attend_space"),
            *("linear_attend_space", "attend_time", "gateloop_time"),
        )
    },
    "consecutive_residual": ({**SMALL, "layers": (("consecutive_residual", 3),)}, 5),
    "cond_residual": ({**SMALL, "layers": ("compress_space", "cond_residual"), "dim_cond": 6}, 5),
    "no layers": ({**SMALL, "layers": ()}, 3),
    "all kinds, 4x2x2": ({**SMALL, "layers": MIXED}, 17),
    "all kinds, one frame": ({**SMALL, "layers": MIXED}, 1),
    "8 frames per step": ({**SMALL, "layers": ("compress_time",) * 3, "max_dim": 20}, 17),
    "two codebooks": ({**SMALL, "layers": MIXED, "num_codebooks": 2}, 9),
    "spherical": ({**SMALL, "layers": MIXED, "lfq_spherical": True}, 9),
    "no projection": ({**SMALL, "init_dim": 6, "layers": ("residual", "compress_time")}, 9),
    "even kernels in time": (
        {**SMALL, "input_conv_kernel_size": (4, 3, 5), "output_conv_kernel_size": (2, 1, 3)},
        4,
    ),
    "README at 32x32": ({**README, "image_size": 32}, 5),
}


def scramble(peer: nn.Module, seed: int, strength: float) -> None:
    """Add noise to all weights, at about their initial scale, so that each affects the result."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in peer.state_dict().items():
        if tensor.is_floating_point() and not name.startswith("discr."):
            noise = torch.randn(tensor.shape, generator=generator)
            size = tensor.std().clamp(0.05, 0.2) if tensor.numel() > 1 else 0.1
            # gates start closed with a bias of -10, which would hide the values that they multiply
            tensor.copy_(tensor.clamp(min=-1) + noise * size * strength)


@torch.inference_mode()
def compare(arguments: dict[str, Any], frames: int, seed: int, folder: Path) -> dict[str, float]:
    """Compare codes, latents and frames; see the columns of the table."""
    torch.manual_seed(seed)
    peer = make_peer(**arguments)
    # in large models the full noise leads to numbers too large to compare in float32
    scramble(peer, seed, 1.0 if arguments["init_dim"] < 16 else 0.1)
    peer.save(folder / "peer.pt")
    given = {key: as_lists(value) for key, value in arguments.items()}
    imported = read_magvit2(folder / "peer.pt", Magvit2Config.from_dict(given))
    save_checkpoint(folder / "ours.safetensors", imported.tokenizer, "parity")
    ours = load_checkpoint(folder / "ours.safetensors")[0]
    side = arguments["image_size"]
    clip = torch.rand(2, 3, frames, side, side) * 2 - 1
    cond = into = out = None
    if arguments.get("dim_cond"):
        cond = torch.randn(2, arguments["dim_cond"])
        into, out = imported.encoder_stem(cond), imported.decoder_stem(cond)
    channels_last = peer.encode(clip, cond=cond).movedim(1, -1)
    features = peer.quantizers.project_in(channels_last).movedim(-1, 1)
    latents = ours.encode(clip, cond=into)
    codes = peer(clip, cond=cond, return_codes=True)
    codes = codes.movedim(-1, 1) if arguments.get("num_codebooks", 1) > 1 else codes
    mine = ours.encode(clip, quantize=True, cond=into)
    theirs = peer.decode_from_code_indices(_theirs(codes, arguments), cond=cond)
    recon = ours.decode(codes, cond=out, num_frames=frames)
    raw = torch.atanh((latents / (2 * FIRST_SCALE)).clamp(-1 + 1e-7, 1 - 1e-7))
    within = raw.abs() < 2  # larger values lose their precision in the tanh
    return {
        "equal codes": (codes == mine).double().mean().item(),
        "latents": (raw - features)[within].abs().max().item(),
        "frames": (recon - theirs).abs().max().item(),
        "range": theirs.abs().max().item(),
        "used codes": float(codes.unique().numel()),
    }


@torch.inference_mode()
def write_golden(folder: Path) -> None:
    """Write the golden files of tests/test_import_magvit2.py, with 16-bit weights to save space."""
    torch.manual_seed(0)
    arguments, frames = {**SMALL, "layers": MIXED, "num_codebooks": 2}, 9
    peer = make_peer(**arguments)
    scramble(peer, 0, 1.0)
    for tensor in peer.state_dict().values():
        tensor.copy_(tensor.half())
    clip = torch.rand(1, 3, frames, 16, 16) * 2 - 1
    codes = peer(clip, return_codes=True)
    frames_out = peer.decode_from_code_indices(codes)
    peer.half().save(folder / "magvit2.pt")
    results = {"clip": clip, "codes": codes.contiguous(), "frames": frames_out.contiguous()}
    save_file(results, folder / "magvit2.safetensors")
    lines = [f"{key} = {json.dumps(as_lists(value))}\n" for key, value in arguments.items()]
    (folder / "magvit2.toml").write_text("".join(lines))


def _theirs(codes: Tensor, arguments: dict[str, Any]) -> Tensor:
    return codes.movedim(1, -1) if arguments.get("num_codebooks", 1) > 1 else codes


def main() -> None:
    """Print a table; the exit code is 1 if a case differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", metavar="FOLDER", help="folder with magvit2-pytorch")
    parser.add_argument("--only", metavar="CASE", choices=CASES, help=", ".join(CASES))
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument(
        "--write-golden", metavar="FOLDER", help="write the golden files of the tests instead"
    )
    args = parser.parse_args()
    add_path(args.peers)
    if args.write_golden:
        write_golden(Path(args.write_golden))
        return
    heads = ("case", "frames", "equal codes", "different codes used", "largest latent difference")
    heads += ("largest frame difference", "largest frame value")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    failed = []
    for name, (arguments, frames) in CASES.items():
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = compare(arguments, frames, 0, Path(folder))
        print(
            f"| {name} | {frames} | {found['equal codes']:.6f} | {found['used codes']:.0f} "
            f"| {found['latents']:.1e} | {found['frames']:.1e} | {found['range']:.2f} |",
            flush=True,
        )
        if found["equal codes"] < 1 or found["frames"] > args.tolerance:
            failed.append(name)
    if failed:
        sys.exit(f"not equal: {', '.join(failed)}")


if __name__ == "__main__":
    main()
