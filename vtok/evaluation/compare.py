"""`compare_file`: compare a tokenizer with classic codecs at the same number of bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

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
from vtok.evaluation.curves import bd_quality, bd_rate
from vtok.evaluation.evaluate import EvalOptions, Watch, evaluate_file, open_clip, path_of
from vtok.evaluation.metrics import METRICS, Quality, QualityMeter
from vtok.evaluation.pictures import labelled_tiles
from vtok.evaluation.results import VTOK, ClipResult, Point
from vtok.models.load import LoadedTokenizer, ModelLike, resolve
from vtok.pipeline.array_files import LatentFile
from vtok.pipeline.codec import Decoder
from vtok.pipeline.decode import read_codes
from vtok.video.frames import Frames
from vtok.video.writer import VideoWriter

ORIGINAL = "original"

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
        source, options, model: the video, and how it was measured.
        result: points of the tokenizer, then those of each codec at the same bytes.
        folder: folder of the tokenizer's files, named as `path_of` does.
        master: lossless file of the frames given to the codecs.
        streams: files of each codec, by the bits per position that they match.
    """

    source: Path
    options: EvalOptions
    model: LoadedTokenizer
    result: ClipResult
    folder: Path
    master: Master
    streams: Mapping[str, Mapping[int, Path]]


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
    options, tell = options or EvalOptions(), notify or (lambda what, done, total: None)
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
        comparison = Comparison(source, options, loaded, result, folder, master, {})
        for name, codec in found.items():
            comparison = _match(comparison, name, codec, tell)
        yield comparison


def deltas(points: Sequence[Point]) -> list[Delta]:
    """Compute the deltas to every codec for every metric of which higher is better."""
    ours = [point for point in points if point.coder == VTOK]
    codecs = dict.fromkeys(point.coder for point in points if point.coder != VTOK)
    result = []
    for codec in codecs:
        theirs = [point for point in points if point.coder == codec]
        for metric in (name for name in METRICS if METRICS[name].rises):
            pair = [
                [(p.bpp, value) for p in points if (value := p.quality.get(metric)) is not None]
                for points in (ours, theirs)
            ]
            if all(pair):
                result.append(Delta(codec, metric, bd_quality(*pair), bd_rate(*pair)))
    return result


def _match(comparison: Comparison, name: str, codec: Codec, tell: Notify) -> Comparison:
    """Match one codec to every point of the tokenizer, and add its streams and points."""
    master, result = comparison.master, comparison.result

    def path_of(crf: float) -> Path:
        return comparison.folder / f"{name}-{crf:g}.{codec.stream}"

    matcher = RateMatcher(codec, lambda crf: encode_stream(master, codec, crf, path_of(crf)))
    ours, streams, points = result.of(VTOK), {}, []
    for number, point in enumerate(ours):
        tell(name, number, len(ours))
        crf, count = matcher.match(point.bytes)
        streams[point.bits] = path_of(crf)
        scale = count / point.bytes
        points.append(
            replace(
                point,
                coder=name,
                setting=f"crf {crf:g}",
                bytes=count,
                bpp=point.bpp * scale,
                raw_bpp=None,
                kbps=point.kbps * scale,
                quality=_measure(comparison, path_of(crf)),
                decode_fps=None,
            )
        )
    result = replace(result, points=(*result.points, *points))
    return replace(comparison, result=result, streams={**comparison.streams, name: streams})


def _measure(comparison: Comparison, stream: Path) -> Quality:
    """Measure a stream against the original RGB frames, not against the 4:2:0 master."""
    master, options = comparison.master, comparison.options
    with (
        open_clip(comparison.source, options.part) as clip,
        QualityMeter(master.width, master.height, options.metrics) as meter,
    ):
        originals = chain.from_iterable(clip)
        for frame, original in zip(decode_stream(master, stream), originals, strict=True):
            meter.add(frame, original[None])
        return meter.finish()


def coded_frames(comparison: Comparison, point: Point) -> Iterator[Frames]:
    """Decode the frames of one coder at one rate, uint8 [H, W, 3] each."""
    master = comparison.master
    if point.coder != VTOK:
        stream = comparison.streams[point.coder][point.bits]
        yield from chain.from_iterable(decode_stream(master, stream))
        return
    path = path_of(comparison.folder, point.bits, comparison.model)
    decoder = Decoder(comparison.model, (master.height, master.width))
    if comparison.model.geometry.entries is None:
        latents = LatentFile(path, path.name).chunks((0, comparison.result.frames), None)
        yield from chain.from_iterable(decoder.decode(latents))
        return
    with path.open("rb") as file:
        yield from chain.from_iterable(decoder.decode(read_codes(CodeFileReader(file))))


def write_side_by_side(
    output: Path, comparison: Comparison, *, bits: int, overwrite: bool = False
) -> None:
    """Write a side-by-side video of one rate; the file appears complete or not at all.

    Args:
        output: video to write.
        comparison: an open comparison, whose streams exist.
        bits: bits per position to show; one of the rates measured.
        overwrite: replace an existing file.

    Raises:
        OptionError: for bits that were not measured.
        OutputError: if the file cannot be written.
    """
    points = [point for point in comparison.result.points if point.bits == bits]
    if not points:
        raise OptionError("show", bits, "one of the rates that are compared")
    labels = [ORIGINAL, *(_label(point) for point in points)]
    with open_clip(comparison.source, comparison.options.part) as clip:
        coded = (coded_frames(comparison, point) for point in points)
        streams = zip(chain.from_iterable(clip), *coded, strict=False)
        sheets = (labelled_tiles(frames, labels) for frames in streams)
        first = next(sheets)
        height, width = first.shape[:2]
        with VideoWriter(
            output, width=width, height=height, fps=clip.fps, crf=14, overwrite=overwrite
        ) as writer:
            for sheet in chain([first], sheets):
                writer.write(sheet[None])


def _label(point: Point) -> str:
    """Caption of a picture, such as `vtok 18 bits  0.080 bpp  25.74 dB`."""
    psnr = point.quality.get("psnr")
    name = f"{point.coder} {point.bits} bits" if point.coder == VTOK else point.coder
    return f"{name}  {point.bpp:.3f} bpp" + ("" if psnr is None else f"  {psnr:.2f} dB")
