"""Clips to learn from: random windows of videos, and photos seen by a moving virtual camera."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor


class ClipSampler:
    """Random training clips from a folder of arrays.

    `folder/video/*.npy` hold uint8 [T, H, W, 3], `folder/photo/*.npy` uint8 [H, W, 3]. Sampling is
    by file, not by second: else two long shots of one wall would be half of what is seen.

    Args:
        folder: as `prepare_corpus` leaves it.
        frames: frames a clip.
        crop: height and width of a clip in pixels.
        photo_share: share of clips made from photos.
        exclude: beginnings of video names to leave out, for validation.
    """

    def __init__(
        self,
        folder: Path,
        *,
        frames: int,
        crop: int,
        photo_share: float = 0.5,
        exclude: tuple[str, ...] = (),
    ) -> None:
        self.frames, self.crop, self.photo_share = frames, crop, photo_share
        videos = [
            p
            for p in sorted((folder / "video").glob("*.npy"))
            if not p.name.startswith(exclude or ("\0",))
        ]
        self.sources: dict[str, list[np.ndarray]] = {}
        for path in videos:
            self.sources.setdefault(path.name.split(".")[0], []).append(
                np.load(path, mmap_mode="r")
            )
        self.names = sorted(self.sources)
        self.weights = _source_weights(self.names)
        self.photos = [np.load(p) for p in sorted((folder / "photo").glob("*.npy"))]

    def batch(self, size: int, rng: Generator) -> Tensor:
        """float [size, 3, frames, crop, crop] in -1..1."""
        return torch.stack([self.clip(rng) for _ in range(size)])

    def clip(self, rng: Generator) -> Tensor:
        """float [3, frames, crop, crop] in -1..1."""
        clip = self._photo(rng) if rng.random() < self.photo_share else self._video(rng)
        if rng.random() < 0.5:
            clip = clip.flip(-1)
        return clip.clamp(0, 255) / 127.5 - 1

    def _video(self, rng: Generator) -> Tensor:
        segments = self.sources[rng.choice(self.names, p=self.weights)]
        video = segments[rng.integers(len(segments))]
        stride = 2 if rng.random() < 0.25 and len(video) > 2 * self.frames else 1
        start = rng.integers(len(video) - stride * (self.frames - 1))
        side = self._side(rng, min(video.shape[1:3]))
        top, left = (rng.integers(n - side + 1) for n in video.shape[1:3])
        window = video[start:, top : top + side, left : left + side][
            : stride * self.frames : stride
        ]
        clip = torch.from_numpy(np.array(window)).permute(0, 3, 1, 2).float()
        if side != self.crop:
            clip = F.interpolate(clip, (self.crop, self.crop), mode="bilinear", antialias=True)
        return clip.transpose(0, 1)

    def _side(self, rng: Generator, limit: int) -> int:
        """How many source pixels a crop covers: half the time one to one, else scaled down."""
        scale = 1.0 if rng.random() < 0.5 else rng.uniform(1.0, 2.0)
        return min(limit, round(self.crop * scale))

    def _photo(self, rng: Generator) -> Tensor:
        photo = torch.from_numpy(self.photos[rng.integers(len(self.photos))])
        image = photo.permute(2, 0, 1)[None].float()
        grid = camera_path(self.frames, self.crop, image.shape[-2:], rng)
        flat = grid.reshape(1, self.frames * self.crop, self.crop, 2)
        seen = F.grid_sample(
            image, flat, mode="bilinear", padding_mode="reflection", align_corners=False
        )
        return seen.view(3, self.frames, self.crop, self.crop)


def camera_path(frames: int, crop: int, size: torch.Size, rng: Generator) -> Tensor:
    """Where a panning, zooming, slightly turning camera looks: [frames, crop, crop, 2] in -1..1."""
    height, width = size
    still = rng.random() < 0.1
    steps = torch.zeros(frames) if still else torch.linspace(0, 1, frames)
    if rng.random() < 0.3:
        steps = (1 - torch.cos(steps * math.pi)) / 2
    zoom = _ramp(steps, *np.exp(rng.uniform(-0.35, 0.25) + np.array([0, rng.normal(0, 0.08)])))
    angle = _ramp(steps, 0.0, rng.normal(0, 0.06)) + rng.normal(0, 0.1)
    speed, heading = rng.exponential(2.0) * frames, rng.uniform(0, 2 * math.pi)
    margin = crop / 2
    x0 = rng.uniform(margin, max(margin + 1, width - margin))
    y0 = rng.uniform(margin, max(margin + 1, height - margin))
    x = _ramp(steps, x0, x0 + speed * math.cos(heading))
    y = _ramp(steps, y0, y0 + speed * math.sin(heading))
    offsets = torch.arange(crop) - (crop - 1) / 2
    v, u = torch.meshgrid(offsets, offsets, indexing="ij")
    cos, sin = (f(angle)[:, None, None] / zoom[:, None, None] for f in (torch.cos, torch.sin))
    px = x[:, None, None] + cos * u - sin * v
    py = y[:, None, None] + sin * u + cos * v
    return torch.stack((2 * px / width - 1, 2 * py / height - 1), dim=-1).float()


def _source_weights(names: list[str]) -> np.ndarray:
    """Chances of each clip: a source with many alike clips counts as the root of their number."""
    prefixes = [name.split("__")[0] for name in names]
    weights = np.array([prefixes.count(prefix) ** -0.5 for prefix in prefixes])
    share: np.ndarray = weights / weights.sum()
    return share


def _ramp(steps: Tensor, start: float, end: float) -> Tensor:
    return start + (end - start) * steps
