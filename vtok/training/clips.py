"""Training clips: random windows of videos, and photos seen by a moving virtual camera.

Every function is deterministic given the pixels and the random generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from vtok.errors import OptionError
from vtok.training.sources import Kind
from vtok.video.frames import Frames, resize_frames

Clip = npt.NDArray[np.float32]  # [3, T, H, W] in -1..1
Places = npt.NDArray[np.float32]  # [2, ...]: x and y in pixels
Planes = npt.NDArray[np.float32]  # [3, ...] in 0..255
Indices = npt.NDArray[np.intp]

FLIP_SHARE = 0.5  # probabilities: of mirroring,
SLOW_SHARE = 0.25  # of taking every second frame,
SHARP_SHARE = 0.5  # of cropping without scaling
MAX_SHRINK = 2.0  # maximum factor by which a crop is scaled down


@dataclass(frozen=True)
class ClipSpec:
    """Options of the clips to sample.

    Args:
        frames: frames in a clip, from 1.
        crop: height and width of a clip in pixels, from 1.
        photo_share: share of clips made from photos, 0..1; ignored where there are only videos or
            only photos.
        seed: seed of all sampling, from 0.

    Raises:
        OptionError: if a value is out of range.
    """

    frames: int
    crop: int
    photo_share: float
    seed: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("frames", 1), ("crop", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise OptionError(name, getattr(self, name), f"at least {least}")
        if not 0 <= self.photo_share <= 1:
            raise OptionError("photo_share", self.photo_share, "0 to 1")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip, [3, frames, crop, crop]."""
        return 3, self.frames, self.crop, self.crop


def random_clip(kind: Kind, pixels: Frames, spec: ClipSpec, rng: Generator) -> Clip:
    """Cut a random clip out of a video, or film one from a photo.

    `pixels` are uint8 [T, H, W, 3], of at least `spec.frames` frames for a video and one for a
    photo, no side below `spec.crop`. Returns float32 [3, frames, crop, crop] in -1..1.
    """
    seen = _film(pixels[0], spec, rng) if kind == "photo" else _cut(pixels, spec, rng)
    return _to_clip(seen[..., ::-1] if rng.random() < FLIP_SHARE else seen)


def middle_clip(pixels: Frames, spec: ClipSpec) -> Clip:
    """Cut out the validation clip: the centre, scaled down by at most `MAX_SHRINK`.

    `pixels` are uint8 [T, H, W, 3], no side below `spec.crop`; the last frame is repeated if there
    are fewer than `spec.frames`. Returns float32 [3, frames, crop, crop] in -1..1.
    """
    height, width = pixels.shape[1:3]
    side = min(height, width, round(spec.crop * MAX_SHRINK))
    top, left = (height - side) // 2, (width - side) // 2
    chosen = np.minimum(np.arange(spec.frames), len(pixels) - 1)
    window = pixels[chosen, top : top + side, left : left + side]
    return _to_clip(_planes(resize_frames(window, spec.crop, spec.crop)))


def camera_path(frames: int, crop: int, size: tuple[int, int], rng: Generator) -> Places:
    """Sample the path of a panning, zooming, slightly rotating camera over a photo (height, width).

    Returns:
        float32 [2, frames, crop, crop]: x and y in the photo, integers at pixel centres; they may
        lie outside it.
    """
    height, width = size
    still = rng.random() < 0.1
    steps = np.zeros(frames) if still else np.linspace(0, 1, frames)
    if rng.random() < 0.3:
        steps = (1 - np.cos(steps * math.pi)) / 2
    zoom = _ramp(steps, *np.exp(rng.uniform(-0.35, 0.25) + np.array([0, rng.normal(0, 0.08)])))
    angle = _ramp(steps, 0.0, rng.normal(0, 0.06)) + rng.normal(0, 0.1)
    speed, heading = rng.exponential(2.0) * frames, rng.uniform(0, 2 * math.pi)
    margin = crop / 2
    x0 = rng.uniform(margin, max(margin + 1, width - margin))
    y0 = rng.uniform(margin, max(margin + 1, height - margin))
    x = _ramp(steps, x0, x0 + speed * math.cos(heading)) - 0.5
    y = _ramp(steps, y0, y0 + speed * math.sin(heading)) - 0.5
    offsets = np.arange(crop, dtype=np.float32) - (crop - 1) / 2
    u, v = offsets[None, None, :], offsets[None, :, None]
    cos, sin = ((f(angle) / zoom).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    places = np.empty((2, frames, crop, crop), np.float32)
    places[0] = x.astype(np.float32)[:, None, None] + cos * u - sin * v
    places[1] = y.astype(np.float32)[:, None, None] + sin * u + cos * v
    return places


def sample(photo: Frames, places: Places) -> Planes:
    """Interpolate a photo [H, W, 3] bilinearly; it is mirrored beyond its edges.

    `places` are [2, T, ...], see `camera_path`. Returns float32 [3, T, ...] in 0..255.
    """
    planes = np.ascontiguousarray(photo.transpose(2, 0, 1))
    seen = np.empty((3, *places.shape[1:]), np.float32)
    for number in range(places.shape[1]):  # frame by frame, which fits the CPU cache
        _look_up(planes, places[:, number], seen[:, number])
    return seen


def _look_up(planes: Frames, places: Places, target: Planes) -> None:
    """Fill [3, ...] with the values of planes [3, H, W] at places [2, ...]."""
    height, width = planes.shape[1:]
    left, right, x = _neighbours(places[0], width)
    top, bottom, y = _neighbours(places[1], height)
    corners = [row * width + column for row in (top, bottom) for column in (left, right)]
    for plane, values in zip(planes.reshape(3, -1), target, strict=True):
        a, b, c, d = (plane.take(corner).astype(np.float32) for corner in corners)
        upper, lower = a + x * (b - a), c + x * (d - c)
        values[...] = upper + y * (lower - upper)


def _neighbours(
    place: npt.NDArray[np.float32], size: int
) -> tuple[Indices, Indices, npt.NDArray[np.float32]]:
    """Pixels before and after a place along one axis, and the weight of the second."""
    if place.min() < 0 or place.max() > size - 1:
        turned = np.mod(place + np.float32(0.5), np.float32(2 * size))
        place = np.minimum(turned, 2 * size - turned) - np.float32(0.5)
        place = place.clip(0, size - 1)
    before = place.astype(np.intp)
    return before, np.minimum(before + 1, size - 1), place - before.astype(np.float32)


def _cut(video: Frames, spec: ClipSpec, rng: Generator) -> Planes:
    """A window of a video, float32 [3, frames, crop, crop] in 0..255."""
    span = 2 * (spec.frames - 1) + 1
    stride = 2 if rng.random() < SLOW_SHARE and len(video) >= span else 1
    start = rng.integers(len(video) - stride * (spec.frames - 1))
    scale = 1.0 if rng.random() < SHARP_SHARE else rng.uniform(1.0, MAX_SHRINK)
    side = min(*video.shape[1:3], round(spec.crop * scale))
    top, left = (rng.integers(n - side + 1) for n in video.shape[1:3])
    chosen = slice(start, start + stride * (spec.frames - 1) + 1, stride)
    window = video[chosen, top : top + side, left : left + side]
    return _planes(resize_frames(window, spec.crop, spec.crop))


def _film(photo: Frames, spec: ClipSpec, rng: Generator) -> Planes:
    """A photo [H, W, 3] seen by the camera, float32 [3, frames, crop, crop] in 0..255."""
    places = camera_path(spec.frames, spec.crop, (photo.shape[0], photo.shape[1]), rng)
    return sample(photo, places)


def _planes(frames: Frames) -> Planes:
    """Frames uint8 [T, H, W, 3] as float32 [3, T, H, W] in 0..255."""
    return np.ascontiguousarray(frames.transpose(3, 0, 1, 2)).astype(np.float32)


def _to_clip(planes: Planes) -> Clip:
    """Scale 0..255 to -1..1."""
    clip: Clip = (planes / np.float32(127.5) - 1).clip(-1, 1)
    return clip


def _ramp(steps: npt.NDArray[np.float64], start: float, end: float) -> npt.NDArray[np.float64]:
    return start + (end - start) * steps
