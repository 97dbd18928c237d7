"""Synthetic clips of an orange disc and a blue square that bounce off the walls."""

import numpy as np
import numpy.typing as npt

from vtok.video.frames import Frames

FPS = 12
BACKGROUND = np.array([24, 26, 34], np.float32)
COLOURS = np.array([[240, 150, 40], [60, 140, 240]], np.float32)  # disc, square
RADIUS = 9 / 64  # fraction of the frame's side
SPEEDS = (1.0 / 64, 2.4 / 64)  # range, in frame sides per frame


def draw_clips(count: int, frames: int, side: int, seed: int) -> Frames:
    """Draw clips, uint8 [count, frames, side, side, 3], determined by the seed."""
    rng = np.random.default_rng(seed)
    return np.stack([draw_clip(frames, side, rng) for _ in range(count)])


def draw_clip(frames: int, side: int, rng: np.random.Generator) -> Frames:
    """Draw a clip, uint8 [frames, side, side, 3], the square in front of the disc."""
    picture = np.broadcast_to(BACKGROUND, (frames, side, side, 3))
    grid = np.arange(side, dtype=np.float32) + 0.5
    for shape, colour in enumerate(COLOURS):
        x, y = (path[:, None, None] for path in _paths(frames, side, rng))
        across, down = np.abs(grid[None, None] - x), np.abs(grid[None, :, None] - y)
        distance = np.hypot(across, down) if shape == 0 else np.maximum(across, down)
        cover = np.clip(RADIUS * side + 0.5 - distance, 0, 1)[..., None]  # soft edges
        picture = picture * (1 - cover) + colour * cover
    return np.rint(picture).astype(np.uint8)


def _paths(frames: int, side: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Compute the path of a centre, x and y in pixels, [2, frames]."""
    low, high = RADIUS * side, side - RADIUS * side
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*SPEEDS) * side
    velocity = speed * np.array([np.cos(angle), np.sin(angle)])
    travelled = rng.uniform(0, high - low, 2)[:, None] + velocity[:, None] * np.arange(frames)
    folded = np.abs((travelled + (high - low)) % (2 * (high - low)) - (high - low))
    return (low + folded).astype(np.float32)


def centres(frames: Frames) -> npt.NDArray[np.float64]:
    """Locate the disc and the square by their colours.

    Args:
        frames: uint8 [..., H, W, 3].

    Returns:
        [..., 2, 2]: y and x of each shape in pixels; the middle of the frame if it is not visible.
    """
    red, blue = frames[..., 0].astype(np.float64), frames[..., 2].astype(np.float64)
    found = []
    for sign in (1, -1):
        weight = np.clip(sign * (red - blue) - 50, 0, None) + 1e-9
        rows, columns = (np.arange(n) + 0.5 for n in frames.shape[-3:-1])
        total = weight.sum((-1, -2))
        y = (weight * rows[:, None]).sum((-1, -2)) / total
        x = (weight * columns).sum((-1, -2)) / total
        found.append(np.stack([y, x], axis=-1))
    return np.stack(found, axis=-2)
