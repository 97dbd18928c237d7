"""The shipped models by name, and what their cards say of their quality; needs no torch."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vtok.errors import CheckpointError, InputError, UsageError
from vtok.nn.config import TokenizerConfig

FORMAT, VERSION = "vtok.checkpoint", 1
WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself, read without its tensors.

    Attributes:
        name: of the model.
        config: of the tokenizer.
        config_sha256: of the config as canonical JSON.
        weights_sha256: of names, types, shapes and values of all tensors.
        num_parameters: numbers in all tensors.
        path: the file.
    """

    name: str
    config: TokenizerConfig
    config_sha256: str
    weights_sha256: str
    num_parameters: int
    path: Path


def list_models() -> list[str]:
    """Names of the shipped checkpoints."""
    return sorted(path.stem for path in WEIGHTS_FOLDER.glob("*.safetensors"))


def resolve_path(name_or_path: str | Path) -> Path:
    """The file of a shipped checkpoint by name, or of any by path.

    Raises:
        InputError: if there is none; the message lists the shipped names.
    """
    shipped = WEIGHTS_FOLDER / f"{name_or_path}.safetensors"
    if str(name_or_path) in list_models():
        return shipped
    path = Path(name_or_path)
    try:
        if path.is_file():
            return path
    except OSError as exc:
        raise InputError(f"{name_or_path}: cannot be read ({exc.strerror})") from exc
    names = ", ".join(list_models()) or "none"
    raise InputError(f"{name_or_path}: no such checkpoint: pass a file or a shipped name ({names})")


def read_info(name_or_path: str | Path) -> CheckpointInfo:
    """Read what a checkpoint says of itself, without its tensors.

    Raises:
        InputError: if there is no such file.
        CheckpointError: if it is no checkpoint of vtok, or of a later version.
    """
    path = resolve_path(name_or_path)
    with open_tensors(path, "numpy") as file:
        about = _about(path, file.metadata())
        sizes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    config = _config(path, about["config"])
    return CheckpointInfo(
        name=about["name"],
        config=config,
        config_sha256=config_digest(config),
        weights_sha256=about["weights_sha256"],
        num_parameters=sum(_product(shape) for shape in sizes),
        path=path,
    )


def config_digest(config: TokenizerConfig) -> str:
    """SHA-256 of the config as canonical JSON."""
    return hashlib.sha256(canonical_json(config.to_dict()).encode()).hexdigest()


def canonical_json(data: object) -> str:
    """As JSON with the same bytes every time."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def open_tensors(path: Path, framework: str) -> Any:
    """A safetensors file opened for reading, as a context manager.

    Args:
        path: the file.
        framework: whose tensors it is to give: pt, or numpy.

    Raises:
        CheckpointError: it is none.
    """
    try:
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path}: not a readable safetensors file ({exc})") from exc


def _about(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        about = json.loads((metadata or {})["vtok"])
        version = about["version"]
    except (KeyError, ValueError, TypeError, RecursionError) as exc:
        raise CheckpointError(f"{path}: a safetensors file, but no checkpoint of vtok") from exc
    if about.get("format") != FORMAT or type(version) is not int or version < 1:
        raise CheckpointError(f"{path}: a safetensors file, but no checkpoint of vtok")
    if version > VERSION:
        raise CheckpointError(
            f"{path}: checkpoint version {version}, this vtok reads up to {VERSION}: update vtok"
        )
    expected = {"format", "version", "name", "config", "weights_sha256"}
    if set(about) != expected or not isinstance(about["config"], dict):
        raise CheckpointError(
            f"{path}: checkpoint fields {sorted(about)}: expected {sorted(expected)}"
        )
    name, digest = about["name"], about["weights_sha256"]
    if not (isinstance(name, str) and name.isprintable() and isinstance(digest, str)):
        raise CheckpointError(f"{path}: expected a name and weights_sha256 that are text")
    return about  # type: ignore[no-any-return]


def _config(path: Path, data: dict[str, Any]) -> TokenizerConfig:
    try:
        return TokenizerConfig.from_dict(data)
    except UsageError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc


def token_learners(model: str) -> list[str]:
    """The kinds of the token learners that are shipped for a shipped model."""
    found = (WEIGHTS_FOLDER / "tokens").glob(f"{model}-*.safetensors")
    return sorted(path.stem.removeprefix(f"{model}-") for path in found)


def card_quality(text: str) -> dict[int, float]:
    """Mean PSNR in dB by bits a position, from the table of a model card.

    Args:
        text: of the card, with a table whose heads are `clip`, `9 bits`, `18 bits` ... and which
            has a row `mean`; the first such table counts.

    Returns:
        By rising bits; nothing where there is no such table.
    """
    heads: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "clip" and all(re.fullmatch(r"\d+ bits", cell) for cell in cells[1:]):
            heads = cells[1:]
        elif heads and cells[0] == "mean" and len(cells) == len(heads) + 1:
            return {int(h.split()[0]): float(c) for h, c in zip(heads, cells[1:], strict=True)}
    return {}


def read_card(name: str) -> str:
    """The text of a shipped model's card; empty if it has none."""
    path = WEIGHTS_FOLDER / f"{name}.md"
    return path.read_text() if path.exists() else ""
