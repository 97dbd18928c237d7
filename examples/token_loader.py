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

With `frames_per_step`, 4 for vtok-base, an item is the pair of a window and `times`, float64
[window]: seconds from the start of the clip to the first frame of each step, which are those of the
source also at a variable rate. This is not for tokenizers that encode windows of frames.

    for codes, times in DataLoader(open_windows("codes", 4, frames_per_step=4), 8): ...

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
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from vtok.codefile.reader import CodeFileReader
from vtok.dataset.folder import DatasetFolder, frame_times
from vtok.errors import InputError, UsageError, VtokError

BUFFER = 256  # windows of each worker to draw the next one from


Window = Tensor | tuple[Tensor, Tensor]
"""Codes int64 [K, window, h, w], or these and times float64 [window]."""


class Windows(Dataset[Window]):
    """Base class of map-style data sets of windows.

    Args:
        folder: folder of the data set.
        window: latent steps per window.
        frames_per_step: temporal compression of the tokenizer, to get times; None for codes alone.
    """

    def __init__(self, folder: Path, window: int, frames_per_step: int | None = None) -> None:
        self.folder, self.window, self.frames_per_step = folder, window, frames_per_step


class ClipFiles(Windows):
    """One random window of each `.npy` or `.vtok` file."""

    def __init__(self, folder: Path, window: int, frames_per_step: int | None = None) -> None:
        super().__init__(folder, window, frames_per_step)
        self.manifest, found = folder / "manifest.jsonl", []
        for place, row in read_rows(self.manifest):
            if row["status"] == "ok" and row["code_shape"][-3] >= window:
                found.append((row["output"].encode(), place))
        # two arrays are shared between workers; lists would be copied
        self.names = np.array([name for name, _ in found])
        self.places = np.array([place for _, place in found], np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Window:
        path = self.folder / bytes(self.names[index]).decode()
        if path.suffix == ".vtok":
            with path.open("rb") as file:
                codes, begin = window_of_code_file(file, self.window)
        else:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            codes, begin = window_of_array(array, self.window)
        if self.frames_per_step is None:
            return codes
        with self.manifest.open("rb") as file:
            file.seek(int(self.places[index]))
            times = step_times(json.loads(file.readline()), self.frames_per_step)
        return codes, torch.from_numpy(times[begin : begin + self.window])


class MemoryMap(Windows):
    """Every window of the files `video_N.bin`; only the bytes of the window are read."""

    def __init__(self, folder: Path, window: int, frames_per_step: int | None = None) -> None:
        super().__init__(folder, window, frames_per_step)
        self.names, self.shapes, starts = [], [], [np.zeros((0, 2), np.int64)]
        self.times = []  # of each shard, [steps]
        for shard, path in enumerate(shards(folder, "metadata_*.json")):
            name = path.stem.removeprefix("metadata_")
            self.names.append(name)
            about = json.loads(path.read_text())
            self.shapes.append(about["shape"])  # [steps, K, h, w]
            if frames_per_step is not None:
                times = [step_times(one, frames_per_step) for one in about["segments"]]
                self.times.append(np.concatenate(times))
            segments = np.fromfile(folder / f"segment_ids_{name}.bin", "<i4")
            # segments are in order: if both ends of a window are of one item, all of it is
            inside = segments[: max(len(segments) - window + 1, 0)] == segments[window - 1 :]
            begin = np.flatnonzero(inside)
            starts.append(np.stack([np.full_like(begin, shard), begin], axis=1))
        self.starts = np.concatenate(starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Window:
        shard, begin = map(int, self.starts[index])
        shape = [self.window, *self.shapes[shard][1:]]
        # an open memory map would be copied to spawned workers
        path, step = self.folder / f"video_{self.names[shard]}.bin", math.prod(shape[1:])
        codes = np.fromfile(path, "<u4", count=self.window * step, offset=4 * begin * step)
        found = torch.from_numpy(np.moveaxis(codes.reshape(shape), 0, 1).astype(np.int64))
        if self.frames_per_step is None:
            return found
        return found, torch.from_numpy(self.times[shard][begin : begin + self.window])


class TarShards(IterableDataset[Window]):
    """One random window of each item in tar shards, which are read sequentially.

    Each epoch distributes the shards over the workers, so use at most as many workers as shards.

    Args:
        folder: folder of the data set.
        window: latent steps per window.
        buffer: windows to draw the next one from.
        frames_per_step: as for `Windows`.
    """

    def __init__(
        self, folder: Path, window: int, buffer: int = BUFFER, frames_per_step: int | None = None
    ) -> None:
        self.paths, self.window, self.buffer = shards(folder, "*.tar"), window, buffer
        self.frames_per_step, self.epoch = frames_per_step, 0

    def __iter__(self) -> Iterator[Window]:
        worker = get_worker_info()
        index, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # the order is the same for all workers, whose seeds differ by their index
        seed = int(torch.randint(2**31, ())) if worker is None else torch.initial_seed() - index
        generator = torch.Generator().manual_seed(seed + self.epoch)
        order = torch.randperm(len(self.paths), generator=generator)
        self.epoch += 1  # persistent workers keep their seed
        held: list[Window] = []
        for number in order[index::count].tolist():
            for window in self._windows(self.paths[number]):
                held.append(window)
                if len(held) > self.buffer:
                    yield held.pop(int(torch.randint(len(held), ())))
        while held:
            yield held.pop(int(torch.randint(len(held), ())))

    def _windows(self, path: Path) -> Iterator[Window]:
        for data, about in read_tar(path):
            if data.startswith(b"\x93NUMPY"):
                codes = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
            else:
                codes = whole_code_file(io.BytesIO(data))
            if codes.shape[-3] < self.window:
                continue
            found, begin = window_of_array(codes, self.window)
            if self.frames_per_step is None:
                yield found
            else:
                times = step_times(about, self.frames_per_step)
                yield found, torch.from_numpy(times[begin : begin + self.window])


def open_windows(
    folder: str | Path, window: int, frames_per_step: int | None = None
) -> Dataset[Window]:
    """Open a data set of any supported format.

    Args:
        folder: output of `vtok dataset encode`.
        window: latent steps per window.
        frames_per_step: temporal compression of the tokenizer, to get times; None for codes alone.

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
    made: Dataset[Window] = kinds[to](folder, window, frames_per_step=frames_per_step)
    return made


def read_rows(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a manifest, and the offset of each."""
    place = 0
    with manifest.open("rb") as file:
        for line in file:
            yield place, json.loads(line)
            place += len(line)


def read_tar(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Read the codes and the facts of each item in a tar shard, where the facts come second."""
    with tarfile.open(path) as shard:
        data = b""
        for member in shard:
            file = shard.extractfile(member)
            content = b"" if file is None else file.read()
            if member.name.endswith(".json"):
                yield data, json.loads(content)
            data = content


def step_times(about: dict[str, Any], frames_per_step: int) -> np.ndarray:
    """Compute the seconds to the first frame of each latent step of an item, float64 [t]."""
    times = frame_times(about)
    if times is None:  # an even rate
        times = np.arange(about["frames"]) / float(Fraction(about["fps"]))
    first = 1 + (np.arange(about["code_shape"][-3]) - 1) * frames_per_step
    return times[np.maximum(first, 0)]


def shards(folder: Path, pattern: str) -> list[Path]:
    """List the files that match a pattern, in order.

    Raises:
        InputError: no file matches.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(f"{folder}: has no {pattern}")
    return found


def window_of_array(codes: np.ndarray, window: int) -> tuple[Tensor, int]:
    """Draw a window of codes [K, t, h, w], or [t, h, w] if K is 1; also returns its first step."""
    codes = codes if codes.ndim == 4 else codes[None]
    begin = int(torch.randint(codes.shape[1] - window + 1, ()))
    return torch.from_numpy(codes[:, begin : begin + window].astype(np.int64)), begin


def window_of_code_file(file: BinaryIO, window: int) -> tuple[Tensor, int]:
    """Draw a window of a `.vtok` file as `window_of_array`; reads only the chunks it needs."""
    reader = CodeFileReader(file)
    ends = np.cumsum([0, *(chunk.num_steps for chunk in reader.chunks)])
    begin = int(torch.randint(int(ends[-1]) - window + 1, ()))
    first, last = np.searchsorted(ends, [begin, begin + window - 1], side="right") - 1
    codes = join(reader.read_chunk(number).codes for number in range(first, last + 1))
    place = begin - int(ends[first])
    return torch.from_numpy(codes[:, place : place + window].copy()), begin


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
