"""A tokenizer and the token pipeline that was trained on its latents, ready to run together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vtok.errors import UsageError
from vtok.models.checkpoint import CheckpointInfo
from vtok.models.load import LoadedTokenizer, ModelLike, resolve
from vtok.nn.config import MOST_TOKENS
from vtok.nn.token_pipeline import TokenPipeline
from vtok.tokens.checkpoint import TokenCheckpointInfo, load_tokens, resolve_tokens

DEFAULT_TOKENS, DEFAULT_LEARNER = 8, "v11"


@dataclass(frozen=True)
class TokenModel:
    """Latents to tokens and back, beside the tokenizer that makes the latents.

    Attributes:
        model: the tokenizer.
        pipeline: in eval mode, on the tokenizer's device, in its type.
        info: of the pipeline's checkpoint.
    """

    model: LoadedTokenizer
    pipeline: TokenPipeline
    info: TokenCheckpointInfo

    def to_tokens(self, latents: Tensor, num_tokens: int) -> Tensor:
        """Latents [1, D, t, h, w] to tokens [1, t, S, dim].

        Raises:
            ShapeError: if the grid has fewer positions than there are to be tokens.
        """
        with torch.inference_mode():
            return self.pipeline.encode(latents, num_tokens)

    def to_latents(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [1, t, S, dim] of any type and place to latents [1, D, t, h, w]."""
        with torch.inference_mode():
            return self.pipeline.decode(tokens.to(self.model.device, self.model.dtype), grid)

    def check_count(self, num_tokens: int, size: tuple[int, int] | None = None) -> None:
        """Refuse a number of tokens that cannot be had.

        Args:
            num_tokens: of each latent step.
            size: (height, width) of the frames in pixels, where that is known already.

        Raises:
            UsageError: naming the option.
        """
        most = self.pipeline.config.max_tokens
        if not 1 <= num_tokens <= most:
            raise UsageError(f"--num-tokens {num_tokens}: expected 1 to {most}")
        if size is not None:
            positions = self.positions(size)
            if num_tokens > positions:
                raise UsageError(
                    f"--num-tokens {num_tokens}: frames of {size[1]}x{size[0]} have {positions} "
                    "positions to choose from: give fewer tokens or a larger --size"
                )

    def positions(self, size: tuple[int, int]) -> int:
        """How many positions maps have for frames of (height, width)."""
        side = self.model.tokenizer.spatial_compression * self.pipeline.config.fold
        return -(-size[0] // side) * -(-size[1] // side)


def load_token_model(
    learner: str | Path = DEFAULT_LEARNER, *, model: ModelLike | None = None
) -> TokenModel:
    """Load a token pipeline for use.

    Args:
        learner: v10, v11 or grouped, or the file of a checkpoint.
        model: the tokenizer; `vtok-base` if None.

    Raises:
        InputError: if there is no such checkpoint.
        CheckpointError: if it is damaged, or belongs to another model.
    """
    model = resolve(model)
    pipeline, info = load_tokens(resolve_tokens(str(learner), model.info), model.info)
    pipeline.requires_grad_(False).to(model.device, model.dtype)
    return TokenModel(model, pipeline, info)


class TokenModels:
    """The token pipelines that files name, each loaded once.

    Args:
        learner: use this one for every file; if None, the one that each file names.
    """

    def __init__(self, learner: str | Path | None = None) -> None:
        self._chosen = learner
        self._loaded: dict[tuple[str, CheckpointInfo], TokenModel] = {}

    def get(self, named: str, model: LoadedTokenizer) -> TokenModel:
        """The pipeline for a file that names the learner `named`, beside a tokenizer.

        Raises:
            InputError: if it is not shipped and no other was chosen. (A file is not trusted to
                name a path.)
        """
        key = (str(self._chosen or named), model.info)
        if key not in self._loaded:
            self._loaded[key] = load_token_model(key[0], model=model)
        return self._loaded[key]


__all__ = ["DEFAULT_TOKENS", "MOST_TOKENS", "TokenModel", "TokenModels", "load_token_model"]
