"""A training config as a TOML file, and as `key=value` from a command line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtok.atomic import atomic_output
from vtok.errors import InputError, OutputError, UsageError
from vtok.training.config import TrainingConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ACCELERATOR = "accelerator"
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_config(path: Path, *, accelerated: bool = False) -> dict[str, Any]:
    """The keys of a config file.

    A table `[accelerator]` holds what is to be different where there is one: a recipe for a small
    machine can ask for larger batches and crops on a large one.

    Args:
        path: the TOML file.
        accelerated: whether the run is on an accelerator.

    Raises:
        InputError: if the file is missing or cannot be read.
        UsageError: if it is no TOML.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"{path}: no TOML ({exc})") from exc
    faster = data.pop(ACCELERATOR, {})
    if not isinstance(faster, dict):
        raise UsageError(f"{path}: {ACCELERATOR}: expected a table")
    return merged(data, faster) if accelerated else data


def write_config(path: Path, config: TrainingConfig) -> None:
    """Write a config as TOML, atomically, in place of what is there.

    Raises:
        OutputError: if it cannot be written.
    """
    table = config.to_dict()
    model = table.pop("model")
    lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
    lines += ["", "[model]", *(f"{key} = {_toml(value)}" for key, value in model.items())]
    try:
        with atomic_output(path, overwrite=True) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written ({exc.strerror})") from exc


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """What `--set key=value` says, each value as TOML, or as text where it is none.

    `model.num_stages=4` sets a key of a table.

    Raises:
        UsageError: for one without a key or a value.
    """
    data: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        names = key.strip().split(".")
        if not equals or len(names) > 2 or not all(map(BARE_KEY.fullmatch, names)):
            raise UsageError(f"--set {setting}: expected key=value, such as batch=8")
        value = _value(text.strip())
        data = merged(data, {names[0]: {names[1]: value}} if names[1:] else {names[0]: value})
    return data


def merged(data: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with what `over` says instead; tables are merged key by key."""
    result = dict(data)
    for key, value in over.items():
        before = result.get(key)
        tables = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if tables else value  # type: ignore[arg-type]
    return result


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # quotes around a word would be tedious in a shell


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    # numbers, truth values and texts look alike in JSON and TOML
    return json.dumps(value, ensure_ascii=False)
