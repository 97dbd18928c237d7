"""Imported Cosmos tokenizers give the codes, latents and frames of NVIDIA's own code.

The golden file was made with that code by scripts/peers/cosmos_parity.py, which also compares the
other kinds of checkpoints with it.
"""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vtok.errors import CheckpointError, InputError, OptionError, ShapeError, UsageError
from vtok.models.cosmos import CosmosConfig, CosmosTokenizer, read_cosmos
from vtok.models.cosmos_layers import LEAST_PIXELS, FrameNorm, Haar, TimeConv
from vtok.nn.interface import Stream, StreamState, Window
from vtok.nn.layers import Context

ROOT = Path(__file__).parent.parent
PARITY = runpy.run_path(str(ROOT / "scripts" / "peers" / "cosmos_parity.py"))
SMALL = {"channels": 4, "encoder_widths": (8, 12, 12), "decoder_widths": (8, 12, 12)}
CONFIGS = {
    "DV8x8x8": CosmosConfig(**SMALL),
    "DV8x16x16": CosmosConfig(**SMALL, spatial_compression=16),
    "DV4x8x8": CosmosConfig(**SMALL, temporal_compression=4),
    "DV4x8x8 of 360p": CosmosConfig(**SMALL, temporal_compression=4, patch_size=2, z_channels=20),
    "CV4x8x8": CosmosConfig(
        **{**SMALL, "decoder_widths": (8, 12)}, temporal_compression=4, levels=(), latent_dim=16
    ),
}


def make(config: CosmosConfig) -> CosmosTokenizer:
    tokenizer = CosmosTokenizer.from_config(config).eval().requires_grad_(False)
    shapes = {key: tuple(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
    tokenizer.load_state_dict(PARITY["random_tensors"](shapes, 0))
    return tokenizer


@pytest.fixture(params=CONFIGS)
def tokenizer(request: pytest.FixtureRequest) -> CosmosTokenizer:
    return make(CONFIGS[request.param])


def random_clip(*shape: int) -> Tensor:
    clip: Tensor = PARITY["random_clip"](shape, 0)
    return clip


def random_latents(dim: int, *shape: int) -> Tensor:
    return torch.randn(1, dim, *shape, generator=torch.Generator().manual_seed(0))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def published(tokenizer: CosmosTokenizer) -> dict[str, Tensor]:
    """Tensors by the names of the published files."""
    names = {key: key.replace(".conv.", ".conv3d.") for key in tokenizer.state_dict()}
    for key in names:
        parts = names[key].split(".")
        if parts[-2].startswith("norm"):
            names[key] = ".".join((*parts[:-1], "norm", parts[-1]))
    return {names[key]: tensor for key, tensor in tokenizer.state_dict().items()}


def with_unused_layers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the resampling layers that the first version of the original always builds."""
    added = {}
    for side, sample in (("encoder.down", "downsample"), ("decoder.up", "upsample")):
        for number in range(3):
            if f"{side}.{number}.block.0.norm1.norm.weight" in tensors:
                for layer in ("conv1", "conv2", "conv3"):
                    added[f"{side}.{number}.{sample}.{layer}.conv3d.weight"] = torch.ones(1)
    return {**added, **tensors}


def save(tensors: dict[str, Tensor], folder: Path, name: str = "any") -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


@pytest.mark.parametrize("name", PARITY["GOLDEN"])
def test_codes_and_frames_equal_the_original(name: str, tmp_path: Path) -> None:
    golden, case = np.load(ROOT / "tests" / "golden" / "cosmos.npz"), PARITY["CASES"][name]
    tensors = PARITY["random_tensors"](json.loads(str(golden[f"{case.name} shapes"])), 0)
    ours, _ = read_cosmos(save(tensors, tmp_path / case.name))
    latents, codes, frames = (
        torch.from_numpy(golden[f"{case.name} {what}"]) for what in ("latents", "codes", "frames")
    )
    with torch.inference_mode():
        found = ours.encode_latents(random_clip(*frames.shape))
        assert_close(found, latents)
        assert_close(ours.decode(codes), frames)
        if case.kind == "DV":
            assert torch.equal(ours.to_codes(found), codes)
    assert frames.std() > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_geometry_follows_the_config(name: str) -> None:
    tokenizer = make(CONFIGS[name])
    geometry, compression = tokenizer.geometry, tokenizer.config.compression
    assert compression in name
    assert geometry.plan == Window(17)
    assert geometry.entries == (64000 if name.startswith("DV") else None)
    assert geometry.codebook_size == (65536 if name.startswith("DV") else 0)
    clip = random_clip(1, 3, 1 + geometry.temporal_compression, 32, 48)
    steps = (2, 32 // geometry.spatial_compression, 48 // geometry.spatial_compression)
    latents = tokenizer.encode_latents(clip)
    assert latents.shape[2:] == steps
    assert tokenizer.decode(latents).shape == clip.shape


def test_clip_in_chunks_equals_whole_clip(tokenizer: CosmosTokenizer) -> None:
    count = tokenizer.geometry.temporal_compression
    clip = random_clip(2, 3, 1 + 4 * count, 16, 32)
    latents = tokenizer.encode_latents(clip)
    frames = tokenizer.decode(latents)
    encoder, decoder = StreamState(), StreamState()
    for first, last in ((0, 1), (1, 3), (3, 4), (4, 5)):
        part = slice(max(0, 1 + (first - 1) * count), 1 + (last - 1) * count)
        here = latents[:, :, first:last]
        assert_close(tokenizer.encode_latents(clip[:, :, part], encoder), here)
        assert_close(tokenizer.decode(here, state=decoder), frames[:, :, part])


def test_later_frames_change_nothing_and_earlier_ones_do(tokenizer: CosmosTokenizer) -> None:
    count = tokenizer.geometry.temporal_compression
    clip = random_clip(1, 3, 1 + 3 * count, 16, 16)
    latents = tokenizer.encode_latents(clip)
    assert_close(tokenizer.encode_latents(clip[:, :, : 1 + count]), latents[:, :, :2])
    assert_close(tokenizer.decode(latents[:, :, :2]), tokenizer.decode(latents)[:, :, : 1 + count])
    changed = torch.cat((-clip[:, :, :1], clip[:, :, 1:]), 2)
    assert (tokenizer.encode_latents(changed) - latents)[:, :, -1].abs().max() > 1e-3


def test_any_size_and_length_is_padded(tokenizer: CosmosTokenizer) -> None:
    clip = random_clip(1, 3, 7, 21, 37)
    frames = tokenizer.decode(tokenizer.encode_latents(clip), num_frames=7, size=(21, 37))
    assert frames.shape == clip.shape


def test_clips_of_a_batch_are_independent(tokenizer: CosmosTokenizer) -> None:
    clip = random_clip(2, 3, 9, 16, 16)
    latents = tokenizer.encode_latents(clip)
    for number in range(2):
        alone = tokenizer.encode_latents(clip[number : number + 1])
        assert_close(alone, latents[number : number + 1])


def test_codes_decode_like_their_quantized_latents() -> None:
    tokenizer = make(CONFIGS["DV8x8x8"])
    latents = random_latents(6, 2, 2, 3)
    codes = tokenizer.to_codes(latents)
    quantized = tokenizer.quantize(latents)
    assert_close(tokenizer.decode(codes), tokenizer.decode(quantized))
    with pytest.raises(ShapeError, match="2 stages"):
        tokenizer.to_codes(latents, 2)
    with pytest.raises(ShapeError, match="63999"):
        tokenizer.decode(codes + 64000)


def test_continuous_tokenizer_has_no_codes() -> None:
    tokenizer = make(CONFIGS["CV4x8x8"])
    with pytest.raises(ShapeError, match="continuous"):
        tokenizer.to_codes(random_latents(16, 1, 2, 2))
    with pytest.raises(ShapeError, match="continuous"):
        tokenizer.decode(torch.zeros(1, 1, 1, 2, 2, dtype=torch.long))


@pytest.mark.parametrize("patch_size", [2, 4])
def test_wavelets_are_inverted_and_the_first_band_is_the_mean(patch_size: int) -> None:
    haar, clip = Haar(patch_size), random_clip(1, 3, 8, 12, 16)
    bands = haar(clip)
    assert_close(haar.inverse(bands), clip, 1e-5)
    assert_close(bands[:, :3], torch.nn.functional.avg_pool3d(clip, patch_size), 1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_norm_is_accurate_if_the_mean_is_large(layout: torch.memory_format) -> None:
    norm, x = FrameNorm(16), (random_clip(2, 16, 3, 20, 30) + 100).contiguous(memory_format=layout)
    with torch.no_grad():
        found = norm(x)
        for clip in range(2):
            for frame in range(3):
                exact = x[clip, :, frame].double()
                exact = (exact - exact.mean()) / exact.std(correction=0)
                assert_close(found[clip, :, frame].double(), exact)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("width", [2, LEAST_PIXELS])
def test_time_is_padded_with_copies_of_the_first_frame(frames: int, width: int) -> None:
    layer, x = TimeConv(3, 5), random_clip(2, 3, frames, 1, width)
    padded = torch.cat((x[:, :, :1], x[:, :, :1], x), 2)
    with torch.no_grad():
        assert_close(layer(x, Context()), layer.conv(padded), 1e-6)


def test_half_precision_is_close(tokenizer: CosmosTokenizer) -> None:
    clip = random_clip(1, 3, 9, 32, 32)
    latents = tokenizer.encode_latents(clip)
    frames = tokenizer.decode(latents)
    tokenizer.bfloat16()
    assert tokenizer.encode_latents(clip).dtype == torch.bfloat16
    assert (tokenizer.encode_latents(clip) - latents).std() < 0.05 * latents.std()
    assert (tokenizer.decode(latents) - frames).std() < 0.05 * frames.std()


def test_gradients_reach_all_weights() -> None:
    tokenizer = make(CONFIGS["DV8x16x16"]).requires_grad_()
    tokenizer.decode(tokenizer.encode_latents(random_clip(1, 3, 17, 32, 32))).sum().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_told_by_the_file(name: str, unused: bool, tmp_path: Path) -> None:
    config, tensors = CONFIGS[name], published(make(CONFIGS[name]))
    file = save(with_unused_layers(tensors) if unused else tensors, tmp_path / f"The-{name}-file")
    read, notes = read_cosmos(file)
    assert read.config == config
    assert CosmosConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert len(notes) == unused


def test_compression_is_asked_for_if_the_file_fits_several(tmp_path: Path) -> None:
    tensors = published(make(CONFIGS["DV8x16x16"]))
    file = save(with_unused_layers(tensors), tmp_path / "weights")
    with pytest.raises(OptionError, match=r"compression=None: expected .* such as 8x8x8"):
        read_cosmos(file)
    assert read_cosmos(file, compression="8x16x16")[0].config == CONFIGS["DV8x16x16"]
    cached = tmp_path / "models--nvidia--Cosmos-0.1-Tokenizer-DV8x16x16" / "snapshots" / "a1b2c3"
    cached.mkdir(parents=True)
    save(with_unused_layers(tensors), cached, "model")
    for path in (cached, cached / "model.safetensors"):
        assert read_cosmos(path)[0].config == CONFIGS["DV8x16x16"]
    with pytest.raises(OptionError, match="expected 8x16x16, as in the file"):
        read_cosmos(save(tensors, tmp_path), compression="8x8x8")


def test_window_is_chosen_at_import(tmp_path: Path) -> None:
    file = save(published(make(CONFIGS["DV8x8x8"])), tmp_path)
    assert read_cosmos(file, window=49)[0].geometry.plan == Window(49)
    streamed, notes = read_cosmos(file, window=0)
    assert streamed.geometry.plan == Stream(None)
    assert notes == ["a stream: trained on at most 121 frames, quality may suffer"]
    with pytest.raises(OptionError, match="window=16: expected 0, or 1"):
        read_cosmos(file, window=16)


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    tokenizer = make(CONFIGS["DV4x8x8"])
    tensors = published(tokenizer)
    state = {f"network.{name}": tensor + 1 for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        state[f"ema.network-{name.replace('.', '-')}"] = tensor
    torch.save({"model": state, "iteration": 7}, tmp_path / "model.pt")
    read, notes = read_cosmos(tmp_path)
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, tokenizer.state_dict()[name])
    assert "average" in notes[0]


def test_folder_with_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    tensors = published(make(CONFIGS["DV8x8x8"]))
    levels = {"quantizer._levels": torch.tensor((4, 4, 4, 4, 4, 4))}
    first = {name: t for name, t in tensors.items() if name.startswith(("encoder", "quant"))}
    torch.save({**first, **levels}, tmp_path / "encoder.jit")
    with pytest.raises(InputError, match="nothing to import"):
        read_cosmos(tmp_path)
    with pytest.raises(InputError, match=r"decoder\.jit"):
        read_cosmos(tmp_path / "encoder.jit")
    second = {name: t for name, t in tensors.items() if name not in first}
    torch.save(second, tmp_path / "decoder.jit")
    for path in (tmp_path, tmp_path / "encoder.jit", tmp_path / "decoder.jit"):
        assert read_cosmos(path)[0].geometry.entries == 4**6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("latent_dim", 0), ("latent_dim", "6"), ("z_channels", 10**9), ("channels", True),
        ("patch_size", 3), ("patch_size", 4.0), ("num_res_blocks", 10**6), ("num_res_blocks", None),
        ("encoder_widths", ()), ("encoder_widths", (8,) * 99), ("encoder_widths", (8, "8", 8)),
        ("decoder_widths", 8), ("decoder_widths", (8,)), ("levels", (8, 8, 8, 5, 5, 1)),
        ("levels", (10**4,) * 6), ("levels", (8, 8)), ("temporal_compression", 2),
        ("temporal_compression", 64), ("spatial_compression", 12), ("window", 16),
        ("window", -1), ("window", 1 + 10**9), ("spam", 1),
    ],
)  # fmt: skip
def test_hostile_config_is_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        CosmosConfig.from_dict({**SMALL, field: value})


CONV_IN, QUANT_CONV = "encoder.conv_in.0.conv3d.weight", "quant_conv.conv3d.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({CONV_IN: None}, "conv_in.* is missing"),
        ({CONV_IN: torch.zeros(4, 12, 1, 3, 3)}, "has 12 inputs"),
        ({CONV_IN: torch.zeros(4)}, "five dimensions"),
        ({QUANT_CONV: None}, "quant_conv.* is missing"),
        ({QUANT_CONV: torch.zeros(0, 16, 1, 1, 1)}, "latent_dim"),
        ({"decoder.norm_out.norm.bias": None}, r"missing tensors: decoder\.norm_out"),
        ({"decoder.norm_out.norm.bias": torch.zeros(3)}, r"\[3\].* expected floats \[8\]"),
        ({"decoder.norm_out.norm.bias": torch.zeros(8).int()}, "int32"),
        ({"decoder.norm_out.norm.bias": torch.full((8,), torch.nan)}, "infinities or NaN"),
        ({"decoder.spam": torch.zeros(1)}, "unknown tensors: decoder.spam"),
        ({"quantizer._levels": torch.tensor([8, 8])}, "levels"),
        ({"quantizer._levels": torch.tensor([8, 8, 8, 5, 5, -5])}, "levels"),
        ({"encoder.patcher3d.wavelets": torch.ones(2)}, "not of the Haar transform"),
    ],
)
def test_damaged_files_are_refused(
    change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {**published(make(CONFIGS["DV8x8x8"])), **change}
    file = save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_cosmos(file)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_published_sizes() -> None:
    for config, millions in (
        (CosmosConfig(temporal_compression=4), 104.7),
        (CosmosConfig(), 105.7),
        (CosmosConfig(spatial_compression=16), 110.9),
    ):
        with torch.device("meta"):
            tokenizer = CosmosTokenizer.from_config(config)
        count = sum(parameter.numel() for parameter in tokenizer.parameters())
        assert round(count / 1e6, 1) == millions
