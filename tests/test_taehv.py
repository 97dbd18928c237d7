"""Imported models of taehv give the latents and frames of its own code.

The golden file was made with taehv by scripts/peers/taehv_parity.py, which also compares the other
published files with it.
"""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vtok.errors import CheckpointError, OptionError, ShapeError, UsageError
from vtok.models.checkpoint import load_checkpoint, save_checkpoint
from vtok.models.taehv import TaehvConfig, TaehvTokenizer, config_of, read_taehv
from vtok.nn.interface import StreamState

ROOT = Path(__file__).parent.parent
PARITY = runpy.run_path(str(ROOT / "scripts" / "peers" / "taehv_parity.py"))
SMALL: dict[str, Any] = {"latent_dim": 6, "encoder_dim": 8, "decoder_dims": (16, 12, 8, 8)}
CONFIGS = {
    "4x8x8": TaehvConfig(**SMALL),
    "4x16x16": TaehvConfig(**SMALL, patch_size=2),
    "8x16x16": TaehvConfig(
        **SMALL, patch_size=2, encoder_strides=(2, 2, 2), decoder_strides=(2, 2, 2)
    ),
    "large": TaehvConfig(**SMALL, patch_size=2, large=True),
}


def make(config: TaehvConfig, seed: int = 0) -> TaehvTokenizer:
    tokenizer = TaehvTokenizer.from_config(config).eval().requires_grad_(False)
    shapes = {key: tuple(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
    tokenizer.load_state_dict(PARITY["random_tensors"](shapes, seed))
    return tokenizer


@pytest.fixture(params=CONFIGS)
def tokenizer(request: pytest.FixtureRequest) -> TaehvTokenizer:
    return make(CONFIGS[request.param])


def random_clip(*shape: int) -> Tensor:
    clip: Tensor = PARITY["random_clip"](shape, 0)
    return clip


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["taew2_2", "taew2_2_super"])
def test_latents_and_frames_equal_the_original(name: str, tmp_path: Path) -> None:
    golden = np.load(ROOT / "tests" / "golden" / "taehv.npz")
    shapes = json.loads(str(golden[f"{name} shapes"]))
    path = tmp_path / "any_name.pth"
    torch.save(PARITY["random_tensors"](shapes, 0), path)
    ours, notes = read_taehv(path)
    clip, frames = torch.from_numpy(golden["clip"]), torch.from_numpy(golden[f"{name} frames"])
    with torch.inference_mode():
        latents = ours.encode_latents(clip)
        mine = ours.decode(latents).clamp(-1, 1) * 0.5 + 0.5
    assert notes == []
    assert_close(latents, torch.from_numpy(golden[f"{name} latents"]), 1e-4)
    assert_close(mine, frames, 1e-4)
    assert frames.std() > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_geometry_follows_the_config(name: str) -> None:
    geometry = make(CONFIGS[name]).geometry
    time, space = geometry.temporal_compression, geometry.spatial_compression
    assert name in ("large", f"{time}x{space}x{space}")
    assert geometry.entries is None


@pytest.mark.parametrize("steps", [1, 4])
def test_clip_in_chunks_equals_whole_clip(tokenizer: TaehvTokenizer, steps: int) -> None:
    count = tokenizer.geometry.temporal_compression
    clip = random_clip(2, 3, 1 + (steps - 1) * count, 32, 48)
    latents = tokenizer.encode_latents(clip)
    assert latents.shape[2] == steps
    frames = tokenizer.decode(latents)
    assert frames.shape == clip.shape
    encoder, decoder = StreamState(), StreamState()
    for first, last in ((0, 1), (1, 3), (3, 4)):
        if last <= steps:
            part = slice(max(0, 1 + (first - 1) * count), 1 + (last - 1) * count)
            here = latents[:, :, first:last]
            assert_close(tokenizer.encode_latents(clip[:, :, part], encoder), here)
            assert_close(tokenizer.decode(here, state=decoder), frames[:, :, part])


def test_later_frames_change_nothing(tokenizer: TaehvTokenizer) -> None:
    count = tokenizer.geometry.temporal_compression
    clip = random_clip(1, 3, 1 + 3 * count, 16, 16)
    latents = tokenizer.encode_latents(clip)
    assert_close(tokenizer.encode_latents(clip[:, :, : 1 + count]), latents[:, :, :2])
    assert_close(tokenizer.decode(latents[:, :, :2]), tokenizer.decode(latents)[:, :, : 1 + count])


def test_lookback_is_enough_and_needed(tokenizer: TaehvTokenizer) -> None:
    tokenizer.double()  # the oldest step changes frames by less than float32 can tell
    lookback, count = tokenizer.geometry.lookback, tokenizer.geometry.temporal_compression
    assert lookback is not None
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 6, lookback + 3, 2, 2, generator=generator, dtype=torch.float64)
    whole = tokenizer.decode(latents)[:, :, -count:]
    enough = tokenizer.decode(latents[:, :, -lookback - 1 :])[:, :, -count:]
    less = tokenizer.decode(latents[:, :, -lookback:])[:, :, -count:]
    assert_close(enough, whole, 1e-13)
    assert (less - whole).abs().max() > 1e-10


def test_any_size_and_length_is_padded(tokenizer: TaehvTokenizer) -> None:
    clip = random_clip(1, 3, 7, 21, 37)
    frames = tokenizer.decode(tokenizer.encode_latents(clip), num_frames=7, size=(21, 37))
    assert frames.shape == clip.shape


def test_there_are_no_codes(tokenizer: TaehvTokenizer) -> None:
    latents = tokenizer.encode_latents(random_clip(1, 3, 1, 16, 16))
    with pytest.raises(ShapeError, match="continuous"):
        tokenizer.to_codes(latents)
    with pytest.raises(ShapeError, match="continuous"):
        tokenizer.decode(torch.zeros(1, 1, 1, 2, 2, dtype=torch.long))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_told_by_shapes(name: str) -> None:
    config = CONFIGS[name]
    with torch.device("meta"):
        state = TaehvTokenizer.from_config(config).state_dict()
    assert config_of({key: tuple(tensor.shape) for key, tensor in state.items()}) == config
    assert TaehvConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_checkpoint_gives_the_same_latents(tokenizer: TaehvTokenizer, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "made.safetensors", tokenizer, "made")
    again, info = load_checkpoint(tmp_path / "made.safetensors")
    assert info.geometry == tokenizer.geometry
    clip = random_clip(1, 3, 5, 16, 16)
    assert torch.equal(again.encode_latents(clip), tokenizer.encode_latents(clip))


def test_unused_doubling_of_time_is_cut(tmp_path: Path) -> None:
    tokenizer = make(CONFIGS["4x8x8"])
    state, name = tokenizer.state_dict(), "decoder.7.conv.weight"
    state[name] = torch.cat((torch.ones_like(state[name]), state[name]))
    save_file({key: t.contiguous() for key, t in state.items()}, tmp_path / "wide.safetensors")
    read, notes = read_taehv(tmp_path / "wide.safetensors")
    latents = tokenizer.encode_latents(random_clip(1, 3, 5, 16, 16))
    assert torch.equal(read.decode(latents), tokenizer.decode(latents))
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latent_dim", 0), ("latent_dim", 10**9), ("latent_dim", True), ("patch_size", 2.0),
        ("encoder_dim", "64"), ("decoder_dims", (8, 8, 8)), ("decoder_dims", (8, 8, 8, 10**6)),
        ("decoder_dims", 8), ("encoder_strides", (2, 2, 3)), ("decoder_strides", (2, 2, 2)),
        ("large", 1),
    ],
)  # fmt: skip
def test_hostile_config_is_refused(field: str, value: object) -> None:
    with pytest.raises(OptionError, match=field if field != "encoder_strides" else "strides"):
        TaehvConfig.from_dict({**SMALL, field: value})


@pytest.mark.parametrize("data", [{}, {**SMALL, "spam": 1}])
def test_config_keys_are_checked(data: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="config keys"):
        TaehvConfig.from_dict(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.0.weight": None}, r"no usable tensor encoder\.0\.weight"),
        ({"encoder.4.conv.0.bias": None}, r"missing tensors: encoder\.4\.conv\.0\.bias"),
        ({"spam": torch.zeros(1)}, "unknown tensors: spam"),
        (
            {"encoder.17.bias": torch.zeros(3)},
            r"17\.bias has shape \[3\] of float32, expected floats \[6\]",
        ),
        ({"encoder.17.bias": torch.full((6,), torch.nan)}, "infinities or NaN"),
        ({"encoder.0.weight": torch.zeros(8)}, "not a file of taehv"),
        ({"decoder.7.conv.weight": torch.zeros(16, 0, 1, 1)}, "not a file of taehv"),
        ({"encoder.7.conv.weight": torch.zeros(8, 64, 1, 1)}, "encoder_strides"),
    ],
)
def test_damaged_files_are_refused(
    change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {**make(CONFIGS["4x8x8"]).state_dict(), **change}
    torch.save({name: t for name, t in state.items() if t is not None}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_taehv(tmp_path / "bad.pth")
    assert "\n" not in str(caught.value)


def test_taeh3_is_refused(tmp_path: Path) -> None:
    state = make(TaehvConfig(**{**SMALL, "latent_dim": 24}, patch_size=2)).state_dict()
    torch.save(state, tmp_path / "taeh3.pth")
    with pytest.raises(CheckpointError, match="taeh3"):
        read_taehv(tmp_path / "taeh3.pth")
