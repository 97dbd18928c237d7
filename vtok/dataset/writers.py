"""Output of a data set: one file per item, or shards (tar for webdataset, memory maps, parquet).

The items of a shard are chosen before any of them is encoded, and lie in it in order of ids, so its
bytes depend neither on the order of encoding nor on interruptions. Codes wait in a staging folder
until all items of their shard are finished. If an item that failed is encoded later, its shard is
written again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vtok._files import atomic_output
from vtok.dataset.folder import DatasetFolder
from vtok.dataset.item import Item, Record, file_name, file_sha256
from vtok.dataset.options import SHARD_FORMATS, DatasetOptions
from vtok.dataset.plan import Plan
from vtok.errors import UsageError

Codes = npt.NDArray[np.unsignedinteger]
Note = Callable[[Record], None]
Contents = Iterator[tuple[Record, bytes]]
"""Records of the items of a shard, each with the content of its staged file."""


class Writer:
    """Output of a run: one file per item, with the suffix `to`; called from one thread."""

    def __init__(self, folder: DatasetFolder, to: str) -> None:
        self._folder, self._to = folder, to

    def has(self, record: Record) -> bool:
        """Return True if the codes of an encoded item still exist."""
        try:
            status = os.stat(f"{self._folder.root}/{record['output']}")  # noqa: PTH116 - Path is slow
            return bool(status.st_size == record["bytes"])
        except OSError:
            return False

    def start(self) -> None:
        """Prepare, once the plan knows what to do."""

    def assign(self, items: Iterator[Item]) -> Iterator[tuple[Item, Path]]:
        """Yield the items, which come in order of ids, each with the file for its codes."""
        for item in items:
            yield item, self._folder.root / self._name(item.id)

    def located(self, record: Record) -> Record:
        """Return a record completed by the location of the codes."""
        output = self._name(record["id"]) if record["status"] == "ok" else None
        return {**record, "output": output}

    def finished(self, record: Record) -> None:
        """Handle an item whose record is in the journal."""

    def close(self) -> None:
        """Clean up when all items are finished."""

    def _name(self, id_: str) -> str:
        return f"{file_name(id_)}.{self._to}"


def make_writer(folder: DatasetFolder, plan: Plan, options: DatasetOptions, note: Note) -> Writer:
    """Make the writer of a run; `note` adds a record to journal and plan.

    Raises:
        UsageError: the format needs a package that is not installed.
    """
    if options.to in SHARD_FORMATS:
        return _ShardWriter(folder, plan, options, note)
    return Writer(folder, options.to)


class _ShardWriter(Writer):
    """Shards with a fixed number of items."""

    def __init__(
        self, folder: DatasetFolder, plan: Plan, options: DatasetOptions, note: Note
    ) -> None:
        self._folder, self._plan, self._note = folder, plan, note
        self._partition, self._size = options.partition, options.shard_size
        self._form = shard_format(options.to)
        self._open: dict[int, int] = {}  # shard -> items to come
        self._exists: dict[int, bool] = {}

    def has(self, record: Record) -> bool:
        written = self._plan.written_in(record["id"])
        if written is not None and written[1] == record["sha256"] and self._is_there(written[0]):
            return True
        path = self._folder.root / str(record.get("staged"))
        return path.is_file() and path.stat().st_size == record["bytes"]

    def start(self) -> None:
        """Write the shards that were complete when an earlier run stopped."""
        self._open = self._plan.open_shards()
        self.close()
        for shard in sorted({shard for _, shard in self._plan.unwritten()}):
            is_own = shard % self._partition.count == self._partition.index
            if is_own and shard not in self._open:
                self._write(shard)

    def assign(self, items: Iterator[Item]) -> Iterator[tuple[Item, Path]]:
        """Items without a shard fill new ones."""
        new: list[Item] = []
        for item in items:
            if self._plan.shard_of(item.id) is not None:
                yield item, self._staged(item.id)
                continue
            new.append(item)
            if len(new) == self._size:
                yield from self._new_shard(new)
                new = []
        if new:
            yield from self._new_shard(new)

    def located(self, record: Record) -> Record:
        if record["status"] != "ok":
            return {**record, "output": None}
        shard = self._plan.shard_of(record["id"])
        assert shard is not None
        staged = self._staged(record["id"]).relative_to(self._folder.root).as_posix()
        return {**record, "output": self._form.names(shard)[0], "staged": staged}

    def finished(self, record: Record) -> None:
        shard = self._plan.shard_of(record["id"])
        if shard is None:
            return
        self._open[shard] -= 1
        if not self._open[shard]:
            del self._open[shard]
            self._write(shard)

    def close(self) -> None:
        """Remove staged codes that are in their shard, or whose item is encoded again."""
        needed = {_sha256(id_.encode()) for id_, _ in self._plan.unwritten()}
        for path in self._folder.staged(self._partition).glob("*/*.part"):
            if path.stem not in needed:
                path.unlink(missing_ok=True)

    def _new_shard(self, items: list[Item]) -> Iterator[tuple[Item, Path]]:
        number, count = self._plan.next_shard(), self._partition.count
        number += (self._partition.index - number) % count  # no other partition uses this number
        self._note({"kind": "shard", "shard": number, "ids": [item.id for item in items]})
        self._open[number] = len(items)
        for item in items:
            yield item, self._staged(item.id)

    def _write(self, shard: int) -> None:
        """Write a shard with all its items that are encoded."""
        ids = self._plan.encoded_ids(shard)
        found: dict[str, str] = {}
        paths = self._paths(shard)[::-1] if ids else []  # the last file appears last
        with ExitStack() as stack:
            tmp = self._folder.tmp(self._partition)
            made = [stack.enter_context(atomic_output(path, True, tmp)) for path in paths]
            if ids:
                self._form.write(made[::-1], self._contents(shard, ids, found))
            sums = map(file_sha256, made)
            files = {path.name: sha256 for path, sha256 in zip(paths, sums, strict=True)}
        self._note({"kind": "written", "shard": shard, "items": found, "files": files})
        self._exists[shard] = bool(ids)
        for id_ in found:
            self._staged(id_).unlink(missing_ok=True)

    def _contents(self, shard: int, ids: list[str], found: dict[str, str]) -> Contents:
        """Records and codes, from the staging folder or the existing shard; fills `found`."""
        old = self._read_old(shard)
        held = next(old, None)
        for id_ in ids:
            record = self._plan.record(id_) or {}
            while held is not None and held[0] < id_:
                held = next(old, None)
            data = self._read_staged(record)
            if data is None and held is not None and held[0] == id_:
                data = held[1] if _sha256(held[1]) == record["sha256"] else None
            if data is None:
                reason = f"{record['input']}: its codes vanished before their shard was written"
                self._note({
                    **record, "status": "failed", "phase": "plan", "output": None,
                    "error": "OutputError", "message": f"{reason}: run again",
                })  # fmt: skip
                continue
            found[id_] = record["sha256"]
            yield record, data

    def _read_old(self, shard: int) -> Iterator[tuple[str, bytes]]:
        """Contents of an existing shard, up to the first damage."""
        if self._is_there(shard):
            with suppress(OSError, ValueError, KeyError):
                yield from self._form.read(self._paths(shard))

    def _read_staged(self, record: Record) -> bytes | None:
        try:
            data = (self._folder.root / record["staged"]).read_bytes()
        except (OSError, KeyError):
            return None
        return data if _sha256(data) == record["sha256"] else None

    def _is_there(self, shard: int) -> bool:
        if shard not in self._exists:
            self._exists[shard] = all(path.is_file() for path in self._paths(shard))
        return self._exists[shard]

    def _paths(self, shard: int) -> list[Path]:
        return [self._folder.root / name for name in self._form.names(shard)]

    def _staged(self, id_: str) -> Path:
        name = _sha256(id_.encode())
        return self._folder.staged(self._partition) / name[:2] / f"{name}.part"


class _TarFormat:
    """A tar file with two members per item: `KEY.npy` or `KEY.vtok`, and `KEY.json`."""

    def __init__(self, file_format: str) -> None:
        self.file_format = file_format

    def names(self, number: int) -> list[str]:
        return [f"{number:06d}.tar"]

    def write(self, paths: list[Path], contents: Contents) -> None:
        with tarfile.open(paths[0], "w", format=tarfile.PAX_FORMAT) as shard:
            for record, data in contents:
                key = file_name(record["id"], dots=False)
                about = json.dumps(_about(record), sort_keys=True).encode() + b"\n"
                for suffix, content in ((self.file_format, data), ("json", about)):
                    info = tarfile.TarInfo(f"{key}.{suffix}")  # times and owners are 0
                    info.size, info.mode = len(content), 0o644
                    shard.addfile(info, io.BytesIO(content))
                shard.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them

    def read(self, paths: list[Path]) -> Iterator[tuple[str, bytes]]:
        try:
            with tarfile.open(paths[0], "r:") as shard:
                data = b""
                while (info := shard.next()) is not None:
                    shard.members = []  # type: ignore[attr-defined]
                    file = shard.extractfile(info)
                    content = b"" if file is None else file.read()
                    if info.name.endswith(".json"):
                        yield json.loads(content)["id"], data
                    data = content
        except tarfile.TarError as exc:
            raise ValueError(str(exc)) from exc


class _MemmapFormat:
    """Three files in the layout of the 1X World Model challenge.

    `video_N.bin` is uint32 [steps, K, h, w], `segment_ids_N.bin` is int32 [steps], the index of
    the item in the shard that a step belongs to, and `metadata_N.json` has the shape, and for each
    item its id, first step and number of steps.
    """

    def names(self, number: int) -> list[str]:
        return [f"video_{number}.bin", f"segment_ids_{number}.bin", f"metadata_{number}.json"]

    def write(self, paths: list[Path], contents: Contents) -> None:
        first = 0
        listed: list[dict[str, Any]] = []
        with paths[0].open("wb") as video, paths[1].open("wb") as segments:
            for record, data in contents:
                codes = read_npy(data)
                stacked = codes.reshape(-1, *codes.shape[-3:])
                steps = np.ascontiguousarray(np.moveaxis(stacked, 0, 1), "<u4")  # [t, K, h, w]
                video.write(steps.tobytes())
                segments.write(np.full(len(steps), len(listed), "<i4").tobytes())
                listed.append({
                    **_about(record), "first": first, "steps": len(steps),
                    "dtype": codes.dtype.str, "ndim": codes.ndim,
                })  # fmt: skip
                first += len(steps)
        num_codebooks, _, height, width = listed[0]["code_shape"] if listed else (0, 0, 0, 0)
        about = {
            "token_dtype": "uint32",
            "segment_dtype": "int32",
            "num_images": first,
            "shape": [first, num_codebooks, height, width],
            "vocab_size": _vocab_size(listed[0]) if listed else 0,
            "segments": listed,
        }
        paths[2].write_bytes(json.dumps(about, sort_keys=True).encode() + b"\n")

    def read(self, paths: list[Path]) -> Iterator[tuple[str, bytes]]:
        about = json.loads(paths[2].read_bytes())
        steps = np.memmap(paths[0], "<u4", "r").reshape(about["shape"])
        for item in about["segments"]:
            codes = np.moveaxis(steps[item["first"] : item["first"] + item["steps"]], 0, 1)
            codes = codes[0] if item["ndim"] == 3 else codes
            yield item["id"], write_npy(codes.astype(item["dtype"]))


class _ParquetFormat:
    """A row per item: its id, its codes as bytes with their shape, and its columns."""

    def __init__(self) -> None:
        try:
            import pyarrow.parquet
        except ImportError as exc:
            raise UsageError("`to` parquet needs pyarrow: pip install 'vtok[parquet]'") from exc
        self._arrow: Any = pyarrow

    def names(self, number: int) -> list[str]:
        return [f"{number:06d}.parquet"]

    def write(self, paths: list[Path], contents: Contents) -> None:
        arrow = self._arrow
        schema = arrow.schema(
            [
                ("id", arrow.string()), ("codes", arrow.binary()), ("dtype", arrow.string()),
                ("shape", arrow.list_(arrow.int32())), ("frames", arrow.int64()),
                ("width", arrow.int32()), ("height", arrow.int32()), ("fps", arrow.string()),
                ("bits_per_code", arrow.int32()), ("vocab_size", arrow.int64()),
                ("input", arrow.string()),
                ("start", arrow.string()), ("end", arrow.string()),
                ("start_frame", arrow.int64()), ("num_frames", arrow.int64()),
                ("columns", arrow.string()),
                ("frame_times", arrow.struct([
                    ("time_base", arrow.string()), ("durations", arrow.list_(arrow.int64())),
                ])),
            ]
        )  # fmt: skip
        with arrow.parquet.ParquetWriter(paths[0], schema, compression="zstd") as writer:
            for record, data in contents:
                codes = read_npy(data)
                row = {name: record.get(name) for name in schema.names}
                row |= {"vocab_size": _vocab_size(record)}
                row |= {"codes": codes.tobytes(), "dtype": codes.dtype.str, "shape": codes.shape}
                row |= {"columns": json.dumps(record["columns"], sort_keys=True)}
                row |= {"input": json.dumps(record["input"])[1:-1]}  # any bytes, as ASCII
                writer.write_batch(arrow.RecordBatch.from_pylist([row], schema))

    def read(self, paths: list[Path]) -> Iterator[tuple[str, bytes]]:
        try:
            table = self._arrow.parquet.ParquetFile(paths[0])
            for batch in table.iter_batches(64, columns=["id", "codes", "dtype", "shape"]):
                for row in batch.to_pylist():
                    codes = np.frombuffer(row["codes"], row["dtype"]).reshape(row["shape"])
                    yield row["id"], write_npy(codes)
        except self._arrow.ArrowException as exc:
            raise ValueError(str(exc)) from exc


ShardFormat = _TarFormat | _MemmapFormat | _ParquetFormat
"""Layout of the items in the files of a shard.

`names(number)` returns the names of its files; the shard is complete when the last exists.
`write(paths, contents)` writes the same bytes for the same items. `read(paths)` yields ids and
staged contents, in order.
"""


def shard_format(to: str) -> ShardFormat:
    """Return the shard layout of an output format.

    Raises:
        UsageError: it needs a package that is not installed.
    """
    if to == "parquet":
        return _ParquetFormat()
    return _MemmapFormat() if to == "memmap" else _TarFormat("vtok" if to == "tar-vtok" else "npy")


def read_npy(data: bytes) -> Codes:
    """Parse the content of a .npy file."""
    codes: Codes = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return codes


def write_npy(codes: npt.NDArray[Any]) -> bytes:
    """Return the content of a .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(codes), allow_pickle=False)
    return stream.getvalue()


def _about(record: Record) -> Record:
    """The part of a record that is the same in every run."""
    keys = ("id", "input", "start", "end", "start_frame", "num_frames", "frames", "width", "height",
            "fps", "code_shape", "bits_per_code", "columns")  # fmt: skip
    times = {"frame_times": record["frame_times"]} if record.get("frame_times") else {}
    return {**{key: record.get(key) for key in keys}, "vocab_size": _vocab_size(record), **times}


def _vocab_size(record: Record) -> int:
    """Entries of a codebook; records of earlier versions have only its bits."""
    size: int = record.get("vocab_size", 2 ** record["bits_per_code"])
    return size


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
