"""Starting from a checkpoint, also one of a narrower model."""

from __future__ import annotations

import torch

from vtok.checkpoint import load_checkpoint
from vtok.errors import CheckpointError
from vtok.nn.tokenizer import VideoTokenizer

DECODER_SHARE = 0.3
"""How much of its fresh values a widened tensor of the decoder keeps where it is new: the decoder
then begins near what it was, and still has slopes to learn the new inputs by."""


@torch.no_grad()
def initialize_from(model: VideoTokenizer, name_or_path: str) -> list[str]:
    """Copy the weights of a checkpoint into a fresh model.

    A tensor that is larger here is widened: the checkpoint's values go to its beginning, and the
    rest keeps its fresh values, in the decoder `DECODER_SHARE` of them. Net2Net (arXiv 1511.05641)
    does it exactly for hidden units; latents, which this is for, are new information instead.

    Args:
        model: with fresh weights.
        name_or_path: a shipped name or a file.

    Returns:
        The names of the widened tensors.

    Raises:
        InputError: if there is no such checkpoint.
        CheckpointError: if it is damaged, has other layers or is wider.
    """
    source = load_checkpoint(name_or_path)[0].state_dict()
    target = model.state_dict()
    if differing := sorted(set(source) ^ set(target)):
        raise CheckpointError(
            f"{name_or_path}: has other layers than the model to train: {', '.join(differing[:3])}"
        )
    widened = []
    for name, tensor in target.items():
        values = source[name]
        if values.ndim != tensor.ndim or any(map(int.__gt__, values.shape, tensor.shape)):
            raise CheckpointError(
                f"{name_or_path}: tensor {name} of shape {list(values.shape)} does not fit into "
                f"{list(tensor.shape)}"
            )
        if values.shape != tensor.shape:
            widened.append(name)
            tensor.mul_(DECODER_SHARE if name.startswith("decoder") else 1.0)
        tensor[tuple(slice(size) for size in values.shape)] = values
    return widened
