"""Imported models of Open-MAGVIT2, 1X and O2-MAGVIT2 give the codes and frames of their own code.

The golden file was made by scripts/peers/open_magvit2_parity.py, which also compares larger models.
"""

import dataclasses
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

from vtok.errors import CheckpointError, OptionError, ShapeError, UsageError
from vtok.models.open_magvit2 import OpenMagvit2Tokenizer, read_open_magvit2
from vtok.models.open_magvit2_layers import OpenMagvit2Config
from vtok.nn.interface import Stream, Window

ROOT = Path(__file__).parent.parent
GOLDEN = np.load(ROOT / "tests" / "golden" / "open_magvit2.npz")
FOREIGN = runpy.run_path(str(ROOT / "scripts" / "peers" / "foreign.py"))
NAMES = ("image", "1x", "video", "o2")
SMALL = {"channels": 32, "blocks": 1, "bits": 6}
O2 = OpenMagvit2Config("o2", multipliers=(1, 2, 2), time_strides=(2, 2), adaptive=True, **SMALL)


def tensors_of(name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = FOREIGN["random_tensors"](
        json.loads(str(GOLDEN[f"{name} shapes"]))
    )
    return tensors


def write(name: str, tensors: dict[str, Tensor], folder: Path) -> Path:
    """Write a file of the published kind."""
    if name == "o2":
        save_file({**tensors, "quantize.mask": torch.arange(18)}, folder / "model.safetensors")
        return folder / "model.safetensors"
    scalars = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1)}
    package = {"epoch": 1, "global_step": 2, "state_dict": {**tensors, **scalars}, "loops": {}}
    torch.save(package, folder / "model.ckpt")
    return folder / "model.ckpt"


def golden_clip(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[f"{name} clip"]) / 127.5 - 1


@pytest.fixture(scope="module", params=NAMES)
def imported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, OpenMagvit2Tokenizer]:
    path = write(request.param, tensors_of(request.param), tmp_path_factory.mktemp("model"))
    return request.param, read_open_magvit2(path)[0].requires_grad_(False)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def make(config: OpenMagvit2Config) -> OpenMagvit2Tokenizer:
    tokenizer = OpenMagvit2Tokenizer.from_config(config).eval().requires_grad_(False)
    FOREIGN["scramble"](tokenizer)
    return tokenizer


def test_codes_and_frames_equal_the_original(imported: tuple[str, OpenMagvit2Tokenizer]) -> None:
    name, tokenizer = imported
    codes = tokenizer.to_codes(tokenizer.encode_latents(golden_clip(name)))
    assert codes.tolist() == GOLDEN[f"{name} codes"].tolist()
    assert_close(tokenizer.decode(codes), torch.from_numpy(GOLDEN[f"{name} frames"]))


def test_layout_of_a_clip_in_memory_does_not_matter(
    imported: tuple[str, OpenMagvit2Tokenizer],
) -> None:
    name, tokenizer = imported
    clip = golden_clip(name) * 1e-3 + 0.5  # small variances show errors of norms
    latents = tokenizer.encode_latents(clip)
    frames = tokenizer.decode(latents.sign())
    innermost = torch.channels_last_3d
    assert_close(tokenizer.encode_latents(clip.contiguous(memory_format=innermost)), latents)
    values = latents.sign().contiguous(memory_format=innermost)
    assert_close(tokenizer.decode(values), frames)


def test_checkpoint_config_rebuilds_the_same_module(
    imported: tuple[str, OpenMagvit2Tokenizer],
) -> None:
    _, tokenizer = imported
    stored = json.loads(json.dumps(tokenizer.config.to_dict()))
    with torch.device("meta"):
        blank = OpenMagvit2Tokenizer.from_config(OpenMagvit2Config.from_dict(stored))
    shapes = {key: tensor.shape for key, tensor in tokenizer.state_dict().items()}
    assert {key: tensor.shape for key, tensor in blank.state_dict().items()} == shapes
    assert blank.geometry == tokenizer.geometry


def test_geometry_of_the_published_models() -> None:
    levels = (1, 2, 2, 4)
    with torch.device("meta"):
        video = OpenMagvit2Tokenizer(
            OpenMagvit2Config("video", 18, 128, levels, (1, 2, 2), 4, True)
        )
        o2 = OpenMagvit2Tokenizer(
            OpenMagvit2Config("o2", 18, 128, (1, *levels), (1, 1, 2, 2), 4, True)
        )
        one_x = OpenMagvit2Tokenizer(OpenMagvit2Config())
    found = [(x.geometry.temporal_compression, x.geometry.spatial_compression, x.geometry.plan)
             for x in (video, o2, one_x)]  # fmt: skip
    assert found == [(4, 8, Window(17)), (4, 16, Stream(59)), (1, 16, Stream(0))]
    parameters = [sum(p.numel() for p in x.parameters()) for x in (video, o2, one_x)]
    assert parameters == [370_547_349, 379_846_805, 65_490_709]


@pytest.mark.parametrize("steps", [(1,), (2, 1), (1, 3)])
@pytest.mark.parametrize("variant", ["image", "o2"])
def test_chunks_equal_the_whole(variant: str, steps: tuple[int, ...]) -> None:
    strides = {} if variant == "o2" else {"time_strides": (1, 1)}
    tokenizer = make(dataclasses.replace(O2, variant=variant, **strides))
    geometry = tokenizer.geometry
    clip = torch.rand(2, 3, 1 + 4 * geometry.temporal_compression, 12, 8) * 2 - 1
    latents = tokenizer.encode_latents(clip)
    codes = tokenizer.to_codes(latents)
    chunked = FOREIGN["stream"](tokenizer, clip, codes, steps)
    assert_close(chunked[0], latents)
    assert_close(chunked[1], tokenizer.decode(codes))


def test_later_frames_change_neither_latents_nor_frames() -> None:
    tokenizer = make(O2)
    clip = torch.rand(1, 3, 13, 8, 8) * 2 - 1
    latents, shorter = tokenizer.encode_latents(clip), tokenizer.encode_latents(clip[:, :, :9])
    assert_close(shorter, latents[:, :, :3])
    codes = tokenizer.to_codes(latents)
    assert_close(tokenizer.decode(codes[:, :, :3]), tokenizer.decode(codes)[:, :, :9])


def test_frames_depend_on_no_more_steps_than_the_lookback() -> None:
    config = OpenMagvit2Config("o2", multipliers=(1,), time_strides=(), adaptive=True, **SMALL)
    tokenizer, lookback = make(config), config.lookback
    codes = torch.randint(0, 64, (1, 1, lookback + 2, 1, 1))
    other = codes.clone()
    other[:, :, 0] ^= 63
    frames, changed = tokenizer.decode(codes), tokenizer.decode(other)
    assert_close(changed[:, :, -1], frames[:, :, -1], 0.0)
    assert not torch.equal(changed[:, :, 1], frames[:, :, 1])


def test_windows_of_a_batch_are_independent(imported: tuple[str, OpenMagvit2Tokenizer]) -> None:
    name, tokenizer = imported
    clip = torch.cat((golden_clip(name), -golden_clip(name)))
    latents = tokenizer.encode_latents(clip)
    codes = tokenizer.to_codes(latents)
    assert_close(latents[1:], tokenizer.encode_latents(clip[1:]))
    assert_close(tokenizer.decode(codes)[1:], tokenizer.decode(codes[1:]))


def test_sizes_and_lengths_off_the_grid_are_padded_by_repeating() -> None:
    tokenizer = make(O2)
    clip = torch.rand(1, 3, 6, 7, 9) * 2 - 1
    padded = torch.nn.functional.pad(clip, (0, 3, 0, 1, 0, 3), mode="replicate")
    latents = tokenizer.encode_latents(clip)
    assert latents.shape == (1, 6, 3, 2, 3)
    assert torch.equal(latents, tokenizer.encode_latents(padded))
    frames = tokenizer.decode(tokenizer.to_codes(latents), num_frames=6, size=(7, 9))
    assert frames.shape == clip.shape


@pytest.mark.parametrize("variant", ["image", "o2"])
def test_codes_are_sign_bits(variant: str) -> None:
    strides = {} if variant == "o2" else {"time_strides": (1, 1)}
    with torch.device("meta"):
        tokenizer = OpenMagvit2Tokenizer(dataclasses.replace(O2, variant=variant, **strides))
    codes = torch.arange(64).view(1, 1, 4, 4, 4)
    latents = tokenizer.from_codes(codes)
    assert set(latents.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(tokenizer.to_codes(latents * 0.1), codes)
    lowest = latents[0, 5 if variant == "o2" else 0].flatten()
    assert torch.equal(lowest > 0, codes.flatten() % 2 == 1)


@pytest.mark.parametrize(
    "codes",
    [torch.full((1, 1, 1, 1, 1), 64), torch.full((1, 1, 1, 1, 1), -1), torch.zeros(1, 1, 1, 1, 1),
     torch.zeros(1, 2, 1, 1, 1, dtype=torch.int64)],
)  # fmt: skip
def test_invalid_codes_are_refused(codes: Tensor) -> None:
    with torch.device("meta"):
        tokenizer = OpenMagvit2Tokenizer(O2)
    with pytest.raises(ShapeError, match="expected"):
        tokenizer.from_codes(codes)


def test_adaptive_norm_over_one_position_is_refused(
    imported: tuple[str, OpenMagvit2Tokenizer],
) -> None:
    name, tokenizer = imported
    codes = torch.zeros(1, 1, 1, 1, 1, dtype=torch.int64)
    if name in ("image", "video"):  # the original decodes NaN
        with pytest.raises(ShapeError, match="more than one position"):
            tokenizer.decode(codes)
    else:
        assert tokenizer.decode(codes).isfinite().all()


def test_averaged_or_last_weights_can_be_chosen(tmp_path: Path) -> None:
    path = write("1x", tensors_of("1x"), tmp_path)
    (last, notes), (averaged, other) = read_open_magvit2(path), read_open_magvit2(path, ema=True)
    key, stored = "decoder.conv_out.conv.bias", tensors_of("1x")
    assert torch.equal(last.state_dict()[key], stored["decoder.conv_out.bias"])
    assert torch.equal(averaged.state_dict()[key], stored["model_ema.decoderconv_outbias"])
    assert "weights: those of the last training step" in notes
    assert "weights: averaged" in other


def test_files_of_the_o2_trainer_are_read(tmp_path: Path) -> None:
    tensors = tensors_of("o2")
    torch.save({f"module.{key}": tensor for key, tensor in tensors.items()}, tmp_path / "ema.ckpt")
    imported = read_open_magvit2(tmp_path / "ema.ckpt")[0]
    codes = imported.to_codes(imported.encode_latents(golden_clip("o2")))
    assert codes.tolist() == GOLDEN["o2 codes"].tolist()


Damage = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "missing": ("o2", lambda t: t.pop("decoder.conv_last.conv.weight"), "conv_out.conv.weight"),
    "unknown": ("o2", lambda t: t.update({"encoder.extra": torch.zeros(2)}), "encoder.extra"),
    "foreign": ("image", lambda t: t.update({"head.weight": torch.zeros(2)}), "head.weight"),
    "shape": (
        "o2", lambda t: t.update({"decoder.conv_last.conv.bias": torch.zeros(4)}), "has shape",
    ),
    "one number": ("o2", lambda t: t.update({"encoder.conv_last.conv.weight": torch.zeros(())}),
                   "bits"),
    "not finite": ("o2", lambda t: t["decoder.conv_last.conv.bias"].fill_(float("nan")), "NaN"),
    "no averages": ("video", lambda t: t.pop("model_ema.decoderconv_outconv_1bias"), "averaged"),
    "width": ("o2", lambda t: t.update({"encoder.conv_first.conv.weight": torch.zeros(3, 3)}),
              "channels"),
    "not a model": ("image", lambda t: t.clear(), "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    name, change, expected = DAMAGES[damage]
    tensors = tensors_of(name)
    change(tensors)
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_open_magvit2(write(name, tensors, tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("variant", "audio"), ("bits", 25), ("bits", True), ("channels", 48), ("channels", 10**9),
     ("multipliers", ()), ("multipliers", (1, 0, 2)), ("multipliers", (1,) * 99), ("blocks", 0),
     ("time_strides", (2,)), ("time_strides", (2, 3)), ("adaptive", False), ("adaptive", 1)],
)  # fmt: skip
def test_invalid_configs_are_refused(field: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        OpenMagvit2Config.from_dict({**O2.to_dict(), field: value})
    assert caught.value.field == field


def test_config_with_unknown_keys_is_refused() -> None:
    with pytest.raises(UsageError, match="expected"):
        OpenMagvit2Config.from_dict({**O2.to_dict(), "extra": 1})
