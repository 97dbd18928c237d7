"""Small seeded token pipelines for tests, beside the tiny tokenizer of `commands`."""

from pathlib import Path

import torch
from commands import tiny_checkpoint

from vtok.models.load import load
from vtok.nn.config import TokenConfig
from vtok.nn.token_pipeline import TokenPipeline
from vtok.tokens.model import TokenModel, load_token_model, save_tokens

LATENT_DIM = 6  # of the tiny tokenizer
SMALL = {"dim": 16, "map_dim": 8, "heads": 4, "lift_blocks": 1, "fuser_blocks": 2, "token_bits": 24}


def make_pipeline(learner: str = "v11", seed: int = 0) -> TokenPipeline:
    """A pipeline whose every weight matters: nothing is left at a zero initial value."""
    torch.manual_seed(seed)
    pipeline = TokenPipeline(TokenConfig(LATENT_DIM, learner, **SMALL))
    with torch.no_grad():
        for parameter in pipeline.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return pipeline.eval()


def make_latents(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random latents [B, D, t, h, w]."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_tokens(folder: Path, learner: str = "v11", seed: int = 0) -> tuple[Path, Path]:
    """Checkpoints of a tiny tokenizer and of a tiny pipeline for it."""
    model = tiny_checkpoint(folder)
    path = folder / f"tiny-{learner}-{seed}.tokens-weights"
    save_tokens(path, make_pipeline(learner, seed), f"tiny-{learner}", load(model).info)
    return model, path


def tiny_token_model(folder: Path, learner: str = "v11", seed: int = 0) -> TokenModel:
    """Both, loaded in the usual way."""
    model, path = tiny_tokens(folder, learner, seed)
    return load_token_model(path, model=load(model, dtype="float32"))
