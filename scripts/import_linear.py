#!/usr/bin/env python
"""Convert weights of the self-contained trainer of vtok-base to a checkpoint.

The trainer saves a `torch.save` file with `config`, a JSON text, and `model`, tensors by name. It
orders the pixels of a 4x8x8 block by frame, row, column and channel; here squares of 4x4 pixels are
merged first, and blocks of 4x2x2 of them after.

    scripts/import_linear.py weights.pt vtok-base.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vtok.errors import CheckpointError
from vtok.models.checkpoint import save_checkpoint
from vtok.models.torch_file import float_tensors, read_foreign
from vtok.nn.config import PRESETS, TokenizerConfig
from vtok.nn.tokenizer import VideoTokenizer

SECOND_PASS_STAGES = 3  # at fewer, the second pass gains less than 0.1 dB
ERROR_SCALE = 4  # of the trainer's layer that reads the reconstruction error


def to_config(theirs: Mapping[str, Any]) -> TokenizerConfig:
    """Convert the trainer's configuration.

    The order of bits of different dimensions within a stage is free. If the plan is that of the
    preset in another order, the preset's order is used, which the entropy coder codes better.
    """
    preset, plan = PRESETS["vtok-base"], tuple(theirs["plan"])
    (encoder, decoder), (down, up) = theirs["width"], theirs["blocks"]
    assert preset.bit_plan is not None
    if stages_of(plan) == stages_of(preset.bit_plan):
        plan = preset.bit_plan
    second = theirs.get("second")
    return dataclasses.replace(
        preset,
        second_pass=(second, SECOND_PASS_STAGES) if second else None,
        num_stages=len(plan) // 9,
        layers=(("space_time_patch", encoder), *(("causal_depthwise", encoder),) * down),
        decoder_layers=(
            ("depthwise", 48),
            ("space_time_patch", decoder),
            *(("causal_depthwise", decoder),) * up,
        ),
        bit_plan=plan,
    )


def stages_of(plan: tuple[int, ...]) -> list[list[int]]:
    """Return the dimensions that each stage of 9 bits refines, in rising order."""
    return [sorted(plan[place : place + 9]) for place in range(0, len(plan), 9)]


def to_tokenizer(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VideoTokenizer:
    """Convert the trainer's configuration and tensors.

    Raises:
        CheckpointError: The tensors do not fit the configuration.
    """
    down, up = config["blocks"]
    places = {
        "enc_in": "encoder.layers.0.conv",
        "enc_fold": "encoder.layers.1.project",
        **{f"enc.{n}": f"encoder.layers.{2 + n}" for n in range(down)},
        "enc_out": f"encoder.layers.{2 + down}.conv",
        "lin_enc": "encoder.linear.project",
        "dec_in": "decoder.layers.0.conv",
        **{f"dec.{n}": f"decoder.layers.{1 + n}" for n in range(up)},
        "dec_unfold": f"decoder.layers.{1 + up}.project",
        "dec_fine": f"decoder.layers.{2 + up}",
        "dec_out": f"decoder.layers.{3 + up}.conv",
        "lin_dec": "decoder.linear.project",
        "second.err": "second_pass.error.project",
        "second.lin": "second_pass.linear.project",
        **{f"second.blocks.{n}": f"second_pass.blocks.{n}" for n in range(config.get("second", 0))},
        "second.out": "second_pass.last.conv",
    }
    squares = "(f i p j q c) ... -> (f i j p q c) ..."
    sizes = {"f": 4, "i": 2, "j": 2, "p": 4, "q": 4}
    ours = {}
    for name, tensor in tensors.items():
        if name.startswith("second.err."):
            tensor = ERROR_SCALE * tensor
        if name in ("lin_enc.weight", "second.err.weight", "second.lin.weight"):
            tensor = rearrange(tensor.transpose(0, 1), squares, **sizes).transpose(0, 1)
        elif name.startswith("lin_dec."):
            tensor = rearrange(tensor, squares, **sizes)
        prefix = max((p for p in places if name.startswith(f"{p}.")), key=len, default=None)
        if prefix is None:
            raise CheckpointError(f"unknown tensor {name}")
        place = places[prefix]
        if place.endswith(".conv") and name.endswith(".weight"):
            tensor = tensor.unsqueeze(2)  # a convolution over space and time
        ours[place + name.removeprefix(prefix)] = tensor
    tokenizer = VideoTokenizer.from_config(to_config(config))
    try:
        tokenizer.load_state_dict(ours, strict=True)
    except RuntimeError as exc:
        raise CheckpointError(f"the tensors do not fit the config: {exc}") from exc
    return tokenizer.eval()


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="file written by the trainer")
    parser.add_argument("checkpoint", type=Path, help="file to write")
    parser.add_argument("--name", default="vtok-base", help="name of the model")
    args = parser.parse_args()
    package = read_foreign(args.weights, "model")
    tensors = float_tensors(str(args.weights), package.tensors)
    tokenizer = to_tokenizer(json.loads(str(package.values["config"])), tensors)
    save_checkpoint(args.checkpoint, tokenizer, args.name, torch.float16)
    print(f"{args.checkpoint}: {sum(p.numel() for p in tokenizer.parameters()):,} parameters")


if __name__ == "__main__":
    main()
