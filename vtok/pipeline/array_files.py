"""Files with arrays of codes or latents: npy, safetensors and pt, and the shards of data sets.

Nothing is unpickled, and sizes that a file states are compared with its length.
"""

from __future__ import annotations

import json
import math
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from vtok.codefile.header import (
    CodeFormat,
    Header,
    LatentFormat,
    LatentHeader,
    VideoHeader,
    dump_json,
    load_json,
)
from vtok.errors import CodeFileError, InputError, OptionError, UsageError
from vtok.pipeline.files import open_input
from vtok.pipeline.latents import FORMAT, SAFETENSORS_TYPES, VERSION, Latents
from vtok.pipeline.options import ITEM_FIELDS, DecodeOptions
from vtok.pipeline.result import CodeChunk, Codes

NPY = b"\x93NUMPY"
HEAD_BYTES = 1 << 14  # of a file, in which the header of a npy file ends
SHARD_NAME = re.compile(r"(?:video|metadata)_(\d+)\.(?:bin|json)")
IDS_SHOWN = 3
READ_STEPS = 8
"""Latent steps that are read at a time, unless the tokenizer takes windows."""
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StoredArray:
    """An array of codes or latents, and what is known of the video.

    Attributes:
        name: of the file, and of the item of a shard.
        array: integers, or latents of a float type.
        facts: JSON object of the item, the file beside it or its data set: `width`, `height`,
            `fps`, `frames`, `frame_times`, `model` and `weights_sha256` are used if they are there.
        header: header in the file itself; None if it has none.
    """

    name: str
    array: Array
    facts: dict[str, Any] = field(default_factory=dict)
    header: Header | None = None

    @property
    def model(self) -> str | None:
        """Name of the model that made the codes, if it is known."""
        name = self.header.model.name if self.header else self.facts.get("model")
        return name if isinstance(name, str) else None


def kind_of(source: Path | BinaryIO) -> str | None:
    """Return npy, safetensors, pt, memmap, tar or parquet for a file of arrays; None for others.

    Nothing is consumed of a stream: it must have `peek`, as standard input has. Streams are only
    recognized as npy.
    """
    if not isinstance(source, Path):
        peek = getattr(source, "peek", None)
        return "npy" if peek is not None and peek(len(NPY)).startswith(NPY) else None
    if not source.is_file():
        return None  # reading from a pipe would consume the data
    if SHARD_NAME.fullmatch(source.name):
        return "memmap"
    try:
        with source.open("rb") as file:
            head = file.read(512)
        if head[8:9] == b"{":
            with safe_open(source, framework="np") as tensors:
                return "safetensors" if "codes" in tensors.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError):
        return None  # the error is raised when the file is opened
    if head.startswith(NPY):
        return "npy"
    if source.suffix.lower() == ".pt":
        return "pt" if "codes" in _open_tensors(source)[0] else None
    if head[257:262] == b"ustar":
        return "tar"
    return "parquet" if head.startswith(b"PAR1") else None


def read_stored(path: Path, kind: str, name: str, options: DecodeOptions) -> StoredArray | bytes:
    """Read an array of codes or latents.

    Args:
        path: file on disk.
        kind: see `kind_of`.
        name: name of the file in errors.
        options: the item of a shard.

    Returns:
        The array; the bytes of a code file, for an item of a shard of those.

    Raises:
        CodeFileError: if it is damaged or cut.
        UsageError: if the file holds several items and none is selected, or no such item.
    """
    readers = {"memmap": _read_memmap, "tar": _read_tar, "parquet": _read_parquet}
    try:
        if kind in readers:
            return readers[kind](path, name, options)
        for key in ITEM_FIELDS:
            if (value := getattr(options, key)) is not None:
                raise OptionError(key, value, f"none: {name} is no shard of a data set")
        if kind == "npy":
            data = np.memmap(path, np.uint8, "r")
            return StoredArray(name, parse_npy(data), _facts_beside(path))
        tensors, text = _read_pt(path) if kind == "pt" else _read_safetensors(path)
        header = Header.from_json(text.encode()) if text else None
        facts = _stated_times(header, tensors) if header else _facts_beside(path)
        return StoredArray(name, tensors["codes"], facts, header)
    except CodeFileError as exc:
        raise CodeFileError(f"{name}: {exc}") from exc
    except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as exc:
        if isinstance(exc, OptionError):
            raise
        reason = " ".join(str(exc).split())[:120]
        raise CodeFileError(f"{name}: damaged or cut ({type(exc).__name__}: {reason})") from exc


def parse_npy(data: npt.NDArray[np.uint8]) -> Array:
    """Return the array of a npy file, given as bytes, without copying it.

    Raises:
        ValueError: if it is damaged, or its length is not the one that it states.
    """
    stream = BytesIO(data[:HEAD_BYTES].tobytes())
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)[0]
    if version not in read:
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = read[version](stream)
    if dtype.kind not in "iuf":
        raise ValueError(f"holds {dtype}, not integers")
    found = data[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != len(found):
        raise ValueError(f"states the shape {list(shape)}, but has {len(found)} bytes")
    return found.view(dtype).reshape(shape, order="F" if fortran else "C")


def _stated_times(header: VideoHeader, tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Return the fact `frame_times` of a file with the tensor `durations`."""
    if "durations" not in tensors:
        return {}
    base = header.metadata.get("time_base", "")
    return {"frame_times": {"time_base": base, "durations": tensors["durations"]}}


def _read_safetensors(path: Path) -> tuple[dict[str, Array], str]:
    with safe_open(path, framework="np") as file:
        names = {"codes", "durations"} & set(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
        return tensors, (file.metadata() or {}).get("vtok", "")


def _read_pt(path: Path) -> tuple[dict[str, Array], str]:
    tensors, text = _open_tensors(path)
    names = {"codes", "durations"} & set(tensors)
    return {name: tensors[name].numpy() for name in names}, str(text or "")


def _open_tensors(path: Path) -> tuple[dict[str, Any], Any]:
    """Open a pt file: its tensors, and its text `vtok`."""
    from vtok.models.torch_file import read_foreign  # imports torch

    found = read_foreign(path)
    return dict(found.tensors), found.values.get("vtok")


def _facts_beside(path: Path) -> dict[str, Any]:
    """Read the JSON file of the same name, or the row of the data set that the file is part of."""
    beside = path.with_suffix(".json")
    if beside.is_file():
        return _load_object(beside.read_bytes(), beside.name)
    for folder in path.absolute().parents:
        if (folder / "dataset.json").is_file():
            facts = _recipe(folder)
            output = path.absolute().relative_to(folder).as_posix()
            return {**facts, **_manifest_row(folder, output)}
    return {}


def _recipe(folder: Path) -> dict[str, Any]:
    """Read the model of the data set in a folder; nothing if there is none."""
    if not (folder / "dataset.json").is_file():
        return {}
    about = _load_object((folder / "dataset.json").read_bytes(), "dataset.json")
    recipe = about.get("recipe")
    keys = ("model", "weights_sha256")
    return {key: recipe[key] for key in keys if key in recipe} if isinstance(recipe, dict) else {}


def _manifest_row(folder: Path, output: str) -> dict[str, Any]:
    """Find the row of an output in the manifests of a data set."""
    quoted = json.dumps(output).encode()
    for manifest in sorted(folder.glob("manifest*.jsonl")):
        with manifest.open("rb") as lines:
            for line in lines:
                row = _load_object(line, manifest.name) if quoted in line else {}
                if row.get("output") == output:
                    return row
    return {}


def _load_object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{name} is no JSON") from exc
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no JSON object")
    return value


def _choose(ids: Iterable[str], options: DecodeOptions, name: str) -> tuple[int, str]:
    """Return number and name of the item of a shard that the options select."""
    found, wanted, number = list(ids), options.item_id, options.item_index
    if not found:
        raise InputError(f"{name}: holds no items")
    if wanted is not None and number is not None:
        raise UsageError("`item_id` and `item_index` set the same thing: give one of them")
    some = ", ".join(map(_shown, found[:IDS_SHOWN])) + (", ..." if len(found) > IDS_SHOWN else "")
    if wanted is not None:
        if wanted not in found:
            raise OptionError("item_id", wanted, f"an id of an item in {name} ({some})")
        number = found.index(wanted)
    if number is None and len(found) > 1:
        raise UsageError(
            f"{name}: holds {len(found)} items ({some}): give `item_id` or `item_index`"
        )
    if not 0 <= (number or 0) < len(found):
        raise OptionError("item_index", number, f"0 to {len(found) - 1} for {name}")
    return number or 0, _shown(found[number or 0])


def _shown(id_: str) -> str:
    """Shorten an id to one line of text."""
    return "".join(char if char.isprintable() else "_" for char in id_[:80])


def _read_memmap(path: Path, name: str, options: DecodeOptions) -> StoredArray:
    """Read an item of `video_N.bin`, given any file of the shard."""
    match = SHARD_NAME.fullmatch(path.name)
    assert match is not None
    metadata = path.with_name(f"metadata_{match[1]}.json")
    about = _load_object(metadata.read_bytes(), metadata.name)
    segments, shape = about["segments"], about["shape"]
    number, id_ = _choose((str(segment["id"]) for segment in segments), options, name)
    steps = np.memmap(path.with_name(f"video_{match[1]}.bin"), "<u4", "r").reshape(shape)
    first, count = int(segments[number]["first"]), int(segments[number]["steps"])
    if steps.ndim != 4 or not 0 <= first < first + count <= len(steps):
        raise ValueError(f"{metadata.name} does not match the codes")
    codes = np.moveaxis(steps[first : first + count], 0, 1)
    return StoredArray(f"{name}!{id_}", codes, {**_recipe(path.parent), **segments[number]})


def _read_tar(path: Path, name: str, options: DecodeOptions) -> StoredArray | bytes:
    """Read an item of a tar shard, `KEY.npy` or `KEY.vtok` with or without `KEY.json`."""
    members: dict[str, tarfile.TarInfo] = {}
    facts: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                key, _, suffix = member.name.rpartition(".")
                if suffix in ("npy", "vtok"):
                    members[key] = member
                elif suffix == "json" and (file := shard.extractfile(member)) is not None:
                    facts[key] = _load_object(file.read(), member.name)
            keys = list(members)
            ids = (str(facts.get(key, {}).get("id", key)) for key in keys)
            number, id_ = _choose(ids, options, name)
            chosen = shard.extractfile(members[keys[number]])
            data = b"" if chosen is None else chosen.read()
    except (tarfile.TarError, EOFError) as exc:
        raise ValueError(str(exc)) from exc
    if keys[number] and members[keys[number]].name.endswith(".vtok"):
        return data
    array = parse_npy(np.frombuffer(data, np.uint8))
    about = {**_recipe(path.parent), **facts.get(keys[number], {})}
    return StoredArray(f"{name}!{id_}", array, about)


def _read_parquet(path: Path, name: str, options: DecodeOptions) -> StoredArray:
    """Read a row of a parquet shard."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as exc:
        raise UsageError(f"{name}: parquet needs pyarrow: pip install 'vtok[parquet]'") from exc
    try:
        table = parquet.ParquetFile(path)
        missing = {"id", "codes", "dtype", "shape"} - set(table.schema_arrow.names)
        if missing:
            raise ValueError(f"no column {', '.join(sorted(missing))}")
        number, id_ = _choose(table.read(["id"])["id"].to_pylist(), options, name)
        left, group = number, 0
        while left >= table.metadata.row_group(group).num_rows:
            left, group = left - table.metadata.row_group(group).num_rows, group + 1
        (row,) = table.read_row_group(group).slice(left, 1).to_pylist()
    except ArrowException as exc:
        raise ValueError(str(exc)) from exc
    dtype = np.dtype(row.pop("dtype"))
    if dtype.kind not in "iuf":
        raise ValueError(f"codes of {dtype}, not integers")
    array = np.frombuffer(row.pop("codes"), dtype).reshape(row.pop("shape"))
    return StoredArray(f"{name}!{id_}", array, {**_recipe(path.parent), **row})


class LatentFile:
    """File of latents, opened for reading; of safetensors, only the steps requested are read.

    Attributes:
        header: model, source and layout.
        num_steps: latent steps.
        facts: `frame_times`, if the file states them; see `StoredArray`.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Open a file and check everything but the numbers.

        Args:
            path: a safetensors or pt file.
            name: name of the file in errors.

        Raises:
            InputError: if it is missing or cannot be read.
            CodeFileError: if it is damaged, cut, or no file of latents.
        """
        self.name = name
        with open_input(path):  # raises the error if it cannot be opened
            pass
        opened = (_open_pt if _is_pt(path) else _open)(path, name)
        text, dtype, shape, self._read, tensors = opened
        self.header = parse_header(text, name)
        self.facts = _stated_times(self.header, tensors)
        layout, self.num_steps = self.header.format, shape[1] if len(shape) == 4 else 0
        if dtype != layout.dtype or shape != [layout.latent_dim, self.num_steps, *layout.grid]:
            raise CodeFileError(f"{name}: its latents do not match its header")
        most = most_frames(self.num_steps, layout.temporal_compression, layout.window)
        if not 0 < self.header.num_frames <= most:
            raise CodeFileError(f"{name}: {self.num_steps} steps: not its number of frames")

    def read(self, first: int, last: int) -> Latents:
        """Read steps, [1, D, last - first, h, w].

        Raises:
            CodeFileError: for numbers that are not finite.
        """
        latents: Latents = self._read(first, last)
        if not np.isfinite(latents).all():
            raise CodeFileError(
                f"{self.name}: holds NaN or infinities in steps {first} to {last - 1}: damaged"
            )
        return latents[None]

    def chunks(
        self, frames: tuple[int, int], lookback: int | None, grain: int = 1
    ) -> Iterator[CodeChunk]:
        """Read what a decoder needs for some frames; see `read_steps`."""
        return read_steps(self.read, self.num_steps, self.header.format, frames, lookback, grain)


def most_frames(steps: int, temporal: int, window: int | None = None) -> int:
    """Return the frames that latent steps decode to; 0 unless they fill windows, if there are any.

    Args:
        steps: latent steps.
        temporal: frames per latent step.
        window: latent steps of a window; None for a stream.
    """
    if window is None:
        return 1 + (steps - 1) * temporal
    return 0 if steps % window else steps // window * most_frames(window, temporal)


def read_steps(
    read: Callable[[int, int], Codes],
    num_steps: int,
    layout: CodeFormat | LatentFormat,
    frames: tuple[int, int],
    lookback: int | None,
    grain: int = 1,
) -> Iterator[CodeChunk]:
    """Read what a decoder needs for some frames of an array of latent steps.

    Args:
        read: returns the steps from one number to before another, [stages, codebooks, t, h, w].
        num_steps: latent steps of the array.
        layout: of the array.
        frames: number of the first frame, and of the one after the last.
        lookback: steps that the decoder must have seen; None for all.
        grain: steps that are decoded together, a divisor of `READ_STEPS`: the first step read is
            a multiple of it.
    """
    temporal, window = layout.temporal_compression, layout.window
    if window is not None:
        length = most_frames(window, temporal)
        for number in range(frames[0] // length, -(-frames[1] // length)):
            low = max(0, frames[0] - number * length)
            high = min(length, frames[1] - number * length)
            yield CodeChunk(read(number * window, (number + 1) * window), high - low, True, low)
        return
    step = -(-frames[0] // temporal)  # shows the first frame
    begin = 0 if lookback is None else max(0, step - max(1, lookback)) // grain * grain
    end = -(-(frames[1] - 1) // temporal) + 1 + layout.decoder_lookahead
    skip, left = frames[0] - begin * temporal, frames[1] - frames[0]
    for first in range(begin, min(end, num_steps), READ_STEPS):
        last = min(first + READ_STEPS, end, num_steps)
        covered = (last - first) * temporal - (temporal - 1 if first == begin else 0)
        dropped = min(skip, covered)
        shown = min(left, covered - dropped)
        yield CodeChunk(read(first, last), shown, first == begin, dropped)
        skip, left = skip - dropped, left - shown


def is_latent_file(source: Path | BinaryIO) -> bool:
    """Return whether an input is a safetensors or pt file of latents.

    Nothing is consumed of a stream: it must have `peek`, as standard input has.
    """
    if not isinstance(source, Path):
        peek = getattr(source, "peek", None)
        return peek is not None and FORMAT.encode() in peek(1 << 12)
    if not source.is_file():
        return False  # reading from a pipe would consume the data
    if _is_pt(source):
        return True
    try:
        with safe_open(source, framework="np") as file:
            about = json.loads((file.metadata() or {})["vtok"])
            return bool(about["format"] == FORMAT)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_pt(path: Path) -> bool:
    return path.suffix.lower() == ".pt"


def _open(path: Path, name: str) -> tuple[str, str, list[int], Any, dict[str, Array]]:
    """Open a safetensors file: header, type, shape, the function that reads steps, other arrays."""
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("vtok", "")
            found = file.get_slice("latents")
            kind, shape = found.get_dtype(), found.get_shape()
            others = {one: file.get_tensor(one) for one in {"durations"} & set(file.keys())}
    except (SafetensorError, OSError, ValueError) as exc:
        raise CodeFileError(f"{name}: damaged or cut, or holds no latents ({exc})") from exc
    kinds = {stored: dtype for dtype, stored in SAFETENSORS_TYPES.items()}
    return text, kinds.get(kind, kind), shape, lambda first, last: found[:, first:last], others


def _open_pt(path: Path, name: str) -> tuple[str, str, list[int], Any, dict[str, Array]]:
    """Open a pt file; see `_open`."""
    tensors, text = _open_tensors(path)
    latents = tensors.pop("latents", None)
    if latents is None or not isinstance(text, str):
        raise CodeFileError(f"{name}: holds no latents of vtok")
    dtype = str(latents.dtype).removeprefix("torch.")
    others = {name: tensors[name].numpy() for name in {"durations"} & set(tensors)}
    read = lambda first, last: latents[:, first:last].numpy()  # noqa: E731
    return text, dtype, list(latents.shape), read, others


def parse_header(text: str, name: str) -> LatentHeader:
    """Read the header that a file of latents stores.

    Raises:
        CodeFileError: if it is damaged, or of another kind of file.
    """
    try:
        about = load_json(text.encode())
        if about["format"] != FORMAT:
            raise CodeFileError(f"{name}: holds no latents of vtok")
        if about["version"] != VERSION:
            raise CodeFileError(f"{name}: of a later version of vtok: update vtok")
        return LatentHeader.from_json(dump_json(about["header"]))
    except (KeyError, TypeError, ValueError) as exc:
        raise CodeFileError(f"{name}: holds no latents of vtok") from exc
    except CodeFileError as exc:
        raise CodeFileError(f"{name}: {str(exc).removeprefix(f'{name}: ')}") from exc
