"""Checkpoints: one safetensors file with the config inside, loaded by name or by path."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vtok.atomic import atomic_output
from vtok.config import TokenizerConfig
from vtok.errors import CheckpointError, InputError, UsageError
from vtok.nn.tokenizer import VideoTokenizer

FORMAT, VERSION = "vtok.checkpoint", 1
WEIGHT_TYPES = ("F64", "F32", "F16", "BF16")  # as safetensors spells them
WEIGHTS_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself, read without its tensors.

    Attributes:
        name: of the model.
        config: of the tokenizer.
        config_sha256: of the config as canonical JSON.
        weights_sha256: of names, types, shapes and values of all tensors.
        num_parameters: numbers in all tensors.
        path: the file.
    """

    name: str
    config: TokenizerConfig
    config_sha256: str
    weights_sha256: str
    num_parameters: int
    path: Path


def list_models() -> list[str]:
    """Names of the shipped checkpoints."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))


def resolve_path(name_or_path: str | Path) -> Path:
    """The file of a shipped checkpoint by name, or of any by path.

    Raises:
        InputError: if there is none; the message lists the shipped names.
    """
    shipped = WEIGHTS_FOLDER / f"{name_or_path}.safetensors"
    if str(name_or_path) in list_models():
        return shipped
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
    except OSError as exc:
        raise InputError(f"{name_or_path}: cannot be read ({exc.strerror})") from exc
    names = ", ".join(list_models()) or "none"
    raise InputError(f"{name_or_path}: no such checkpoint: pass a file or a shipped name ({names})")


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
    data = save(tensors, metadata={"vtok": _canonical(about)})
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_bytes(data)


def read_info(name_or_path: str | Path) -> CheckpointInfo:
    """Read what a checkpoint says of itself, without its tensors.

    Raises:
        InputError: if there is no such file.
        CheckpointError: if it is no checkpoint of vtok, or of a later version.
    """
    path = resolve_path(name_or_path)
    with _open(path) as file:
        about = _about(path, file.metadata())
        sizes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    config = _config(path, about["config"])
    return CheckpointInfo(
        name=about["name"],
        config=config,
        config_sha256=config_digest(config),
        weights_sha256=about["weights_sha256"],
        num_parameters=sum(_product(shape) for shape in sizes),
        path=path,
    )


def load_checkpoint(name_or_path: str | Path) -> tuple[VideoTokenizer, CheckpointInfo]:
    """Load a tokenizer in float32, in eval mode, and what its checkpoint says of itself.

    Raises:
        InputError: if there is no such file.
        CheckpointError: for unknown, missing, wrongly shaped or changed tensors, numbers that are
            not finite, configs that no tokenizer can have and later versions, each by name.
    """
    info = read_info(name_or_path)
    with _open(info.path) as file:
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


def config_digest(config: TokenizerConfig) -> str:
    """SHA-256 of the config as canonical JSON."""
    return hashlib.sha256(_canonical(config.to_dict()).encode()).hexdigest()


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _scalar(tensor: Tensor) -> bytes:
    return struct.pack("<d", tensor.item())


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc})") from exc


def _about(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        about = json.loads((metadata or {})["vtok"])
        version = about["version"]
    except (KeyError, ValueError, TypeError, RecursionError) as exc:
        raise CheckpointError(f"{path}: a safetensors file, but no checkpoint of vtok") from exc
    if about.get("format") != FORMAT or type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: a safetensors file, but no checkpoint of vtok")
    if version > VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {version}, this vtok reads up to {VERSION}: update vtok"
        )
    expected = {"format", "version", "name", "config", "weights_sha256"}
    if set(about) != expected or not isinstance(about["config"], dict):
        raise CheckpointError(
            f"{path}: checkpoint fields {sorted(about)}: expected {sorted(expected)}"
        )
    name, digest = about["name"], about["weights_sha256"]
    if not (isinstance(name, str) and name.isprintable() and isinstance(digest, str)):
        raise CheckpointError(f"{path}: expected a name and weights_sha256 that are text")
    return about  # type: ignore[no-any-return]


def _config(path: Path, data: dict[str, Any]) -> TokenizerConfig:
    try:
        return TokenizerConfig.from_dict(data)
    except UsageError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc


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
