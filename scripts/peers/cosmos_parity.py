#!/usr/bin/env python
"""Check that imported Cosmos tokenizers give the codes, latents and frames of NVIDIA's code.

scripts/peers/cosmos_parity.py --old FOLDER --new FOLDER [--json] [--only CASE] [--full]
scripts/peers/cosmos_parity.py --old FOLDER --new FOLDER --golden tests/golden/cosmos.npz

The folders are clones of github.com/NVIDIA/Cosmos-Tokenizer and of
github.com/nvidia-cosmos/cosmos-predict1; their networks need the packages einops and loguru. The
original is built with random weights, made from a seed, and saved as it is published; vtok imports
the files. Seconds are CPU time of one thread, the best of several runs in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which run it by path
from foreign import apart, best_seconds, random_clip, speed_cells, stream

from vtok.models.cosmos import CosmosTokenizer, read_cosmos

SEED, RUNS = 0, 5
LIMITS = {"latents": 1e-4, "frames": 1e-4, "prefix": 1e-4, "chunks": 1e-4}
PACKAGES = {"old": "cosmos_tokenizer", "new": "cosmos_predict1.tokenizer"}


@dataclass(frozen=True)
class Case:
    """A model, the format that it is saved in, and a clip.

    Attributes:
        code: Repository that builds the model: old or new.
        kind: DV or CV.
        compression: Frames, pixels and pixels of a latent position.
        patch_size, z_channels, channels: Arguments of the original.
        files: Format: pair, autoencoder, model.pt or safetensors.
        steps: Latent steps of the clip.
        side: Height of the clip; the width is half as much again.
        batch: Number of clips.
        runs: Timed runs.
    """

    code: str
    kind: str
    compression: tuple[int, int]
    patch_size: int = 4
    z_channels: int = 16
    channels: int = 8
    files: str = "pair"
    steps: int = 4
    side: int = 64
    batch: int = 2
    runs: int = RUNS

    @property
    def name(self) -> str:
        """Name of the folder, in the style of the published ones."""
        time, space = self.compression
        return f"Cosmos-Tokenizer-{self.kind}{time}x{space}x{space}"


CASES = {
    "DV8x8x8": Case("new", "DV", (8, 8)),
    "DV8x8x8, one frame": Case("new", "DV", (8, 8), steps=1),
    "DV8x16x16, autoencoder.jit": Case("new", "DV", (8, 16), files="autoencoder", side=96),
    "DV4x8x8": Case("new", "DV", (4, 8)),
    "DV4x8x8 of 360p, model.pt": Case("new", "DV", (4, 8), 2, 256, files="model.pt"),
    "DV4x8x8, first code": Case("old", "DV", (4, 8)),
    "DV8x16x16, first code": Case("old", "DV", (8, 16), files="autoencoder", side=96),
    "CV8x8x8": Case("new", "CV", (8, 8), files="autoencoder"),
    "CV4x8x8 of 360p": Case("new", "CV", (4, 8), 2, files="safetensors"),
    "CV4x8x8, first code": Case("old", "CV", (4, 8)),
    "CV8x8x8, first code": Case("old", "CV", (8, 8), files="safetensors"),
}
WIDE: dict[str, Any] = {"channels": 128, "batch": 1, "steps": 3, "side": 96, "runs": 2}
FULL = {
    f"{name}, full width": dataclasses.replace(CASES[name], **WIDE)
    for name in ("DV4x8x8", "DV8x8x8", "DV8x16x16, autoencoder.jit")
}
GOLDEN = ("DV8x8x8", "DV4x8x8 of 360p, model.pt", "CV4x8x8, first code")


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Make weights that keep the scale of their input, with the same values in every release."""
    generator = np.random.RandomState(seed)
    tensors = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3
        values = generator.standard_normal(shape) * scale + name.endswith("norm.weight")
        tensors[name] = torch.from_numpy(values.astype(np.float32))
    return tensors


class Original:
    """A tokenizer of NVIDIA's code with random weights."""

    def __init__(self, case: Case) -> None:
        self.case, package = case, f"{PACKAGES[case.code]}.networks"
        configs = importlib.import_module(f"{package}.configs")
        config = {"DV": configs.discrete_video, "CV": configs.continuous_video}[case.kind]
        networks = importlib.import_module(package)
        self.model = networks.TokenizerModels[case.kind].value(
            **dict(
                config,
                temporal_compression=case.compression[0],
                spatial_compression=case.compression[1],
                patch_size=case.patch_size,
                z_channels=case.z_channels,
                channels=case.channels,
            )
        )
        if case.kind == "DV":
            self.model.quantizer.dtype = torch.float32
        parameters = self.model.named_parameters()
        self.tensors = random_tensors({k: tuple(v.shape) for k, v in parameters}, SEED)
        self.model.load_state_dict(self.tensors, strict=False)
        self.model.eval()

    def encode(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Encode to latents, and to codes [B, 1, t, h, w] or again latents."""
        latents = self.model.quant_conv(self.model.encoder(clip))
        if self.case.kind == "CV":
            return latents, latents
        return latents, self.model.quantizer(latents)[0][:, None].long()

    def decode(self, codes: Tensor) -> Tensor:
        """Decode what `encode` returned last."""
        if self.case.kind == "CV":
            return self.model.decode(codes)
        return self.model.decode_code(codes[:, 0].int())

    def save(self, folder: Path) -> None:
        """Save in the published format of the case."""
        form, model = self.case.files, self.model
        if form == "safetensors":
            state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            save_file(state, folder / "model.safetensors")
        elif form == "model.pt":
            network = {f"network.{key}": tensor + 1 for key, tensor in self.tensors.items()}
            mean = {
                f"ema.network-{key.replace('.', '-')}": tensor
                for key, tensor in self.tensors.items()
            }
            torch.save({"model": {**network, **mean}, "iteration": 1}, folder / "model.pt")
        else:
            torch._C._jit_set_texpr_fuser_enabled(False)
            clip = torch.zeros(1, 3, 1 + self.case.compression[0], 32, 32)
            codes = self.encode(clip)[1]
            parts = {"autoencoder": (model, clip)}
            if form == "pair":
                codes = codes[:, 0].int() if self.case.kind == "DV" else codes
                parts = {
                    "encoder": (model.encoder_jit(), clip),
                    "decoder": (model.decoder_jit(), codes),
                }
            for name, (part, example) in parts.items():
                torch.jit.trace(part, example, strict=False).save(folder / f"{name}.jit")


@torch.inference_mode()
def compare(case: Case, folder: Path) -> dict[str, float]:
    """Run one case; returns parameters, largest differences, and seconds."""
    original, path = Original(case), folder / case.name
    path.mkdir()
    original.save(path)
    ours, _ = read_cosmos(path)
    count = ours.geometry.temporal_compression
    frames = 1 + (case.steps - 1) * count
    clip = random_clip((case.batch, 3, frames, case.side, case.side * 3 // 2), SEED)
    latents, codes = original.encode(clip)
    theirs, mine = original.decode(codes), ours.decode(codes)
    assert theirs.shape == mine.shape == clip.shape
    encoded = ours.encode_latents(clip)
    equal = ours.to_codes(encoded) == codes if case.kind == "DV" else torch.ones(1)
    start = 1 if case.steps == 1 else 1 + count  # frames of the prefix
    prefix = ours.encode_latents(clip[:, :, :start])
    shorter = ours.decode(codes[:, :, : prefix.shape[2]])
    calls = {
        "encode original": lambda: original.encode(clip),
        "encode vtok": lambda: encode(ours, clip),
        "decode original": lambda: original.decode(codes),
        "decode vtok": lambda: ours.decode(codes),
    }
    return {
        "parameters": sum(parameter.numel() for parameter in ours.parameters()),
        "equal codes": equal.double().mean().item(),
        "used codes": float(codes.unique().numel()) if case.kind == "DV" else 0.0,
        "latents": apart(latents, encoded),
        "frames": apart(theirs, mine),
        "range": theirs.abs().max().item(),
        "prefix": max(
            apart(prefix, encoded[:, :, : prefix.shape[2]]), apart(shorter, mine[:, :, :start])
        ),
        "chunks": max(map(apart, stream(ours, clip, codes, (1,)), (encoded, mine))),
        **best_seconds(calls, case.runs),
    }


def encode(tokenizer: CosmosTokenizer, clip: Tensor) -> Tensor:
    """Encode to codes, or to latents if the tokenizer is continuous."""
    latents = tokenizer.encode_latents(clip)
    return latents if tokenizer.geometry.entries is None else tokenizer.to_codes(latents)


@torch.inference_mode()
def write_golden(path: Path) -> None:
    """Write clip, codes or latents, and frames of some cases; weights are made from the seed."""
    arrays: dict[str, Any] = {}
    for name in GOLDEN:
        case = dataclasses.replace(CASES[name], channels=4)
        original = Original(case)
        frames = 1 + 2 * case.compression[0]
        clip = random_clip((1, 3, frames, 16, 32), SEED)
        latents, codes = original.encode(clip)
        shapes = {key: list(tensor.shape) for key, tensor in original.tensors.items()}
        arrays[f"{case.name} shapes"] = np.array(json.dumps(shapes))
        arrays[f"{case.name} latents"] = latents.numpy()
        arrays[f"{case.name} codes"] = codes.numpy()
        arrays[f"{case.name} frames"] = original.decode(codes).numpy()
    np.savez_compressed(path, **arrays)


def main() -> None:
    """Print a table; the exit code is 1 if a case differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", metavar="FOLDER", required=True, help="clone of Cosmos-Tokenizer")
    parser.add_argument("--new", metavar="FOLDER", required=True, help="clone of cosmos-predict1")
    parser.add_argument("--only", metavar="CASE", help=", ".join((*CASES, *FULL)))
    parser.add_argument("--full", action="store_true", help="also the published width")
    parser.add_argument("--json", action="store_true", help="print one JSON object per case")
    parser.add_argument("--golden", metavar="FILE", help="write the golden file of the tests")
    args = parser.parse_args()
    sys.path[:0] = [args.old, args.new]
    importlib.import_module("loguru").logger.remove()
    torch.set_num_threads(1)
    if args.golden:
        write_golden(Path(args.golden))
        return
    cases = {**CASES, **FULL} if args.full or args.only else CASES
    heads = ["case", "parameters, M", "equal codes", "latents", "frames", "prefix", "chunks"]
    heads += ["encode s: original", "vtok", "ratio", "decode s: original", "vtok", "ratio"]
    if not args.json:
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    failed = []
    for name, case in cases.items():
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = compare(case, Path(folder))
        if found["equal codes"] < 1 or any(found[key] > limit for key, limit in LIMITS.items()):
            failed.append(name)
        print(json.dumps({"case": name, **found}) if args.json else row(name, found), flush=True)
    if failed:
        sys.exit(f"not equal: {', '.join(failed)}")


def row(name: str, found: Mapping[str, float]) -> str:
    """Format a row of the table."""
    cells = [name, f"{found['parameters'] / 1e6:.1f}", f"{found['equal codes']:.6f}"]
    cells += [f"{found[key]:.1e}" for key in LIMITS]
    return "| " + " | ".join([*cells, *speed_cells(found)]) + " |"


if __name__ == "__main__":
    main()
