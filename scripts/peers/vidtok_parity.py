#!/usr/bin/env python
"""Check that imported VidTok models give the codes and frames of Microsoft's code, and time both.

scripts/peers/vidtok_parity.py --original FOLDER [--json] [--only CASE] [--golden FILE]

FOLDER is a checkout of microsoft/VidTok; its code needs einops and rich (and takes beartype if
there is one). The original is built with random weights in every tensor, biases, norms and mixing
factors included, and saved as its published checkpoints are: a Lightning file with tensors of the
loss beside. vtok imports the file, and both encode and decode the same random clip in float32.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtok.models.vidtok import VidTokTokenizer, read_vidtok

TINY: dict[str, Any] = {"ch": 16, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 1, "size": 32}
WHOLE: dict[str, Any] = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "size": 32}
SIXTEEN = {"ch_mult": [1, 2, 4, 4, 4], "size": 32}
EIGHT_FRAMES = {"tempo_ds": [0, 1, 2], "tempo_us": [1, 2, 3], "time_downsample_factor": 8}
TWO_FRAMES = {"tempo_ds": [1], "tempo_us": [2], "time_downsample_factor": 2}
FOUR_PIXELS = {"spatial_ds": [1, 2], "spatial_us": [1, 2], "size": 16}
CASES: dict[str, dict[str, Any]] = {  # z: dimensions of FSQ, or channels of KL
    "1.0 FSQ 4096, 4x8x8": {**TINY, "version": "1.0", "fsq": True, "z": 4},
    "1.0 FSQ 262144, 4x16x16": {**TINY, **SIXTEEN, "version": "1.0", "fsq": True, "z": 6},
    "1.0 KL, 2x8x8": {**TINY, **TWO_FRAMES, "version": "1.0", "fsq": False, "z": 8},
    "1.0 KL, 4x4x4": {**TINY, **FOUR_PIXELS, "version": "1.0", "fsq": False, "z": 4},
    "1.1 FSQ 32768, 4x8x8": {**TINY, "version": "1.1", "fsq": True, "z": 5},
    "1.1 FSQ 262144, 4x16x16": {**TINY, **SIXTEEN, "version": "1.1", "fsq": True, "z": 6},
    "1.1 FSQ 32768, 8x8x8": {**TINY, **EIGHT_FRAMES, "version": "1.1", "fsq": True, "z": 5},
    "1.1 KL, 2x8x8": {**TINY, **TWO_FRAMES, "version": "1.1", "fsq": False, "z": 8},
    "1.1 KL, one frame": {**TINY, "version": "1.1", "fsq": False, "z": 4, "frames": 1},
    "not causal, FSQ 262144": {**TINY, "version": "", "fsq": True, "z": 6, "frames": 13},
    "not causal, KL, 4x16x16": {**TINY, **SIXTEEN, "version": "", "fsq": False, "z": 4},
    "whole 1.0 FSQ 262144": {**WHOLE, "version": "1.0", "fsq": True, "z": 6},
    "whole 1.1 FSQ 32768": {**WHOLE, "version": "1.1", "fsq": True, "z": 5},
    "whole 1.1 FSQ 32768, 8x8x8": {**WHOLE, **EIGHT_FRAMES, "version": "1.1", "fsq": True, "z": 5},
    "whole 1.0 FSQ 4096 at 64x64": {**WHOLE, "version": "1.0", "fsq": True, "z": 4, "size": 64},
}
MODULES = {"1.0": "model_3dcausal", "1.1": "model_3dcausal_v1_1", "": "model_3dnoncausal"}
NOT_ARGUMENTS = {"version", "fsq", "z", "size", "frames"}


class Original(nn.Module):
    """The parts of the original that its checkpoints are named after."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__()
        module = importlib.import_module(f"vidtok.modules.{MODULES[case['version']]}")
        quantizers = importlib.import_module("vidtok.modules.regularizers")
        kind = "Causal3DPadding" if case["version"] else "3D"
        arguments = {
            **{key: value for key, value in case.items() if key not in NOT_ARGUMENTS},
            "in_channels": 3, "out_ch": 3, "z_channels": case["z"], "double_z": not case["fsq"],
            "norm_type": "layernorm", "init_pad_mode": "replicate",
            "interpolation_mode": "trilinear",
        }  # fmt: skip
        self.encoder = getattr(module, f"Encoder{kind}")(**arguments)
        self.decoder = getattr(module, f"Decoder{kind}")(**arguments)
        self.quantizer = [
            quantizers.FSQRegularizer([8] * case["z"])
            if case["fsq"]
            else quantizers.DiagonalGaussianRegularizer(sample=False)
        ]
        self.front = 0 if case["version"] else self.encoder.time_downsample_factor - 1

    def encode(self, clip: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode to the decoder's input and codes; frames are put in front if it does not."""
        clip = torch.cat((clip[:, :, :1].repeat(1, 1, self.front, 1, 1), clip), 2)
        latents, log = self.quantizer[0](self.encoder(clip))
        return latents, log.get("indices")

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """Decode, and keep the frames of the clip."""
        return self.decoder(latents)[:, :, -frames:]


def add_original(folder: Path) -> None:
    """Make the original importable, with stand-ins for packages that do not compute."""

    class StandIn(types.ModuleType):
        __path__ = ()

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda value: value

    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.utilities",
                 "lightning.pytorch.utilities.rank_zero"):  # fmt: skip
        sys.modules[name] = StandIn(name)
    try:
        importlib.import_module("beartype")
    except ImportError:
        typing = importlib.import_module("typing")
        sys.modules.update({"beartype": StandIn("beartype"), "beartype.typing": typing})
    sys.path.insert(0, str(folder))


def scramble(model: nn.Module, seed: int) -> None:
    """Give every tensor random values of about its initial scale."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("mix_factor"):
            noise = noise * 2
        elif "norm" in name and name.endswith("weight"):
            noise = 1 + noise * 0.2
        elif tensor.ndim == 1:
            noise = noise * 0.1
        else:
            noise = noise / tensor[0].numel() ** 0.5
        tensor.data.copy_(noise)
    model.encoder.conv_out.get_parameter(
        "conv.weight" if hasattr(model.encoder.conv_out, "conv") else "weight"
    ).data.mul_(2)  # spreads the latents over the levels


def save(model: nn.Module, path: Path) -> None:
    """Save in the form of the published checkpoints."""
    loss = {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.randn(8, 3, 4, 4),
        "loss.perceptual_loss.lin0.model.1.weight": torch.rand(1, 8, 1, 1),
    }
    torch.save({"state_dict": {**model.state_dict(), **loss}, "global_step": 7}, path)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Run once and measure seconds."""
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin


def make(case: dict[str, Any], folder: Path) -> tuple[Original, VidTokTokenizer, Tensor]:
    """Build the original, import it from a file, and make a clip."""
    torch.manual_seed(0)
    original = Original(case).eval()
    scramble(original, 0)
    save(original, folder / "random.ckpt")
    ours, _ = read_vidtok(folder / "random.ckpt", version=case["version"] or None)
    step = ours.geometry.temporal_compression
    frames = case.get("frames", 1 + 2 * step if step == 8 else 17)
    clip = torch.rand(1, 3, frames, case["size"], case["size"]) * 2 - 1
    return original, ours, clip


def stream_difference(ours: VidTokTokenizer, clip: Tensor, latents: Tensor) -> float:
    """Encode and decode step by step, and compare with the whole clip."""
    if not hasattr(ours.geometry.plan, "lookback"):
        return 0.0
    step, ahead = ours.geometry.temporal_compression, ours.geometry.lookahead
    state, parts = ours.new_state(), []
    ends = [1 + i * step for i in range(latents.shape[2])]
    for begin, end in zip([0, *ends], ends):  # noqa: B905
        parts.append(ours.encode_latents(clip[:, :, begin:end], state))
    encoded = (torch.cat(parts, 2) - latents).abs().max().item()
    state, parts = ours.new_state(), []
    for number in range(latents.shape[2]):
        part = latents[:, :, number : number + 1 + ahead]
        parts.append(ours.decode(part, state=state, ahead=part.shape[2] - 1))
    return max(encoded, (torch.cat(parts, 2) - ours.decode(latents)).abs().max().item())


def prefix_difference(ours: VidTokTokenizer, clip: Tensor, latents: Tensor) -> float:
    """Replace the frames after a step, and compare the steps before."""
    if not hasattr(ours.geometry.plan, "lookback") or latents.shape[2] < 3:
        return 0.0
    step, ahead = ours.geometry.temporal_compression, ours.geometry.lookahead
    changed = clip.clone()
    changed[:, :, 1 + step :] = -changed[:, :, 1 + step :]
    encoded = (ours.encode_latents(changed) - latents)[:, :, :2].abs().max().item()
    other = latents.clone()
    other[:, :, 2:] = -other[:, :, 2:]
    frames = 1 + (1 - ahead) * step
    decoded = (ours.decode(other) - ours.decode(latents))[:, :, :frames].abs().max().item()
    return max(encoded, decoded)


@torch.inference_mode()
def compare(case: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Compare one case; seconds are the least of `rounds` alternating runs."""
    with tempfile.TemporaryDirectory() as folder:
        original, ours, clip = make(case, Path(folder))
    frames, seconds = clip.shape[2], {"theirs": float("inf"), "ours": float("inf")}
    parts = {"encode": float("inf"), "decode": float("inf")}
    for _ in range(rounds):
        (theirs, codes), first = timed(lambda: original.encode(clip))
        mine, second = timed(lambda: ours.encode_latents(clip))
        recon, third = timed(lambda latents=theirs: original.decode(latents, frames))
        made, fourth = timed(lambda latents=theirs: ours.decode(latents))
        seconds["theirs"] = min(seconds["theirs"], first + third)
        seconds["ours"] = min(seconds["ours"], second + fourth)
        parts = {"encode": first / second, "decode": third / fourth}
    quantized, equal = mine, None
    if codes is not None:
        equal = (ours.to_codes(mine)[:, 0] == codes).double().mean().item()
        quantized = ours.from_codes(codes[:, None].long())
    return {
        "parameters": sum(p.numel() for p in original.parameters()),
        "frames": frames,
        "codes equal": equal,
        "codes used": 0 if codes is None else codes.unique().numel(),
        "latents": (quantized - theirs).abs().max().item(),
        "difference": (made - recon).abs().max().item(),
        "range": recon.abs().max().item(),
        "stream": stream_difference(ours, clip, mine),
        "prefix": prefix_difference(ours, clip, mine),
        "seconds": seconds["theirs"],
        "our seconds": seconds["ours"],
        "speed": seconds["theirs"] / seconds["ours"],
        **{f"{name} speed": value for name, value in parts.items()},
    }


def main() -> None:
    """Print a line per case; the exit code is 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", metavar="FOLDER", required=True, type=Path)
    parser.add_argument("--only", metavar="CASE", choices=CASES, help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=1, help="timed runs of each case")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    add_original(args.original)
    torch.set_num_threads(1)
    failed = []
    for name, case in CASES.items():
        if args.only not in (None, name):
            continue
        found = compare(case, args.rounds)
        print(json.dumps({"case": name, **found}) if args.json else _line(name, found), flush=True)
        most = max(found[key] for key in ("latents", "difference", "stream", "prefix"))
        if found["codes equal"] not in (None, 1.0) or most > args.tolerance:
            failed.append(name)
    if failed:
        sys.exit(f"not equal: {', '.join(failed)}")


def _line(name: str, found: dict[str, Any]) -> str:
    equal = "no codes" if found["codes equal"] is None else f"codes {found['codes equal']:.4f}"
    return (
        f"{name}: {found['parameters'] / 1e6:.1f} M, {found['frames']} frames, {equal} equal "
        f"({found['codes used']} used), latents {found['latents']:.0e}, frames "
        f"{found['difference']:.0e} of {found['range']:.1f}, stream {found['stream']:.0e}, prefix "
        f"{found['prefix']:.0e}, {found['seconds']:.2f} s, ours {found['our seconds']:.2f} s "
        f"({found['speed']:.2f}x: encode {found['encode speed']:.2f}, "
        f"decode {found['decode speed']:.2f})"
    )


if __name__ == "__main__":
    main()
