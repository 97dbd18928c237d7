#!/usr/bin/env python
"""Check that imported models of taehv give the latents and frames of its own code.

scripts/peers/taehv_parity.py --original FOLDER [--json] [--only CASE]
scripts/peers/taehv_parity.py --original FOLDER --golden tests/golden/taehv.npz

FOLDER is a clone of github.com/madebyollin/taehv; its taehv.py needs the package tqdm. Each case
has the full published width and random weights, made from a seed. taehv.py reads them from a file
with a published name, vtok from a copy with another name. Seconds are CPU time of one thread, the
best of several runs in turns.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from foreign import apart, best_seconds, random_clip, speed_cells, stream

from vtok.models.taehv import read_taehv

SEED, RUNS = 0, 5
LIMITS = {"latents": 1e-4, "frames": 1e-4, "prefix": 1e-4, "chunks": 1e-4}


@dataclass(frozen=True)
class Case:
    """One published file.

    Attributes:
        file: Its name, which tells the original the architecture.
        options: Arguments of the original that give the tensors of this file.
        steps: Latent steps of the clip.
        side: Height and width of the clip.
        batch: Number of clips.
        suffix: Format that vtok reads.
    """

    file: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 3
    side: int = 96
    batch: int = 1
    suffix: str = ".pth"


ALL_TIMES = (True, True, True)
LTX = {
    "patch_size": 4, "latent_channels": 128,
    "encoder_time_downscale": ALL_TIMES, "decoder_time_upscale": ALL_TIMES,
}  # fmt: skip
WAN = {"patch_size": 2, "latent_channels": 48}
CASES = {
    "taehv": Case("taehv.pth"),
    "taew2_1, safetensors, batch of 2": Case("taew2_1.pth", suffix=".safetensors", batch=2),
    "taew2_1, one frame": Case("taew2_1.pth", steps=1),
    "taew2_1, unused doubling of time": Case("taew2_1.pth", {"decoder_time_upscale": ALL_TIMES}),
    "taecvx, odd number of steps": Case("taecvx.pth"),
    "taecvx, even number of steps": Case("taecvx.pth", steps=4),
    "taew2_2": Case("taew2_2.pth", WAN, side=192),
    "taew2_2_super": Case("taew2_2_super.pth", {**WAN, "arch_variant": "super"}, side=128),
    "taehv1_5": Case("taehv1_5.pth", {"patch_size": 2, "latent_channels": 32}, side=192),
    "taeltx_2": Case("taeltx_2.pth", LTX, side=256),
}


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Make weights that keep the scale of their input, with the same values in every release."""
    generator = np.random.RandomState(seed)
    tensors = {}
    for name in sorted(shapes):
        fan_in = np.prod(shapes[name][1:]) if len(shapes[name]) > 1 else 100
        # the last convolution of a memory block adds to its input
        scale = (0.7 if name.endswith("conv.4.weight") else 1.0) * fan_in**-0.5
        values = generator.standard_normal(shapes[name]) * scale
        tensors[name] = torch.from_numpy(values.astype(np.float32))
    tensors["decoder.22.bias"] += 0.5  # so that most pixels are in 0..1
    return tensors


class Original:
    """taehv.py with the conventions of vtok: clips [B, 3, T, H, W] in -1..1."""

    def __init__(self, module: Any, case: Case, folder: Path) -> None:
        shapes = module.TAEHV(None, **case.options).state_dict()
        self.tensors = random_tensors({k: tuple(v.shape) for k, v in shapes.items()}, SEED)
        torch.save(self.tensors, folder / case.file)
        self.model = module.TAEHV(str(folder / case.file)).eval()

    def encode(self, clip: Tensor) -> Tensor:
        """Encode with copies of the first frame in front."""
        frames = (clip * 0.5 + 0.5).movedim(1, 2)
        ahead = frames[:, :1].expand(-1, self.model.t_downscale - 1, -1, -1, -1)
        frames = torch.cat((ahead, frames), 1)
        latents: Tensor = self.model.encode_video(frames, show_progress_bar=False)
        return latents.movedim(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode to frames in 0..1, clamped; without the frames that taecvx may keep."""
        frames: Tensor = self.model.decode_video(latents.movedim(1, 2), show_progress_bar=False)
        steps, trim = latents.shape[2], self.model.frames_to_trim
        extra = frames.shape[1] - (steps * self.model.t_upscale - trim)
        return frames[:, extra:].movedim(1, 2)


@torch.inference_mode()
def compare(module: Any, case: Case, folder: Path) -> dict[str, float]:
    """Run one case; returns parameters, largest differences, and seconds."""
    original = Original(module, case, folder)
    path = folder / f"copy{case.suffix}"
    if case.suffix == ".safetensors":
        save_file(original.tensors, path)
    else:
        torch.save(original.tensors, path)
    ours, _ = read_taehv(path)
    count = ours.geometry.temporal_compression
    frames = 1 + (case.steps - 1) * count
    clip = random_clip((case.batch, 3, frames, case.side, case.side), SEED)
    latents = original.encode(clip)
    theirs, mine = original.decode(latents), ours.decode(latents)
    assert theirs.shape == mine.shape == clip.shape
    start = 1 if case.steps == 1 else 1 + count  # frames of the prefix
    prefix, encoded = ours.encode_latents(clip[:, :, :start]), ours.encode_latents(clip)
    shorter = ours.decode(latents[:, :, : prefix.shape[2]])
    calls = {
        "encode original": lambda: original.encode(clip),
        "encode vtok": lambda: ours.encode_latents(clip),
        "decode original": lambda: original.decode(latents),
        "decode vtok": lambda: ours.decode(latents),
    }
    return {
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "latents": apart(latents, encoded),
        "frames": apart(theirs * 2 - 1, mine.clamp(-1, 1)),
        "inside": ((mine.abs() < 1).double().mean()).item(),
        "prefix": max(
            apart(latents[:, :, : prefix.shape[2]], prefix), apart(mine[:, :, :start], shorter)
        ),
        "chunks": max(map(apart, stream(ours, clip, latents, (1,)), (encoded, mine))),
        **best_seconds(calls, RUNS),
    }


@torch.inference_mode()
def write_golden(module: Any, path: Path) -> None:
    """Write clip, latents and frames of two files; weights are made from the seed."""
    clip = random_clip((1, 3, 5, 32, 32), SEED)
    arrays: dict[str, Any] = {"clip": clip.numpy()}
    for name in ("taew2_2", "taew2_2_super"):
        with tempfile.TemporaryDirectory() as folder:
            original = Original(module, CASES[name], Path(folder))
        latents = original.encode(clip)
        shapes = {key: list(tensor.shape) for key, tensor in original.tensors.items()}
        arrays[f"{name} shapes"] = np.array(json.dumps(shapes))
        arrays[f"{name} latents"] = latents.numpy()
        arrays[f"{name} frames"] = original.decode(latents).numpy()
    np.savez_compressed(path, **arrays)


def main() -> None:
    """Print a table; the exit code is 1 if a case differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", metavar="FOLDER", required=True, help="clone of taehv")
    parser.add_argument("--only", metavar="CASE", choices=CASES, help=", ".join(CASES))
    parser.add_argument("--json", action="store_true", help="print one JSON object per case")
    parser.add_argument("--golden", metavar="FILE", help="write the golden file of the tests")
    args = parser.parse_args()
    sys.path.insert(0, args.original)
    module = importlib.import_module("taehv")

    torch.set_num_threads(1)
    if args.golden:
        write_golden(module, Path(args.golden))
        return
    heads = ["case", "parameters, M", "latents", "frames", "prefix", "chunks"]
    heads += ["encode s: original", "vtok", "ratio", "decode s: original", "vtok", "ratio"]
    if not args.json:
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    failed = []
    for name, case in CASES.items():
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = compare(module, case, Path(folder))
        if any(found[key] > limit for key, limit in LIMITS.items()):
            failed.append(name)
        if args.json:
            print(json.dumps({"case": name, **found}), flush=True)
            continue
        cells = [name, f"{found['parameters'] / 1e6:.1f}"]
        cells += [f"{found[key]:.1e}" for key in LIMITS]
        print("| " + " | ".join([*cells, *speed_cells(found)]) + " |", flush=True)
    if failed:
        sys.exit(f"not equal: {', '.join(failed)}")


if __name__ == "__main__":
    main()
