"""Labelled windows for `token_probe.py`: parts of real clips, and sliding patches.

A window is a few frames uint8 [T, side, side, 3] that the tokenizer encodes on their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vtok.video.frames import Frames
from vtok.video.images import read_picture
from vtok.video.reader import VideoReader

CLIP_FRAMES, MOTION_FRAMES = 9, 13  # 3 and 4 latent steps
READ, CROP = 144, 128  # short side at which clips are read, and side of the windows
MOTION_SIDE, PATCH = 96, 36
EARLY, LATE = 0.4, 0.6  # end of the training part and begin of the test part of a clip
DIRECTIONS = [(x, y) for y, x in itertools.product((-1, 0, 1), repeat=2) if (x, y) != (0, 0)]


@dataclass(frozen=True)
class Windows:
    """Frames for training and testing a probe, with their labels.

    Attributes:
        train, test: uint8 [N, T, side, side, 3].
        train_labels, test_labels: int [N].
    """

    train: Frames
    train_labels: np.ndarray
    test: Frames
    test_labels: np.ndarray


def read_start(path: Path, seconds: float) -> Frames:
    """Read the first seconds of a video, scaled to a short side of `READ` pixels."""
    with VideoReader(path, size=str(READ), duration_seconds=seconds) as reader:
        return np.concatenate(list(reader))


def has_windows(frames: Frames) -> bool:
    """Check that a clip is long and large enough for training and test windows."""
    return len(frames) * EARLY >= CLIP_FRAMES and min(frames.shape[1:3]) >= CROP


def clip_windows(frames: Frames, label: int, count: int, seed: int) -> Windows:
    """Cut windows from the early and the late part of a clip, at random times and places.

    Args:
        frames: frames of the clip, uint8 [T, H, W, 3], for which `has_windows` is true.
        label: label of the clip.
        count: number of training windows and of test windows.
        seed: random seed.
    """
    rng = np.random.default_rng([seed, label])
    length = len(frames)
    early = (0, int(length * EARLY) - CLIP_FRAMES)
    late = (length - int(length * (1 - LATE)), length - CLIP_FRAMES)
    train, test = (
        np.stack([_cut(frames, int(rng.integers(low, high + 1)), rng) for _ in range(count)])
        for low, high in (early, late)
    )
    labels = np.full(count, label)
    return Windows(train, labels, test, labels)


def _cut(frames: Frames, begin: int, rng: np.random.Generator) -> Frames:
    top, left = (int(rng.integers(side - CROP + 1)) for side in frames.shape[1:3])
    return frames[begin : begin + CLIP_FRAMES, top : top + CROP, left : left + CROP]


def sliding_windows(photos: list[Path], train: int, test: int, seed: int) -> Windows:
    """Make windows of a bright patch that slides over a dark background, labelled by direction.

    The patch is brighter than the background whatever their textures, so that a linear map can
    locate it. Textures are parts of photos, a third of them reserved for testing, or noise if
    there are fewer than three photos.

    Args:
        photos: image files.
        train, test: number of windows.
        seed: random seed.
    """
    rng = np.random.default_rng([seed, 1 << 20])
    order = rng.permutation(len(photos))
    held_out = order[: len(photos) // 3]
    made = []
    for count, chosen in ((train, order[len(photos) // 3 :]), (test, held_out)):
        pictures = [_small(photos[number]) for number in chosen] if len(held_out) else []
        labels = np.arange(count) % len(DIRECTIONS)
        made += [np.stack([_slide(label, pictures, rng) for label in labels]), labels]
    return Windows(*made)


def _slide(direction: int, pictures: list[Frames], rng: np.random.Generator) -> Frames:
    """One window, uint8 [T, side, side, 3]."""
    background = (0.4 * _texture(MOTION_SIDE, pictures, rng)).astype(np.uint8)
    patch = (127 + 0.5 * _texture(PATCH, pictures, rng)).astype(np.uint8)
    travel = int(rng.integers(2, 4)) * (MOTION_FRAMES - 1)  # 2 or 3 pixels a frame
    room = MOTION_SIDE - PATCH - travel
    frames = np.repeat(background[None], MOTION_FRAMES, axis=0)
    start = [
        int(rng.integers(room + 1)) + (travel if sign < 0 else 0)
        if sign
        else int(rng.integers(MOTION_SIDE - PATCH + 1))
        for sign in DIRECTIONS[direction]
    ]
    for number, frame in enumerate(frames):
        gone = travel * number // (MOTION_FRAMES - 1)
        x, y = (at + sign * gone for at, sign in zip(start, DIRECTIONS[direction], strict=True))
        frame[y : y + PATCH, x : x + PATCH] = patch
    return frames


def _texture(side: int, pictures: list[Frames], rng: np.random.Generator) -> Frames:
    """Square part of a random photo; smooth noise if there are no photos."""
    if not pictures:
        coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 7, 7)).astype(np.float32))
        smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
        return smooth[0].permute(1, 2, 0).byte().numpy()
    picture = pictures[int(rng.integers(len(pictures)))]
    top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def _small(path: Path) -> Frames:
    """Read a photo scaled to twice the size of a window."""
    picture = torch.from_numpy(read_picture(path)).permute(2, 0, 1).unsqueeze(0).float()
    scale = 2 * MOTION_SIDE / min(picture.shape[2:])
    size = [max(MOTION_SIDE, round(side * scale)) for side in picture.shape[2:]]
    small = torch.nn.functional.interpolate(picture, size, mode="area")
    return small[0].permute(1, 2, 0).round().byte().numpy()


def to_clips(frames: Frames, batch: int) -> Iterator[Tensor]:
    """Windows uint8 [N, T, H, W, 3] as clips [batch, 3, T, H, W] in -1..1."""
    for part in torch.from_numpy(frames).split(batch):
        yield part.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
