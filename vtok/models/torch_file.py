"""Safe reader of `torch.save` files: tensors only, no code is run."""

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
    """Read a file written by `torch.save`: tensors on the CPU in containers of plain values.

    Raises:
        InputError: The file is missing or cannot be read.
        CheckpointError: The file is of another kind, damaged, or needs pickle to run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    except Exception as exc:  # zipfile raises several types for damaged files
        raise CheckpointError(f"{path}: not written by torch.save, or cut short") from exc
    if not stored:  # the content of an uncompressed archive is no larger than the file itself
        raise CheckpointError(f"{path}: a compressed archive, not written by torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise CheckpointError(
            f"{path}: contains more than tensors and plain values, and vtok runs no code from a "
            "file: save only its state dict"
        ) from exc
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from exc
    except Exception as exc:  # a damaged file can raise anything
        raise CheckpointError(
            f"{path}: cannot be read as a torch checkpoint ({type(exc).__name__}): fetch it again"
        ) from exc


def float_tensors(where: str, state: object) -> dict[str, Tensor]:
    """Check a state dict and convert its floats to float32.

    Args:
        where: Name of the file in error messages.
        state: Object read from the file.

    Raises:
        CheckpointError: The object is not a mapping from names to dense tensors, or a tensor
            holds infinities or NaN.
    """
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{where}: expected tensors by name")
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{where}: {str(name)[:80]!r} is not a named tensor")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{where}: tensor {name} is not a dense tensor of real numbers")
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
        if not tensors[name].isfinite().all():
            raise CheckpointError(f"{where}: tensor {name} holds infinities or NaN")
    return tensors
