"""Token pipelines: their checkpoints, and a pipeline loaded together with its tokenizer.

A checkpoint is one safetensors file, which names the tokenizer that it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vtok._files import atomic_output
from vtok.codefile.header import Header
from vtok.errors import CheckpointError, CodeFileError, InputError, OptionError, UsageError
from vtok.models.checkpoint import WEIGHT_TYPES, CheckpointInfo, canonical_json, weights_digest
from vtok.models.load import LoadedTokenizer, ModelLike, require_own, resolve
from vtok.nn.config import LEARNERS, TokenConfig
from vtok.nn.token_pipeline import CODEBOOK_SIZE, TokenPipeline
from vtok.pipeline.codec import Unpack
from vtok.tokens.file import CHECKPOINT_FORMAT, TokenOrigin, token_origin

VERSION = 1
DEFAULT_TOKENS, DEFAULT_LEARNER = 8, "v11"
STAGES = 1
"""Stages that latents are made for: tokens say less than one, so a second pass is of no use."""
TOKEN_WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights" / "tokens"


@dataclass(frozen=True)
class TokenCheckpointInfo:
    """Description of a token pipeline in its checkpoint.

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
        return hashlib.sha256(canonical_json(self.config.to_dict()).encode()).hexdigest()


def resolve_tokens(learner: str, model: CheckpointInfo) -> Path:
    """Return the path of a checkpoint: of a shipped learner for a model by name, or of any by path.

    Raises:
        InputError: if there is none; the message tells how to train one.
    """
    if learner in LEARNERS:
        path = TOKEN_WEIGHTS_FOLDER / f"{model.name}-{learner}.safetensors"
        if not path.is_file():
            raise InputError(
                f"`token_learner` {learner}: no weights for the model {model.name} are shipped: "
                f"train them with `vtok tokens train VIDEOS --learner {learner} --out RUN` "
                "and give RUN/tokens.safetensors instead"
            )
        return path
    if not Path(learner).is_file():
        raise InputError(
            f"`token_learner` {learner}: expected {', '.join(LEARNERS)} or a file that "
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
        tokenizer: model whose latents it was trained on.
        dtype: type to store the weights in.
    """
    tensors = {
        key: t.detach().to(dtype).cpu().contiguous() for key, t in pipeline.state_dict().items()
    }
    about = {
        "format": CHECKPOINT_FORMAT,
        "version": VERSION,
        "name": name,
        "config": pipeline.config.to_dict(),
        "tokenizer": {"name": tokenizer.name, "weights_sha256": tokenizer.weights_sha256},
        "weights_sha256": weights_digest(tensors),
    }
    # a single metadata key: safetensors writes several in an order that changes from run to run
    data = save(tensors, metadata={"vtok": canonical_json(about)})
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_bytes(data)


def read_token_info(path: Path) -> TokenCheckpointInfo:
    """Read the description in a checkpoint, without the tensors.

    Raises:
        CheckpointError: if it is no such checkpoint, or of a later version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _read_info(path, file.metadata())
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc})") from exc


def load_tokens(
    path: Path, tokenizer: CheckpointInfo | None
) -> tuple[TokenPipeline, TokenCheckpointInfo]:
    """Load a token pipeline in float32, in eval mode.

    Args:
        path: the checkpoint.
        tokenizer: model to use it with; any if None.

    Raises:
        CheckpointError: if it is damaged, of a later version, or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            info = _read_info(path, file.metadata())
            with torch.device("meta"):  # no memory for the weights: the config may have any size
                pipeline = TokenPipeline(info.config)
            _check_shapes(info, pipeline, file)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc})") from exc
    if tokenizer is not None:
        check_tokenizer(info, tokenizer)
    if weights_digest(tensors) != info.weights_sha256:
        raise CheckpointError(f"{path}: the weights do not match their SHA-256: fetch it again")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise CheckpointError(f"{path}: holds infinities or NaN")
    pipeline = TokenPipeline(info.config)
    pipeline.load_state_dict(tensors, strict=True)
    return pipeline.eval(), info


def check_tokenizer(info: TokenCheckpointInfo, tokenizer: CheckpointInfo) -> None:
    """Check that a token pipeline was trained on the latents of a model.

    Raises:
        CheckpointError: if it was trained on those of another one.
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
        if about["format"] != CHECKPOINT_FORMAT or type(about["version"]) is not int:
            raise CheckpointError(wrong)
        if about["version"] > VERSION:
            raise CheckpointError(f"{path}: of a later version of vtok: update vtok")
        names = (about["name"], *(about["tokenizer"][key] for key in ("name", "weights_sha256")))
        texts = (*names, about["weights_sha256"])
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise CheckpointError(f"{path}: expected names and SHA-256 that are text")
        config = TokenConfig.from_dict(dict(about["config"]))
    except UsageError as exc:  # before ValueError: an OptionError is both
        raise CheckpointError(f"{path}: {exc}") from exc
    except (KeyError, ValueError, TypeError, RecursionError) as exc:
        raise CheckpointError(wrong) from exc
    return TokenCheckpointInfo(names[0], config, names[1], names[2], texts[3], path)


def _check_shapes(info: TokenCheckpointInfo, pipeline: TokenPipeline, file: Any) -> None:
    """Compare the tensors of the file with the config, before memory is allocated."""
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


@dataclass(frozen=True)
class TokenModel:
    """Token pipeline together with the tokenizer whose latents it takes.

    Attributes:
        model: the tokenizer.
        pipeline: in eval mode, on the tokenizer's device, in its type.
        info: of the pipeline's checkpoint.
    """

    model: LoadedTokenizer
    pipeline: TokenPipeline
    info: TokenCheckpointInfo

    def to_tokens(self, latents: Tensor, num_tokens: int) -> Tensor:
        """Convert latents [1, D, t, h, w] to tokens [1, t, S, dim].

        Raises:
            ShapeError: if the grid has fewer positions than `num_tokens`.
        """
        with torch.inference_mode():
            return self.pipeline.encode(latents, num_tokens)

    def to_latents(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Convert tokens [1, t, S, dim] of any type and device to latents [1, D, t, h, w]."""
        with torch.inference_mode():
            return self.pipeline.decode(tokens.to(self.model.device, self.model.dtype), grid)

    def check_count(self, num_tokens: int, size: tuple[int, int] | None = None) -> None:
        """Check a number of tokens per latent step.

        Args:
            num_tokens: tokens per latent step.
            size: (height, width) of the frames in pixels, if known already.

        Raises:
            OptionError: if it is too large or not positive.
        """
        most = self.pipeline.config.max_tokens
        if not 1 <= num_tokens <= most:
            raise OptionError("num_tokens", num_tokens, f"1 to {most}")
        if size is not None:
            positions = self.positions(size)
            if num_tokens > positions:
                expected = (
                    f"at most {positions}, the positions of frames of {size[1]}x{size[0]}: "
                    "give fewer tokens or a larger `size`"
                )
                raise OptionError("num_tokens", num_tokens, expected)

    @property
    def origin(self) -> TokenOrigin:
        """Description of the pipeline in files of its tokens."""
        info = self.info
        return TokenOrigin(info.name, info.config.learner, info.config_sha256, info.weights_sha256)

    def positions(self, size: tuple[int, int]) -> int:
        """Number of positions that a token map has for frames of (height, width)."""
        side = self.model.geometry.spatial_compression * self.pipeline.config.fold
        return -(-size[0] // side) * -(-size[1] // side)


def load_token_model(
    learner: str | Path = DEFAULT_LEARNER, *, model: ModelLike | None = None
) -> TokenModel:
    """Load a token pipeline for use.

    Args:
        learner: v10, v11 or grouped, or the path of a checkpoint.
        model: a name, a path, a loaded tokenizer or a `VideoTokenizer`; `vtok-base` if None.

    Raises:
        InputError: if there is no such checkpoint.
        CheckpointError: if it is damaged, or belongs to another model.
    """
    model = resolve(model)
    require_own(model.info, "learned tokens")
    pipeline, info = load_tokens(resolve_tokens(str(learner), model.info), model.info)
    pipeline.requires_grad_(False).to(model.device, model.dtype)
    return TokenModel(model, pipeline, info)


class TokenModels:
    """Token pipelines that files name, each loaded once.

    Args:
        learner: used for every file; if None, the shipped one that each file names.
    """

    def __init__(self, learner: str | Path | None = None) -> None:
        self._chosen = learner
        self._loaded: dict[tuple[str, CheckpointInfo], TokenModel] = {}

    def get(self, named: str, model: LoadedTokenizer) -> TokenModel:
        """Return the pipeline for a file that names the learner `named`.

        Raises:
            InputError: if it is not shipped and no other was chosen. (A file is not trusted to
                name a path.)
        """
        key = (str(self._chosen or named), model.info)
        if key not in self._loaded:
            self._loaded[key] = load_token_model(key[0], model=model)
        return self._loaded[key]

    def get_checked(self, origin: TokenOrigin, model: LoadedTokenizer, name: str) -> TokenModel:
        """Return the pipeline that made the tokens of the file `name`.

        Raises:
            InputError: as in `get`.
            CodeFileError: if the file was made by a pipeline with other weights.
        """
        found = self.get(origin.learner, model)
        if origin.weights_sha256 != found.info.weights_sha256:
            raise CodeFileError(
                f"{name}: made with the token learner {origin.name} (weights "
                f"{origin.weights_sha256[:12]}), not with {found.info.name} (weights "
                f"{found.info.weights_sha256[:12]}): pass its file as `token_learner`"
            )
        return found

    def unpack(self, header: Header, model: LoadedTokenizer, name: str) -> Unpack:
        """Return the function from codes of quantized tokens to latents; see `Unpacker`."""
        origin, layout = token_origin(header, name), header.format
        assert origin is not None
        found = self.get_checked(origin, model, name)
        expected = (CODEBOOK_SIZE, found.pipeline.bits.num_codes, (1, 1))
        if (layout.codebook_size, layout.num_codebooks, layout.grid) != expected:
            raise CodeFileError(
                f"{name}: its codes are not laid out as those of {found.info.name}: damaged"
            )
        grid = model.geometry.grid(header.transform.height, header.transform.width)

        def unpack(codes: Tensor) -> Tensor:
            by_token = rearrange(codes, "s k t 1 1 -> 1 t s k")
            return found.to_latents(found.pipeline.bits.from_codes(by_token), grid)

        return unpack
