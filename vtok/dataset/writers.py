"""How codes lie in shards: tar as webdataset reads it, flat memory maps, and parquet."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vtok.dataset.item import Entry, file_name
from vtok.dataset.shards import Clips, ShardFormat, about_clip, as_line
from vtok.dataset.worker import Record
from vtok.errors import UsageError

TREE = {"vtok": ".vtok", "npy": ".npy", "safetensors": ".safetensors"}
"""Suffixes of files of one clip, by format."""


class Sink(Protocol):
    """What a run asks of the place where codes go. Only one thread calls it."""

    codec_format: str
    """What `EncodeOptions.to` is for each clip."""

    def is_there(self, record: Record) -> bool:
        """Whether the codes of a clip that was encoded are still where they were put."""

    def begin(self) -> None:
        """Get ready, now that the plan says what is to be done."""

    def order(self, entries: Iterator[Entry]) -> Iterator[tuple[Entry, Path]]:
        """Say for each clip to be done, in order of ids, which file to write its codes to."""

    def placed(self, record: Record) -> Record:
        """Complete the record of a clip that is done, before it goes into the journal."""

    def ended(self, record: Record) -> None:
        """Do what is to be done once the record of a clip is in the journal."""

    def finish(self) -> None:
        """Bring everything to its end; nothing more will come."""


class Tree:
    """A file for each clip.

    Args:
        root: folder of the data set.
        to: format, a key of `TREE`.
    """

    def __init__(self, root: Path, to: str) -> None:
        self._root, self.codec_format = root, to

    def is_there(self, record: Record) -> bool:
        """See `Sink`."""
        try:
            status = os.stat(f"{self._root}/{record['output']}")  # noqa: PTH116 - Path is slow
            return bool(status.st_size == record["bytes"])
        except OSError:
            return False

    def begin(self) -> None:
        """See `Sink`."""

    def order(self, entries: Iterator[Entry]) -> Iterator[tuple[Entry, Path]]:
        """See `Sink`."""
        for entry in entries:
            yield entry, self._root / self._name(entry.id)

    def placed(self, record: Record) -> Record:
        """See `Sink`."""
        output = self._name(record["id"]) if record["status"] == "ok" else None
        return {**record, "output": output}

    def ended(self, record: Record) -> None:
        """See `Sink`."""

    def finish(self) -> None:
        """See `Sink`."""

    def _name(self, id_: str) -> str:
        return file_name(id_) + TREE[self.codec_format]


Codes = npt.NDArray[np.unsignedinteger]


class TarForm:
    """A tar file with two members for each clip: `KEY.npy` or `KEY.vtok`, and `KEY.json`.

    Args:
        codec_format: npy or vtok.
    """

    def __init__(self, codec_format: str) -> None:
        self.codec_format = codec_format

    def names(self, number: int) -> list[str]:
        """See `ShardFormat`."""
        return [f"{number:06d}.tar"]

    def write(self, paths: list[Path], clips: Clips) -> None:
        """See `ShardFormat`."""
        with tarfile.open(paths[0], "w", format=tarfile.PAX_FORMAT) as shard:
            for record, data in clips:
                key = file_name(record["id"], dots=False)
                for suffix, content in (
                    (self.codec_format, data),
                    ("json", as_line(about_clip(record))),
                ):
                    info = tarfile.TarInfo(f"{key}.{suffix}")  # whose times and owners are 0
                    info.size, info.mode = len(content), 0o644
                    shard.addfile(info, io.BytesIO(content))
                shard.members = []  # type: ignore[attr-defined]  # kept for ever otherwise

    def read(self, paths: list[Path]) -> Iterator[tuple[str, bytes]]:
        """See `ShardFormat`."""
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


class MemmapForm:
    """Three files that world models are trained from, as the 1X challenge has them.

    `video_N.bin` is uint32 [steps, K, h, w], `segment_ids_N.bin` is int32 [steps], the number of
    the clip in the shard that a step belongs to, and `metadata_N.json` says the shape, and for each
    clip its id, first step and number of steps.
    """

    codec_format = "npy"

    def names(self, number: int) -> list[str]:
        """See `ShardFormat`."""
        return [f"video_{number}.bin", f"segment_ids_{number}.bin", f"metadata_{number}.json"]

    def write(self, paths: list[Path], clips: Clips) -> None:
        """See `ShardFormat`."""
        video, segments, metadata = paths
        first = 0
        listed: list[dict[str, Any]] = []
        with video.open("wb") as pixels, segments.open("wb") as numbers:
            for record, data in clips:
                codes = read_npy(data)
                steps = np.ascontiguousarray(_stepwise(codes), "<u4")
                pixels.write(steps.tobytes())
                numbers.write(np.full(len(steps), len(listed), "<i4").tobytes())
                place = {"first": first, "steps": len(steps)}
                kind = {"dtype": codes.dtype.str, "ndim": codes.ndim}
                listed.append(about_clip(record) | place | kind)
                first += len(steps)
        about = {
            "token_dtype": "uint32",
            "segment_dtype": "int32",
            "num_images": first,
            "shape": [first, *(_shape(listed[0]) if listed else (0, 0, 0))],
            "vocab_size": 2 ** listed[0]["bits_per_code"] if listed else 0,
            "segments": listed,
        }
        metadata.write_bytes(as_line(about))

    def read(self, paths: list[Path]) -> Iterator[tuple[str, bytes]]:
        """See `ShardFormat`."""
        about = json.loads(paths[2].read_bytes())
        steps = np.memmap(paths[0], "<u4", "r").reshape(about["shape"])
        for clip in about["segments"]:
            codes = np.moveaxis(steps[clip["first"] : clip["first"] + clip["steps"]], 0, 1)
            if clip["ndim"] == 3:
                codes = codes[0]
            yield clip["id"], write_npy(codes.astype(clip["dtype"]))


class ParquetForm:
    """A row for each clip: its id, what is known of it, and its codes as bytes with their shape."""

    codec_format = "npy"

    def __init__(self) -> None:
        """Find the library.

        Raises:
            UsageError: it is not installed.
        """
        try:
            import pyarrow.parquet
        except ImportError as exc:
            raise UsageError("--to parquet needs pyarrow: pip install 'vtok[parquet]'") from exc
        self._arrow: Any = pyarrow

    def names(self, number: int) -> list[str]:
        """See `ShardFormat`."""
        return [f"{number:06d}.parquet"]

    def write(self, paths: list[Path], clips: Clips) -> None:
        """See `ShardFormat`."""
        arrow = self._arrow
        schema = arrow.schema(
            [
                ("id", arrow.string()), ("codes", arrow.binary()), ("dtype", arrow.string()),
                ("shape", arrow.list_(arrow.int32())), ("frames", arrow.int64()),
                ("width", arrow.int32()), ("height", arrow.int32()), ("fps", arrow.string()),
                ("bits_per_code", arrow.int32()), ("input", arrow.string()),
                ("start", arrow.string()), ("end", arrow.string()), ("columns", arrow.string()),
            ]
        )  # fmt: skip
        with arrow.parquet.ParquetWriter(paths[0], schema, compression="zstd") as writer:
            for record, data in clips:
                codes = read_npy(data)
                row = {name: record.get(name) for name in schema.names}
                row |= {"codes": codes.tobytes(), "dtype": codes.dtype.str, "shape": codes.shape}
                row |= {"columns": json.dumps(record["columns"], sort_keys=True)}
                row |= {"input": json.dumps(record["input"])[1:-1]}  # any bytes, as ASCII
                writer.write_batch(arrow.RecordBatch.from_pylist([row], schema))

    def read(self, paths: list[Path]) -> Iterator[tuple[str, bytes]]:
        """See `ShardFormat`."""
        try:
            table = self._arrow.parquet.ParquetFile(paths[0])
            for batch in table.iter_batches(64, columns=["id", "codes", "dtype", "shape"]):
                for row in batch.to_pylist():
                    codes = np.frombuffer(row["codes"], row["dtype"]).reshape(row["shape"])
                    yield row["id"], write_npy(codes)
        except self._arrow.ArrowException as exc:
            raise ValueError(str(exc)) from exc


def shard_format(to: str) -> ShardFormat:
    """The form of a name in `SHARDED`.

    Raises:
        UsageError: it needs a library that is not installed.
    """
    if to == "parquet":
        return ParquetForm()
    return MemmapForm() if to == "memmap" else TarForm("vtok" if to == "tar-vtok" else "npy")


SHARDED = ("tar", "tar-vtok", "memmap", "parquet")
"""Formats of many clips in one file."""


def read_npy(data: bytes) -> Codes:
    """An array from the bytes of a .npy file."""
    codes: Codes = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return codes


def write_npy(codes: npt.NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(codes), allow_pickle=False)
    return stream.getvalue()


def _stepwise(codes: Codes) -> Codes:
    """[t, h, w] or [K, t, h, w] -> [t, K, h, w]."""
    return np.moveaxis(codes[None] if codes.ndim == 3 else codes, 0, 1)


def _shape(about: dict[str, Any]) -> list[int]:
    """[K, h, w] of a clip."""
    most, _, height, width = about["code_shape"]
    return [most, height, width]
