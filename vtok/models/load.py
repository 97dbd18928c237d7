"""Load tokenizers for use: choice of device and number type."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch

from vtok.errors import InputError, OptionError, UsageError
from vtok.models.checkpoint import CheckpointInfo, describe, list_models, load_checkpoint
from vtok.models.registry import OWN
from vtok.nn.geometry import Geometry
from vtok.nn.interface import Tokenizer

REUSED_BLOCK = 31 << 20  # bytes; glibc ignores blocks from 32 MiB
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer that is ready to run.

    Attributes:
        tokenizer: the model, in eval mode, on `device`, in `dtype`.
        info: name, configuration and fingerprints of its checkpoint.
        device: device that it runs on.
        dtype: floating-point type that it computes in.
        batched: whether the encoder joins the calls of several threads into batches.
    """

    tokenizer: Tokenizer
    info: CheckpointInfo
    device: torch.device
    dtype: torch.dtype
    batched: bool = False

    @property
    def dtype_name(self) -> str:
        """Name of the type in options and headers, such as `float32`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def geometry(self) -> Geometry:
        """Shapes and plan of the tokenizer."""
        return self.tokenizer.geometry

    def encode(self, video: torch.Tensor, quantize: bool = False) -> torch.Tensor:
        """Encode a clip [B, 3, T, H, W] in -1..1 to latents [B, D, t, h, w], or to codes.

        The clip is moved to the model's device and type. No gradients are computed.

        Returns:
            Latents; or with `quantize` codes, int64 [B, t, h, w], or [B, K, t, h, w] with
            K = stages times codebooks above 1.
        """
        with torch.no_grad():
            latents = self.tokenizer.encode_latents(video.to(self.device, self.dtype))
            if not quantize:
                return latents
            codes = self.tokenizer.to_codes(latents)
            return codes.squeeze(1) if codes.shape[1] == 1 else codes

    def decode(self, codes_or_latents: torch.Tensor) -> torch.Tensor:
        """Decode codes or float latents to a clip; see `Tokenizer.decode`.

        The input is moved to the model's device. No gradients are computed.
        """
        with torch.no_grad():
            return self.tokenizer.decode(codes_or_latents.to(self.device))


ModelLike = str | Path | LoadedTokenizer | Tokenizer
"""A shipped name, the path of a checkpoint, a loaded tokenizer, or a bare one."""


def load(
    name_or_path: str | Path = "vtok-base", *, device: str = "auto", dtype: str = "auto"
) -> LoadedTokenizer:
    """Load a checkpoint for use.

    Args:
        name_or_path: a shipped name or the path of a checkpoint.
        device: `auto`, or a device of torch such as `cpu`, `cuda:1`, `mps`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.

    Raises:
        UsageError: for a device or type that this machine does not have.
        InputError: if there is no such checkpoint.
        CheckpointError: if the checkpoint is damaged.
    """
    chosen_device = pick_device(device)
    chosen_dtype = pick_dtype(dtype, chosen_device)
    tokenizer, info = load_checkpoint(name_or_path)
    tokenizer.requires_grad_(False).to(chosen_device, chosen_dtype)
    if chosen_device.type == "cpu":
        reuse_memory()
    return LoadedTokenizer(tokenizer, info, chosen_device, chosen_dtype)


def resolve(
    model: ModelLike | None = None, *, device: str = "auto", dtype: str = "auto"
) -> LoadedTokenizer:
    """Return the loaded tokenizer for any value that a `model=` argument takes.

    Args:
        model: a name or a path is loaded, `vtok-base` if None; a loaded tokenizer is returned
            unchanged; of a bare tokenizer, a copy in eval mode is used, on its own device and in
            its own type.
        device, dtype: as in `load`; used for a name or a path only.

    Raises:
        UsageError, InputError, CheckpointError: as in `load`.
    """
    if isinstance(model, LoadedTokenizer):
        return model
    if isinstance(model, Tokenizer):
        copy = deepcopy(model).eval().requires_grad_(False)
        weights = next(copy.parameters())
        return LoadedTokenizer(copy, describe(copy), weights.device, weights.dtype)
    return load("vtok-base" if model is None else model, device=device, dtype=dtype)


def require_own(info: CheckpointInfo, purpose: str) -> None:
    """Check that a model is of the shipped models' architecture.

    Args:
        info: the model.
        purpose: what needs it, such as `learned tokens`.

    Raises:
        UsageError: otherwise.
    """
    if info.arch != OWN:
        raise UsageError(
            f"{info.name} is a {info.arch} tokenizer: {purpose} work with {OWN} models only"
        )


def reuse_memory() -> None:
    """Let the C library keep up to 62 MiB of freed memory for the next tensors.

    Otherwise each model call returns its memory to the system and requests it again, page by page
    (counted by scripts/roofline.py). glibc sets its limits by the largest block that was freed, so
    freeing one is enough; other C libraries ignore it. The block is never written to.
    """
    torch.empty(REUSED_BLOCK, dtype=torch.uint8)


def pick_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is CUDA if there is one, else the CPU.

    Apple's `mps` can be requested, but has not been tested.

    Raises:
        OptionError: for an unknown one, or one that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as exc:  # torch asserts if it was built without CUDA
        reason = str(exc).splitlines()[0][:100]
        raise OptionError("device", name, f"one that is usable here ({reason}); try cpu") from exc
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of a name; `auto` is bfloat16 if the hardware computes in it, else float32.

    Raises:
        OptionError: for an unknown one.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise OptionError("dtype", name, f"auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware has bfloat16; without, it is ten times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # private in torch, but there is no public function
        probes = (getattr(torch.cpu, name, None) for name in _BFLOAT16_PROBES)
        return any(probe is not None and probe() for probe in probes)
    return False


_BFLOAT16_PROBES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


class ModelCache:
    """The models that code files name, each loaded once.

    Args:
        model: used for every file; if None, the shipped model that each file names.
        device: as in `load`; used for names and paths only.
        dtype: likewise.
    """

    def __init__(
        self, model: ModelLike | None = None, *, device: str = "auto", dtype: str = "auto"
    ) -> None:
        self._chosen = model
        self._device, self._dtype = device, dtype
        self._loaded: dict[str, LoadedTokenizer] = {}

    @classmethod
    def of(cls, model: ModelLike | ModelCache | None) -> ModelCache:
        """Wrap the value of a `model=` argument; a cache is returned unchanged."""
        return model if isinstance(model, ModelCache) else cls(model)

    def get(self, named: str | None) -> LoadedTokenizer:
        """Return the model for a file that names `named`, or none.

        Raises:
            InputError: if it is not shipped and no other was chosen. (A file is not trusted to
                name a path.)
        """
        if self._chosen is None and named is None:
            raise InputError("does not state the model that made its codes: pass `model`")
        if self._chosen is None and named not in list_models():
            raise InputError(
                f"the model {named} is not shipped with vtok: pass its file as `model`"
            )
        key = named if self._chosen is None and named else ""
        if key not in self._loaded:
            model = named if self._chosen is None else self._chosen
            self._loaded[key] = resolve(model, device=self._device, dtype=self._dtype)
        return self._loaded[key]
