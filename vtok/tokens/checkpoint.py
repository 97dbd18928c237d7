"""Checkpoints of token pipelines: one safetensors file, which names the tokenizer it belongs to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vtok._files import atomic_output
from vtok.errors import CheckpointError, InputError, UsageError
from vtok.models.checkpoint import WEIGHT_TYPES, CheckpointInfo, weights_digest
from vtok.nn.config import LEARNERS, TokenConfig
from vtok.nn.token_pipeline import TokenPipeline

FORMAT, VERSION = "vtok.tokens_checkpoint", 1
TOKEN_WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights" / "tokens"


@dataclass(frozen=True)
class TokenCheckpointInfo:
    """What the checkpoint of a token pipeline says of itself.

    Attributes:
        name: of the checkpoint, such as `vtok-base-v11`.
        config: of the pipeline.
        tokenizer_name: of the model whose latents it was trained on.
        tokenizer_sha256: the SHA-256 of that model's weights.
        weights_sha256: of names, types, shapes and values of the pipeline's own tensors.
        path: the file.
    """

    name: str
    config: TokenConfig
    tokenizer_name: str
    tokenizer_sha256: str
    weights_sha256: str
    path: Path

    @property
    def config_sha256(self) -> str:
        """SHA-256 of the config as canonical JSON."""
        return hashlib.sha256(_canonical(self.config.to_dict()).encode()).hexdigest()


def shipped_path(model: str, learner: str) -> Path:
    """Where the weights of a learner for a shipped model are, if they are shipped."""
    return TOKEN_WEIGHTS_FOLDER / f"{model}-{learner}.safetensors"


def resolve_tokens(learner: str, model: CheckpointInfo) -> Path:
    """The checkpoint of a learner by name, for a model, or of any by path.

    Raises:
        InputError: if there is none; the message says how to train one.
    """
    if learner in LEARNERS:
        path = shipped_path(model.name, learner)
        if not path.is_file():
            raise InputError(
                f"--token-learner {learner}: no weights for the model {model.name} are shipped: "
                f"train them with `vtok tokens train VIDEOS --learner {learner} --out RUN` "
                "and give RUN/tokens.safetensors instead"
            )
        return path
    if not Path(learner).is_file():
        raise InputError(
            f"--token-learner {learner}: expected {', '.join(LEARNERS)} or a file that "
            "`vtok tokens train` made"
        )
    return Path(learner)


def save_tokens(
    path: Path,
    pipeline: TokenPipeline,
    name: str,
    tokenizer: CheckpointInfo,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a checkpoint, atomically; the same weights give the same bytes.

    Args:
        path: the file to write.
        pipeline: config and weights.
        name: of the checkpoint.
        tokenizer: of the model whose latents it was trained on.
        dtype: type to store the weights in.
    """
    tensors = {
        key: t.detach().to(dtype).cpu().contiguous() for key, t in pipeline.state_dict().items()
    }
    about = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "config": pipeline.config.to_dict(),
        "tokenizer": {"name": tokenizer.name, "weights_sha256": tokenizer.weights_sha256},
        "weights_sha256": weights_digest(tensors),
    }
    # a single metadata key: safetensors writes several in an order that changes from run to run
    data = save(tensors, metadata={"vtok": _canonical(about)})
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_bytes(data)


def is_token_checkpoint(path: Path) -> bool:
    """Whether a file is the checkpoint of a token pipeline; false for what cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool(json.loads((file.metadata() or {})["vtok"])["format"] == FORMAT)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_token_info(path: Path) -> TokenCheckpointInfo:
    """Read what a checkpoint says of itself, without its tensors.

    Raises:
        CheckpointError: if it is none, or of a later version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _read_info(path, file.metadata())
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc})") from exc


def load_tokens(path: Path, tokenizer: CheckpointInfo) -> tuple[TokenPipeline, TokenCheckpointInfo]:
    """Load a token pipeline in float32, in eval mode.

    Args:
        path: the checkpoint.
        tokenizer: of the model that it is to work with.

    Raises:
        CheckpointError: if it is damaged, of a later version, or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            info = _read_info(path, file.metadata())
            pipeline = _build(info)
            _check_shapes(info, pipeline, file)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc})") from exc
    check_tokenizer(info, tokenizer)
    if weights_digest(tensors) != info.weights_sha256:
        raise CheckpointError(f"{path}: the weights do not match their SHA-256: fetch it again")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise CheckpointError(f"{path}: holds infinities or NaN")
    pipeline = TokenPipeline(info.config)
    pipeline.load_state_dict(tensors, strict=True)
    return pipeline.eval(), info


def check_tokenizer(info: TokenCheckpointInfo, tokenizer: CheckpointInfo) -> None:
    """Refuse a token pipeline that was trained on the latents of another model.

    Raises:
        CheckpointError: naming both.
    """
    if info.tokenizer_sha256 != tokenizer.weights_sha256:
        raise CheckpointError(
            f"{info.path}: learned on the model {info.tokenizer_name} (weights "
            f"{info.tokenizer_sha256[:12]}), not on {tokenizer.name} (weights "
            f"{tokenizer.weights_sha256[:12]}): train one with `vtok tokens train`"
        )


def _read_info(path: Path, metadata: dict[str, str] | None) -> TokenCheckpointInfo:
    wrong = f"{path}: a safetensors file, but no checkpoint of a token learner"
    try:
        about: dict[str, Any] = json.loads((metadata or {})["vtok"])
        if about["format"] != FORMAT or type(about["version"]) is not int:
            raise CheckpointError(wrong)
        if about["version"] > VERSION:
            raise CheckpointError(f"{path}: of a later version of vtok: update vtok")
        names = (about["name"], *(about["tokenizer"][key] for key in ("name", "weights_sha256")))
        texts = (*names, about["weights_sha256"])
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise CheckpointError(f"{path}: expected names and SHA-256 that are text")
        config = TokenConfig.from_dict(dict(about["config"]))
    except (KeyError, ValueError, TypeError, RecursionError) as exc:
        raise CheckpointError(wrong) from exc
    except UsageError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    return TokenCheckpointInfo(names[0], config, names[1], names[2], texts[3], path)


def _build(info: TokenCheckpointInfo) -> TokenPipeline:
    """The pipeline without memory for its numbers: the config may ask for any size."""
    with torch.device("meta"):
        return TokenPipeline(info.config)


def _check_shapes(info: TokenCheckpointInfo, pipeline: TokenPipeline, file: Any) -> None:
    """Compare what the file says of its tensors with the config, before memory is taken."""
    expected = {key: list(tensor.shape) for key, tensor in pipeline.state_dict().items()}
    found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    if wrong := sorted(set(expected) ^ set(found)):
        raise CheckpointError(f"{info.path}: unknown or missing tensors: {', '.join(wrong[:5])}")
    for key, tensor in found.items():
        if tensor.get_shape() != expected[key] or tensor.get_dtype() not in WEIGHT_TYPES:
            raise CheckpointError(
                f"{info.path}: tensor {key} is {tensor.get_dtype()} {tensor.get_shape()}, "
                f"expected floats {expected[key]}"
            )


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
