"""Report: measure clips and make pictures of them, and build one self-contained HTML page.

The page consists of a template, a style sheet, a script, one JSON object of figures, and base64
blocks of pictures and codes. Its content security policy allows only the embedded style and script,
by SHA-256, and no connections, so a file name can neither run as code nor load anything.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import vtok
from vtok.codefile.header import CodeFormat, Header
from vtok.codefile.reader import CodeFileReader
from vtok.errors import UsageError
from vtok.evaluation.compare import (
    ORIGINAL,
    Comparison,
    Delta,
    Notify,
    coded_frames,
    compare_file,
    deltas,
)
from vtok.evaluation.evaluate import EvalOptions, open_clip, path_of
from vtok.evaluation.metrics import METRICS, psnr
from vtok.evaluation.pictures import code_palette, heat_scale
from vtok.evaluation.results import VTOK, ClipResult, mean_points
from vtok.models.load import LoadedTokenizer
from vtok.pipeline.rate import IDENTICAL_DB
from vtok.video.frames import Frames
from vtok.video.images import QUALITY, frame_to_webp, webp_to_frame

PICTURES = "pictures"
"""Phase name that `notify` receives while pictures are made."""
SCRIPTS = ("data", "pictures", "panes", "stage", "plots", "tables", "main")
"""Script files in order of concatenation; they share one scope."""


@dataclass
class Strip:
    """Frames of one video: the original, or a reconstruction by one coder at one rate.

    Attributes:
        coder: `original`, or `Point.coder`.
        bits: `Point.bits`; 0 for the original.
        pictures: WebP files of the first frames.
        psnr: PSNR of every measured frame, in dB; empty for the original.
        fidelity: PSNR of each picture against the frame it was made from, in dB.
    """

    coder: str
    bits: int
    pictures: list[bytes] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    fidelity: list[float] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Identifier among the strips of a clip."""
        return self.coder if self.coder == ORIGINAL else f"{self.coder}-{self.bits}"


@dataclass(frozen=True)
class ChunkBytes:
    """Number of frames of one chunk of a code file, and the bytes of each of its stages."""

    frames: int
    stages: tuple[int, ...]


@dataclass(frozen=True)
class Exhibit:
    """One clip of a report.

    Attributes:
        result: measurements.
        deltas: Bjontegaard deltas against classic codecs.
        strips: the original, then one for each of `result.points`.
        chunks: chunks of the code file at the highest rate; lower rates hold their first stages.
        codes: int64 [K, t, h, w] of the pictured frames, stages outermost.
        header: header of that code file.
    """

    result: ClipResult
    deltas: tuple[Delta, ...]
    strips: tuple[Strip, ...]
    chunks: tuple[ChunkBytes, ...]
    codes: npt.NDArray[np.int64]
    header: Header

    @property
    def pictured(self) -> int:
        """Number of frames with pictures."""
        return len(self.strips[0].pictures)

    @property
    def num_bytes(self) -> int:
        """Bytes of pictures and codes."""
        pictures = sum(len(picture) for strip in self.strips for picture in strip.pictures)
        return pictures + self.codes.size * code_width(self.header.format.codebook_size)

    @property
    def name(self) -> str:
        """Printable file name of the clip."""
        return printable(Path(self.result.name).name)


def exhibit_file(
    source: Path,
    *,
    model: LoadedTokenizer,
    options: EvalOptions,
    codecs: Sequence[str] = (),
    most_bytes: int,
    notify: Notify | None = None,
) -> Exhibit:
    """Measure a clip and make pictures of its first frames.

    Args:
        source: video or image file.
        model: model to measure.
        options: part, rates and metrics.
        codecs: classic codecs to compare with, see `compare_file`.
        most_bytes: limit of pictures and codes; further frames are measured but not pictured. The
            first frame always has a picture.
        notify: called with the progress.

    Raises:
        UsageError: for a model without codes.
        VtokError: see `compare_file`.
    """
    check_model(model)
    made = _Strips(most_bytes)
    with compare_file(
        source, model=model, codecs=codecs, options=options, notify=notify, watch=made.watch
    ) as comparison:
        result = comparison.result
        most = max(point.bits for point in result.of(VTOK))
        with path_of(comparison.folder, most, model).open("rb") as file:
            reader = CodeFileReader(file)
            header = reader.header
            chunks = tuple(
                ChunkBytes(chunk.num_frames, tuple(len(part.data) for part in chunk.parts))
                for chunk in reader.stored()
            )
            codes = np.concatenate([chunk.codes for chunk in reader], axis=2)
        classic = made.classic(comparison, notify)
    strips = (made.original, *made.coded.values(), *classic)
    codes = codes.reshape(-1, *codes.shape[2:])
    pictured = _trim(strips, codes, header, most_bytes)
    steps = 1 + step_of(pictured - 1, header.format)
    return Exhibit(result, tuple(deltas(result.points)), strips, chunks, codes[:, :steps], header)


def step_of(frame: int, layout: CodeFormat) -> int:
    """Return the latent step of a frame; the first frame, also of each window, has its own."""
    window, temporal = layout.window or 0, layout.temporal_compression
    windows, place = divmod(frame, 1 + (window - 1) * temporal) if window else (0, frame)
    return windows * window + -(-place // temporal)


def check_model(model: LoadedTokenizer) -> None:
    """Check that a model has codes, which the page shows; raises a UsageError if not."""
    if model.geometry.entries is None:
        name = model.info.name
        raise UsageError(f"{name} has latents and no codes to show: use vtok eval or vtok compare")


def code_width(codebook_size: int) -> int:
    """Bytes per code on the page, a power of two."""
    return next(width for width in (1, 2, 4, 8) if codebook_size <= 1 << 8 * width)


def _trim(
    strips: Sequence[Strip], codes: npt.NDArray[np.int64], header: Header, most_bytes: int
) -> int:
    """Drop pictures of later frames until pictures and codes fit; returns the frames kept."""
    step_bytes = codes[:, 0].size * code_width(header.format.codebook_size)
    fitting, left, layout = 0, most_bytes, header.format
    for pictures in zip(*(strip.pictures for strip in strips), strict=False):
        opens_step = not fitting or step_of(fitting, layout) > step_of(fitting - 1, layout)
        left -= sum(map(len, pictures)) + (step_bytes if opens_step else 0)
        if fitting and left < 0:
            break
        fitting += 1
    for strip in strips:
        del strip.pictures[fitting:], strip.fidelity[fitting:]
    return fitting


class _Strips:
    """Strips of a clip, filled while the clip is measured, so that nothing is decoded twice."""

    def __init__(self, most_bytes: int) -> None:
        self.original = Strip(ORIGINAL, 0)
        self.coded: dict[int, Strip] = {}  # of the model, by bits
        self._most = most_bytes
        self._sizes: list[int] = []  # bytes of the pictures of each frame

    def watch(self, bits: int, frames: Frames, originals: Frames) -> None:
        """Add frames of one rate; the `watch` callback of `evaluate_file`."""
        strip = self.coded.setdefault(bits, Strip(VTOK, bits))
        if bits == next(iter(self.coded)):
            self._picture(self.original, originals)
        self._add(strip, frames, originals)

    def classic(self, comparison: Comparison, notify: Notify | None) -> list[Strip]:
        """Strips of the classic codecs, decoded in step with the clip."""
        points = [point for point in comparison.result.points if point.coder != VTOK]
        made = [Strip(point.coder, point.bits) for point in points]
        if not points:
            return made
        with open_clip(comparison.source, comparison.options.part) as clip:
            coded = (coded_frames(comparison, point) for point in points)
            originals = chain.from_iterable(clip)
            for number, (original, *shown) in enumerate(zip(originals, *coded, strict=True)):
                for strip, frame in zip(made, shown, strict=True):
                    self._add(strip, frame[None], original[None])
                if notify is not None:
                    notify(PICTURES, number + 1, comparison.result.frames)
        return made

    def _add(self, strip: Strip, frames: Frames, originals: Frames) -> None:
        """Measure the next frames of a strip, uint8 [n, H, W, 3], and make pictures of them."""
        for frame, original in zip(frames, originals, strict=True):
            strip.psnr.append(psnr(frame[None], original[None]))
        self._picture(strip, frames)

    def _picture(self, strip: Strip, frames: Frames) -> None:
        for frame in frames:
            number = len(strip.pictures)
            if number and sum(self._sizes[:number]) > self._most:
                return  # later frames will not fit either
            picture = frame_to_webp(frame)
            strip.pictures.append(picture)
            strip.fidelity.append(psnr(webp_to_frame(picture)[None], frame[None]))
            if number == len(self._sizes):
                self._sizes.append(0)
            self._sizes[number] += len(picture)


def build_page(
    exhibits: Sequence[Exhibit], model: LoadedTokenizer, title: str | None = None
) -> bytes:
    """Build the page as UTF-8.

    Args:
        exhibits: one or more clips.
        model: the model that coded them.
        title: title of the page; the clip's name or the number of clips if None.
    """
    style = asset("page.css")
    parts = "\n".join(asset(f"{name}.js") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{parts}}})();\n'
    if title is None:
        title = exhibits[0].name if len(exhibits) == 1 else f"{len(exhibits)} clips"
    policy = (
        "default-src 'none'; "
        "img-src data:; "  # the empty favicon
        f"style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    fields = {
        "title": html.escape(printable(title)),
        "policy": policy,
        "style": style,
        "script": script,
        "facts": script_safe(_facts(exhibits, model, title)),
        "blocks": "\n".join(_blocks(exhibits)),
    }
    # one substitution, so that inserted text is not searched for more fields
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], asset("page.html"))
    return page.encode()


def printable(text: str) -> str:
    """Replace what is not printable or not valid UTF-8 in a file name."""
    shown = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)


def script_safe(value: Any) -> str:
    """JSON without characters that could end its `<script>` element or start markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    """Text of a file in assets/."""
    return (files("vtok.evaluation") / "assets" / name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _facts(exhibits: Sequence[Exhibit], model: LoadedTokenizer, title: str) -> dict[str, Any]:
    """All data of the page but pictures and codes, as plain JSON types."""
    geometry = model.geometry
    return {
        "title": printable(title),
        "version": vtok.__version__,
        "model": {
            "name": printable(model.info.name),
            "weights_sha256": model.info.weights_sha256,
            "computed": f"{model.dtype_name} on {model.device.type}",
            "num_stages": geometry.num_stages,
            "bits_per_stage": geometry.stored_bits,
        },
        "webp_quality": QUALITY,
        "identical_db": IDENTICAL_DB,
        "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
        "heat": heat_scale(),
        "palette": code_palette(),
        "clips": [_clip(exhibit) for exhibit in exhibits],
        "mean": [point.to_json() for point in mean_points([x.result for x in exhibits])],
    }


def _clip(exhibit: Exhibit) -> dict[str, Any]:
    result, layout, info = exhibit.result, exhibit.header.format, exhibit.header.source
    return {
        **result.to_json(),
        "input": printable(result.name),
        "name": exhibit.name,
        "rate": float(result.fps),
        "source": [info.width, info.height],
        "pictured": exhibit.pictured,
        "strips": [
            {
                "key": strip.key,
                "coder": strip.coder,
                "bits": strip.bits,
                "sizes": [len(picture) for picture in strip.pictures],
                "psnr": [round(value, 3) for value in strip.psnr],
                "fidelity": round(sum(strip.fidelity) / max(1, len(strip.fidelity)), 2),
                "original": strip.coder == ORIGINAL,
            }
            for strip in exhibit.strips
        ],
        "chunks": [asdict(chunk) for chunk in exhibit.chunks],
        "deltas": [delta.to_json() for delta in exhibit.deltas],
        "layout": {
            "grid": list(layout.grid),
            "steps": exhibit.codes.shape[1],
            "temporal": layout.temporal_compression,
            "window": layout.window,
            "spatial": layout.spatial_compression,
            "codebook_size": layout.codebook_size,
            "num_codebooks": layout.num_codebooks,
            "bits_per_code": layout.bits_per_code,
            "width": code_width(layout.codebook_size),
        },
    }


def _blocks(exhibits: Sequence[Exhibit]) -> Iterator[str]:
    """Data blocks; each picture is encoded separately, so that it can be decoded separately."""
    block = '<script type="application/octet-stream" id="{}">{}</script>'
    for number, exhibit in enumerate(exhibits):
        for strip in exhibit.strips:
            text = "".join(b64encode(picture).decode() for picture in strip.pictures)
            yield block.format(f"pictures-{number}-{strip.key}", text)
        width = code_width(exhibit.header.format.codebook_size)
        data = exhibit.codes.astype(f"<u{width}").tobytes()
        yield block.format(f"codes-{number}", b64encode(data).decode())
