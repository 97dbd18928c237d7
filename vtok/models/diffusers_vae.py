"""Continuous video autoencoders of `diffusers` (extra `vtok[diffusers]`) behind one adapter.

A folder in the format of diffusers is imported into one vtok checkpoint, whose configuration holds
the name of the class, its arguments, and the version of the library, so that the fingerprint of the
checkpoint depends on all three. The library computes; nothing is computed again here.

- Latents are the mode of the posterior, without noise. They are not normalized: a diffusion model
  sees (latents - latents_mean) / latents_std or latents * scaling_factor, with numbers that are
  among the arguments of the configuration.
- A video is cut into windows that are computed independently, because the classes keep no state
  between calls. Within a window a class follows its own rules: Wan is causal, with a cache;
  CogVideoX computes 9 frames and then 8 at a time, with normalization over each chunk, so that a
  window must have 1 + 8n frames; LTX-Video is causal in its encoder only; HunyuanVideo normalizes
  over time, and blends tiles of 16 frames with a stride of 12.
- Wan clamps its frames to -1..1, the others do not.
- A decoder of LTX-Video that is conditioned on a time step gets time step 0, as in its pipeline.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import reprlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtok.errors import CheckpointError, InputError, OptionError, UsageError
from vtok.models.family import FamilyConfig, is_whole
from vtok.nn.interface import Geometry, StreamState, Tokenizer, Window

LICENSES = {
    "AutoencoderKLWan": "Apache-2.0",
    "AutoencoderKLCogVideoX": "Apache-2.0 (2b) or the CogVideoX licence (5b)",
    "AutoencoderKLLTXVideo": "licence of the LTX-Video release",
    "AutoencoderKLHunyuanVideo": "Tencent Hunyuan Community licence",
}
"""Supported classes with the licences of their published weights."""
NATIVE = {"AutoencoderKLCosmos": "cosmos", "AutoencoderVidTok": "vidtok"}
DEFAULT_WINDOW, MAX_WINDOW = 17, 1025
COGVIDEOX_CHUNK = 8  # frames that AutoencoderKLCogVideoX computes at a time
MAX_CONFIG_BYTES = 1 << 20
MAX_NUMBER, MAX_LAYERS = 8192, 64
MAX_ITEMS, MAX_STATISTICS = 16, 1024  # of lists, and of the lists latents_mean and latents_std
_LOCK = threading.Lock()  # AutoencoderKLWan keeps the cache of a call in the module


@dataclass(frozen=True)
class DiffusersConfig(FamilyConfig):
    """Configuration of a `DiffusersTokenizer`.

    Attributes:
        class_name: Class of diffusers, one of `LICENSES`.
        library: Version of diffusers that the checkpoint was made with.
        arguments: Arguments of the class, plain JSON values.
        window: Frames of a window, 1 + n * temporal_compression.

    Raises:
        OptionError: A field is invalid.
    """

    class_name: str
    library: str
    arguments: dict[str, Any]
    window: int = DEFAULT_WINDOW

    def check(self) -> None:
        """Check all fields."""
        known = isinstance(self.class_name, str) and self.class_name in LICENSES
        self.require("class_name", known, _one_of())
        text = self.library
        valid = isinstance(text, str) and 0 < len(text) <= 64 and text.isprintable()
        self.require("library", valid, "a version of diffusers")
        self.require("arguments", isinstance(self.arguments, dict), "values by name")
        for name, value in self.arguments.items():
            if not (isinstance(name, str) and _is_plain(value, *_limits(name))):
                expected = "a plain value of usual size"
                raise OptionError(f"arguments.{name}"[:80], reprlib.repr(value), expected)
        valid = is_whole(self.window, 1, MAX_WINDOW)
        self.require("window", valid, f"1 to {MAX_WINDOW} frames")


class DiffusersTokenizer(Tokenizer):
    """Autoencoder of diffusers as a continuous tokenizer of independent windows.

    Raises:
        UsageError: diffusers is missing or of another version, or cannot build the configuration.
    """

    arch = "diffusers"

    def __init__(self, config: DiffusersConfig, model: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.model: Any = model or _build(config)
        temporal, spatial, latent_dim = _compression(config.class_name, self.model)
        unit = temporal
        if config.class_name == "AutoencoderKLCogVideoX":
            unit = max(unit, COGVIDEOX_CHUNK)
        if config.window % unit != 1:
            raise OptionError("window", config.window, f"1 + n * {unit} frames")
        self.geometry = Geometry(
            temporal_compression=temporal,
            spatial_compression=spatial,
            latent_dim=latent_dim,
            entries=None,
            plan=Window(config.window),
        )

    @classmethod
    def from_config(cls, config: DiffusersConfig) -> DiffusersTokenizer:
        """Create a tokenizer with random weights."""
        return cls(config)

    def encode_clip(self, clip: Tensor, state: StreamState | None) -> Tensor:
        """Encode one window [B, 3, T, H, W] in -1..1 to the mode of its posterior."""
        with _LOCK:
            latents: Tensor = self.model.encode(clip).latent_dist.mode()
        return latents

    def decode_latents(self, latents: Tensor, state: StreamState | None, ahead: int) -> Tensor:
        """Decode the latents [B, D, t, h, w] of one window to frames [B, 3, T, H, W]."""
        conditioned = self.config.arguments.get("timestep_conditioning")
        step = (latents.new_zeros(len(latents)),) if conditioned else ()
        with _LOCK:
            frames: Tensor = self.model.decode(latents, *step).sample
        return frames


def read_diffusers(
    path: Path, *, window: int = DEFAULT_WINDOW
) -> tuple[DiffusersTokenizer, list[str]]:
    """Read a local folder with a video autoencoder of diffusers, in float32 and eval mode.

    Args:
        path: Folder with config.json and safetensors files, or one that has it as `vae`.
        window: Frames of an independent window.

    Returns:
        The tokenizer, and remarks for the user, one line each.

    Raises:
        InputError: The folder or its config.json is missing.
        CheckpointError: The class is not supported, or the weights do not fit the configuration.
        UsageError: diffusers is missing, or the window is invalid.
    """
    if not (path / "config.json").exists() and (path / "vae" / "config.json").exists():
        path = path / "vae"
    name = _read_class_name(path)
    kind = _class(name)
    importlib.import_module("diffusers.utils.logging").disable_progress_bar()  # of shards
    try:
        model, report = kind.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            torch_dtype=torch.float32,
        )
    except Exception as exc:  # diffusers raises many types for damaged folders
        reason = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise CheckpointError(f"{path}: diffusers cannot read this folder ({reason})") from exc
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := report.get(kind):
            first = ", ".join(str(item)[:80] for item in sorted(found, key=str)[:5])
            raise CheckpointError(f"{path}: weights do not fit config.json ({kind}: {first})")
    arguments = {k: v for k, v in model.config.items() if not k.startswith("_")}
    arguments = json.loads(json.dumps(arguments))  # tuples to lists, as in a checkpoint
    config = DiffusersConfig(name, _library().__version__, arguments, window)
    notes = ["latents are not normalized: apply latents_mean and latents_std or scaling_factor"]
    _check_deterministic(config)
    return DiffusersTokenizer(config, model).eval(), notes


def _read_class_name(path: Path) -> str:
    file = path / "config.json"
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{file}: larger than {MAX_CONFIG_BYTES} bytes")
        name = json.loads(file.read_text())["_class_name"]
    except OSError as exc:
        raise InputError(
            f"{path}: expected a folder of diffusers with config.json ({exc.strerror})"
        ) from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise CheckpointError(f"{file}: names no class of diffusers") from exc
    if isinstance(name, str) and name in NATIVE:
        raise CheckpointError(
            f"{path}: vtok has {name} natively: import the published files as {NATIVE[name]}"
        )
    if not isinstance(name, str) or name not in LICENSES:
        raise CheckpointError(f"{path}: class {reprlib.repr(name)}: expected {_one_of()}")
    return name


def _library() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as exc:
        raise UsageError("this model needs diffusers: pip install 'vtok[diffusers]'") from exc


def _class(name: str) -> Any:
    """Return a class of diffusers, which must be one of `LICENSES`."""
    assert name in LICENSES
    try:
        return getattr(_library(), name)
    except (AttributeError, ImportError, RuntimeError) as exc:
        raise UsageError(
            f"this diffusers has no {name}: pip install --upgrade 'vtok[diffusers]'"
        ) from exc


def _build(config: DiffusersConfig) -> nn.Module:
    kind, installed = _class(config.class_name), _library().__version__
    if installed != config.library:
        raise UsageError(
            f"made with diffusers {config.library}, this is {installed}: install "
            f"diffusers=={config.library}, or import the model again"
        )
    known = set(inspect.signature(kind.__init__).parameters) - {"self"}
    if unknown := sorted(set(config.arguments) - known):
        raise UsageError(f"{config.class_name} has no argument {', '.join(unknown[:5])}"[:200])
    _check_deterministic(config)
    try:
        model: nn.Module = kind.from_config(config.arguments)
    except Exception as exc:  # the values of a hostile checkpoint can raise anything
        reason = type(exc).__name__
        raise UsageError(f"{config.class_name} refuses its arguments ({reason})") from exc
    return model


def _check_deterministic(config: DiffusersConfig) -> None:
    noise = config.arguments.get("decoder_inject_noise")
    if isinstance(noise, list) and any(noise):
        raise UsageError("a decoder with decoder_inject_noise gives other frames at every call")


def _compression(name: str, model: Any) -> tuple[int, int, int]:
    """Return temporal and spatial compression and channels of the latents."""
    config = model.config
    if name == "AutoencoderKLWan":
        space = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
        return 2 ** sum(map(bool, config.temperal_downsample)), space, config.z_dim
    if name == "AutoencoderKLCogVideoX":
        time = 2 ** int(math.log2(config.temporal_compression_ratio))
        return time, 2 ** (len(config.block_out_channels) - 1), config.latent_channels
    time, space = model.temporal_compression_ratio, model.spatial_compression_ratio
    return time, space, config.latent_channels


def _limits(name: str) -> tuple[int, int]:
    """Return the largest number and the most list items of an argument."""
    layers = "layers" in name or "blocks" in name
    statistics = name.startswith("latents_")
    return MAX_LAYERS if layers else MAX_NUMBER, MAX_STATISTICS if statistics else MAX_ITEMS


def _is_plain(value: object, most: int, items: int, depth: int = 2) -> bool:
    """Check a JSON value: no dictionaries, no long lists, no large numbers."""
    if isinstance(value, (list, tuple)):
        inside = (_is_plain(item, most, items, depth - 1) for item in value)
        return len(value) <= items and depth > 0 and all(inside)
    if isinstance(value, str):
        return len(value) <= 64
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= MAX_NUMBER
    return value is None or isinstance(value, bool) or (type(value) is int and abs(value) <= most)


def _one_of() -> str:
    return f"one of {', '.join(LICENSES)}"
