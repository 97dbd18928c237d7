"""Loading tokenizers: choice of device and type, and values of `model=`."""

import pytest
import torch

from vtok.errors import InputError, UsageError
from vtok.models import load as loading
from vtok.models.load import ModelCache, pick_device, pick_dtype, resolve
from vtok.nn.tokenizer import VideoTokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(("cuda", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_device_prefers_cuda(monkeypatch, cuda: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert pick_device("auto").type == expected


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_is_bfloat16_if_supported(
    monkeypatch, fast: bool, expected: torch.dtype
) -> None:
    for name in loading._BFLOAT16_PROBES:
        monkeypatch.setattr(torch.cpu, name, lambda: fast)
    assert pick_dtype("auto", CPU) == expected
    assert pick_dtype("float16", CPU) == torch.float16


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "meta"])
def test_unusable_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"device={name}: expected one that is usable .*; try cpu"):
        pick_device(name)


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match="dtype=float8: expected auto, float32"):
        pick_dtype("float8", CPU)


def test_code_files_cannot_name_paths() -> None:
    with pytest.raises(InputError, match=r"the model \.\./evil is not shipped"):
        ModelCache().get("../evil")


def test_model_cache_loads_once() -> None:
    models = ModelCache(dtype="float32")
    assert models.get("vtok-base") is models.get("vtok-base")


def test_resolve_takes_names_paths_and_tokenizers() -> None:
    loaded = resolve("vtok-base", dtype="float32")
    assert resolve(loaded) is loaded
    assert resolve(loaded.info.path).info == loaded.info
    tokenizer = VideoTokenizer.from_pretrained("vtok-base").train()
    found = resolve(tokenizer)
    assert (found.info, found.dtype) == (loaded.info, torch.float32)
    assert tokenizer.training
    assert not found.tokenizer.training
    with torch.no_grad():
        next(tokenizer.parameters()).add_(1)
    assert resolve(tokenizer).info.name == "unnamed"
    assert ModelCache(tokenizer).get("../evil").info == resolve(tokenizer).info
