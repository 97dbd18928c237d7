"""Checkpoints of token pipelines: round trip, binding to one tokenizer, damage."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from token_models import LATENT_DIM, make_latents, make_pipeline, tiny_tokens

from vtok.errors import CheckpointError, InputError
from vtok.models.load import load
from vtok.tokens.model import load_tokens, resolve_tokens, save_tokens


def test_round_trip(tmp_path: Path) -> None:
    model, path = tiny_tokens(tmp_path)
    info = load(model).info
    pipeline, about = load_tokens(path, info)
    latents = make_latents(1, LATENT_DIM, 2, 8, 8)
    torch.testing.assert_close(pipeline(latents, 8), make_pipeline()(latents, 8))
    assert (about.name, about.tokenizer_name) == ("tiny-v11", "tiny")
    first = path.read_bytes()
    save_tokens(path, make_pipeline(), "tiny-v11", info)
    assert path.read_bytes() == first


def test_checkpoint_belongs_to_one_tokenizer(tmp_path: Path) -> None:
    _, path = tiny_tokens(tmp_path)
    other = load(_other(tmp_path)).info
    with pytest.raises(CheckpointError, match=r"learned on the model tiny .* not on other"):
        load_tokens(path, other)


def test_damage_is_named(tmp_path: Path) -> None:
    model, path = tiny_tokens(tmp_path)
    info, whole = load(model).info, path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_tokens(path, info)
    path.write_bytes(whole[:-10] + b"\x11" * 10)
    with pytest.raises(CheckpointError, match="do not match their SHA-256"):
        load_tokens(path, info)
    path.write_bytes(whole.replace(b'heads\\":4', b'heads\\":3'))
    with pytest.raises(CheckpointError, match="heads=3: expected a divisor of dim"):
        load_tokens(path, info)
    path.write_bytes(whole.replace(b'map_dim\\":8', b'map_dim\\":9'))
    with pytest.raises(CheckpointError, match=r"tensor maps_of\.\S+ is F32"):
        load_tokens(path, info)
    save_file(load_file(model), path)
    with pytest.raises(CheckpointError, match="no checkpoint of a token learner"):
        load_tokens(path, info)


def test_missing_weights_tell_how_to_train_them(tmp_path: Path) -> None:
    info = load(tiny_tokens(tmp_path)[0]).info
    with pytest.raises(InputError, match=r"vtok tokens train VIDEOS --learner v10"):
        resolve_tokens("v10", info)
    with pytest.raises(InputError, match="expected v10, v11, grouped or a file"):
        resolve_tokens("v12", info)


def _other(folder: Path) -> Path:
    from commands import tiny_checkpoint

    return tiny_checkpoint(folder, "other", seed=1)
