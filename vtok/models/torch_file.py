"""Tensors out of a file that `torch.save` wrote, without running anything that is in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtok.errors import CheckpointError, InputError


def read_torch_file(path: Path) -> Any:
    """What a file of `torch.save` holds: tensors on the CPU in containers of plain values.

    Raises:
        InputError: if the file is missing or cannot be read.
        CheckpointError: if it is of another kind, damaged, or needs pickle to run code.
    """
    _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, and vtok runs no code out of a "
            "file: save its state dict alone"
        ) from exc
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    except Exception as exc:  # a damaged file can make the reader raise anything
        raise CheckpointError(
            f"{path}: cannot be read as a torch checkpoint ({type(exc).__name__}): fetch it again"
        ) from exc


def float_tensors(where: str, state: object) -> dict[str, Tensor]:
    """A state dict with its floats in float32.

    Args:
        where: what to call it in messages.
        state: as it was read.

    Raises:
        CheckpointError: if it is not names and dense tensors, or holds infinities or NaN.
    """
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{where}: expected tensors by name")
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{where}: {str(name)[:80]!r} is no tensor with a name")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{where}: tensor {name} is not of plain numbers")
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
        if not tensors[name].isfinite().all():
            raise CheckpointError(f"{where}: tensor {name} holds infinities or NaN")
    return tensors


def _check_zip(path: Path) -> None:
    """Refuse what is no zip of uncompressed entries, whose sizes the file's own size bounds."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    except Exception as exc:  # zipfile raises several kinds where a file is damaged
        raise CheckpointError(f"{path}: not a file that torch.save wrote, or cut short") from exc
    if not stored:
        raise CheckpointError(f"{path}: a compressed archive, which torch.save never writes")
