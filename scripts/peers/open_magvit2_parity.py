#!/usr/bin/env python
"""Check that `read_open_magvit2` gives the codes and frames of the original projects.

scripts/peers/open_magvit2_parity.py --original FOLDER [--json] [--full] [--golden FILE]

FOLDER holds clones of TencentARC/SEED-Voken, 1x-technologies/1xgpt and cofe-ai/O2-MAGVIT2, named
SEED-Voken, 1xgpt and O2-MAGVIT2. Their own code builds each model with random weights and saves it
in the format of the published file; vtok reads the file, and both encode and decode a random clip.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from foreign import (
    apart,
    imports_from,
    make_clip,
    run_script,
    scramble,
    seconds,
    shapes_of,
    stream,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from vtok.models.open_magvit2 import OpenMagvit2Tokenizer, read_open_magvit2
from vtok.nn.interface import Stream


@dataclass(frozen=True)
class Original:
    """Model of another project.

    Attributes:
        encode: Clip [B, 3, T, H, W] to codes [B, 1, t, h, w] and the values that are decoded.
        decode: Those values to a clip.
        shapes: Shapes of the tensors of the published file, by name.
        save: Writes the published kind of file.
        suffix: Ending of its name.
    """

    encode: Callable[[Tensor], tuple[Tensor, Any]]
    decode: Callable[[Any], Tensor]
    shapes: dict[str, tuple[int, ...]]
    save: Callable[[Path], None]
    suffix: str = ".ckpt"


def seed_voken(folder: Path, *, video: bool, **dimensions: Any) -> Original:
    """Build Open-MAGVIT2's image or video tokenizer."""
    with imports_from(folder / "SEED-Voken", "lightning", "pytorch_lightning", "main"):
        sys.modules["lightning"].LightningModule = nn.Module
        sys.modules["main"].instantiate_from_config = lambda config: _Loss()
        if video:
            from src.Open_MAGVIT2.models.video_lfqgan import VQModel
        else:
            from src.Open_MAGVIT2.models.lfqgan import VQModel
    bits = dimensions["z_channels"]
    fixed = {"in_channels": 3, "out_ch": 3, "resolution": 128, "double_z": False}
    weights = {"sample_minimization_weight": 1.0, "batch_maximization_weight": 1.0}
    model = VQModel({**fixed, **dimensions}, {}, 2**bits, bits, use_ema=True, **weights).eval()
    scramble(model)

    def encode(clip: Tensor) -> tuple[Tensor, Any]:
        with model.ema_scope():
            quantized, _, codes, _ = model.encode(clip if video else _frames(clip))
        quantized = quantized if video else _clip(quantized, len(clip))
        return codes.view(len(clip), 1, *quantized.shape[2:]), quantized

    def decode(quantized: Tensor) -> Tensor:
        with model.ema_scope():
            if video:
                return model.decode(quantized)
            return _clip(model.decode(_frames(quantized)), len(quantized))

    return Original(encode, decode, shapes_of(model), lambda path: _save_lightning(model, path))


def one_x(folder: Path, **dimensions: Any) -> Original:
    """Build 1X's tokenizer; the order of bits is that of its data and of its visualize.py."""
    stubs = ("lightning", "magvit2.modules.losses.vqperceptual")
    with imports_from(folder / "1xgpt", *stubs):
        sys.modules["lightning"].LightningModule = nn.Module
        sys.modules[stubs[1]].VQLPIPSWithDiscriminator = lambda config: _Loss()
        from magvit2.config import VQConfig
        from magvit2.models.lfqgan import VQModel
    saved = VQModel(VQConfig(**dimensions)).eval()
    scramble(saved)
    with tempfile.TemporaryDirectory() as temporary:
        _save_lightning(saved, path := Path(temporary) / "magvit2.ckpt")
        model = VQModel(VQConfig(**dimensions), ckpt_path=path)
    model = model.eval()

    def encode(clip: Tensor) -> tuple[Tensor, Any]:
        with model.ema_scope():
            latents = model.encoder(_frames(clip))
            codes = model.quantize(latents.flip(1))[2]
        shape = (len(clip), 1, clip.shape[2], *latents.shape[2:])
        return codes.view(shape), codes.view(shape)

    def decode(codes: Tensor) -> Tensor:
        batch = _frames(codes)[:, 0]
        shape = (*batch.shape, model.quantize.codebook_dim)
        with model.ema_scope():
            values = model.quantize.get_codebook_entry(batch.flatten(1), bhwc=shape).flip(1)
            return _clip(model.decode(values), len(codes))

    return Original(encode, decode, shapes_of(saved), lambda path: _save_lightning(saved, path))


def o2(folder: Path, *, safetensors: bool = True, **dimensions: Any) -> Original:
    """Build O2-MAGVIT2's video tokenizer."""
    visions = ("torchvision", "torchvision.models", "src", "src.losses")
    unused = ("modeling.discriminator", "modeling.discriminator_2d")
    with imports_from(folder / "O2-MAGVIT2", *visions, *unused):
        from modeling.magvit_model import VisionTokenizerModule
    bits = dimensions.pop("bits")
    part = SimpleNamespace(**dimensions)
    quantizer = SimpleNamespace(token_size=bits, use_l2_norm=False)
    config = SimpleNamespace(encoder=part, decoder=part, quantize_model=quantizer)
    model = VisionTokenizerModule(SimpleNamespace(model=config), "video", "lfq", 2**bits, 0, 0)
    scramble(model.eval())

    def encode(clip: Tensor) -> tuple[Tensor, Any]:
        quantized, output, _ = model.encode(clip, entropy_loss_weight=0.0)
        return output.indices.view(len(clip), 1, *quantized.shape[2:]), quantized

    def save(path: Path) -> None:
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        if safetensors:
            save_file(state, path)
        else:
            torch.save({f"module.{key}": tensor for key, tensor in state.items()}, path)

    suffix = ".safetensors" if safetensors else ".ckpt"
    return Original(encode, model.decode, shapes_of(model), save, suffix)


class _Loss(nn.Module):
    """Stands for the loss with its discriminator, whose tensors are in the published files."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = nn.Conv2d(3, 4, 3)


def _save_lightning(model: nn.Module, path: Path) -> None:
    package = {"epoch": 3, "global_step": 10, "pytorch-lightning_version": "2.2.0"}
    package |= {"state_dict": model.state_dict(), "loops": {}, "callbacks": {}}
    package |= {"optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}}]}
    torch.save(package, path)


def _frames(clip: Tensor) -> Tensor:
    return clip.transpose(1, 2).flatten(0, 1)


def _clip(frames: Tensor, batch: int) -> Tensor:
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


TINY = {"ch": 32, "num_res_blocks": 2, "z_channels": 18}
WIDE = {"ch": 128, "num_res_blocks": 4, "z_channels": 18}
O2_TINY = {"filters": 32, "num_res_blocks": 2, "bits": 18}
O2_WIDE = {
    "filters": 128, "num_res_blocks": 4, "bits": 18, "channel_multipliers": [1, 1, 2, 2, 4],
    "temporal_downsample": [False, False, True, True],
}  # fmt: skip
SMALL = {"ch": 32, "num_res_blocks": 1}
Case = tuple[Callable[[Path], Original], tuple[int, ...]]  # maker, and shape [B, T, H, W] of a clip
CASES: dict[str, Case] = {
    "image 16x16": (
        lambda f: seed_voken(f, video=False, ch_mult=[1, 1, 2, 2, 4], **TINY), (1, 3, 80, 64)
    ),
    "image 8x8, 14 bits": (
        lambda f: seed_voken(f, video=False, ch_mult=[1, 2, 2, 4], **{**TINY, "z_channels": 14}),
        (2, 2, 24, 32),
    ),
    "1X": (lambda f: one_x(f, base_channels=32), (2, 3, 32, 48)),
    "video": (lambda f: seed_voken(f, video=True, ch_mult=[1, 2, 2, 4], **TINY), (2, 17, 16, 24)),
    "video, one frame": (
        lambda f: seed_voken(f, video=True, ch_mult=[1, 2, 2, 4], **TINY), (1, 1, 16, 24)
    ),
    "O2": (
        lambda f: o2(f, channel_multipliers=[1, 2, 4], temporal_downsample=[True, True], **O2_TINY),
        (2, 25, 8, 12),
    ),
    "O2, averaged weights, 2 frames a step": (
        lambda f: o2(
            f, safetensors=False, channel_multipliers=[1, 1, 2, 2],
            temporal_downsample=[False, False, True], **O2_TINY,
        ),
        (1, 9, 16, 16),
    ),
}  # fmt: skip
GOLDEN: dict[str, Case] = {
    "image": (lambda f: seed_voken(f, video=False, ch_mult=[1, 2], z_channels=14, **SMALL),
              (1, 2, 16, 12)),
    "1x": (lambda f: one_x(f, base_channels=32, ch_mult=[1, 2], num_res_blocks=1), (1, 2, 16, 12)),
    "video": (lambda f: seed_voken(f, video=True, ch_mult=[1, 2, 2], z_channels=18, **SMALL),
              (1, 5, 16, 16)),
    "o2": (
        lambda f: o2(
            f, filters=32, num_res_blocks=2, bits=18, channel_multipliers=[1, 1, 2],
            temporal_downsample=[False, True],
        ),
        (1, 7, 16, 16),
    ),
}  # fmt: skip
FULL: dict[str, Case] = {
    "image, full width": (
        lambda f: seed_voken(f, video=False, ch_mult=[1, 1, 2, 2, 4], **WIDE), (1, 1, 64, 64)
    ),
    "1X, full width": (lambda f: one_x(f), (1, 1, 64, 64)),
    "video, full width": (
        lambda f: seed_voken(f, video=True, ch_mult=[1, 2, 2, 4], **WIDE), (1, 5, 32, 32)
    ),
    "O2, full width": (lambda f: o2(f, **dict(O2_WIDE)), (1, 5, 32, 32)),
}  # fmt: skip


@torch.inference_mode()
def compare(case: Case, folder: Path, repeats: int) -> dict[str, Any]:
    """Compare codes and frames of one case, and the time of both."""
    make, (batch, frames, height, width) = case
    torch.manual_seed(0)
    original = make(folder)
    ours, notes = _import(original)
    clip = make_clip(batch, frames, height, width)
    codes, values = original.encode(clip)
    latents, recon = ours.encode_latents(clip), original.decode(values)
    found = {
        "parameters": sum(p.numel() for p in ours.parameters()),
        "clip": [batch, frames, height, width],
        "codes equal": (ours.to_codes(latents) == codes).double().mean().item(),
        "codes used": codes.unique().numel(),
        "frames apart": apart(ours.decode(codes), recon),
        "largest value": recon.abs().max().item(),
        "prefix and chunks apart": _streamed(ours, clip, latents, codes),
        "their seconds": seconds(lambda: original.decode(original.encode(clip)[1]), repeats),
        "our seconds": seconds(
            lambda: ours.decode(ours.to_codes(ours.encode_latents(clip))), repeats
        ),
        "notes": notes,
    }
    return {**found, "speed": found["their seconds"] / found["our seconds"]}


def _import(original: Original) -> tuple[OpenMagvit2Tokenizer, list[str]]:
    with tempfile.TemporaryDirectory() as temporary:
        original.save(path := Path(temporary) / f"model{original.suffix}")
        return read_open_magvit2(path)


def _streamed(
    ours: OpenMagvit2Tokenizer, clip: Tensor, latents: Tensor, codes: Tensor
) -> float | None:
    """Return the largest difference of prefixes and of chunks to the whole; None for windows."""
    if not isinstance(ours.geometry.plan, Stream):
        return None
    frames = ours.decode(codes)
    pieces = [stream(ours, clip, codes, steps) for steps in ((1,), (2, 1), (1, 3))]
    half = max(1, codes.shape[2] // 2)
    shown = 1 + (half - 1) * ours.geometry.temporal_compression
    pairs = [(ours.encode_latents(clip[:, :, :shown]), latents[:, :, :half])]
    pairs += [(ours.decode(codes[:, :, :half]), frames[:, :, :shown])]
    pairs += [pair for piece in pieces for pair in zip(piece, (latents, frames), strict=True)]
    return max(apart(*pair) for pair in pairs)


@torch.inference_mode()
def write_golden(folder: Path, path: Path) -> None:
    """Write names and shapes of tensors, a clip, and the codes and frames of the originals."""
    arrays: dict[str, Any] = {}
    for name, (make, (batch, frames, height, width)) in GOLDEN.items():
        torch.manual_seed(0)
        original, clip = make(folder), make_clip(batch, frames, height, width)
        codes, values = original.encode(clip)
        arrays[f"{name} shapes"] = json.dumps(original.shapes)
        arrays[f"{name} clip"] = ((clip + 1) * 127.5).round().byte().numpy()
        arrays[f"{name} codes"] = codes.int().numpy()
        arrays[f"{name} frames"] = original.decode(values).numpy()
    np.savez_compressed(path, **arrays)


def main() -> None:
    """Print a line for each case; the exit code is 1 if one differs."""
    description = (__doc__ or "").splitlines()[0]
    run_script(description, CASES, FULL, compare, write_golden)


if __name__ == "__main__":
    main()
