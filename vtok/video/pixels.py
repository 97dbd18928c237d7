"""Decoded frames to SDR RGB: rotation, scaling, HDR, interlacing, transparency."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from vtok.errors import VideoError
from vtok.video.frames import Frames, ReadOptions
from vtok.video.images import composite, map_depth

Floats = npt.NDArray[np.float32]

TURNS = {90: "transpose=clock", 180: "hflip,vflip", 270: "transpose=cclock"}
DEEP_GRAY = ("gray9", "gray10", "gray12", "gray14", "gray16")
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
BT709 = 1  # primaries of ITU-T H.273
WHITE = 203.0  # cd/m2 of diffuse white in HDR video, from ITU-R BT.2408
PEAK = 1000.0  # cd/m2 that become full white in SDR
KNEE = 0.5  # share of diffuse white up to which levels stay as they are
GAMMA = 2.4  # of SDR displays, from ITU-R BT.1886
TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
"""Linear RGB of BT.2020 to that of BT.709, from ITU-R BT.2407."""


class Converter:
    """Rotates, scales and converts frames to RGB."""

    def __init__(
        self, width: int, height: int, rotation: int, name: str, reading: ReadOptions
    ) -> None:
        turn = f"{TURNS[rotation]}," if rotation else ""
        self._filters = f"{turn}scale={width}:{height}:flags=bicubic,format="
        self._name, self._reading = name, reading
        self._kind: object = None
        self._graph: Any = None

    def convert(self, frame: VideoFrame) -> Frames:
        """Return uint8 [height, width, 3] RGB.

        Raises:
            VideoError: Gray values of more than 8 bits without a range to map them from, or HDR
                without tone mapping.
        """
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._kind:
            self._kind = kind
            self._graph = make_graph(frame, self._filters + _target_format(frame))
        self._graph.push(frame)
        converted: npt.NDArray[Any] = self._graph.pull().to_ndarray()
        if converted.ndim == 2:
            name = f"{self._name}: a video of {frame.format.name} values"
            return map_depth(converted, self._reading.depth_range, name)
        if transfer := HDR.get(int(frame.color_trc)):
            if not self._reading.tone_map:
                raise VideoError(f"{self._name}: {transfer} HDR video, refused without `tone_map`")
            return tone_map(converted, transfer, is_wide=int(frame.color_primaries) != BT709)
        if converted.shape[-1] == 4:
            return composite(converted, self._reading.background)
        return converted


def make_graph(frame: VideoFrame, filters: str) -> Any:
    """Make a chain of ffmpeg's filters for frames like this one."""
    graph = av.filter.Graph()
    graph.threads = 1
    base = frame.time_base or Fraction(1, 1000)
    nodes = [
        graph.add(
            "buffer",
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
            f":time_base={base.numerator}/{base.denominator}"
            f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
        )
    ]
    for text in filters.split(","):
        name, _, arguments = text.partition("=")
        nodes.append(graph.add(name, arguments or None))
    nodes.append(graph.add("buffersink"))
    for one, other in pairwise(nodes):
        one.link_to(other)
    graph.configure()
    return graph


def _target_format(frame: VideoFrame) -> str:
    """Return ffmpeg's name of RGB, or of gray values that 8 bits do not hold."""
    name = frame.format.name
    if name.startswith("grayf32"):
        return "grayf32le"
    if int(frame.color_trc) in HDR:
        return "rgb48le"
    if name[:-2] in DEEP_GRAY:
        return f"{name[:-2]}le"
    return "rgba" if has_alpha(frame) else "rgb24"


def has_alpha(frame: VideoFrame) -> bool:
    """Return True for formats of pixels that may be transparent."""
    layout = frame.format
    return layout.has_palette or any(one.is_alpha for one in layout.components)


def describe_pixels(frame: VideoFrame, reading: ReadOptions) -> list[str]:
    """Return remarks about frames like this one, which are not read as they are stored."""
    notes = []
    if (transfer := HDR.get(int(frame.color_trc))) and reading.tone_map:
        notes.append(f"{transfer} HDR is tone-mapped to SDR")
    if frame.interlaced_frame:
        mended = "was deinterlaced" if reading.deinterlace else "`deinterlace` makes whole frames"
        notes.append(f"is interlaced: {mended}")
    return notes


def deinterlace(frames: Iterable[Any]) -> Iterator[Any]:
    """Replace interlaced frames by whole ones, at the time stamps of the frames.

    Other objects, such as a `BadPacket`, are passed on; frames on both sides are not mixed.
    """
    graph: Any = None
    kind: object = None
    waiting: deque[tuple[int | None, int | None]] = deque()  # the filter is some frames behind
    for frame in frames:
        if not isinstance(frame, VideoFrame):
            yield from _drain(graph, waiting)
            graph = kind = None
            yield frame
            continue
        if kind != (kind := (frame.width, frame.height, frame.format.name)):
            yield from _drain(graph, waiting)
            graph = make_graph(frame, "bwdif=mode=send_frame:deint=interlaced")
        waiting.append((frame.pts, frame.dts))
        graph.push(frame)
        yield from _pull(graph, waiting)
    yield from _drain(graph, waiting)


def _drain(graph: Any, waiting: deque[tuple[int | None, int | None]]) -> Iterator[VideoFrame]:
    if graph is not None:
        graph.push(None)
        yield from _pull(graph, waiting)


def _pull(graph: Any, waiting: deque[tuple[int | None, int | None]]) -> Iterator[VideoFrame]:
    while waiting:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return
        frame.pts, frame.dts = waiting.popleft()
        yield frame


def tone_map(frames: npt.NDArray[np.uint16], transfer: str, is_wide: bool = True) -> Frames:
    """Convert HDR to SDR.

    Light is decoded by ITU-R BT.2100 and divided by that of diffuse white. The largest of red,
    green and blue, x, becomes x up to `KNEE`, k, and above it k + u / (1 + c u), where u = x - k
    and c is such that `PEAK` becomes 1: a curve with a continuous slope. The others are scaled by
    the same factor, which keeps hues.

    Args:
        frames: uint16 [..., 3], R'G'B' in full range.
        transfer: PQ or HLG.
        is_wide: The primaries are those of BT.2020, not of BT.709.

    Returns:
        uint8 [..., 3] of BT.709.
    """
    light = _levels(transfer)[frames]
    if transfer == "HLG":  # the display's part: BT.2100, table 5, for a peak of 1000 cd/m2
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light = light * (PEAK / WHITE * luminance**0.2)[..., None]
    brightest = light.max(axis=-1, keepdims=True)
    over = np.maximum(brightest - KNEE, 0)
    bend = 1 / (1 - KNEE) - 1 / (PEAK / WHITE - KNEE)
    mapped = np.minimum(brightest, KNEE) + over / (1 + bend * over)
    light *= mapped / np.maximum(brightest, 1e-6)
    if is_wide:
        light = light @ TO_BT709.T
    sdr: Frames = np.rint(255 * light.clip(0, 1) ** (1 / GAMMA)).astype(np.uint8)
    return sdr


@cache
def _levels(transfer: str) -> Floats:
    """Return the light of each 16-bit value: PQ relative to diffuse white, HLG of the scene, 0..1.

    Source: ITU-R BT.2100-2, tables 4 (PQ EOTF) and 5 (inverse of the HLG OETF).
    """
    signal = np.arange(1 << 16) / 65535
    if transfer == "PQ":
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        light = 10000 / WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    else:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light.astype(np.float32)
