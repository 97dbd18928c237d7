"""Imported models of VidTok give the codes and frames of its own code.

The golden file was made with VidTok by scripts/peers/vidtok_parity.py, which also compares the
published widths and the other geometries.
"""

import json
import runpy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vtok.errors import CheckpointError, InputError, OptionError, ShapeError, UsageError
from vtok.models.checkpoint import load_checkpoint, save_checkpoint
from vtok.models.registry import find_architecture
from vtok.models.vidtok import VidTokConfig, VidTokTokenizer, read_vidtok
from vtok.nn.interface import Stream, Window

ROOT = Path(__file__).parent.parent
PARITY = runpy.run_path(str(ROOT / "scripts" / "peers" / "vidtok_parity.py"))
GOLDEN = np.load(ROOT / "tests" / "golden" / "vidtok.npz")
NAMES = list(PARITY["GOLDEN"])
FSQ_1_0, FSQ_1_1, KL_1_1, NOT_CAUSAL = NAMES
UNTOLD = "model.ckpt"
SMALL: dict[str, Any] = {
    "latent_dim": 4, "width": 8, "multipliers": (1, 2, 2), "blocks": 1,
    "encoder_space": (0, 1), "encoder_time": (0, 1),
    "decoder_space": (1, 2), "decoder_time": (1, 2),
}  # fmt: skip
TWO_FRAMES = {**SMALL, "encoder_time": (1,), "decoder_time": (2,)}
EIGHT_FRAMES = {
    **SMALL, "multipliers": (1, 1, 2, 2), "encoder_space": (0, 1, 2), "encoder_time": (0, 1, 2),
    "decoder_space": (1, 2, 3), "decoder_time": (1, 2, 3),
}  # fmt: skip
STREAMS = {
    "1.0, 4x4x4": VidTokConfig("1.0", **SMALL),
    "1.1, 4x4x4": VidTokConfig("1.1", **SMALL),
    "1.1, 2x4x4": VidTokConfig("1.1", **TWO_FRAMES),
    "1.1, 8x8x8": VidTokConfig("1.1", **EIGHT_FRAMES),
}
WINDOWS = VidTokConfig("1.0", causal=False, **SMALL)


def make(config: VidTokConfig, seed: int = 0) -> VidTokTokenizer:
    tokenizer = VidTokTokenizer.from_config(config).eval().requires_grad_(False)
    shapes = {key: tuple(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
    tokenizer.load_state_dict(PARITY["random_tensors"](shapes, seed))
    return tokenizer


def random_clip(*shape: int, seed: int = 0) -> Tensor:
    clip: Tensor = PARITY["random_clip"](shape, seed)
    return clip


def published(name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = PARITY["random_tensors"](
        json.loads(str(GOLDEN[f"{name} shapes"])), 0
    )
    return tensors


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    PARITY["save"](tensors, path)
    return path


@pytest.fixture(scope="module", params=STREAMS)
def tokenizer(request: pytest.FixtureRequest) -> VidTokTokenizer:
    return make(STREAMS[request.param])


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_codes_and_frames_equal_the_original(name: str, tmp_path: Path) -> None:
    ours, notes = read_vidtok(save(published(name), tmp_path / f"{name}.ckpt"))
    clip = random_clip(*GOLDEN[f"{name} clip"])
    latents, frames = (torch.from_numpy(GOLDEN[f"{name} {x}"]) for x in ("latents", "frames"))
    with torch.inference_mode():
        found = ours.encode_latents(clip)
        if f"{name} codes" in GOLDEN:
            codes = torch.from_numpy(GOLDEN[f"{name} codes"])
            assert torch.equal(ours.to_codes(found)[:, 0], codes)
            assert codes.unique().numel() > 30
            found = ours.from_codes(codes[:, None])
        assert_close(found, latents, 1e-4)
        assert_close(ours.decode(found), frames, 1e-4)
    assert frames.std() > 0.1
    assert notes[-1] == "3 tensors of training left out"


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 3)])
def test_a_stream_equals_the_whole_clip(tokenizer: VidTokTokenizer, sizes: tuple[int, ...]) -> None:
    step, ahead = tokenizer.geometry.temporal_compression, tokenizer.geometry.lookahead
    clip = random_clip(2, 3, 1 + (sum(sizes) - 1) * step, 16, 16)
    latents = tokenizer.encode_latents(clip)
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    state, parts = tokenizer.new_state(), []
    for a, b in pairwise([0, *(1 + (end - 1) * step for end in ends[1:])]):
        parts.append(tokenizer.encode_latents(clip[:, :, a:b], state))
    assert_close(torch.cat(parts, 2), latents)
    state, parts = tokenizer.new_state(), []
    for a, b in pairwise(ends):
        part = latents[:, :, a : b + ahead]
        parts.append(tokenizer.decode(part, state=state, ahead=part.shape[2] - (b - a)))
    whole = tokenizer.decode(latents)
    assert whole.shape == clip.shape
    assert_close(torch.cat(parts, 2), whole)


def test_later_frames_change_no_earlier_result(tokenizer: VidTokTokenizer) -> None:
    step, ahead = tokenizer.geometry.temporal_compression, tokenizer.geometry.lookahead
    clip = random_clip(1, 3, 1 + 3 * step, 16, 16)
    changed = clip.clone()
    changed[:, :, 1 + 2 * step :] = torch.nan
    latents, found = tokenizer.encode_latents(clip), tokenizer.encode_latents(changed)
    assert_close(found[:, :, :3], latents[:, :, :3])
    assert found[:, :, 3].isnan().any()
    whole, part = tokenizer.decode(latents), tokenizer.decode(found)
    unchanged = 1 + (2 - ahead) * step
    assert_close(part[:, :, :unchanged], whole[:, :, :unchanged])
    assert part[:, :, 1 + 2 * step - ahead].isnan().any()


def test_lookback_is_enough_and_needed(tokenizer: VidTokTokenizer) -> None:
    plan, step = tokenizer.geometry.plan, tokenizer.geometry.temporal_compression
    assert isinstance(plan, Stream)
    assert plan.lookback is not None
    changed = 3
    latents = torch.zeros(1, 4, changed + plan.lookback + 3, 1, 1)
    latents[:, :, changed] = torch.nan
    frames = tokenizer.decode(latents)[0, 0].isnan().any(-1).any(-1)
    reached = frames.nonzero().flatten()
    assert (reached.max() - 1) // step + 1 == changed + plan.lookback
    assert (reached.min() - 1) // step + 1 == changed - plan.lookahead


@pytest.mark.parametrize("config", [*STREAMS.values(), WINDOWS], ids=[*STREAMS, "not causal"])
@pytest.mark.parametrize("shape", [(1, 5, 7), (6, 16, 13), (4, 1, 1)])
def test_sizes_off_the_grid_are_padded(config: VidTokConfig, shape: tuple[int, int, int]) -> None:
    tokenizer, clip = make(config), random_clip(1, 3, *shape)
    geometry = tokenizer.geometry
    latents = tokenizer.encode_latents(clip)
    steps = 1 + -(-(shape[0] - 1) // geometry.temporal_compression)
    sides = [-(-side // geometry.spatial_compression) for side in shape[1:]]
    assert latents.shape == (1, 4, steps, *sides)
    frames = tokenizer.decode(latents, num_frames=shape[0], size=(shape[1], shape[2]))
    assert frames.shape == clip.shape
    assert frames.isfinite().all()


def test_windows_of_a_model_that_is_not_causal() -> None:
    tokenizer = make(WINDOWS)
    assert tokenizer.geometry.plan == Window(13)
    clip = random_clip(1, 3, 13, 8, 8)
    latents, state = tokenizer.encode_latents(clip), tokenizer.new_state()
    assert latents.shape[2] == 4
    assert torch.equal(tokenizer.encode_latents(clip, state), latents)
    with pytest.raises(ShapeError, match="new state for each window"):
        tokenizer.encode_latents(clip, state)


@pytest.mark.parametrize(("steps", "ahead"), [(1, 1), (3, 2), (3, -1)])
def test_steps_ahead_out_of_range(steps: int, ahead: int) -> None:
    with pytest.raises(ShapeError, match="ahead"):
        make(STREAMS["1.1, 4x4x4"]).decode(torch.zeros(1, 4, steps, 2, 2), ahead=ahead)


def test_discrete_and_continuous_models(tmp_path: Path) -> None:
    fsq, _ = read_vidtok(save(published(FSQ_1_1), tmp_path / f"{FSQ_1_1}.ckpt"))
    assert (fsq.geometry.entries, fsq.geometry.latent_dim) == (32768, 5)
    with pytest.raises(ShapeError, match="2 stages"):
        fsq.to_codes(torch.zeros(1, 5, 1, 2, 2), 2)
    kl, _ = read_vidtok(save(published(KL_1_1), tmp_path / f"{KL_1_1}.ckpt"))
    assert (kl.geometry.entries, kl.geometry.latent_dim) == (None, 3)
    with pytest.raises(ShapeError, match="continuous"):
        kl.to_codes(torch.zeros(1, 3, 1, 2, 2))


def test_published_width_has_the_published_parameters() -> None:
    with torch.device("meta"):
        tokenizer = VidTokTokenizer(VidTokConfig("1.0", latent_dim=5, fsq_levels=(8,) * 5))
    assert sum(tensor.numel() for tensor in tokenizer.parameters()) == 157_424_012
    geometry = tokenizer.geometry
    assert (geometry.temporal_compression, geometry.spatial_compression) == (4, 8)
    assert (geometry.entries, geometry.plan) == (32768, Stream(45))


def test_config_survives_json() -> None:
    for config in (*STREAMS.values(), WINDOWS):
        stored = json.loads(json.dumps(config.to_dict()))
        assert VidTokConfig.from_dict(stored) == config
        assert find_architecture("vidtok").build(stored).config == config


def test_checkpoint_gives_the_same_codes(tmp_path: Path) -> None:
    ours, _ = read_vidtok(save(published(FSQ_1_1), tmp_path / f"{FSQ_1_1}.ckpt"))
    save_checkpoint(tmp_path / "made.safetensors", ours, "made")
    loaded, info = load_checkpoint(tmp_path / "made.safetensors")
    assert (info.arch, loaded.geometry) == ("vidtok", ours.geometry)
    clip = random_clip(1, 3, 5, 8, 8)
    found, expected = (one.to_codes(one.encode_latents(clip)) for one in (loaded, ours))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": "2.0"}, "version"),
        ({"version": "1.1", "causal": False}, "version"),
        ({"causal": 1}, "causal"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"latent_dim": 10**9}, "latent_dim"),
        ({"width": True}, "width"),
        ({"width": 10**6}, "width"),
        ({"blocks": 1000}, "blocks"),
        ({"multipliers": [1] * 100}, "multipliers"),
        ({"multipliers": []}, "multipliers"),
        ({"multipliers": [1, 2, 10**8]}, "multipliers"),
        ({"multipliers": "122"}, "multipliers"),
        ({"fsq_levels": [8, 8]}, "fsq_levels"),
        ({"fsq_levels": [10**4] * 4}, "fsq_levels"),
        ({"fsq_levels": [8, 8, 8, 1]}, "fsq_levels"),
        ({"encoder_space": [0, 3]}, "encoder_space"),
        ({"encoder_space": [1, 0]}, "encoder_space"),
        ({"encoder_time": [2]}, "encoder_time"),
        ({"decoder_time": [1]}, "decoder_time"),
        ({"decoder_space": [0, 1, 2]}, "decoder_space"),
    ],
)
def test_invalid_config(change: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError) as caught:
        VidTokConfig.from_dict({**STREAMS["1.0, 4x4x4"].to_dict(), **change})
    assert caught.value.field == field
    assert len(str(caught.value)) < 300


def test_config_with_other_keys() -> None:
    with pytest.raises(UsageError, match="depth"):
        VidTokConfig.from_dict({**WINDOWS.to_dict(), "depth": 3})


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("vidtok_fsq_causal_488_4096.ckpt", "1.0"),
        ("vidtok_kl_causal_288_8chn.ckpt", "1.0"),
        ("vidtok_fsq_causal_488_32768_v1_1.ckpt", "1.1"),
        ("copy of v1.1.ckpt", "1.1"),
    ],
)
def test_version_from_the_name_of_the_file(name: str, version: str, tmp_path: Path) -> None:
    ours, notes = read_vidtok(save(published(FSQ_1_0), tmp_path / name))
    assert (ours.config.version, notes[0]) == (version, f"version {version}, causal")


def write_yaml(path: Path, module: str, *lines: str) -> Path:
    text = ["encoder_config:", f"  target: vidtok.modules.{module}.EncoderCausal3DPadding"]
    path.write_text("\n".join([*text, *(f"    {line}  # comment" for line in lines)]))
    return path


def test_version_from_configuration_option_or_file(tmp_path: Path) -> None:
    tensors = published(FSQ_1_0)
    path = save(tensors, tmp_path / UNTOLD)
    with pytest.raises(UsageError, match=r"model\.ckpt: pass `version` 1\.0 or 1\.1, or `config`"):
        read_vidtok(path)
    assert read_vidtok(path, version="1.0")[0].config.version == "1.0"
    with pytest.raises(OptionError, match="expected"):
        read_vidtok(path, version="1.2")
    old = write_yaml(tmp_path / "a.yaml", "model_3dcausal", "levels: [8, 4, 8, 2]")
    new = write_yaml(tmp_path / "b.yaml", "model_3dcausal_v1_1", "interpolation_mode: trilinear")
    found = read_vidtok(path, config=old)[0].config
    assert (found.version, found.fsq_levels) == ("1.0", (8, 4, 8, 2))
    assert read_vidtok(path, config=new)[0].config.version == "1.1"
    hyper = {"encoder": {"target": "vidtok.modules.model_3dcausal_v1_1.EncoderCausal3DPadding"}}
    torch.save({"state_dict": tensors, "hyper_parameters": hyper}, path)
    assert read_vidtok(path)[0].config.version == "1.1"


def test_other_files_of_the_same_tensors(tmp_path: Path) -> None:
    tensors = published(NOT_CAUSAL)
    save_file(tensors, tmp_path / "any.safetensors")
    torch.save(tensors, tmp_path / "any.pt")
    for name in ("any.safetensors", "any.pt"):
        ours, notes = read_vidtok(tmp_path / name)
        assert not ours.config.causal
        assert notes[0] == "not causal"


@pytest.mark.parametrize(
    ("module", "line", "match"),
    [
        ("model_3dcausal", "norm_type: groupnorm", "norm_type is groupnorm"),
        ("model_3dcausal", "init_pad_mode: constant", "init_pad_mode is constant"),
        ("model_3dcausal_v1_1", "ch: 128", "interpolation_mode is nearest"),
        ("other", "ch: 128", "names no encoder"),
        ("model_3dcausal", "levels: [8, 8]", "fsq_levels"),
    ],
)
def test_unsupported_configuration(module: str, line: str, match: str, tmp_path: Path) -> None:
    path = save(published(FSQ_1_0), tmp_path / UNTOLD)
    with pytest.raises(CheckpointError, match=match):
        read_vidtok(path, config=write_yaml(tmp_path / "x.yaml", module, line))


def test_missing_files(tmp_path: Path) -> None:
    path = save(published(NOT_CAUSAL), tmp_path / UNTOLD)
    with pytest.raises(InputError, match="cannot be read"):
        read_vidtok(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="cannot be read"):
        read_vidtok(path, config=tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a YAML file"):
        read_vidtok(path, config=tmp_path / "binary.yaml")


def without(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.pop(name)


def with_tensor(name: str, *shape: int) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


IN, OUT = "encoder.conv_in.conv", "encoder.conv_out.conv"
BAD: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "empty": (dict.clear, "not a VidTok checkpoint"),
    "no first layer": (without(f"{IN}.bias"), "not a VidTok checkpoint"),
    "missing": (without("decoder.mid.attn_1.q.conv.weight"), "missing tensors.*attn_1.q.weight"),
    "unknown": (with_tensor("encoder.down.0.attn.0.q.weight", 8, 8), "unknown tensors.*attn.0.q"),
    "many resolutions": (with_tensor("encoder.down.99.block.0.conv1.bias", 8), "missing tensors"),
    "huge number": (
        with_tensor(f"encoder.down.{'9' * 200}.block.0.conv1.bias", 8),
        "unknown tensors",
    ),
    "shape": (with_tensor(f"{OUT}.weight", 4, 16, 3, 3, 1), r"conv_out.weight has shape"),
    "flat": (with_tensor("decoder.conv_in.conv.weight", 16), "not a VidTok checkpoint"),
    "scalar": (with_tensor(f"{IN}.bias"), "not a VidTok checkpoint"),
    "no width": (with_tensor(f"{IN}.bias", 0), "not a VidTok checkpoint"),
    "odd width": (with_tensor(f"{IN}.bias", 7), "not a VidTok checkpoint"),
    "latents": (with_tensor(f"{OUT}.bias", 7), "not a VidTok checkpoint"),
    "not a number": (
        lambda tensors: tensors[f"{IN}.bias"].fill_(torch.nan),
        "holds infinities or NaN",
    ),
    "two kinds": (with_tensor("encoder.conv_in.weight", 8, 3, 3, 3, 3), "in one file"),
    "projection": (with_tensor("regularization.project_in.weight", 4, 8), "not supported"),
}


@pytest.mark.parametrize("kind", BAD)
def test_files_that_are_refused(kind: str, tmp_path: Path) -> None:
    change, match = BAD[kind]
    tensors = published(FSQ_1_0)
    change(tensors)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_vidtok(save(tensors, tmp_path / UNTOLD), version="1.0")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700 + len(str(tmp_path))
