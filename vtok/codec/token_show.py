"""show_tokens: a video file to pictures of where its learned tokens look."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vtok.codec.encode import EncodeOptions, frames_to_come, open_reader
from vtok.codec.result import Progress
from vtok.codec.streams import encode_passes
from vtok.codec.token_model import DEFAULT_TOKENS, TokenModel, load_token_model
from vtok.errors import InputError
from vtok.evaluation.attention import draw_maps
from vtok.media.frames import Frames
from vtok.media.images import PICTURE_SUFFIXES
from vtok.media.reader import VideoReader
from vtok.media.writer import VideoWriter

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
    """Draw which parts of the frame each token looks at.

    Args:
        source: a video, or a picture.
        output: a picture, of the first frame; or a video, of all of them.
        model: the learner v11 of `vtok-base` if None.
        num_tokens: S, of each latent step.
        options: size, rate and part.
        progress: called as it goes.

    Returns:
        How many frames were drawn.

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
        sheets = _sheets(reader, model, num_tokens)
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
    """Each frame, uint8 [H, W, 3], with the maps of its latent step, float32 [S, h, w]."""
    waiting: deque[Frames] = deque()

    def tapped() -> Iterator[Frames]:
        for batch in reader:
            waiting.extend(batch)
            yield batch

    temporal, number, step = model.model.tokenizer.temporal_compression, 0, 0

    def to_maps(latents: Tensor) -> npt.NDArray[np.float32]:
        return model.pipeline.encode_with_maps(latents, num_tokens)[1][0].float().cpu().numpy()

    for maps, count in encode_passes(tapped(), model.model, to_maps):
        for _ in range(count):
            yield waiting.popleft(), maps[-(-number // temporal) - step]
            number += 1
        step += len(maps)


def _sheets(reader: VideoReader, model: TokenModel, num_tokens: int) -> Iterator[Frames]:
    side = model.model.tokenizer.spatial_compression * model.pipeline.config.fold
    for frame, maps in frames_with_maps(reader, model, num_tokens):
        yield draw_maps(frame, maps, side)
