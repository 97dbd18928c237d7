#!/usr/bin/env python
"""Decode and shrink a corpus once, into arrays that training can crop from without a decoder.

    scripts/prepare_corpus.py CORPUS --out runs/corpus

CORPUS has the folders `video/` and `photo/`. Of each video up to three parts of 48 frames are kept
(all of it where it is short), at most 384 pixels on the short side; photos at most 640.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vtok.errors import VtokError
from vtok.evaluation.metrics import Frames
from vtok.media.frames import parse_size, resize_frames
from vtok.media.reader import VideoReader, probe

VIDEO_SIDE, PHOTO_SIDE = 384, 640
PARTS, PART_FRAMES, WHOLE_FRAMES = 3, 48, 160


def shrink(frames: Frames, side: int) -> Frames:
    """Scale the short side down to `side`, never up."""
    height, width = frames.shape[1:3]
    if min(height, width) <= side:
        return frames
    return resize_frames(frames, *parse_size(str(side), width, height))


def parts_of(num_frames: int) -> list[range]:
    """Which frames to keep, part by part."""
    if num_frames <= WHOLE_FRAMES:
        return [range(num_frames)]
    starts = [(num_frames - PART_FRAMES) * part // (PARTS - 1) for part in range(PARTS)]
    return [range(start, start + PART_FRAMES) for start in starts]


def prepare_video(path: Path, folder: Path) -> int:
    """Write the parts of one video; returns how many frames that were."""
    num_frames = probe(path).num_frames
    if num_frames is None:
        with VideoReader(path) as reader:
            num_frames = sum(len(batch) for batch in reader)
    kept: list[list[Frames]] = [[] for _ in parts_of(num_frames)]
    first = 0
    with VideoReader(path) as reader:
        for batch in reader:
            for frames, wanted in zip(kept, parts_of(num_frames), strict=True):
                start, stop = max(wanted.start - first, 0), max(wanted.stop - first, 0)
                if len(batch[start:stop]):
                    frames.append(shrink(batch[start:stop], VIDEO_SIDE))
            first += len(batch)
    for number, frames in enumerate(kept):
        np.save(folder / f"{path.stem}.{number}.npy", np.concatenate(frames))
    return sum(len(batch) for frames in kept for batch in frames)


def prepare_photo(path: Path, folder: Path) -> int:
    """Write one photo."""
    with VideoReader(path) as reader:
        frames = next(iter(reader))
    np.save(folder / f"{path.stem}.npy", shrink(frames, PHOTO_SIDE)[0])
    return 1


def main() -> None:
    """Prepare every file; one that cannot be read is named and left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/corpus"))
    args = parser.parse_args()
    for kind, prepare in (("video", prepare_video), ("photo", prepare_photo)):
        folder = args.out / kind
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted((args.corpus / kind).iterdir()):
            try:
                print(f"{path.name}: {prepare(path, folder)} frames", flush=True)
            except VtokError as error:
                print(f"left out: {error}", flush=True)


if __name__ == "__main__":
    main()
