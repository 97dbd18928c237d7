"""Safe reader of other projects' weights: tensors only, no code of a file is run."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from vtok.errors import CheckpointError, InputError
from vtok.models.checkpoint import open_tensors
from vtok.models.pickled import BadPickleError, TensorSpec, flatten, interpret

Value = str | int | float | bool

LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # before torch 1.6
ZIP_START = b"PK\x03\x04"
MAX_REUSE = 4  # bytes of all tensors, of which several may view one storage, by bytes of the file
DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip
UNTYPED = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()} | {
    name: getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
                 "uint16", "uint32", "uint64")
    if hasattr(torch, name)
}  # fmt: skip


@dataclass(frozen=True)
class ForeignFile:
    """Content of a file that another project wrote.

    Attributes:
        tensors: Tensors on the CPU in their stored type, by dotted names such as
            `state_dict.encoder.conv.weight`.
        values: Numbers and text by dotted names.
        constants: Constants of a TorchScript archive, by number.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Value]
    constants: dict[str, Tensor]


def read_tensors(path: Path, *sections: str) -> dict[str, Tensor]:
    """Read the tensors of a torch, TorchScript, Lightning or safetensors file.

    Args:
        path: The file.
        sections: Names of nested dictionaries, such as `state_dict`. Of the first one that the
            file has, the tensors are returned by the names in it; of a file without one, all
            tensors by their dotted names.

    Raises:
        InputError: The file is missing or cannot be read.
        CheckpointError: The file is damaged, of another kind, or has no tensors.
    """
    return read_foreign(path, *sections).tensors


def read_foreign(path: Path, *sections: str) -> ForeignFile:
    """Read tensors, numbers and text of a file; see `read_tensors`.

    Nothing of the file is executed, and objects of unknown classes are not constructed: their
    attributes are read like dictionaries. No more memory is taken than a small multiple of the
    file's size, whatever sizes it states.

    Raises:
        InputError, CheckpointError: See `read_tensors`.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
            if start.startswith(ZIP_START):
                found = _Archive(path, file).read(sections)
            elif start.startswith(LEGACY_START):
                raise CheckpointError(
                    f"{path}: written by torch.save without a zip archive, as before torch 1.6: "
                    "convert it with torch.save(torch.load(old, weights_only=True), new)"
                )
            elif start[8:9] == b"{":
                found = _read_safetensors(path, sections)
            else:
                raise CheckpointError(
                    f"{path}: not written by torch.save, TorchScript or safetensors, or cut short"
                )
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    except BadPickleError as exc:
        raise CheckpointError(
            f"{path}: cannot be read as a torch checkpoint ({exc}): fetch it again, or save only "
            "its state dict"
        ) from exc
    if not (found.tensors or found.constants):
        raise CheckpointError(f"{path}: holds no tensors")
    return found


def tensor_names(path: Path) -> list[str]:
    """List the dotted names of the tensors of a file without reading them; empty if it has none."""
    try:
        with path.open("rb") as file:
            if file.read(4) == ZIP_START:
                return list(_Archive(path, file).names())
        with open_tensors(path, "pt") as tensors:
            return list(tensors.keys())
    except (OSError, BadPickleError, CheckpointError):
        return []


def float_tensors(where: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the floats of a state dict to float32.

    Args:
        where: Name of the file in error messages.
        state: Tensors by name.

    Raises:
        CheckpointError: A tensor holds infinities or NaN.
    """
    tensors = {}
    for name, tensor in state.items():
        floats = tensor.is_floating_point()
        tensors[name] = tensor.float() if floats else tensor
        if floats and not tensors[name].isfinite().all():
            raise CheckpointError(f"{where}: tensor {name} holds infinities or NaN")
    return tensors


def _read_safetensors(path: Path, sections: tuple[str, ...]) -> ForeignFile:
    with open_tensors(path, "pt") as file:
        names = _choose(list(file.keys()), sections)
        try:
            tensors = {short: file.get_tensor(name) for name, short in names.items()}
        except Exception as exc:  # safetensors raises several types for unknown number types
            raise CheckpointError(f"{path}: cannot be read ({exc})") from exc
        return ForeignFile(tensors, dict(file.metadata() or {}), {})


def _choose(names: list[str], sections: tuple[str, ...]) -> dict[str, str]:
    """Map the names of the first section present to the names within it; else all to themselves."""
    for section in sections:
        prefix = f"{section}."
        if chosen := [name for name in names if name.startswith(prefix)]:
            return {name: name.removeprefix(prefix) for name in chosen}
    return {name: name for name in names}


class _Archive:
    """A zip archive of torch, whose entries are read only if they are stored uncompressed."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._file_size = os.fstat(file.fileno()).st_size
        self._storages: dict[str, bytearray] = {}
        self._stored = self._viewed = 0
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as exc:  # zipfile raises several types for damaged files
            raise CheckpointError(f"{path}: not written by torch.save, or cut short") from exc
        self._entries = {info.filename: info for info in self._zip.infolist()}
        ends = [name for name in self._entries if name.endswith("/data.pkl")]
        roots = [name.removesuffix("data.pkl") for name in ends if name.count("/") == 1]
        if len(roots) != 1:
            raise CheckpointError(f"{path}: a zip archive, but not written by torch.save")
        self._root = roots[0]

    def names(self) -> dict[str, TensorSpec]:
        """Return the descriptions of all tensors by name."""
        return self._describe(f"{self._root}data.pkl")[0]

    def read(self, sections: tuple[str, ...]) -> ForeignFile:
        """Read the objects of the archive."""
        root = self._root
        if f"{root}byteorder" in self._entries and self._bytes(f"{root}byteorder") != b"little":
            raise BadPickleError("its numbers are big-endian")
        specs, values = self._describe(f"{root}data.pkl")
        chosen = _choose(list(specs), sections)
        tensors = {short: self._tensor(f"{root}data/", specs[n]) for n, short in chosen.items()}
        constants = {}
        if f"{root}constants.pkl" in self._entries:
            fixed, _ = self._describe(f"{root}constants.pkl")
            constants = {n: self._tensor(f"{root}constants/", spec) for n, spec in fixed.items()}
        return ForeignFile(tensors, values, constants)

    def _describe(self, name: str) -> tuple[dict[str, TensorSpec], dict[str, Value]]:
        data, opcodes = interpret(bytes(self._bytes(name)))
        specs: dict[str, TensorSpec] = {}
        values: dict[str, Value] = {}
        for key, item in flatten(data, 1000 + 2 * opcodes):
            if isinstance(item, TensorSpec):
                if key in specs:
                    raise BadPickleError(f"two tensors named {key}")
                specs[key] = item
            elif isinstance(item, Value):
                values[key] = item
        return specs, values

    def _tensor(self, folder: str, spec: TensorSpec) -> Tensor:
        """Make a tensor after checking that it lies within its storage."""
        storage = spec.storage
        untyped = storage.kind == "Untyped"
        known = UNTYPED.get(spec.dtype) if untyped else DTYPES.get(storage.kind)
        if known is None:
            raise BadPickleError(f"numbers of type {(spec.dtype or storage.kind)[:40]}")
        length = storage.length // (known.itemsize if untyped else 1)
        count = math.prod(spec.size)
        last = spec.offset + sum((n - 1) * s for n, s in zip(spec.size, spec.stride, strict=True))
        if count > length or (count and last >= length):
            raise BadPickleError("a tensor larger than its storage")
        self._viewed += count * known.itemsize
        if self._viewed > MAX_REUSE * self._file_size:
            raise BadPickleError("tensors that share their numbers too often")
        if not count:
            return torch.empty(spec.size, dtype=known)
        numbers = self._storage(folder + storage.key, length * known.itemsize)
        return numbers.view(known).as_strided(spec.size, spec.stride, spec.offset)

    def _storage(self, name: str, size: int) -> Tensor:
        """Return the first bytes of an entry as uint8; each entry is read once."""
        if name not in self._storages:
            self._storages[name] = self._bytes(name)
        if len(self._storages[name]) < size:
            raise BadPickleError(f"{name[-40:]} is shorter than its tensor")
        return torch.frombuffer(self._storages[name], dtype=torch.uint8, count=size)

    def _bytes(self, name: str) -> bytearray:
        """Read an entry, no larger than the file."""
        info = self._entries.get(name)
        if info is None:
            raise BadPickleError(f"{name[-40:]} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise BadPickleError(f"{name[-40:]} is compressed, which torch does not do")
        self._stored += info.file_size
        if self._stored > self._file_size:  # entries may overlap
            raise BadPickleError("its entries are larger than the file")
        data = bytearray(info.file_size)
        try:
            with cast(zipfile.ZipExtFile, self._zip.open(info)) as entry:
                complete = entry.readinto(data) == len(data) and not entry.read(1)
        except Exception as exc:  # zipfile raises several types for damaged files
            raise BadPickleError(f"{name[-40:]} is damaged") from exc
        if not complete:
            raise BadPickleError(f"{name[-40:]} is cut short")
        return data
