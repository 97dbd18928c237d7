"""A video of several in step: the original and what each coder makes of it, labelled."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from vtok.codec.seek import read_codes
from vtok.codec.streams import decode_codes
from vtok.codefile import CodeFileReader
from vtok.errors import UsageError
from vtok.evaluation.classic import decode_stream
from vtok.evaluation.metrics import Frames
from vtok.evaluation.pictures import labelled_tiles
from vtok.evaluation.results import VTOK, Point
from vtok.media.writer import VideoWriter
from vtok.model import Model
from vtok.report.clips import Part, each_frame, open_clip
from vtok.report.compare import Comparison

ORIGINAL = "original"


def write_side_by_side(
    output: Path,
    comparison: Comparison,
    *,
    source: Path,
    part: Part,
    model: Model,
    bits: int,
    overwrite: bool = False,
) -> None:
    """Write what one rate of a comparison looks like; the file appears whole or not at all.

    Args:
        output: video to write.
        comparison: with its streams still there.
        source, part: what was compared.
        model: that was compared.
        bits: bits a position to show, one of those that were measured.
        overwrite: whether an existing file may be replaced.

    Raises:
        UsageError: for bits that were not measured.
        OutputError: the file cannot be written.
    """
    points = [point for point in comparison.result.points if point.bits == bits]
    if not points:
        raise UsageError(f"--show {bits}: is none of the rates that are compared")
    labels = [ORIGINAL, *(label(point) for point in points)]
    with open_clip(source, part) as clip:
        streams = [each_frame(clip), *(coded_frames(comparison, point, model) for point in points)]
        sheets = (labelled_tiles(frames, labels) for frames in zip(*streams, strict=False))
        _write(output, sheets, clip.fps, overwrite)


def label(point: Point) -> str:
    """As it stands under a picture, such as `vtok 18 bits 0.0801 bpp 25.74 dB`."""
    psnr = point.quality.get("psnr")
    name = f"{point.coder} {point.bits} bits" if point.coder == VTOK else point.coder
    return f"{name}  {point.bpp:.3f} bpp" + ("" if psnr is None else f"  {psnr:.2f} dB")


def coded_frames(comparison: Comparison, point: Point, model: Model) -> Iterator[Frames]:
    """The frames of one coding, uint8 [H, W, 3] each."""
    if point.coder != VTOK:
        stream = comparison.streams[point.coder][point.bits]
        yield from each_frame(decode_stream(comparison.master, stream))
        return
    size = (comparison.master.height, comparison.master.width)
    with (comparison.folder / f"{point.bits}.vtok").open("rb") as file:
        chunks = read_codes(CodeFileReader(file))
        yield from each_frame(decode_codes(chunks, model, size))


def _write(output: Path, sheets: Iterator[Frames], fps: Fraction, overwrite: bool) -> None:
    first = next(sheets)
    height, width = first.shape[:2]
    with VideoWriter(
        output, width=width, height=height, fps=fps, crf=14, overwrite=overwrite
    ) as writer:
        writer.write(first[None])
        for sheet in sheets:
            writer.write(np.asarray(sheet)[None])
