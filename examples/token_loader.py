"""PyTorch data sets that give windows of codes from the output of `vtok dataset encode`.

    vtok dataset encode videos/ -o codes --to npy --size 128x128
    python examples/token_loader.py codes --window 4 --batch 8 --workers 2

    from token_loader import open_windows
    loader = DataLoader(open_windows("codes", window=4), batch_size=8, num_workers=2, shuffle=True)
    for codes in loader: ...  # int64 [8, K, 4, h, w], what VideoTokenizer.decode takes

A window is a number of consecutive latent steps of one item; shorter items are skipped. Batches
need items of one size: encode with `--size WIDTHxHEIGHT`.

| `--to` | class | shuffled by |
|---|---|---|
| npy, vtok | `ClipFiles`: one random window per item | `DataLoader(shuffle=True)` |
| memmap | `MemoryMap`: every window | `DataLoader(shuffle=True)` |
| tar, tar-vtok | `TarShards`: one random window per item | itself, with a buffer |

First steps are drawn from torch's generator, which `DataLoader` seeds differently for each worker
and epoch: `torch.manual_seed` makes a run repeatable.
"""

import argparse
import io
import json
import math
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from vtok.codefile.reader import CodeFileReader
from vtok.dataset.folder import DatasetFolder
from vtok.errors import InputError, UsageError, VtokError

BUFFER = 256  # windows of each worker to draw the next one from


class Windows(Dataset[Tensor]):
    """Base class of map-style data sets, whose items are int64 [K, window, h, w].

    Args:
        folder: folder of the data set.
        window: latent steps per window.
    """

    def __init__(self, folder: Path, window: int) -> None:
        self.folder, self.window = folder, window


class ClipFiles(Windows):
    """One random window of each `.npy` or `.vtok` file."""

    def __init__(self, folder: Path, window: int) -> None:
        super().__init__(folder, window)
        rows = [row for row in read_rows(folder / "manifest.jsonl") if row["status"] == "ok"]
        # one array of bytes is shared between workers; a list would be copied
        self.names = np.array(
            [row["output"].encode() for row in rows if row["code_shape"][-3] >= window]
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        path = self.folder / bytes(self.names[index]).decode()
        if path.suffix == ".vtok":
            with path.open("rb") as file:
                return window_of_code_file(file, self.window)
        return window_of_array(np.load(path, mmap_mode="r", allow_pickle=False), self.window)


class MemoryMap(Windows):
    """Every window of the files `video_N.bin`; only the bytes of the window are read."""

    def __init__(self, folder: Path, window: int) -> None:
        super().__init__(folder, window)
        self.names, self.shapes, starts = [], [], [np.zeros((0, 2), np.int64)]
        for shard, path in enumerate(shards(folder, "metadata_*.json")):
            name = path.stem.removeprefix("metadata_")
            self.names.append(name)
            self.shapes.append(json.loads(path.read_text())["shape"])  # [steps, K, h, w]
            segments = np.fromfile(folder / f"segment_ids_{name}.bin", "<i4")
            # segments are in order: if both ends of a window are of one item, all of it is
            inside = segments[: max(len(segments) - window + 1, 0)] == segments[window - 1 :]
            begin = np.flatnonzero(inside)
            starts.append(np.stack([np.full_like(begin, shard), begin], axis=1))
        self.starts = np.concatenate(starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        shard, begin = map(int, self.starts[index])
        shape = [self.window, *self.shapes[shard][1:]]
        # an open memory map would be copied to spawned workers
        path, step = self.folder / f"video_{self.names[shard]}.bin", math.prod(shape[1:])
        codes = np.fromfile(path, "<u4", count=self.window * step, offset=4 * begin * step)
        return torch.from_numpy(np.moveaxis(codes.reshape(shape), 0, 1).astype(np.int64))


class TarShards(IterableDataset[Tensor]):
    """One random window, int64 [K, window, h, w], of each item in tar shards, read sequentially.

    Each epoch distributes the shards over the workers, so use at most as many workers as shards.

    Args:
        folder: folder of the data set.
        window: latent steps per window.
        buffer: windows to draw the next one from.
    """

    def __init__(self, folder: Path, window: int, buffer: int = BUFFER) -> None:
        self.paths, self.window, self.buffer = shards(folder, "*.tar"), window, buffer
        self.epoch = 0

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        index, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # the order is the same for all workers, whose seeds differ by their index
        seed = int(torch.randint(2**31, ())) if worker is None else torch.initial_seed() - index
        generator = torch.Generator().manual_seed(seed + self.epoch)
        order = torch.randperm(len(self.paths), generator=generator)
        self.epoch += 1  # persistent workers keep their seed
        held: list[Tensor] = []
        for number in order[index::count].tolist():
            for window in self._windows(self.paths[number]):
                held.append(window)
                if len(held) > self.buffer:
                    yield held.pop(int(torch.randint(len(held), ())))
        while held:
            yield held.pop(int(torch.randint(len(held), ())))

    def _windows(self, path: Path) -> Iterator[Tensor]:
        with tarfile.open(path) as shard:
            for member in shard:
                file = shard.extractfile(member)
                suffix = Path(member.name).suffix
                if file is None or suffix not in (".npy", ".vtok"):
                    continue
                data = io.BytesIO(file.read())
                if suffix == ".vtok":
                    codes = whole_code_file(data)
                else:
                    codes = np.lib.format.read_array(data, allow_pickle=False)
                if codes.shape[-3] >= self.window:
                    yield window_of_array(codes, self.window)


def open_windows(folder: str | Path, window: int) -> Dataset[Tensor]:
    """Open a data set of any supported format.

    Args:
        folder: output of `vtok dataset encode`.
        window: latent steps per window.

    Raises:
        InputError: no data set, or an unsupported format.
        UsageError: the window is shorter than one step.
    """
    folder = Path(folder)
    to = DatasetFolder(folder).recipe()["to"]
    kinds = {"memmap": MemoryMap, "tar": TarShards, "tar-vtok": TarShards}
    kinds |= {"npy": ClipFiles, "vtok": ClipFiles}
    if to not in kinds:
        raise InputError(f"{folder}: made with --to {to}: expected one of {', '.join(kinds)}")
    if window < 1:
        raise UsageError(f"--window {window}: expected 1 or more latent steps")
    made: Dataset[Tensor] = kinds[to](folder, window)
    return made


def read_rows(manifest: Path) -> list[dict[str, Any]]:
    """Read the rows of a manifest."""
    with manifest.open() as file:
        return [json.loads(line) for line in file]


def shards(folder: Path, pattern: str) -> list[Path]:
    """List the files that match a pattern, in order.

    Raises:
        InputError: no file matches.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(f"{folder}: has no {pattern}")
    return found


def window_of_array(codes: np.ndarray, window: int) -> Tensor:
    """Draw a window of codes [K, t, h, w], or [t, h, w] if K is 1."""
    codes = codes if codes.ndim == 4 else codes[None]
    begin = int(torch.randint(codes.shape[1] - window + 1, ()))
    return torch.from_numpy(codes[:, begin : begin + window].astype(np.int64))


def window_of_code_file(file: BinaryIO, window: int) -> Tensor:
    """Draw a window of a `.vtok` file, and read only the chunks that it needs."""
    reader = CodeFileReader(file)
    ends = np.cumsum([0, *(chunk.num_steps for chunk in reader.chunks)])
    begin = int(torch.randint(int(ends[-1]) - window + 1, ()))
    first, last = np.searchsorted(ends, [begin, begin + window - 1], side="right") - 1
    codes = join(reader.read_chunk(number).codes for number in range(first, last + 1))
    begin -= int(ends[first])
    return torch.from_numpy(codes[:, begin : begin + window].copy())


def whole_code_file(file: BinaryIO) -> np.ndarray:
    """Read all codes of a `.vtok` file, int64 [K, t, h, w]."""
    return join(chunk.codes for chunk in CodeFileReader(file))


def join(chunks: Iterator[np.ndarray]) -> np.ndarray:
    """Join codes [stages, codebooks, t, h, w] of chunks to [K, t, h, w]."""
    codes = np.concatenate(list(chunks), axis=2)
    return codes.reshape(-1, *codes.shape[2:])


def main() -> None:
    """Read a data set once and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="output of vtok dataset encode")
    parser.add_argument("--window", type=int, default=4, metavar="T", help="latent steps")
    parser.add_argument("--batch", type=int, default=8, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    args = parser.parse_args()
    try:
        windows = open_windows(args.folder, args.window)
        # an IterableDataset shuffles by itself
        shuffle = None if isinstance(windows, IterableDataset) else True
        loader = DataLoader(windows, args.batch, shuffle=shuffle, num_workers=args.workers)
        shapes, count = [], 0
        for codes in loader:  # int64 [B, K, T, h, w]
            shapes.append(list(codes.shape))
            count += len(codes)
        print(f"{args.folder}: {type(windows).__name__}, {count} windows in {len(shapes)} batches")
        if shapes:
            print(f"the first is {codes.dtype} {shapes[0]}".replace("torch.", ""))
    except VtokError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
