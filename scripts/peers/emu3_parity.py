#!/usr/bin/env python
"""Check that `read_emu3` gives the codes and frames of Emu3's vision tokenizer.

scripts/peers/emu3_parity.py --original FOLDER [--json] [--full] [--golden FILE]

FOLDER holds a clone of baaivision/Emu3, named Emu3. Its code, or that of transformers, builds each
model with random weights and saves it as a folder; vtok reads it, and both encode and decode a
random clip: the first frame as an image, then blocks of 4 frames, each alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
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
from torch import Tensor, nn

from vtok.models.emu3 import Emu3Tokenizer, read_emu3

SMALL = {"ch": 32, "ch_mult": [1, 2], "attn_resolutions": [1], "num_res_blocks": 1}
Case = tuple[Callable[[Path], nn.Module], tuple[int, ...]]  # maker, and shape of a clip


def published(folder: Path, **dimensions: Any) -> nn.Module:
    """Build the class of the published folder."""
    with imports_from(folder / "Emu3"):
        from emu3.tokenizer.configuration_emu3visionvq import Emu3VisionVQConfig
        from emu3.tokenizer.modeling_emu3visionvq import Emu3VisionVQModel
    model = Emu3VisionVQModel(Emu3VisionVQConfig(**dimensions)).eval()
    scramble(model)
    return model


def of_transformers(folder: Path, **dimensions: Any) -> nn.Module:
    """Build the class of transformers."""
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    model = Emu3VQVAE(Emu3VQVAEConfig(**dimensions)).eval()
    scramble(model)
    encode = model.encode

    def encode_all(pixels: Tensor) -> Tensor:
        sizes = torch.full((len(pixels), 2), 1 << 20)  # it crops the wrong axes of a video
        return torch.stack(encode(pixels, sizes).image_tokens)

    model.encode = encode_all
    return model


CASES: dict[str, Case] = {
    "8x8, attention at two levels": (
        lambda f: published(f, ch=32, ch_mult=[1, 2, 2, 4], attn_resolutions=[1, 3]),
        (2, 9, 40, 48),
    ),
    "2x2, one frame": (lambda f: published(f, **SMALL), (2, 1, 16, 12)),
    "2 frames a step": (
        lambda f: published(f, temporal_downsample_factor=2, codebook_size=500, **SMALL),
        (1, 7, 16, 16),
    ),
    "transformers": (
        lambda f: of_transformers(
            f, base_channels=32, channel_multiplier=[1, 2, 2], attn_resolutions=[2],
            hidden_size=64,
        ),
        (1, 9, 32, 24),
    ),
}  # fmt: skip
FULL: dict[str, Case] = {"full width": (lambda f: published(f), (1, 5, 64, 64))}


def encode(original: nn.Module, clip: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Encode the first frame as an image and the others in blocks, as codes [B, 1, t, h, w]."""
    image = original.encode(clip[:, :, 0])
    blocks = clip[:, :, 1:].unflatten(2, (-1, step)).permute(0, 2, 3, 1, 4, 5)
    later = [original.encode(blocks[:, number])[:, 0] for number in range(blocks.shape[1])]
    return torch.stack([image, *later], 1)[:, None]


def decode(original: nn.Module, codes: Tensor, step: int) -> Tensor:
    """Decode each step alone; of the image's 4 frames the last is taken."""
    steps = [original.decode(codes[:, 0, i : i + 1]) for i in range(codes.shape[2])]
    return torch.cat(steps, 1)[:, step - 1 :].transpose(1, 2)


@torch.inference_mode()
def compare(case: Case, folder: Path, repeats: int) -> dict[str, Any]:
    """Compare codes and frames of one case, and the time of both."""
    make, shape = case
    torch.manual_seed(0)
    original = make(folder)
    with tempfile.TemporaryDirectory() as temporary:
        original.save_pretrained(temporary)
        ours, notes = read_emu3(Path(temporary))
    step, clip = ours.config.step, make_clip(*shape)
    codes = encode(original, clip, step)
    recon = decode(original, codes, step)
    found = {
        "parameters": sum(p.numel() for p in ours.parameters()),
        "clip": list(shape),
        "codes equal": (ours.to_codes(ours.encode_latents(clip)) == codes).double().mean().item(),
        "codes used": codes.unique().numel(),
        "frames apart": apart(ours.decode(codes), recon),
        "largest value": recon.abs().max().item(),
        "prefix and chunks apart": _streamed(ours, clip, codes),
        "their seconds": seconds(
            lambda: decode(original, encode(original, clip, step), step), repeats
        ),
        "our seconds": seconds(
            lambda: ours.decode(ours.to_codes(ours.encode_latents(clip))), repeats
        ),
        "notes": notes,
    }
    return {**found, "speed": found["their seconds"] / found["our seconds"]}


def _streamed(ours: Emu3Tokenizer, clip: Tensor, codes: Tensor) -> float:
    """Return the largest difference of chunks, and so of prefixes, to the whole."""
    whole = ours.encode_latents(clip), ours.decode(codes)
    pieces = [stream(ours, clip, codes, steps) for steps in ((1,), (2, 1))]
    return max(apart(*pair) for piece in pieces for pair in zip(piece, whole, strict=True))


@torch.inference_mode()
def write_golden(folder: Path, path: Path) -> None:
    """Write names and shapes of tensors, a clip, and the codes and frames of the originals."""
    torch.manual_seed(0)
    arrays: dict[str, Any] = {
        "clip": ((make_clip(1, 9, 16, 12) + 1) * 127.5).round().byte().numpy()
    }
    clip = torch.from_numpy(arrays["clip"]) / 127.5 - 1
    dimensions = {"base_channels": 32, "channel_multiplier": [1, 2], "attn_resolutions": [1]}
    dimensions |= {"num_res_blocks": 1, "hidden_size": 64, "codebook_size": 1000}
    for name, model in (
        ("published", published(folder, codebook_size=1000, **SMALL)),
        ("transformers", of_transformers(folder, **dimensions)),
    ):
        codes = encode(model, clip, 4)
        arrays[f"{name} shapes"] = json.dumps(shapes_of(model))
        arrays[f"{name} codes"] = codes.int().numpy()
        arrays[f"{name} frames"] = decode(model, codes, 4).numpy()
    np.savez_compressed(path, **arrays)


def main() -> None:
    """Print a line for each case; the exit code is 1 if one differs."""
    description = (__doc__ or "").splitlines()[0]
    run_script(description, CASES, FULL, compare, write_golden)


if __name__ == "__main__":
    main()
