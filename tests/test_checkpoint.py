"""Checkpoints: round trip, and errors that name what is damaged or does not fit."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from models import make_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vtok import VideoTokenizer
from vtok.errors import CheckpointError, InputError
from vtok.models.checkpoint import (
    list_models,
    load_checkpoint,
    read_info,
    save_checkpoint,
    weights_digest,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, make_tokenizer(), "tiny")
    return path


def rewrite(path: Path, *, tensors=None, **changes) -> None:
    """Rewrite a checkpoint with other fields or tensors and a matching digest."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["vtok"])
    tensors = load_file(path) if tensors is None else tensors
    header.update({"weights_sha256": weights_digest(tensors), **changes})
    save_file(tensors, path, {"vtok": json.dumps(header)})


def test_round_trip(saved: Path) -> None:
    tokenizer, info = load_checkpoint(saved)
    original = make_tokenizer()
    assert tokenizer.config == original.config
    assert not tokenizer.training
    for key, tensor in original.state_dict().items():
        assert torch.equal(tokenizer.state_dict()[key], tensor)
    assert (info.name, info.path) == ("tiny", saved)
    assert info.num_parameters == sum(p.numel() for p in original.parameters())


def test_same_weights_give_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, make_tokenizer(), "tiny")
    assert again.read_bytes() == saved.read_bytes()
    save_checkpoint(again, make_tokenizer(seed=1), "tiny")
    assert read_info(again).weights_sha256 != read_info(saved).weights_sha256


def test_float16_weights_load_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, make_tokenizer(), "half", dtype=torch.float16)
    tokenizer, _ = load_checkpoint(path)
    for key, tensor in make_tokenizer().state_dict().items():
        assert torch.equal(tokenizer.state_dict()[key], tensor.half().float())


def test_from_pretrained(saved: Path) -> None:
    assert VideoTokenizer.from_pretrained(str(saved)).config == make_tokenizer().config


def test_shipped_checkpoints_load() -> None:
    assert "vtok-base" in list_models()
    for name in list_models():
        tokenizer, info = load_checkpoint(name)
        assert info.name == name
        assert all(torch.isfinite(p).all() for p in tokenizer.parameters())
        assert info.path.stat().st_size <= 25_000_000


@pytest.mark.parametrize(
    "page", ["docs/results.md", "docs/quickstart.md", "vtok/weights/tokens/vtok-base-v11.md"]
)
def test_pages_show_figures_of_the_shipped_weights(page: str) -> None:
    text = (Path(__file__).parent.parent / page).read_text()
    (named,) = re.findall(r"weights(?: sha256)?\s+`?([0-9a-f]{12})", text)
    assert read_info("vtok-base").weights_sha256.startswith(named)


def test_unknown_name_lists_shipped_names() -> None:
    with pytest.raises(InputError, match=r"vtok-huge: no such checkpoint.*vtok-base"):
        load_checkpoint("vtok-huge")


def test_misfit_tensors_are_named(saved: Path) -> None:
    tensors = load_file(saved)
    first = sorted(tensors)[0]
    fewer = {key: t for key, t in tensors.items() if key != first}
    rewrite(saved, tensors=fewer)
    with pytest.raises(CheckpointError, match=f"missing tensors: {first}"):
        load_checkpoint(saved)
    rewrite(saved, tensors={**tensors, "spam": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="unknown tensors: spam"):
        load_checkpoint(saved)
    rewrite(saved, tensors={**tensors, first: torch.zeros(7)})
    with pytest.raises(CheckpointError, match=rf"tensor {first} has shape \[7\], expected"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bit_plan": [0, 0, 1, 1, 2, 0, 3, 3, 3]}, r"has shape .*5.*, expected .*4"),
        ({"bit_plan": [0, 0, 1]}, "expected the dimension of each of 9 bits"),
        ({"linear_path": False}, "unknown tensors: decoder.linear.project.bias"),
        ({"second_pass": [1, 2]}, "missing tensors: second_pass"),
        ({"second_pass": [1, 4]}, "second_pass=.*: expected blocks, 1 to 1000, and stages, 1 to 3"),
        ({"patch_size": 4}, "has shape"),
        (
            {
                "layers": [["compress_time", 8], ["compress_space", 8]] * 9,
                "decoder_layers": None,
                "decoder_init_dim": None,
            },
            "linear_path=blocks of [0-9]+ numbers: expected at most 65536",
        ),
    ],
)
def test_misfit_linear_paths_and_plans_are_named(
    tmp_path: Path, changes: dict, message: str
) -> None:
    path = tmp_path / "linear.safetensors"
    save_checkpoint(path, make_tokenizer("linear"), "linear")
    rewrite(path, config={**make_tokenizer("linear").config.to_dict(), **changes})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_unknown_weight_types_are_refused(saved: Path, dtype: torch.dtype) -> None:
    tensors = load_file(saved)
    first = sorted(tensors)[0]
    rewrite(saved, tensors={**tensors, first: tensors[first].to(dtype)})
    with pytest.raises(CheckpointError, match=f"tensor {first} has type"):
        load_checkpoint(saved)


def test_non_finite_weights_are_refused(saved: Path) -> None:
    tensors = load_file(saved)
    first = sorted(tensors)[0]
    rewrite(saved, tensors={**tensors, first: tensors[first] / 0})
    with pytest.raises(CheckpointError, match=f"tensor {first} holds infinities or NaN"):
        load_checkpoint(saved)


def test_huge_configs_are_refused_before_memory_is_allocated(saved: Path) -> None:
    config = make_tokenizer().config.to_dict()
    huge = {**config, "init_dim": 65536, "layers": ["residual"], "decoder_layers": None}
    rewrite(saved, config={**huge, "decoder_init_dim": None})  # 464 GB in one tensor
    with pytest.raises(CheckpointError, match="unknown tensors"):
        load_checkpoint(saved)
    wide = [["fold", 65536], "separable_memory", "separable_memory"]
    rewrite(saved, config={**config, "layers": wide})  # 51 GB
    with pytest.raises(CheckpointError, match=r"has shape \[.*16.*\], expected \[.*65536"):
        load_checkpoint(saved)


def test_changed_weights_are_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-3] ^= 1
    saved.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match their SHA-256"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version 3, this vtok reads up to 2"),
        ({"version": True}, "not a vtok checkpoint"),
        ({"version": -1}, "not a vtok checkpoint"),
        ({"name": ["tiny"]}, "name, weights_sha256, arch, licence and source: expected text"),
        ({"name": "tiny\n"}, "name, weights_sha256, arch, licence and source: expected text"),
        ({"format": "other"}, "not a vtok checkpoint"),
        ({"spam": 1}, "checkpoint fields"),
        ({"config": 3}, "checkpoint fields"),
    ],
)
def test_wrong_fields_are_named(saved: Path, changes: dict, message: str) -> None:
    rewrite(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_unknown_config_key_is_named(saved: Path) -> None:
    config = dataclasses.asdict(make_tokenizer().config)
    rewrite(saved, config={**config, "spam": 1})
    with pytest.raises(CheckpointError, match="unknown config keys: spam"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_dim": 3.5}, "init_dim=3.5: expected a whole number"),
        ({"num_stages": [1]}, r"num_stages=\[1\]: expected a whole number"),
        ({"layers": [[]]}, r"layers=\(\): expected entries"),
        ({"layers": ["residual"]}, "the same compression"),
        ({"lfq_entropy_loss_weight": float("nan")}, "lfq_entropy_loss_weight=nan"),
    ],
)
def test_invalid_configs_are_refused(saved: Path, changes: dict, message: str) -> None:
    rewrite(saved, config={**make_tokenizer().config.to_dict(), **changes})
    with pytest.raises(CheckpointError, match=rf"tiny\.safetensors: .*{message}"):
        load_checkpoint(saved)


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"vtok": "[" * 200_000})
    with pytest.raises(CheckpointError, match="not a vtok checkpoint"):
        read_info(path)


def test_impossible_path_is_an_input_error() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_info("x" * 5000)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64, b"\x00" * 8 + b"{}"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"odd\.safetensors"):
        load_checkpoint(path)


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a vtok checkpoint"):
        read_info(path)
