"""Imported models of Emu3's vision tokenizer give the codes and frames of its own code.

The golden file was made by scripts/peers/emu3_parity.py, which also compares larger models.
"""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vtok.errors import CheckpointError, InputError, OptionError, ShapeError, UsageError
from vtok.models import emu3
from vtok.models.emu3 import Emu3Tokenizer, nearest_entries, read_emu3
from vtok.models.emu3_layers import Emu3Config

ROOT = Path(__file__).parent.parent
GOLDEN = np.load(ROOT / "tests" / "golden" / "emu3.npz")
FOREIGN = runpy.run_path(str(ROOT / "scripts" / "peers" / "foreign.py"))
CLIP = torch.from_numpy(GOLDEN["clip"]) / 127.5 - 1
CONFIG = Emu3Config(
    entries=50, channels=32, multipliers=(1, 1), blocks=1, attention=(1,), time_halvings=2
)


def tensors_of(name: str) -> dict[str, Tensor]:
    shapes = json.loads(str(GOLDEN[f"{name} shapes"]))
    tensors: dict[str, Tensor] = FOREIGN["random_tensors"](shapes)
    return tensors


def write(tensors: dict[str, Tensor], folder: Path) -> Path:
    """Write a folder of the published kind."""
    norms = [name for name in tensors if name.endswith("running_var")]
    counts = {name.replace("running_var", "num_batches_tracked"): torch.tensor(7) for name in norms}
    save_file({**tensors, **counts}, folder / "model.safetensors")
    return folder


def make(config: Emu3Config) -> Emu3Tokenizer:
    tokenizer = Emu3Tokenizer.from_config(config).eval().requires_grad_(False)
    FOREIGN["scramble"](tokenizer)
    return tokenizer


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["published", "transformers"])
def test_codes_and_frames_equal_the_original(name: str, tmp_path: Path) -> None:
    tokenizer, notes = read_emu3(write(tensors_of(name), tmp_path))
    codes = tokenizer.to_codes(tokenizer.encode_latents(CLIP))
    assert codes.tolist() == GOLDEN[f"{name} codes"].tolist()
    assert_close(tokenizer.decode(codes), torch.from_numpy(GOLDEN[f"{name} frames"]))
    assert notes == ["4 tensors that inference does not use left out"]


def test_tensors_of_a_whole_language_model_are_found(tmp_path: Path) -> None:
    tensors = {f"model.vqmodel.{name}": x for name, x in tensors_of("transformers").items()}
    others = {"lm_head.weight": torch.zeros(2, 2), "model.text_model.norm.weight": torch.zeros(2)}
    tokenizer, notes = read_emu3(write({**tensors, **others}, tmp_path))
    codes = tokenizer.to_codes(tokenizer.encode_latents(CLIP))
    assert codes.tolist() == GOLDEN["transformers codes"].tolist()
    assert notes == ["6 tensors that inference does not use left out"]


def test_geometry_of_the_published_model() -> None:
    with torch.device("meta"):
        tokenizer = Emu3Tokenizer.from_config(Emu3Config.from_dict(Emu3Config().to_dict()))
    geometry = tokenizer.geometry
    compression = (geometry.temporal_compression, geometry.spatial_compression)
    assert (*compression, geometry.entries, geometry.lookback) == (4, 8, 32768, 0)
    assert sum(p.numel() for p in tokenizer.parameters()) == 270_740_287


@pytest.mark.parametrize("steps", [(1,), (2, 1)])
def test_steps_are_independent(steps: tuple[int, ...]) -> None:
    tokenizer, clip = make(CONFIG), torch.rand(2, 3, 13, 8, 6) * 2 - 1
    latents = tokenizer.encode_latents(clip)
    codes = tokenizer.to_codes(latents)
    chunked = FOREIGN["stream"](tokenizer, clip, codes, steps)
    assert_close(chunked[0], latents)
    assert_close(chunked[1], tokenizer.decode(codes))


def test_image_is_a_block_of_four_copies() -> None:
    tokenizer, image = make(CONFIG), torch.rand(1, 3, 1, 8, 6) * 2 - 1
    state = tokenizer.new_state()
    later = torch.cat([tokenizer.encode_latents(x, state) for x in (image, image)], 2)
    assert_close(later[:, :, 1:], later[:, :, :1])
    assert tokenizer.decode(tokenizer.to_codes(later[:, :, :1])).shape == image.shape


def test_layout_of_a_clip_in_memory_does_not_matter() -> None:
    tokenizer, clip = make(CONFIG), torch.rand(1, 3, 5, 8, 6) * 1e-3 + 0.5
    latents, innermost = tokenizer.encode_latents(clip), torch.channels_last_3d
    frames = tokenizer.decode(latents)
    assert_close(tokenizer.encode_latents(clip.contiguous(memory_format=innermost)), latents)
    assert_close(tokenizer.decode(latents.contiguous(memory_format=innermost)), frames)


def test_frames_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, clip = make(CONFIG), torch.rand(2, 3, 5, 8, 6) * 2 - 1
    latents = tokenizer.encode_latents(clip)
    frames = tokenizer.decode(tokenizer.to_codes(latents))
    monkeypatch.setattr(emu3, "BATCH_PIXELS", 2 * 8 * 6)
    assert_close(tokenizer.encode_latents(clip), latents)
    assert_close(tokenizer.decode(tokenizer.to_codes(latents)), frames)


def test_codes_are_the_nearest_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emu3, "MAX_DISTANCES", 100)  # parts of one and of several vectors
    book, latents = torch.randn(40, 4), torch.randn(2, 4, 3, 2, 1)
    codes = nearest_entries(latents, book)
    distances = torch.cdist(latents.movedim(1, -1).reshape(-1, 4).double(), book.double())
    assert torch.equal(codes.flatten(), distances.argmin(1))
    tokenizer = make(CONFIG)
    every = torch.arange(50).view(1, 1, 2, 5, 5)
    assert torch.equal(tokenizer.to_codes(tokenizer.from_codes(every)), every)


def test_sizes_and_lengths_off_the_grid_are_padded_by_repeating() -> None:
    tokenizer, clip = make(CONFIG), torch.rand(1, 3, 4, 7, 5) * 2 - 1
    padded = torch.nn.functional.pad(clip, (0, 1, 0, 1, 0, 1), mode="replicate")
    latents = tokenizer.encode_latents(clip)
    assert torch.equal(latents, tokenizer.encode_latents(padded))
    codes = tokenizer.to_codes(latents)
    assert tokenizer.decode(codes, num_frames=4, size=(7, 5)).shape == clip.shape


@pytest.mark.parametrize("value", [-1, 50])
def test_codes_out_of_range_are_refused(value: int) -> None:
    with torch.device("meta"):
        tokenizer = Emu3Tokenizer.from_config(CONFIG)
    with pytest.raises(ShapeError, match="expected 0 to 49"):
        tokenizer.from_codes(torch.full((1, 1, 1, 1, 1), value))
    with pytest.raises(ShapeError, match="2 stages"):
        tokenizer.to_codes(torch.zeros(1, 4, 1, 1, 1), 2)


Damage = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda t: t.pop("decoder.conv_out.weight"), "missing tensors: decoder.conv_out"),
    "no codebook": (lambda t: t.pop("quantize.embedding.weight"), "codebook.weight is missing"),
    "unknown": (lambda t: t.update({"encoder.extra": torch.zeros(2)}), "encoder.extra"),
    "shape": (lambda t: t.update({"decoder.conv_out.bias": torch.zeros(4)}), "expected floats"),
    "integers": (
        lambda t: t.update({"decoder.conv_out.bias": torch.zeros(3, dtype=torch.int64)}),
        "expected floats",
    ),
    "two latents": (lambda t: t.update({"encoder.conv_out.weight": torch.zeros(8, 64, 3, 3)}),
                    "z_channels"),
    "not finite": (lambda t: t["decoder.conv_out.bias"].fill_(float("inf")), "infinities"),
    "another model": (lambda t: [t.pop(x) for x in list(t) if x != "quant_conv.conv.bias"],
                      "conv_in.weight is missing"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    change, expected = DAMAGES[damage]
    tensors = tensors_of("published")
    change(tensors)
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_emu3(write(tensors, tmp_path))
    assert "\n" not in str(caught.value)


def test_folder_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors"):
        read_emu3(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("entries", 0), ("entries", 10**9), ("latent_dim", 2.0), ("z_channels", 8), ("channels", 33),
     ("channels", 10**6), ("multipliers", (0,)), ("multipliers", (1,) * 9), ("blocks", True),
     ("attention", (2,)), ("attention", 1), ("attention", (0, "1")), ("time_halvings", 9)],
)  # fmt: skip
def test_invalid_configs_are_refused(field: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        Emu3Config.from_dict({**CONFIG.to_dict(), field: value})
    assert caught.value.field == field


def test_config_with_unknown_keys_is_refused() -> None:
    with pytest.raises(UsageError, match="expected"):
        Emu3Config.from_dict({**CONFIG.to_dict(), "extra": 1})
