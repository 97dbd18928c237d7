"""`evaluate_file`: encode a video once, decode it at several rates and measure each.

Everything streams: memory holds the frames of one chunk, and the decoder state of each rate.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from vtok.codefile.header import Header
from vtok.codefile.packing import CodedPart, encode_parts
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import OptionError, ShapeError
from vtok.evaluation.clips import WHOLE, Clip, Part, open_clip
from vtok.evaluation.metrics import Frames
from vtok.evaluation.quality import QualityMeter, check_metrics
from vtok.evaluation.results import VTOK, ClipResult, CodeUsage, Point
from vtok.models.load import LoadedTokenizer, ModelLike, resolve
from vtok.pipeline.codec import Decoder, Encoder
from vtok.pipeline.encode import make_header
from vtok.pipeline.files import CountingStream
from vtok.pipeline.options import EncodeOptions, check_effort
from vtok.pipeline.rate import Effort
from vtok.pipeline.result import ChunkObserver, CodeChunk, Observer, Progress

Watch = Callable[[int, Frames, Frames], None]
"""Called for each rate in order of frames: bits per position, decoded frames, original frames."""


@dataclass(frozen=True)
class EvalOptions:
    """Options of `evaluate_file`.

    Attributes:
        part: frames to measure and their size.
        bits: bits per position, each a multiple of the bits of a stage; by default those of 1, 2,
            4, 8 ... and all stages.
        metrics: names from `vtok.evaluation.quality.METRICS`; all available ones if None.
        compress: whether to count entropy-coded bytes, as `vtok encode` writes them.
        effort: gradient steps per model call that improve the latents; above 0 the video is
            encoded for each rate.

    Raises:
        OptionError: for unknown metrics, or an effort out of range.
    """

    part: Part = WHOLE
    bits: tuple[int, ...] | None = None
    metrics: tuple[str, ...] | None = None
    compress: bool = True
    effort: int = 0

    def __post_init__(self) -> None:
        check_effort(self.effort)
        if self.metrics is not None:
            check_metrics(self.metrics)


def stages_of(model: LoadedTokenizer, bits: Sequence[int] | None) -> dict[int, int]:
    """Map bits per position to numbers of stages, in rising order.

    Raises:
        OptionError: for bits that no number of stages takes.
    """
    quantizer = model.tokenizer.quantizer
    stages, each = quantizer.num_stages, quantizer.bits_per_stage
    if bits is None:
        doubling = (1 << power for power in range(stages.bit_length()))
        return {each * k: k for k in sorted({*doubling, stages})}
    for wanted in bits:
        if wanted % each or not each <= wanted <= each * stages:
            have = ", ".join(str(each * k) for k in range(1, stages + 1))
            raise OptionError("bits", wanted, f"one of {have}, the rates of {model.info.name}")
    if not bits:
        raise OptionError("bits", "none", "one number or more")
    return {wanted: wanted // each for wanted in sorted(set(bits))}


def evaluate_file(
    source: str | Path,
    *,
    model: ModelLike | None = None,
    options: EvalOptions | None = None,
    progress: Progress | None = None,
    keep: Path | None = None,
    watch: Watch | None = None,
) -> ClipResult:
    """Measure the size and quality of one video at several rates.

    Args:
        source: path of a video or an image.
        model: tokenizer; it encodes once, and each rate is decoded from the first stages. With
            effort it encodes for each rate, and encoding speed and usage are those of the last.
        options: part, rates and metrics.
        progress: receives the number of frames done.
        keep: folder for the code file of each rate, named such as `18.vtok`.
        watch: receives the frames that are measured.

    Raises:
        InputError: if the source is missing or is not a readable video.
        ShapeError: if the frames are smaller than the window of a metric.
        OptionError: for rates that the model does not have.
    """
    loaded, options = resolve(model), options or EvalOptions()
    rates = stages_of(loaded, options.bits)
    if options.effort and len(rates) > 1:
        results = [
            evaluate_file(
                source, model=loaded, options=replace(options, bits=(bits,)),
                progress=progress, keep=keep, watch=watch,
            )
            for bits in rates
        ]  # fmt: skip
        return replace(results[-1], points=tuple(one.points[0] for one in results))
    with ExitStack() as stack:
        clip = stack.enter_context(open_clip(Path(source), options.part))
        header = _header(Path(source), clip, loaded, max(rates.values()), options.effort)
        try:
            decoders = [
                stack.enter_context(
                    _Rate(loaded, header, bits, stages, options.metrics, keep, watch)
                )
                for bits, stages in rates.items()
            ]
        except ShapeError as exc:
            raise ShapeError(
                f"{source}: {exc}: leave it out of `metrics`, or use a larger `size`"
            ) from exc
        most, timer = max(rates.values()), _Timer()
        codebooks = most * loaded.tokenizer.quantizer.num_codebooks
        usage = [CodeUsage(header.format.codebook_size) for _ in range(codebooks)]
        measured = _Measured(header, decoders, usage, options.compress)
        # not pipelined: calls ahead of the current chunk would not be timed
        effort = [Effort(loaded, options.effort, most)] if options.effort else []
        observers = [*effort, timer, measured]
        encoder = Encoder(loaded, most, observers=observers, pipelined=False)
        for _ in encoder.encode(clip):
            if progress is not None:
                progress(measured.frames_done, clip.expected)
        return ClipResult(
            name=str(source),
            width=clip.width,
            height=clip.height,
            frames=measured.frames_done,
            fps=clip.fps,
            points=tuple(decoder.finish() for decoder in decoders),
            usage=tuple(usage),
            encode_fps=measured.frames_done / max(timer.seconds, 1e-9),
        )


def _header(source: Path, clip: Clip, model: LoadedTokenizer, stages: int, effort: int) -> Header:
    """Make the header of a code file of the clip, with the size of the crop."""
    options = EncodeOptions(effort=effort)
    header = make_header(str(source), clip.reader, model, stages, options)
    space = header.format.spatial_compression
    grid = (-(-clip.height // space), -(-clip.width // space))
    return replace(
        header,
        format=replace(header.format, grid=grid),
        transform=replace(header.transform, width=clip.width, height=clip.height),
    )


def _each_codebook(chunk: CodeChunk) -> Iterator[np.ndarray]:
    """Iterate over the codes of each codebook of each stage, stages outermost."""
    return (codes for stage in chunk.codes for codes in stage)


class _Timer(Observer):
    """Observer that measures the seconds of the encoder, without those of the reader."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def frames(self, batches: Iterator[Frames]) -> Iterator[Frames]:
        begin = time.perf_counter()
        for batch in batches:
            self.seconds -= time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()
        self.seconds -= time.perf_counter() - begin

    def chunks(self, chunks: Iterator[CodeChunk]) -> Iterator[CodeChunk]:
        while True:
            begin = time.perf_counter()
            chunk = next(chunks, None)
            self.seconds += time.perf_counter() - begin
            if chunk is None:
                return
            yield chunk


class _Measured(ChunkObserver):
    """Observer that counts codes, and writes, decodes and measures each rate."""

    def __init__(
        self, header: Header, rates: Sequence[_Rate], usage: Sequence[CodeUsage], compress: bool
    ) -> None:
        super().__init__()
        self._header, self._rates, self._usage = header, rates, usage
        self._compress, self.frames_done = compress, 0

    def on_pair(self, chunk: CodeChunk, frames: Frames) -> CodeChunk:
        parts = encode_parts(chunk.codes, self._header.format, compress=self._compress)
        for codes, counted in zip(_each_codebook(chunk), self._usage, strict=True):
            counted.add(codes)
        for rate in self._rates:
            rate.add(chunk, parts, frames)
        self.frames_done += chunk.num_frames
        return chunk


class _Rate:
    """One rate: writes its code file, decodes it and measures the frames."""

    def __init__(
        self,
        model: LoadedTokenizer,
        header: Header,
        bits: int,
        stages: int,
        metrics: Sequence[str] | None,
        keep: Path | None,
        watch: Watch | None,
    ) -> None:
        self._watch = watch
        self._bits, self._stages = bits, stages
        self._header = replace(header, format=replace(header.format, num_stages=stages))
        shape = header.transform
        self._decoder = Decoder(model, (shape.height, shape.width))
        self._frames = self._codes = 0
        self._seconds = 0.0
        self._stack = ExitStack()
        self._meter = self._stack.enter_context(QualityMeter(shape.width, shape.height, metrics))
        path = Path(os.devnull) if keep is None else keep / f"{bits}.vtok"
        file = self._stack.enter_context(path.open("wb"))
        self._file = CountingStream(file, str(path))
        self._writer = CodeFileWriter(cast(BinaryIO, self._file), self._header)

    def add(self, chunk: CodeChunk, parts: Sequence[CodedPart], reference: Frames) -> None:
        """Write, decode and measure the first stages of a chunk."""
        codes = chunk.codes[: self._stages]
        self._writer.write_parts(parts[: self._stages], codes.shape[2], chunk.num_frames)
        self._codes += codes.size
        shown = self._decoder.decode_next(replace(chunk, codes=codes))
        begin, place = time.perf_counter(), 0
        for frames in shown:
            self._seconds += time.perf_counter() - begin
            originals = reference[place : place + len(frames)]
            self._meter.add(frames, originals)
            if self._watch is not None:
                self._watch(self._bits, frames, originals)
            place += len(frames)
            begin = time.perf_counter()
        self._seconds += time.perf_counter() - begin
        self._frames += chunk.num_frames

    def finish(self) -> Point:
        """Finish the code file and return the measurements."""
        self._writer.close()
        shape = self._header.transform
        pixels = self._frames * shape.width * shape.height
        bits = 8 * self._file.count
        return Point(
            coder=VTOK,
            setting=f"{self._bits} bits",
            bits=self._bits,
            bytes=self._file.count,
            bpp=bits / pixels,
            raw_bpp=self._codes * self._header.format.bits_per_code / pixels,
            kbps=bits / 1000 / float(self._frames / shape.fps),
            quality=self._meter.finish(),
            decode_fps=self._frames / max(self._seconds, 1e-9),
        )

    def __enter__(self) -> _Rate:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
