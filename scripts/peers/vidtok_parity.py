#!/usr/bin/env python
"""Check that VidTok models give the codes and frames of Microsoft's code, and compare speed.

scripts/peers/vidtok_parity.py --original FOLDER [--only CASE] [--rounds N] [--json]
scripts/peers/vidtok_parity.py --original FOLDER --golden tests/golden/vidtok.npz

FOLDER is a clone of github.com/microsoft/VidTok; its networks need the packages einops and rich.
Every tensor gets random numbers, made from a seed: biases, norms and mixing factors too. The
original saves a Lightning file with tensors of the loss, as the published ones are, and vtok reads
it. Both process the same random clip in float32 without chunks. Seconds are CPU time of one thread,
the best of several runs in turns.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from foreign import apart, best_seconds, speed_cells

from vtok.models.vidtok import VidTokTokenizer, read_vidtok
from vtok.nn.interface import Stream

SEED = 0
MODULES = {"1.0": "model_3dcausal", "1.1": "model_3dcausal_v1_1", "": "model_3dnoncausal"}
NOT_ARGUMENTS = {"version", "fsq", "z", "size", "frames"}

TINY: dict[str, Any] = {"ch": 16, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 1, "size": 32}
FULL: dict[str, Any] = {**TINY, "ch": 128, "num_res_blocks": 2}
SIXTEEN = {"ch_mult": [1, 2, 4, 4, 4]}  # pixels
FOUR = {"spatial_ds": [1, 2], "spatial_us": [1, 2], "size": 16}
EIGHT_FRAMES = {"tempo_ds": [0, 1, 2], "tempo_us": [1, 2, 3], "time_downsample_factor": 8}
TWO_FRAMES = {"tempo_ds": [1], "tempo_us": [2], "time_downsample_factor": 2}
CASES: dict[str, dict[str, Any]] = {  # version: empty if not causal; z: dimensions of the latents
    "1.0 FSQ 4096, 4x8x8": {**TINY, "version": "1.0", "fsq": True, "z": 4},
    "1.0 FSQ 262144, 4x16x16": {**TINY, **SIXTEEN, "version": "1.0", "fsq": True, "z": 6},
    "1.0 KL, 2x8x8": {**TINY, **TWO_FRAMES, "version": "1.0", "fsq": False, "z": 8},
    "1.0 KL, 4x4x4": {**TINY, **FOUR, "version": "1.0", "fsq": False, "z": 4},
    "1.1 FSQ 32768, 4x8x8": {**TINY, "version": "1.1", "fsq": True, "z": 5},
    "1.1 FSQ 262144, 4x16x16": {**TINY, **SIXTEEN, "version": "1.1", "fsq": True, "z": 6},
    "1.1 FSQ 32768, 8x8x8": {**TINY, **EIGHT_FRAMES, "version": "1.1", "fsq": True, "z": 5},
    "1.1 KL, 2x8x8": {**TINY, **TWO_FRAMES, "version": "1.1", "fsq": False, "z": 8},
    "1.1 KL, 4x8x8, one frame": {**TINY, "version": "1.1", "fsq": False, "z": 4, "frames": 1},
    "not causal FSQ 262144, 4x8x8": {**TINY, "version": "", "fsq": True, "z": 6, "frames": 13},
    "not causal KL, 4x16x16": {**TINY, **SIXTEEN, "version": "", "fsq": False, "z": 4},
    "full 1.0 FSQ 262144, 4x8x8": {**FULL, "version": "1.0", "fsq": True, "z": 6, "size": 64},
    "full 1.1 FSQ 32768, 4x8x8": {**FULL, "version": "1.1", "fsq": True, "z": 5, "size": 64},
    "full not causal KL, 4x8x8": {**FULL, "version": "", "fsq": False, "z": 4, "frames": 13},
}
SMALL = {**TINY, "ch": 8, "ch_mult": [1, 2, 2], "size": 16, "frames": 13}
GOLDEN: dict[str, dict[str, Any]] = {
    "vidtok_fsq_causal_444_4096": {**SMALL, "version": "1.0", "fsq": True, "z": 4},
    "vidtok_fsq_causal_444_32768_v1_1": {**SMALL, "version": "1.1", "fsq": True, "z": 5},
    "vidtok_kl_causal_444_3chn_v1_1": {**SMALL, "version": "1.1", "fsq": False, "z": 3},
    "vidtok_fsq_noncausal_444_262144": {**SMALL, "version": "", "fsq": True, "z": 6},
}


def random_tensors(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Tensor]:
    """Make tensors of about the scale of trained ones, the same on every machine."""
    generator, made = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        noise = generator.standard_normal(shapes[name], np.float32)
        if name.endswith("mix_factor"):
            noise *= 2
        elif len(shapes[name]) == 1:
            noise = noise * 0.2 + ("norm" in name and name.endswith("weight"))
        else:  # twice as large at the end of the encoder, to reach all levels of FSQ
            noise *= (2 if "encoder.conv_out" in name else 1) / math.sqrt(noise[0].size)
        made[name] = torch.from_numpy(noise.astype(np.float32))
    return made


def random_clip(shape: Sequence[int], seed: int) -> Tensor:
    """Make a clip in -1..1, the same on every machine."""
    noise = np.random.default_rng(seed).random(shape, np.float32)
    return torch.from_numpy(noise * 2 - 1)


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Save weights in the form of a published file."""
    loss = {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(8, 3, 4, 4),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 8, 1, 1),
    }
    torch.save({"state_dict": {**tensors, **loss}, "global_step": 7}, path)


class Original(nn.Module):
    """The networks of the original, under the names of the published files."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__()
        networks = importlib.import_module(f"vidtok.modules.{MODULES[case['version']]}")
        quantizers = importlib.import_module("vidtok.modules.regularizers")
        kind = "Causal3DPadding" if case["version"] else "3D"
        arguments = {
            **{key: value for key, value in case.items() if key not in NOT_ARGUMENTS},
            "in_channels": 3, "out_ch": 3, "z_channels": case["z"], "double_z": not case["fsq"],
            "norm_type": "layernorm", "init_pad_mode": "replicate",
            "interpolation_mode": "trilinear",
        }  # fmt: skip
        self.encoder = getattr(networks, f"Encoder{kind}")(**arguments)
        self.decoder = getattr(networks, f"Decoder{kind}")(**arguments)
        self.quantize = (
            quantizers.FSQRegularizer([8] * case["z"]).forward
            if case["fsq"]
            else quantizers.DiagonalGaussianRegularizer(sample=False)
        )
        self.step, side = self.encoder.time_downsample_factor, case["size"]
        self.copies = 0 if case["version"] else self.step - 1
        self.clip = random_clip((1, 3, case.get("frames", 17), side, side), SEED)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        self.load_state_dict(random_tensors(shapes, SEED))

    def encode(self, clip: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode a clip to quantized latents and codes; the causal encoders pad it themselves."""
        clip = torch.cat((clip[:, :, :1].repeat(1, 1, self.copies, 1, 1), clip), 2)
        latents, log = self.quantize(self.encoder(clip))
        return latents, log.get("indices")

    def decode(self, latents: Tensor) -> Tensor:
        """Decode, and drop the frames before the clip."""
        return self.decoder(latents)[:, :, (1 - latents.shape[2]) * self.step - 1 :]


def add_original(folder: str) -> None:
    """Make the original importable, with stand-ins for packages that its networks do not use."""

    class StandIn(types.ModuleType):
        __path__ = ()

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda function: function

    parts = ("lightning", "pytorch", "utilities", "rank_zero")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    sys.modules.update({name: StandIn(name) for name in (*names, "beartype")})
    sys.modules["beartype.typing"] = typing  # type: ignore[assignment]
    sys.path.insert(0, folder)


def stream_difference(ours: VidTokTokenizer, clip: Tensor, latents: Tensor) -> float:
    """Encode and decode step by step; return the largest difference from the whole clip."""
    step, ahead = ours.geometry.temporal_compression, ours.geometry.lookahead
    ends = [0, *(1 + i * step for i in range(latents.shape[2]))]
    state = ours.new_state()
    parts = [ours.encode_latents(clip[:, :, a:b], state) for a, b in pairwise(ends)]
    encoded = apart(torch.cat(parts, 2), latents)
    state, parts = ours.new_state(), []
    for number in range(latents.shape[2]):
        part = latents[:, :, number : number + 1 + ahead]
        parts.append(ours.decode(part, state=state, ahead=part.shape[2] - 1))
    return max(encoded, apart(torch.cat(parts, 2), ours.decode(latents)))


def prefix_difference(ours: VidTokTokenizer, clip: Tensor, latents: Tensor) -> float:
    """Negate all that follows the second step; return the largest difference before it."""
    step, ahead = ours.geometry.temporal_compression, ours.geometry.lookahead
    changed, other = clip.clone(), latents.clone()
    changed[:, :, 1 + step :] *= -1
    other[:, :, 2:] *= -1
    encoded = apart(ours.encode_latents(changed)[:, :, :2], latents[:, :, :2])
    frames = 1 + (1 - ahead) * step
    decoded = (ours.decode(part)[:, :, :frames] for part in (other, latents))
    return max(encoded, apart(*decoded))


@torch.inference_mode()
def compare(case: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Compare one case; see the columns of the table."""
    original = Original(case).eval()
    clip = original.clip
    with tempfile.TemporaryDirectory() as folder:
        save(original.state_dict(), Path(folder) / "random.ckpt")
        ours, _ = read_vidtok(Path(folder) / "random.ckpt", version=case["version"] or None)
    (theirs, codes), mine = original.encode(clip), ours.encode_latents(clip)
    frames = original.decode(theirs)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in original.parameters())}
    quantized, found["equal codes"] = mine, None
    if codes is not None:
        found["equal codes"] = (ours.to_codes(mine)[:, 0] == codes).double().mean().item()
        found["used codes"] = codes.unique().numel()
        quantized = ours.from_codes(codes[:, None].long())
    found["latents"] = apart(quantized, theirs)
    found["frames"] = apart(ours.decode(quantized), frames)
    found["range"] = frames.abs().max().item()
    streams = isinstance(ours.geometry.plan, Stream) and mine.shape[2] > 2
    found["prefix"] = prefix_difference(ours, clip, mine) if streams else None
    found["stream"] = stream_difference(ours, clip, mine) if streams else None
    works: dict[str, Callable[[], Any]] = {
        "encode original": lambda: original.encode(clip),
        "encode vtok": lambda: ours.encode_latents(clip),
        "decode original": lambda: original.decode(theirs),
        "decode vtok": lambda: ours.decode(theirs),
    }
    return {**found, **best_seconds(works, rounds)}


@torch.inference_mode()
def write_golden(path: Path) -> None:
    """Write names, codes or latents, and frames; weights and clips are made from the seed."""
    arrays: dict[str, Any] = {}
    for name, case in GOLDEN.items():
        original = Original(case).eval()
        latents, codes = original.encode(original.clip)
        shapes = {key: list(tensor.shape) for key, tensor in original.state_dict().items()}
        arrays[f"{name} shapes"] = np.array(json.dumps(shapes))
        arrays[f"{name} clip"] = np.array(original.clip.shape)
        arrays[f"{name} latents"] = latents.numpy()
        arrays[f"{name} frames"] = original.decode(latents).numpy()
        if codes is not None:
            arrays[f"{name} codes"] = codes.numpy()
    np.savez_compressed(path, **arrays)


def main() -> None:
    """Print a table; the exit code is 1 if a case differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", metavar="FOLDER", required=True, help="clone of VidTok")
    parser.add_argument("--only", metavar="CASE", choices=CASES, help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=2, help="timed runs of each case")
    parser.add_argument("--json", action="store_true", help="print one JSON object per case")
    parser.add_argument("--golden", metavar="FILE", help="write the golden file of the tests")
    args = parser.parse_args()
    add_original(args.original)
    torch.set_num_threads(1)
    if args.golden:
        write_golden(Path(args.golden))
        return
    heads = ["case", "parameters, M", "equal codes", "different codes used", "largest frame value"]
    heads += ["difference of latents", "frames", "prefix", "stream"]
    heads += ["encode s: original", "vtok", "ratio", "decode s: original", "vtok", "ratio"]
    if not args.json:
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    failed = []
    for name, case in CASES.items():
        if args.only not in (None, name):
            continue
        found = compare(case, args.rounds)
        print(json.dumps({"case": name, **found}) if args.json else row(name, found), flush=True)
        most = max(found[key] or 0 for key in ("latents", "frames", "prefix", "stream"))
        if found["equal codes"] not in (None, 1) or not most <= 1e-4:
            failed.append(name)
    if failed:
        sys.exit(f"not equal: {', '.join(failed)}")


def row(name: str, found: dict[str, Any]) -> str:
    """Format a row of the table."""
    cells = [name, f"{found['parameters'] / 1e6:.1f}"]
    cells += ["" if found["equal codes"] is None else f"{found['equal codes']:.6f}"]
    cells += [str(found.get("used codes", "")), f"{found['range']:.2f}"]
    values = [found[key] for key in ("latents", "frames", "prefix", "stream")]
    cells += ["" if value is None else f"{value:.1e}" for value in values]
    return "| " + " | ".join([*cells, *speed_cells(found)]) + " |"


if __name__ == "__main__":
    main()
