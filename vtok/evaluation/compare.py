"""`compare_file`: compare a tokenizer with classic codecs at the same number of bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vtok.codefile.reader import CodeFileReader
from vtok.errors import OptionError
from vtok.evaluation.classic import (
    Codec,
    Master,
    RateMatcher,
    decode_stream,
    encode_stream,
    find_codec,
    make_master,
)
from vtok.evaluation.clips import Part, each_frame, open_clip
from vtok.evaluation.curves import bd_quality, bd_rate
from vtok.evaluation.evaluate import EvalOptions, Watch, evaluate_file
from vtok.evaluation.metrics import Frames
from vtok.evaluation.pictures import labelled_tiles
from vtok.evaluation.quality import METRICS, Quality, QualityMeter
from vtok.evaluation.results import VTOK, ClipResult, Point
from vtok.models.load import LoadedTokenizer, ModelLike, resolve
from vtok.pipeline.codec import Decoder
from vtok.pipeline.decode import read_codes
from vtok.video.writer import VideoWriter

ORIGINAL = "original"


def write_side_by_side(
    output: Path,
    comparison: Comparison,
    *,
    source: Path,
    part: Part,
    model: LoadedTokenizer,
    bits: int,
    overwrite: bool = False,
) -> None:
    """Write a side-by-side video of one rate; the file appears complete or not at all.

    Args:
        output: video to write.
        comparison: an open comparison, whose streams exist.
        source, part: video that was compared, and the frames of it.
        model: tokenizer that was compared.
        bits: bits per position to show; one of the rates measured.
        overwrite: whether an existing file may be replaced.

    Raises:
        OptionError: for bits that were not measured.
        OutputError: if the file cannot be written.
    """
    points = [point for point in comparison.result.points if point.bits == bits]
    if not points:
        raise OptionError("show", bits, "one of the rates that are compared")
    labels = [ORIGINAL, *(label(point) for point in points)]
    with open_clip(source, part) as clip:
        streams = [each_frame(clip), *(coded_frames(comparison, point, model) for point in points)]
        sheets = (labelled_tiles(frames, labels) for frames in zip(*streams, strict=False))
        _write(output, sheets, clip.fps, overwrite)


def label(point: Point) -> str:
    """Format the caption of a picture, such as `vtok 18 bits 0.0801 bpp 25.74 dB`."""
    psnr = point.quality.get("psnr")
    name = f"{point.coder} {point.bits} bits" if point.coder == VTOK else point.coder
    return f"{name}  {point.bpp:.3f} bpp" + ("" if psnr is None else f"  {psnr:.2f} dB")


def coded_frames(comparison: Comparison, point: Point, model: LoadedTokenizer) -> Iterator[Frames]:
    """Decode the frames of one coder at one rate, uint8 [H, W, 3] each."""
    if point.coder != VTOK:
        stream = comparison.streams[point.coder][point.bits]
        yield from each_frame(decode_stream(comparison.master, stream))
        return
    size = (comparison.master.height, comparison.master.width)
    with (comparison.folder / f"{point.bits}.vtok").open("rb") as file:
        chunks = read_codes(CodeFileReader(file))
        yield from each_frame(Decoder(model, size).decode(chunks))


def _write(output: Path, sheets: Iterator[Frames], fps: Fraction, overwrite: bool) -> None:
    first = next(sheets)
    height, width = first.shape[:2]
    with VideoWriter(
        output, width=width, height=height, fps=fps, crf=14, overwrite=overwrite
    ) as writer:
        writer.write(first[None])
        for sheet in sheets:
            writer.write(np.asarray(sheet)[None])


Notify = Callable[[str, int, "int | None"], None]
"""Called with the current task, the progress, and its end if that is known."""


@dataclass(frozen=True)
class Delta:
    """Bjontegaard deltas of the tokenizer against a codec for one metric.

    Attributes:
        codec: codec that the tokenizer is compared with.
        metric: name from `METRICS`.
        quality: difference of the metric at the same bytes; positive if the tokenizer is higher.
        rate: difference of bytes at the same quality in percent; negative if the tokenizer takes
            fewer. None if the two curves share no quality.
    """

    codec: str
    metric: str
    quality: float | None
    rate: float | None

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        shown = {"bd_quality": self.quality, "bd_rate": self.rate}
        rounded = {key: None if x is None else round(x, 4) for key, x in shown.items()}
        return {"codec": self.codec, "metric": self.metric, **rounded}


@dataclass(frozen=True)
class Comparison:
    """One clip coded by the tokenizer and by codecs, with the files of all streams.

    Attributes:
        result: points of the tokenizer, then those of each codec at the same bytes.
        master: lossless file of the frames given to the codecs.
        streams: files of each codec, by the bits per position that they match.
        folder: folder of the tokenizer's code files, named such as `18.vtok`.
    """

    result: ClipResult
    master: Master
    streams: Mapping[str, Mapping[int, Path]]
    folder: Path


@contextmanager
def compare_file(
    source: Path,
    *,
    model: ModelLike | None = None,
    codecs: Sequence[str],
    options: EvalOptions | None = None,
    notify: Notify | None = None,
    watch: Watch | None = None,
) -> Iterator[Comparison]:
    """Measure a tokenizer and codecs on one video; the files exist until the block ends.

    Args:
        source: path of the video.
        model: tokenizer; each of its rates is matched by every codec.
        codecs: names from `vtok.evaluation.classic.CODECS`.
        options: frames to measure, rates and metrics.
        notify: receives the progress.
        watch: receives the frames decoded by the tokenizer.

    Raises:
        OptionError: for a codec that is unknown or that the ffmpeg program lacks.
        InputError, ShapeError: as in `evaluate_file`.
        VtokError: if ffmpeg fails.
    """
    options, tell = options or EvalOptions(), notify or _ignore
    loaded = resolve(model)
    found = {name: find_codec(name) for name in dict.fromkeys(codecs)}
    with tempfile.TemporaryDirectory(prefix="vtok-") as name:
        folder = Path(name)
        result = evaluate_file(
            source,
            model=loaded,
            options=options,
            progress=partial(tell, VTOK),
            keep=folder,
            watch=watch,
        )
        with open_clip(source, options.part) as clip:
            master = make_master(folder / "master.mkv", clip, clip.fps)
        streams: dict[str, dict[int, Path]] = {}
        for name, codec in found.items():
            streams[name], points = _follow(
                result, _Coded(name, codec, master, folder), source, options, tell
            )
            result = replace(result, points=(*result.points, *points))
        yield Comparison(result, master, streams, folder)


def deltas(points: Sequence[Point]) -> list[Delta]:
    """Compute the deltas to every codec for every metric of which higher is better."""
    ours = [point for point in points if point.coder == VTOK]
    codecs = dict.fromkeys(point.coder for point in points if point.coder != VTOK)
    result = []
    for codec in codecs:
        theirs = [point for point in points if point.coder == codec]
        for metric in (name for name in METRICS if METRICS[name].rises):
            pair = _curve(ours, metric), _curve(theirs, metric)
            if all(pair):
                result.append(Delta(codec, metric, bd_quality(*pair), bd_rate(*pair)))
    return result


def _curve(points: Sequence[Point], metric: str) -> list[tuple[float, float]]:
    values = [(point.bpp, point.quality.get(metric)) for point in points]
    return [(bpp, value) for bpp, value in values if value is not None]


@dataclass(frozen=True)
class _Coded:
    """Streams of one codec, made from one master."""

    name: str
    codec: Codec
    master: Master
    folder: Path

    def stream(self, crf: float) -> Path:
        return self.folder / f"{self.name}-{crf:g}.{self.codec.stream}"

    def bytes_at(self, crf: float) -> int:
        return encode_stream(self.master, self.codec, crf, self.stream(crf))


def _follow(
    result: ClipResult, coded: _Coded, source: Path, options: EvalOptions, tell: Notify
) -> tuple[dict[int, Path], list[Point]]:
    """Match one codec to every point of the tokenizer; returns streams by bits, and points."""
    matcher = RateMatcher(coded.codec, coded.bytes_at)
    ours, streams, points = result.of(VTOK), {}, []
    for number, point in enumerate(ours):
        tell(coded.name, number, len(ours))
        crf, count = matcher.match(point.bytes)
        streams[point.bits] = coded.stream(crf)
        scale = count / point.bytes
        points.append(
            replace(
                point,
                coder=coded.name,
                setting=f"crf {crf:g}",
                bytes=count,
                bpp=point.bpp * scale,
                raw_bpp=None,
                kbps=point.kbps * scale,
                quality=_measure(coded, streams[point.bits], source, options),
                decode_fps=None,
            )
        )
    return streams, points


def _measure(coded: _Coded, stream: Path, source: Path, options: EvalOptions) -> Quality:
    """Measure a stream against the original RGB frames, not against the 4:2:0 master."""
    master = coded.master
    decoded = decode_stream(master, stream)
    with (
        open_clip(source, options.part) as clip,
        QualityMeter(master.width, master.height, options.metrics) as meter,
    ):
        for frame, reference in zip(each_frame(decoded), each_frame(clip), strict=True):
            meter.add(frame[None], reference[None])
        return meter.finish()


def _ignore(what: str, done: int, total: int | None) -> None:
    pass
