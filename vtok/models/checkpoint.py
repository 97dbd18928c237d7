"""Checkpoints: one safetensors file with weights and configuration, found by name or path.

Reading a header (`read_info`) needs no torch, so that commands that only describe models start
fast; torch is imported where tensors are read or written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vtok._files import atomic_output
from vtok.errors import CheckpointError, InputError, UsageError
from vtok.models.registry import OWN, find_architecture
from vtok.nn.config import TokenizerConfig
from vtok.nn.geometry import Geometry
from vtok.nn.shapes import geometry_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vtok.nn.interface import Tokenizer

FORMAT, VERSION = "vtok.checkpoint", 2
FIELDS = {"format", "version", "name", "config", "weights_sha256"}
ADDED = {"arch", "geometry", "licence", "source"}  # in version 2
MAX_TEXT = 255  # characters
WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"
WEIGHT_TYPES = ("F64", "F32", "F16", "BF16")  # in the spelling of safetensors


@dataclass(frozen=True)
class CheckpointInfo:
    """Header of a checkpoint.

    Attributes:
        name: Name of the model.
        config: Configuration of the tokenizer: a `TokenizerConfig` for the architecture `vtok`, the
            JSON object of the file for others.
        config_sha256: SHA-256 of the configuration, with the architecture unless it is `vtok`, as
            canonical JSON.
        weights_sha256: SHA-256 of names, types, shapes and values of all tensors.
        num_parameters: Numbers in all tensors.
        path: The file.
        arch: Name of the architecture; see `vtok.models.registry`.
        geometry: Shapes of the tokenizer.
        licence: Licence of the weights; None if unknown.
        source: Where the weights are from; None if unknown.
    """

    name: str
    config: Any = field(hash=False)
    config_sha256: str
    weights_sha256: str
    num_parameters: int
    path: Path
    arch: str
    geometry: Geometry
    licence: str | None = None
    source: str | None = None


def user_folder() -> Path:
    """Return the folder of imported checkpoints, which `--model` finds by name.

    It is the value of the environment variable VTOK_MODELS if that is set, else the folder
    vtok/models where the platform keeps the data of a user's programs.
    """
    if chosen := os.environ.get("VTOK_MODELS"):
        return Path(chosen)
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() fails without a home
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return data / "vtok" / "models"


def shipped_models() -> list[str]:
    """List the names of the shipped checkpoints."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))


def list_models() -> list[str]:
    """List the names of the shipped checkpoints, then of the imported ones."""
    shipped = shipped_models()
    found = {path.stem for path in user_folder().glob("*.safetensors")}
    return [*shipped, *sorted(found - set(shipped))]


def resolve_path(name_or_path: str | Path) -> Path:
    """Find the file of a checkpoint.

    Args:
        name_or_path: Name of a shipped or imported checkpoint, or any file.

    Raises:
        InputError: There is no such file; the message lists the names.
    """
    if str(name_or_path) in shipped_models():
        return WEIGHTS_FOLDER / f"{name_or_path}.safetensors"
    if str(name_or_path) in list_models():
        return user_folder() / f"{name_or_path}.safetensors"
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
    except OSError as exc:
        raise InputError(f"{name_or_path}: cannot be read ({exc.strerror})") from exc
    names = ", ".join(list_models()) or "none"
    raise InputError(f"{name_or_path}: no such checkpoint: pass a file or a name ({names})")


def read_info(name_or_path: str | Path) -> CheckpointInfo:
    """Read the header of a checkpoint, without its tensors and without torch.

    Raises:
        InputError: There is no such file.
        CheckpointError: The file is not a vtok checkpoint, or is of a later version.
    """
    path = resolve_path(name_or_path)
    with open_tensors(path, "numpy") as file:
        header = _read_header(path, file.metadata())
        sizes = [math.prod(file.get_slice(key).get_shape()) for key in file.keys()]  # noqa: SIM118
    arch, config = header.get("arch", OWN), header["config"]
    digest = config_digest(arch, config)
    try:
        find_architecture(arch)
        if arch == OWN:
            config = TokenizerConfig.from_dict(config)
            digest = config_digest(arch, config.to_dict())
        recorded = header.get("geometry")
        geometry = geometry_of(config) if recorded is None else Geometry.from_dict(recorded)
    except UsageError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    return CheckpointInfo(
        name=header["name"],
        config=config,
        config_sha256=digest,
        weights_sha256=header["weights_sha256"],
        num_parameters=sum(sizes),
        path=path,
        arch=arch,
        geometry=geometry,
        licence=header.get("licence"),
        source=header.get("source"),
    )


def load_checkpoint(name_or_path: str | Path) -> tuple[Tokenizer, CheckpointInfo]:
    """Load a tokenizer, in float32 and eval mode, and the header of its checkpoint.

    Raises:
        InputError: There is no such file.
        CheckpointError: A tensor is unknown, missing, of a wrong shape, changed, or not finite;
            the configuration is invalid; or the version is too new. The message names the culprit.
    """
    info = read_info(name_or_path)
    with open_tensors(info.path, "pt") as file:
        _check_tensors(info, file)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if weights_digest(tensors) != info.weights_sha256:
        raise CheckpointError(
            f"{info.path}: the weights do not match their SHA-256: fetch it again"
        )
    tokenizer = build_tokenizer(info)
    tokenizer.load_state_dict(tensors, strict=True)
    for key, tensor in tokenizer.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{info.path}: tensor {key} holds infinities or NaN")
    return tokenizer.eval(), info


def save_checkpoint(
    path: Path,
    tokenizer: Tokenizer,
    name: str,
    dtype: torch.dtype | None = None,
    *,
    licence: str | None = None,
    source: str | None = None,
) -> None:
    """Write a checkpoint atomically; the same weights give the same bytes.

    Args:
        path: File to write; an existing one is replaced.
        tokenizer: Configuration and weights.
        name: Name of the model.
        dtype: Type to store the weights in; default: float32.
        licence: Licence of the weights, one line of at most 255 characters.
        source: Where the weights are from, likewise.
    """
    import torch
    from safetensors.torch import save

    tensors = {
        key: tensor.detach().to(dtype or torch.float32).cpu().contiguous()
        for key, tensor in tokenizer.state_dict().items()
    }
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        "name": name,
        "config": tokenizer.config.to_dict(),
        "weights_sha256": weights_digest(tensors),
    }
    if tokenizer.arch != OWN or licence or source:
        header |= {"version": 2, "arch": tokenizer.arch, "licence": licence, "source": source}
        header["geometry"] = tokenizer.geometry.to_dict()
    # a single metadata key: safetensors writes several keys in an order that changes between runs
    data = save(tensors, metadata={"vtok": canonical_json(header)})
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_bytes(data)


def describe(tokenizer: Tokenizer) -> CheckpointInfo:
    """Describe a tokenizer in memory: a shipped checkpoint with equal weights, else `unnamed`."""
    import torch

    tensors = {key: tensor.detach().cpu() for key, tensor in tokenizer.state_dict().items()}
    for name in shipped_models():
        if read_info(name).config == tokenizer.config:
            shipped, info = load_checkpoint(name)
            stored = shipped.state_dict()
            if all(torch.equal(stored[key].to(t.dtype), t) for key, t in tensors.items()):
                return info
    return CheckpointInfo(
        name="unnamed",
        config=tokenizer.config,
        config_sha256=config_digest(tokenizer.arch, tokenizer.config.to_dict()),
        weights_sha256=weights_digest(tensors),
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        path=Path("unnamed"),
        arch=tokenizer.arch,
        geometry=tokenizer.geometry,
    )


def canonical_json(data: object) -> str:
    """Encode data as JSON that has the same bytes every time."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def config_digest(arch: str, config: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of a configuration, and of the architecture's name, as canonical JSON."""
    covered = config if arch == OWN else {"arch": arch, "config": config}
    return hashlib.sha256(canonical_json(covered).encode()).hexdigest()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of names, types, shapes and little-endian values, ordered by name."""
    import torch

    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.ndim:
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(struct.pack("<d", tensor.item()))
    return digest.hexdigest()


def open_tensors(path: Path, framework: str) -> Any:
    """Open a safetensors file for reading, as a context manager.

    Args:
        path: The file.
        framework: Kind of tensors to return: `pt` or `numpy`.

    Raises:
        CheckpointError: The file is not a safetensors file.
    """
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc})") from exc


def _read_header(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    foreign = f"{path}: a safetensors file, but not a vtok checkpoint"
    try:
        header = json.loads((metadata or {})["vtok"])
        version = header["version"]
    except (KeyError, ValueError, TypeError, RecursionError) as exc:
        raise CheckpointError(foreign) from exc
    if header.get("format") != FORMAT or type(version) is not int or version < 1:
        raise CheckpointError(foreign)
    if version > VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {version}, this vtok reads up to {VERSION}: update vtok"
        )
    expected = FIELDS if version == 1 else FIELDS | ADDED
    if set(header) != expected or not isinstance(header["config"], dict):
        raise CheckpointError(
            f"{path}: checkpoint fields {sorted(header)}: expected {sorted(expected)}"
        )
    texts = [header[key] for key in ("name", "weights_sha256", "arch") if key in header]
    texts += [header[key] for key in ("licence", "source") if header.get(key) is not None]
    for text in texts:
        if not (isinstance(text, str) and text.isprintable() and len(text) <= MAX_TEXT):
            raise CheckpointError(
                f"{path}: name, weights_sha256, arch, licence and source: expected text"
            )
    return header  # type: ignore[no-any-return]


def build_tokenizer(info: CheckpointInfo) -> Tokenizer:
    """Create the tokenizer of a checkpoint, with random weights."""
    config = info.config.to_dict() if info.arch == OWN else info.config
    try:
        return find_architecture(info.arch).build(config)
    except UsageError as exc:
        raise CheckpointError(f"{info.path}: {exc}") from exc


def _check_tensors(info: CheckpointInfo, file: Any) -> None:
    """Compare the tensors that a file lists with the configuration before allocating memory."""
    import torch

    with torch.device("meta"):  # shapes without memory: the config may ask for any size
        made = build_tokenizer(info)
    if made.geometry != info.geometry:
        ours, theirs = made.geometry.to_dict(), info.geometry.to_dict()
        wrong = next(key for key in ours if ours[key] != theirs[key])
        raise CheckpointError(
            f"{info.path}: geometry {wrong} {theirs[wrong]}, but its configuration has "
            f"{ours[wrong]}: damaged"
        )
    blank = made.state_dict()
    found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    if unknown := sorted(set(found) - set(blank)):
        raise CheckpointError(f"{info.path}: unknown tensors: {', '.join(unknown[:5])}")
    if missing := sorted(set(blank) - set(found)):
        raise CheckpointError(f"{info.path}: missing tensors: {', '.join(missing[:5])}")
    for key, tensor in found.items():
        shape, expected, dtype = tensor.get_shape(), list(blank[key].shape), tensor.get_dtype()
        if shape != expected:
            raise CheckpointError(
                f"{info.path}: tensor {key} has shape {shape}, expected {expected}"
            )
        if dtype not in WEIGHT_TYPES:
            expected_types = ", ".join(WEIGHT_TYPES)
            raise CheckpointError(
                f"{info.path}: tensor {key} has type {dtype}, expected one of {expected_types}"
            )


def token_learners(model: str) -> list[str]:
    """List the kinds of token learners shipped for a shipped model."""
    found = (WEIGHTS_FOLDER / "tokens").glob(f"{model}-*.safetensors")
    return sorted(path.stem.removeprefix(f"{model}-") for path in found)


def read_card(name: str) -> str:
    """Read the model card of a shipped model; empty if there is none."""
    path = WEIGHTS_FOLDER / f"{name}.md"
    return path.read_text() if path.exists() else ""


def card_quality(text: str) -> dict[int, float]:
    """Parse mean PSNR in dB by bits per position from the text of a model card.

    The first table with the columns `clip`, `9 bits`, `18 bits` ... and a row `mean` counts.

    Returns:
        PSNR by rising number of bits; empty if there is no such table.
    """
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "clip" and all(re.fullmatch(r"\d+ bits", cell) for cell in cells[1:]):
            columns = cells[1:]
        elif columns and cells[0] == "mean" and len(cells) == len(columns) + 1:
            pairs = zip(columns, cells[1:], strict=True)
            return {int(column.split()[0]): float(cell) for column, cell in pairs}
    return {}
