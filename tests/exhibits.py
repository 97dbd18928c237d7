"""Exhibits for pages: made of drawn frames and random codes, without coding anything."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from vtok.codefile.header import CodeFormat, Header, ModelIdentity, SourceVideo, Transform
from vtok.evaluation.compare import deltas
from vtok.evaluation.metrics import psnr
from vtok.evaluation.report import ORIGINAL, ChunkBytes, Exhibit, Strip, step_of
from vtok.evaluation.results import VTOK, ClipResult, CodeUsage, Point
from vtok.pipeline.rate import psnr_per_frame
from vtok.video.images import frame_to_webp, webp_to_frame

Frames = npt.NDArray[np.uint8]
FPS = Fraction(25)
STAGES, BITS, SPACE, TIME = 3, 6, 4, 2  # as the tiny model of tests/models.py has them
BLUR = {6: 6.0, 12: 3.0, 18: 1.0}  # the more bits, the sharper


def drawn_frames(count: int, width: int, height: int) -> Frames:
    """A bright disc that crosses a coloured slope of stripes, uint8 [count, H, W, 3]."""
    y, x = np.mgrid[:height, :width].astype(float)
    frames = []
    for number in range(count):
        stripes = 30 * np.sign(np.sin(x / 3 + y / 7))
        slope = [60 + 150 * x / width + stripes, 40 + 120 * y / height + stripes, 90 + 0 * x]
        centre = width * (number + 1) / (count + 1)
        inside = (x - centre) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2
        frame = np.stack(slope, axis=-1)
        frame[inside] = (240, 220, 60)
        frames.append(frame.clip(0, 255))
    return np.stack(frames).astype(np.uint8)


def blurred(frames: Frames, radius: float) -> Frames:
    """Frames without their finer parts."""
    kind = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(frame).filter(kind)) for frame in frames])


def make_exhibit(
    name: str = "clip.mp4",
    *,
    frames: int = 9,
    pictured: int | None = None,
    size: tuple[int, int] = (96, 64),
    codecs: tuple[str, ...] = (),
    seed: int = 0,
    window: int | None = None,
) -> Exhibit:
    """An exhibit of a made clip at 6, 12 and 18 bits, of a stream or of windows of latent steps."""
    width, height = size
    original = drawn_frames(frames, width, height)
    strips = [_strip(ORIGINAL, 0, original, original, pictured)]
    points = []
    for coder in (VTOK, *codecs):
        for bits, radius in BLUR.items():
            shown = blurred(original, radius * (1 if coder == VTOK else 1.3))
            strips.append(_strip(coder, bits, shown, original, pictured))
            points.append(_point(coder, bits, shown, original))
    header = _header(name, width, height, frames, window)
    codes = _codes(width, height, frames, seed)
    usage = [CodeUsage(1 << BITS) for _ in range(STAGES)]
    for plane, counted in zip(codes, usage, strict=True):
        counted.add(plane)
    chunks = [ChunkBytes(max(1, frames - 2), (300, 200, 260))]
    if frames > 2:
        chunks.append(ChunkBytes(2, (90, 50, 40)))
    steps = 1 + step_of((pictured or frames) - 1, header.format)
    result = ClipResult(name, width, height, frames, FPS, tuple(points), tuple(usage), 30.0)
    return Exhibit(
        result, tuple(deltas(points)), tuple(strips), tuple(chunks), codes[:, :steps], header
    )


def _strip(coder: str, bits: int, frames: Frames, original: Frames, pictured: int | None) -> Strip:
    pictures = [frame_to_webp(frame) for frame in frames[:pictured]]
    return Strip(
        coder,
        bits,
        pictures,
        [] if coder == ORIGINAL else list(psnr_per_frame(frames, original)),
        [psnr(webp_to_frame(a)[None], b[None]) for a, b in zip(pictures, frames, strict=False)],
    )


def _point(coder: str, bits: int, frames: Frames, original: Frames) -> Point:
    setting = f"{bits} bits" if coder == VTOK else f"crf {60 - bits}"
    quality: dict[str, float | None] = {"psnr": psnr(frames, original), "ssim": 0.5 + bits / 50}
    scale = 1.0 if coder == VTOK else 1.01
    size = 150 * bits * scale
    return Point(coder, setting, bits, size, bits / 64 * scale, bits / 60, 3.0 * bits, quality, 40)


def _header(name: str, width: int, height: int, frames: int, window: int | None) -> Header:
    return Header(
        format=CodeFormat(
            codebook_size=1 << BITS,
            num_codebooks=1,
            num_stages=STAGES,
            temporal_compression=TIME,
            spatial_compression=SPACE,
            grid=(-(-height // SPACE), -(-width // SPACE)),
            chunk_steps=8,
            decoder_lookback=None if window is None else 0,
            window=window,
        ),
        model=ModelIdentity("tiny", "0" * 64, "0" * 64, "float32", "cpu"),
        source=SourceVideo(width, height, FPS, frames, name=Path("a.mp4").name),
        transform=Transform(width, height, FPS),
        writer="vtok test",
    )


def _codes(width: int, height: int, frames: int, seed: int) -> npt.NDArray[np.int64]:
    shape = (STAGES, frames, -(-height // SPACE), -(-width // SPACE))
    return np.random.default_rng(seed).integers(0, 1 << BITS, shape)
