"""The adapter of diffusers gives the latents and frames of its classes, and loads nothing else."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vtok.errors import CheckpointError, InputError, OptionError, UsageError
from vtok.models.checkpoint import load_checkpoint, save_checkpoint
from vtok.models.diffusers_vae import DiffusersConfig, DiffusersTokenizer, read_diffusers
from vtok.nn.interface import Window

FOUR = (4, 4, 4, 4)
TINY: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {  # class, arguments, compression
    "Wan 2.1": (
        "AutoencoderKLWan",
        {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        (4, 8),
    ),
    "Wan 2.2": (
        "AutoencoderKLWan",
        {
            "base_dim": 4, "decoder_base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1, "is_residual": True, "in_channels": 12, "out_channels": 12,
            "patch_size": 2, "scale_factor_spatial": 16,
        },
        (4, 16),
    ),
    "CogVideoX": (
        "AutoencoderKLCogVideoX",
        {
            "block_out_channels": FOUR, "latent_channels": 4, "layers_per_block": 1,
            "norm_num_groups": 2,
        },
        (4, 8),
    ),
    "LTX-Video": (
        "AutoencoderKLLTXVideo",
        {
            "latent_channels": 8, "block_out_channels": FOUR, "decoder_block_out_channels": FOUR,
            "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5, "patch_size": 2,
        },
        (8, 16),
    ),
    "HunyuanVideo": (
        "AutoencoderKLHunyuanVideo",
        {
            "latent_channels": 4, "block_out_channels": FOUR, "layers_per_block": 1,
            "norm_num_groups": 4,
        },
        (4, 8),
    ),
}  # fmt: skip
PLAIN = {"class_name": "AutoencoderKLWan", "library": "0.42.1", "arguments": {}, "window": 17}


def save_tiny(name: str, folder: Path, **changes: Any) -> Any:
    """Save an autoencoder with random weights as diffusers does, and return it."""
    diffusers = pytest.importorskip("diffusers")
    kind, arguments, _ = TINY[name]
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**{**arguments, **changes}).eval()
    model.save_pretrained(folder)
    return model


def random_clip(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_adapter_equals_the_class(name: str, tmp_path: Path) -> None:
    original = save_tiny(name, tmp_path / "vae")
    tokenizer, notes = read_diffusers(tmp_path)
    geometry, (time, space) = tokenizer.geometry, TINY[name][2]
    assert (geometry.temporal_compression, geometry.spatial_compression) == (time, space)
    assert geometry.plan == Window(17)
    assert geometry.entries is None
    assert "normalized" in notes[0]
    clip = random_clip(1, 3, 17, 2 * space, space)
    with torch.inference_mode():
        latents = tokenizer.encode_latents(clip)
        assert torch.equal(latents, original.encode(clip).latent_dist.mode())
        assert latents.shape == (1, geometry.latent_dim, 1 + 16 // time, 2, 1)
        frames = tokenizer.decode(latents)
        assert torch.equal(frames, original.decode(latents).sample)
        assert frames.shape == clip.shape
        image = tokenizer.decode(tokenizer.encode_latents(clip[:, :, :1]))
        assert image.shape == clip[:, :, :1].shape


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_config_rebuilds_the_module(name: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path)
    tokenizer, _ = read_diffusers(tmp_path, window=25)
    stored = json.loads(json.dumps(tokenizer.config.to_dict()))
    config = DiffusersConfig.from_dict(stored)
    assert config == tokenizer.config
    with torch.device("meta"):
        blank = DiffusersTokenizer.from_config(config)
    assert blank.geometry == tokenizer.geometry
    shapes = {key: tensor.shape for key, tensor in tokenizer.state_dict().items()}
    assert {key: tensor.shape for key, tensor in blank.state_dict().items()} == shapes
    save_checkpoint(tmp_path / "vae.safetensors", tokenizer, "vae")
    again, info = load_checkpoint(tmp_path / "vae.safetensors")
    assert info.geometry == tokenizer.geometry
    clip = random_clip(1, 3, 9, 16, 16)
    with torch.inference_mode():
        assert torch.equal(again.encode_latents(clip), tokenizer.encode_latents(clip))


@pytest.mark.slow
def test_conditioned_decoder_gets_time_step_zero(tmp_path: Path) -> None:
    original = save_tiny("LTX-Video", tmp_path, timestep_conditioning=True)
    tokenizer, _ = read_diffusers(tmp_path)
    latents = torch.randn(2, 8, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = original.decode(latents, torch.zeros(2)).sample
        assert torch.equal(tokenizer.decode(latents), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "window", "expected"),
    [("Wan 2.1", 16, r"1 \+ n \* 4"), ("CogVideoX", 13, r"1 \+ n \* 8")],
)
def test_windows_must_fit_the_class(name: str, window: int, expected: str, tmp_path: Path) -> None:
    save_tiny(name, tmp_path)
    with pytest.raises(OptionError, match=expected):
        read_diffusers(tmp_path, window=window)


@pytest.mark.slow
def test_other_weights_and_versions_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny("Wan 2.1", tmp_path)
    tokenizer, _ = read_diffusers(tmp_path)
    stored = tokenizer.config.to_dict()
    old = DiffusersConfig.from_dict({**stored, "library": "0.1"})
    with pytest.raises(UsageError, match=r"made with diffusers 0\.1"):
        DiffusersTokenizer.from_config(old)
    for changes, message in (({"spam": 1}, "no argument spam"), ({"dim_mult": 4}, "refuses its")):
        arguments = {**stored["arguments"], **changes}
        config = DiffusersConfig.from_dict({**stored, "arguments": arguments})
        with pytest.raises(UsageError, match=message):
            DiffusersTokenizer.from_config(config)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["quant_conv.bias"]
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"missing_keys: quant_conv\.bias"):
        read_diffusers(tmp_path)
    weights.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot read") as caught:
        read_diffusers(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_random_decoders_are_refused(tmp_path: Path) -> None:
    save_tiny("LTX-Video", tmp_path, decoder_inject_noise=[True, False, False, False, False])
    with pytest.raises(UsageError, match="decoder_inject_noise"):
        read_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"_class_name": "AutoencoderKLCosmos"}', "import the published files as cosmos"),
        ('{"_class_name": "AutoencoderVidTok"}', "import the published files as vidtok"),
        ('{"_class_name": "UNet2DModel"}', "expected one of AutoencoderKLWan"),
        ('{"_class_name": ["AutoencoderKLWan"]}', "expected one of AutoencoderKLWan"),
        ("{}", "names no class"),
        ("[]", "names no class"),
        ("[" * 100_000, "names no class"),
        (" " * (2 << 20), "larger than"),
    ],
)
def test_other_folders_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_diffusers(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder of diffusers with config\.json"):
        read_diffusers(tmp_path / "missing")


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"pip install 'vtok\[diffusers\]'"):
        DiffusersTokenizer.from_config(DiffusersConfig(**PLAIN))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_name": "UNet2DModel"}, "class_name"),
        ({"class_name": ["AutoencoderKLWan"]}, "class_name"),
        ({"library": ""}, "library"),
        ({"library": "0\n1"}, "library"),
        ({"arguments": []}, "arguments"),
        ({"arguments": {"base_dim": 10**9}}, "base_dim"),
        ({"arguments": {"num_res_blocks": 100}}, "num_res_blocks"),
        ({"arguments": {"layers_per_block": [1, 100]}}, "layers_per_block"),
        ({"arguments": {"dim_mult": [1] * 1000}}, "dim_mult"),
        ({"arguments": {"dim_mult": [[[1]]]}}, "dim_mult"),
        ({"arguments": {"dropout": float("inf")}}, "dropout"),
        ({"arguments": {"act_fn": "a" * 1000}}, "act_fn"),
        ({"arguments": {"act_fn": {"a": 1}}}, "act_fn"),
        ({"window": 0}, "window"),
        ({"window": 10**9}, "window"),
        ({"window": 17.0}, "window"),
    ],
)
def test_hostile_config_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        DiffusersConfig.from_dict({**PLAIN, **changes})


@pytest.mark.parametrize("data", [{}, {**PLAIN, "spam": 1}])
def test_config_keys_are_checked(data: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="config keys"):
        DiffusersConfig.from_dict(data)
