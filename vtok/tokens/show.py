"""show_tokens: draw the parts of the frames that learned tokens look at."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vtok.errors import InputError
from vtok.evaluation.pictures import BACKGROUND, draw_sheet
from vtok.pipeline.codec import Encoder
from vtok.pipeline.encode import frames_to_come, open_reader
from vtok.pipeline.options import EncodeOptions
from vtok.pipeline.result import Observer, Progress
from vtok.tokens.model import DEFAULT_TOKENS, STAGES, TokenModel, load_token_model
from vtok.video.frames import Frames, resize_frames
from vtok.video.images import PICTURE_SUFFIXES
from vtok.video.reader import VideoReader
from vtok.video.writer import VideoWriter

Maps = npt.NDArray[np.float32]
"""float32 [S, h, w]."""
DIMMED = 0.4
"""Brightness of the frame outside a token's map."""
SHEET_ASPECT = 1.6
"""Approximate width of a sheet divided by its height."""


def draw_maps(frame: Frames, maps: Maps, position: int) -> Frames:
    """Draw a sheet: the frame, then for each token the frame in gray with its map as a heat map.

    Each map is scaled to its own peak, so that broad maps are as readable as sharp ones; the
    caption gives the share of the frame that holds half of the weight.

    Args:
        frame: uint8 [H, W, 3].
        maps: float32 [S, h, w]; the absolute value counts.
        position: pixels per position of the maps, which may extend beyond the frame.

    Returns:
        uint8 [H', W', 3].
    """
    pictures, captions = [frame], ["the frame"]
    for number, weights in enumerate(np.abs(maps), 1):
        pictures.append(glow(frame, weights, position))
        captions.append(f"token {number}: half on {100 * half_share(weights):.0f} %")
    columns = sheet_columns(len(pictures), frame.shape[1] / frame.shape[0])
    blank = np.full_like(frame, BACKGROUND)
    missing = -len(pictures) % columns
    pictures, captions = pictures + [blank] * missing, captions + [""] * missing
    starts = range(0, len(pictures), columns)
    return draw_sheet(
        [pictures[start : start + columns] for start in starts],
        captions=[captions[start : start + columns] for start in starts],
    )


def glow(frame: Frames, weights: npt.NDArray[np.floating], position: int) -> Frames:
    """Draw weights [h, w] of at least 0 from black over red to white over a frame in dim gray.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = frame.shape[:2]
    peak = float(weights.max())
    levels = np.zeros_like(weights) if peak <= 0 else weights / peak
    coarse = np.repeat((255 * levels).round().astype(np.uint8)[None, ..., None], 3, axis=-1)
    across, down = weights.shape[1] * position, weights.shape[0] * position
    fine = resize_frames(np.ascontiguousarray(coarse), across, down)[0, :height, :width, :1]
    heat = fine.astype(np.float32) / 255
    ramp = np.concatenate([3 * heat, 3 * heat - 1, 3 * heat - 2], axis=-1).clip(0, 1)
    gray = frame.astype(np.float32).mean(-1, keepdims=True) * DIMMED
    shown: Frames = (gray * (1 - heat) + 255 * ramp).clip(0, 255).round().astype(np.uint8)
    return shown


def half_share(weights: npt.NDArray[np.floating]) -> float:
    """Return the smallest share of positions, 0..1, that holds half of the weight."""
    ordered = np.sort(weights.ravel())[::-1].astype(np.float64)
    total = ordered.sum()
    if total <= 0:
        return 1.0
    needed = int(np.searchsorted(ordered.cumsum(), total / 2)) + 1
    return min(1.0, needed / ordered.size)


def sheet_columns(pictures: int, aspect: float) -> int:
    """Return the number of pictures per row of a sheet; `aspect` is their width by height."""
    columns = round(math.sqrt(pictures * SHEET_ASPECT / aspect))
    return max(1, min(pictures, columns))


CRF = 18


def show_tokens(
    source: str | Path,
    output: str | Path,
    *,
    model: TokenModel | None = None,
    num_tokens: int = DEFAULT_TOKENS,
    options: EncodeOptions | None = None,
    progress: Progress | None = None,
) -> int:
    """Draw the parts of the frame that each token looks at.

    Args:
        source: a video or an image.
        output: an image, drawn from the first frame; or a video, drawn from all frames.
        model: token pipeline and tokenizer; the learner v11 of `vtok-base` if None.
        num_tokens: tokens per latent step, S.
        options: size, rate and part.
        progress: called after each frame.

    Returns:
        Number of frames drawn.

    Raises:
        InputError: if the source is missing or no readable video.
        OutputError: if the output exists or cannot be written.
        UsageError: for options that do not fit.
    """
    model, options, output = model or load_token_model(), options or EncodeOptions(), Path(output)
    model.check_count(num_tokens)
    single = output.suffix.lower() in PICTURE_SUFFIXES
    with open_reader(Path(source), options) as reader:
        width, height = reader.output_size
        model.check_count(num_tokens, (height, width))
        total = 1 if single else frames_to_come(reader, options)
        side = model.model.geometry.spatial_compression * model.pipeline.config.fold
        drawn = frames_with_maps(reader, model, num_tokens)
        sheets = (draw_maps(frame, maps, side) for frame, maps in drawn)
        first = next(sheets, None)
        if first is None:
            raise InputError(f"{source}: has no frames")
        with VideoWriter(
            output, width=first.shape[1], height=first.shape[0], fps=reader.output_fps, crf=CRF,
            overwrite=options.overwrite,
        ) as writer:  # fmt: skip
            writer.write(first[None])
            for sheet in () if single else sheets:
                writer.write(sheet[None])
                if progress is not None:
                    progress(writer.frames_written, total)
    return writer.frames_written


def frames_with_maps(
    reader: VideoReader, model: TokenModel, num_tokens: int
) -> Iterator[tuple[Frames, npt.NDArray[np.float32]]]:
    """Iterate over frames, uint8 [H, W, 3], with the maps of their step, float32 [S, h, w]."""
    held = _HeldFrames()
    temporal, number, step = model.model.geometry.temporal_compression, 0, 0

    def to_maps(latents: Tensor) -> npt.NDArray[np.float32]:
        return model.pipeline.encode_with_maps(latents, num_tokens)[1][0].float().cpu().numpy()

    for maps, count in Encoder(model.model, STAGES, observers=[held]).map_latents(reader, to_maps):
        for _ in range(count):
            yield held.waiting.popleft(), maps[-(-number // temporal) - step]
            number += 1
        step += len(maps)


class _HeldFrames(Observer):
    """Observer that holds frames until their maps are there."""

    def __init__(self) -> None:
        self.waiting: deque[Frames] = deque()

    def on_frames(self, frames: Frames) -> None:
        self.waiting.extend(frames)
