"""Checkpoints: one safetensors file with the config inside, loaded by name or by path."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from vtok._files import atomic_output
from vtok.errors import CheckpointError, UsageError
from vtok.models.info import FORMAT, VERSION, canonical_json, config_digest, open_tensors
from vtok.models.info import CheckpointInfo as CheckpointInfo
from vtok.models.info import list_models as list_models
from vtok.models.info import read_info as read_info
from vtok.nn.tokenizer import VideoTokenizer

WEIGHT_TYPES = ("F64", "F32", "F16", "BF16")  # as safetensors spells them


def save_checkpoint(
    path: Path, tokenizer: VideoTokenizer, name: str, dtype: torch.dtype = torch.float32
) -> None:
    """Write a checkpoint, atomically; the same weights give the same bytes.

    Args:
        path: the file to write.
        tokenizer: config and weights.
        name: of the model.
        dtype: type to store the weights in.
    """
    tensors = {
        key: t.detach().to(dtype).cpu().contiguous() for key, t in tokenizer.state_dict().items()
    }
    about = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "config": tokenizer.config.to_dict(),
        "weights_sha256": weights_digest(tensors),
    }
    # a single metadata key: safetensors writes several in an order that changes from run to run
    data = save(tensors, metadata={"vtok": canonical_json(about)})
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_bytes(data)


def load_checkpoint(name_or_path: str | Path) -> tuple[VideoTokenizer, CheckpointInfo]:
    """Load a tokenizer in float32, in eval mode, and what its checkpoint says of itself.

    Raises:
        InputError: if there is no such file.
        CheckpointError: for unknown, missing, wrongly shaped or changed tensors, numbers that are
            not finite, configs that no tokenizer can have and later versions, each by name.
    """
    info = read_info(name_or_path)
    with open_tensors(info.path, "pt") as file:
        _check_tensors(info, file)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if weights_digest(tensors) != info.weights_sha256:
        raise CheckpointError(
            f"{info.path}: the weights do not match their SHA-256: fetch it again"
        )
    tokenizer = VideoTokenizer.from_config(info.config)
    tokenizer.load_state_dict(tensors, strict=True)
    for key, tensor in tokenizer.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{info.path}: tensor {key} holds infinities or NaN")
    return tokenizer.eval(), info


def describe(tokenizer: VideoTokenizer) -> CheckpointInfo:
    """Describe a tokenizer in memory: a shipped checkpoint with equal weights, else `unnamed`."""
    tensors = {key: tensor.detach().cpu() for key, tensor in tokenizer.state_dict().items()}
    for name in list_models():
        if read_info(name).config == tokenizer.config:
            shipped, info = load_checkpoint(name)
            stored = shipped.state_dict()
            if all(torch.equal(stored[key].to(t.dtype), t) for key, t in tensors.items()):
                return info
    return CheckpointInfo(
        name="unnamed",
        config=tokenizer.config,
        config_sha256=config_digest(tokenizer.config),
        weights_sha256=weights_digest(tensors),
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        path=Path("unnamed"),
    )


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and little-endian values, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(
            tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else _scalar(tensor)
        )
    return digest.hexdigest()


def _scalar(tensor: Tensor) -> bytes:
    return struct.pack("<d", tensor.item())


def _check_tensors(info: CheckpointInfo, file: Any) -> None:
    """Compare what the file says of its tensors with the config, before memory is taken."""
    expected = _expected_shapes(info)
    found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    if unknown := sorted(set(found) - set(expected)):
        raise CheckpointError(f"{info.path}: unknown tensors: {', '.join(unknown[:5])}")
    if missing := sorted(set(expected) - set(found)):
        raise CheckpointError(f"{info.path}: missing tensors: {', '.join(missing[:5])}")
    for key, tensor in found.items():
        if tensor.get_shape() != expected[key]:
            raise CheckpointError(
                f"{info.path}: tensor {key} has shape {tensor.get_shape()}, "
                f"expected {expected[key]}"
            )
        if tensor.get_dtype() not in WEIGHT_TYPES:
            raise CheckpointError(
                f"{info.path}: tensor {key} has type {tensor.get_dtype()}, "
                f"expected one of {', '.join(WEIGHT_TYPES)}"
            )


def _expected_shapes(info: CheckpointInfo) -> dict[str, list[int]]:
    try:
        with torch.device("meta"):  # shapes without numbers: the config may ask for any size
            tokenizer = VideoTokenizer.from_config(info.config)
    except UsageError as exc:
        raise CheckpointError(f"{info.path}: {exc}") from exc
    return {key: list(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
