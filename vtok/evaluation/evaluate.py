"""`evaluate_file`: encode a video once, decode it at several rates and measure each.

Memory holds the frames of one chunk and the decoder state of each rate.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np

from vtok.codefile.header import Header, LatentHeader
from vtok.codefile.packing import CodedPart, encode_parts
from vtok.codefile.writer import CodeFileWriter
from vtok.errors import OptionError, ShapeError, VideoError
from vtok.evaluation.metrics import QualityMeter, check_metrics
from vtok.evaluation.results import VTOK, ClipResult, CodeUsage, Point
from vtok.models.load import LoadedTokenizer, ModelLike, resolve
from vtok.pipeline.codec import Decoder, Encoder
from vtok.pipeline.encode import make_header, make_latent_header
from vtok.pipeline.files import CountingStream
from vtok.pipeline.latents import write_latents
from vtok.pipeline.options import EncodeOptions, check_effort, check_fast, check_hysteresis
from vtok.pipeline.rate import Originals
from vtok.pipeline.refine import refiners
from vtok.pipeline.result import ChunkObserver, CodeChunk, Observer, Progress
from vtok.video.frames import Frames, parse_size
from vtok.video.reader import VideoReader, probe

CROP_STEP = 16
"""Crops have sides that are multiples of this, in pixels."""
LATENT_BITS = 16
"""Bits of a number of latents: float16, which `vtok encode` writes by default."""


@dataclass(frozen=True)
class Part:
    """Frames of a video to measure, and their size.

    Attributes:
        frames: number of frames from the start; all if None.
        size: short side "256" or "WIDTHxHEIGHT"; the source size if None.
        only_shrink: keep the size of sources whose short side is at most `size`, which must be a
            short side.
        crop: width and height in pixels of a centre crop, reduced to the largest multiple of 16
            that fits; no crop if None.
        start_seconds: start time in the source.
        timeout_seconds: longest wait for the next frames.

    Raises:
        OptionError: for numbers out of range.
    """

    frames: int | None = None
    size: str | None = None
    only_shrink: bool = False
    crop: int | None = None
    start_seconds: float = 0.0
    timeout_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise OptionError("frames", self.frames, "1 or more")
        if not 0 <= self.start_seconds < 1e9:
            raise OptionError("start_seconds", f"{self.start_seconds:g}", "0 or more seconds")
        if not 0 < self.timeout_seconds < 1e9:
            raise OptionError("timeout_seconds", f"{self.timeout_seconds:g}", "more than 0 seconds")
        if self.size is not None:
            parse_size(self.size, 16, 9)  # checks the syntax


CARD = Part(frames=33, size="384", only_shrink=True, crop=256)
"""Part that the figures of the model cards are measured on."""


class Clip:
    """Iterate once over the selected frames of a video, in batches uint8 [n, H, W, 3].

    Attributes:
        width, height: frame size in pixels.
        fps: exact frame rate; the mean of a variable one.
        expected: approximate number of frames; None if unknown.
    """

    def __init__(self, reader: VideoReader, path: Path, part: Part) -> None:
        self.reader, self._most = reader, part.frames
        self.width, self.height = reader.output_size
        self.fps: Fraction = reader.output_fps
        if part.crop is not None:
            self.width, self.height = (
                min(part.crop, side // CROP_STEP * CROP_STEP) for side in reader.output_size
            )
        if not self.width * self.height:
            raise VideoError(f"{path}: smaller than {CROP_STEP} pixels, too small to crop")
        self.expected = part.frames
        if (total := reader.info.num_frames) is not None:
            left = max(1, total - round(part.start_seconds * reader.info.fps))
            self.expected = left if part.frames is None else min(left, part.frames)

    def __iter__(self) -> Iterator[Frames]:
        left, (width, height) = self._most, self.reader.output_size
        x, y = (width - self.width) // 2, (height - self.height) // 2
        for batch in self.reader:
            shown = batch[:left, y : y + self.height, x : x + self.width]
            yield np.ascontiguousarray(shown)
            if left is not None:
                left -= len(shown)
                if not left:
                    return


@contextmanager
def open_clip(path: Path, part: Part) -> Iterator[Clip]:
    """Open the selected frames of a video.

    Raises:
        InputError: if the file is missing or is not a readable video.
    """
    size, timeout = part.size, part.timeout_seconds
    if size is not None and part.only_shrink:
        info = probe(path, timeout_seconds=timeout)
        size = size if min(info.width, info.height) > int(size) else None
    with VideoReader(
        path, start_seconds=part.start_seconds, size=size, timeout_seconds=timeout
    ) as reader:
        yield Clip(reader, path, part)


T = TypeVar("T")
Watch = Callable[[int, Frames, Frames], None]
"""Called for each rate in order of frames: bits per position, decoded frames, original frames."""


@dataclass(frozen=True)
class EvalOptions:
    """Options of `evaluate_file`.

    Attributes:
        part: frames to measure and their size.
        bits: bits per position, each a multiple of the bits of a stage; by default those of 1, 2,
            4, 8 ... and all stages.
        metrics: names from `vtok.evaluation.metrics.METRICS`; all available ones if None.
        compress: whether to count entropy-coded bytes, as `vtok encode` writes them.
        effort: gradient steps per model call that improve the latents.
        hysteresis: how far a latent passes the border of its cell before its code changes, as in
            `EncodeOptions`. With it or effort the video is encoded for each rate.
        fast: leave out the second pass of the encoder.

    Raises:
        OptionError: for unknown metrics, or an effort or hysteresis out of range.
    """

    part: Part = Part()
    bits: tuple[int, ...] | None = None
    metrics: tuple[str, ...] | None = None
    compress: bool = True
    effort: int = 0
    hysteresis: float = 0.0
    fast: bool = False

    def __post_init__(self) -> None:
        check_effort(self.effort)
        check_hysteresis(self.hysteresis)
        if self.metrics is not None:
            check_metrics(self.metrics)


def stages_of(model: LoadedTokenizer, options: EvalOptions) -> dict[int, int]:
    """Map bits per position to numbers of stages, in rising order.

    A tokenizer without codes has one rate, the size of its latents in float16.

    Raises:
        OptionError: for bits that no number of stages takes, or an option of models with codes.
    """
    check_fast(options.fast, model.info)
    stages, each, bits = model.geometry.num_stages, model.geometry.stored_bits, options.bits
    if model.geometry.entries is None:
        for field in ("bits", "effort", "hysteresis"):
            if value := getattr(options, field):
                text = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise OptionError(field, text, f"none: {model.info.name} has latents and no codes")
        return {LATENT_BITS * model.geometry.latent_dim: 1}
    check_hysteresis(options.hysteresis, model.info)
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
            effort or hysteresis it encodes for each rate, and encoding speed and usage are those
            of the last.
        options: part, rates and metrics.
        progress: receives the number of frames done.
        keep: folder for the file of each rate, named as `path_of` does.
        watch: receives the frames that are measured.

    Raises:
        InputError: if the source is missing or is not a readable video.
        ShapeError: if the frames are smaller than the window of a metric.
        OptionError: for rates that the model does not have.
    """
    loaded, options = resolve(model), options or EvalOptions()
    stages = stages_of(loaded, options)
    if (options.effort or options.hysteresis) and len(stages) > 1:
        results = [
            evaluate_file(
                source,
                model=loaded,
                options=replace(options, bits=(bits,)),
                progress=_part_of(progress, number, len(stages)),
                keep=keep,
                watch=watch,
            )
            for number, bits in enumerate(stages)
        ]
        return replace(results[-1], points=tuple(one.points[0] for one in results))
    most = max(stages.values())
    with ExitStack() as stack:
        clip = stack.enter_context(open_clip(Path(source), options.part))
        header = _make_header(str(source), clip, loaded, most, options)
        work = _Work(progress, clip.expected, len(stages))
        watched = work.watch(watch)
        try:
            rates = [
                _Rate(stack, loaded, header, bits, stages[bits], options.metrics, keep, watched)
                for bits in stages
            ]
        except ShapeError as exc:
            raise ShapeError(
                f"{source}: {exc}: leave it out of `metrics`, or use a larger `size`"
            ) from exc
        timer, measured = _Timer(), _Measured(header, rates, options.compress)
        # not pipelined: calls ahead of the current chunk would not be timed
        changes = refiners(loaded, options.effort, options.hysteresis, most)
        steps = header.format.chunk_steps if isinstance(header, Header) else None
        chunks = Encoder(
            loaded,
            most,
            observers=[*changes, timer, measured, work],
            steps_per_chunk=steps,
            fast=options.fast,
            pipelined=False,
        ).encode(clip)
        if isinstance(header, LatentHeader):
            rates[0].write(header, chunks)
        else:
            deque(chunks, maxlen=0)  # each rate writes its file in `_Measured`
        return ClipResult(
            name=str(source),
            width=clip.width,
            height=clip.height,
            frames=measured.frames_done,
            fps=clip.fps,
            points=tuple(rate.finish() for rate in rates),
            usage=measured.usage,
            encode_fps=measured.frames_done / max(timer.seconds, 1e-9),
        )


def _part_of(progress: Progress | None, number: int, parts: int) -> Progress | None:
    """Return the progress of part `number` of equal parts of the work on a video."""
    if progress is None:
        return None

    def report(done: int, total: int | None) -> None:
        progress(((total or 0) * number + done) // parts, total)

    return report


def _make_header(
    source: str, clip: Clip, model: LoadedTokenizer, stages: int, options: EvalOptions
) -> Header | LatentHeader:
    """Make the header of the file that `vtok encode` would write of a clip."""
    about, size = (source, clip.reader, model), (clip.width, clip.height)
    codec_options = EncodeOptions(
        fast=options.fast, effort=options.effort, hysteresis=options.hysteresis
    )
    if model.geometry.entries is None:
        return make_latent_header(*about, codec_options, size)
    return make_header(*about, stages, codec_options, size)


def path_of(folder: Path, bits: int, model: LoadedTokenizer) -> Path:
    """Return the file of a rate that is kept, such as `18.vtok`, or `96.safetensors` of latents."""
    return folder / f"{bits}.{'safetensors' if model.geometry.entries is None else 'vtok'}"


class _Timer(Observer):
    """Seconds spent on producing items; as an observer, those of the encoder without reading."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, items: Iterator[T], sign: int = 1) -> Iterator[T]:
        while True:
            begin = time.perf_counter()
            item = next(items, None)
            self.seconds += sign * (time.perf_counter() - begin)
            if item is None:
                return
            yield item

    def frames(self, batches: Iterator[Frames]) -> Iterator[Frames]:
        return self.timed(batches, -1)

    def chunks(self, chunks: Iterator[CodeChunk]) -> Iterator[CodeChunk]:
        return self.timed(chunks)


class _Work(Observer):
    """Reports progress: the frames encoded and those measured at each rate, over their number."""

    def __init__(self, progress: Progress | None, total: int | None, rates: int) -> None:
        self._progress, self._total, self._parts, self._done = progress, total, 1 + rates, 0

    def on_call(self, num_frames: int) -> None:
        self._done += num_frames
        if self._progress is not None:
            self._progress(self._done // self._parts, self._total)

    def watch(self, watch: Watch | None) -> Watch:
        """Add the count of measured frames to a function that receives them."""

        def watched(bits: int, decoded: Frames, originals: Frames) -> None:
            self.on_call(len(decoded))
            if watch is not None:
                watch(bits, decoded, originals)

        return watched


class _Measured(ChunkObserver):
    """Observer that counts codes, and writes, decodes and measures each rate.

    Attributes:
        usage: of each codebook of each stage; empty for latents.
        frames_done: frames measured so far.
    """

    def __init__(
        self, header: Header | LatentHeader, rates: Sequence[_Rate], compress: bool
    ) -> None:
        super().__init__()
        self._header, self._rates, self._compress = header, rates, compress
        self.frames_done = 0
        self.usage: tuple[CodeUsage, ...] = ()
        if isinstance(header, Header):
            layout = header.format
            codebooks = range(layout.num_stages * layout.num_codebooks)
            self.usage = tuple(CodeUsage(layout.num_entries) for _ in codebooks)

    def on_pair(self, chunk: CodeChunk, frames: Frames) -> CodeChunk:
        parts: Sequence[CodedPart] = ()
        if isinstance(self._header, Header):
            parts = encode_parts(chunk.codes, self._header.format, compress=self._compress)
            codebooks = (codes for stage in chunk.codes for codes in stage)
            for codes, counted in zip(codebooks, self.usage, strict=True):
                counted.add(codes)
        for rate in self._rates:
            rate.add(chunk, parts, frames)
        self.frames_done += chunk.num_frames
        return chunk


class _Rate:
    """One rate: writes its file of codes or latents, decodes it and measures the frames.

    `stack` closes the file and the meter.
    """

    def __init__(
        self,
        stack: ExitStack,
        model: LoadedTokenizer,
        header: Header | LatentHeader,
        bits: int,
        stages: int,
        metrics: Sequence[str] | None,
        keep: Path | None,
        watch: Watch,
    ) -> None:
        self._bits, self._stages, self._watch = bits, stages, watch
        self._shape = header.transform
        width, height = header.transform.width, header.transform.height
        self._decoder, self._timer = Decoder(model, (height, width)), _Timer()
        self._meter = stack.enter_context(QualityMeter(width, height, metrics))
        path = Path(os.devnull) if keep is None else path_of(keep, bits, model)
        self._file = CountingStream(stack.enter_context(path.open("wb")), str(path))
        self._writer: CodeFileWriter | None = None
        self._bits_per_code = LATENT_BITS
        if isinstance(header, Header):
            layout = replace(header.format, num_stages=stages)
            self._writer = CodeFileWriter(
                cast(BinaryIO, self._file), replace(header, format=layout)
            )
            self._bits_per_code = layout.bits_per_code
        self._frames = self._codes = 0
        self._originals = Originals()

    def add(self, chunk: CodeChunk, parts: Sequence[CodedPart], reference: Frames) -> None:
        """Write, decode and measure the first stages of a chunk."""
        codes = chunk.codes[: self._stages]
        opens = 0 if chunk.restart else None
        if self._writer is not None:
            self._writer.write_parts(parts[: self._stages], codes.shape[2], chunk.num_frames, opens)
        self._codes += codes.size
        self._frames += chunk.num_frames
        self._originals.add(reference)
        self._measure(self._decoder.decode_next(replace(chunk, codes=codes)))

    def write(self, header: LatentHeader, chunks: Iterator[CodeChunk]) -> None:
        """Write the file of latents."""
        write_latents(cast(BinaryIO, self._file), header, chunks, "safetensors", lambda: None)

    def _measure(self, decoded: Iterator[Frames]) -> None:
        for frames, originals in self._originals.pair(self._timer.timed(decoded)):
            self._meter.add(frames, originals)
            self._watch(self._bits, frames, originals)

    def finish(self) -> Point:
        """Finish the code file and return the measurements."""
        self._measure(self._decoder.finish())
        if self._writer is not None:
            self._writer.close()
        shape, bits = self._shape, 8 * self._file.count
        pixels = self._frames * shape.width * shape.height
        return Point(
            coder=VTOK,
            setting="float16 latents" if self._writer is None else f"{self._bits} bits",
            bits=self._bits,
            bytes=self._file.count,
            bpp=bits / pixels,
            raw_bpp=self._codes * self._bits_per_code / pixels,
            kbps=bits / 1000 / float(self._frames / shape.fps),
            quality=self._meter.finish(),
            decode_fps=self._frames / max(self._timer.seconds, 1e-9),
        )
