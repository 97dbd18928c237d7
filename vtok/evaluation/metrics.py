"""PSNR, SSIM, MS-SSIM, VMAF and flicker: single functions, and `QualityMeter` for streams."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vtok.errors import OptionError, ShapeError, UsageError, VtokError
from vtok.pipeline.rate import check_pair, psnr_per_frame
from vtok.video.ffmpeg import QUIET, ffmpeg_path
from vtok.video.frames import Frames

Values = npt.NDArray[np.float64]

WINDOW, SIGMA = 11, 1.5  # of the Gaussian window of SSIM, in pixels
K1, K2 = 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SIDE = WINDOW << (len(SCALE_WEIGHTS) - 1)
"""Smallest height and width for MS-SSIM, 176: the window fits once at the last scale."""
_BLOCK = 32  # rows or columns filtered by one matrix product


@dataclass(frozen=True)
class Metric:
    """A measure of quality.

    Attributes:
        label: column heading.
        digits: digits worth printing after the decimal point.
        rises: True if more is better.
        meaning: one-line definition.
    """

    label: str
    digits: int
    rises: bool
    meaning: str


METRICS: Mapping[str, Metric] = {
    "psnr": Metric("PSNR dB", 2, True, "10 log10(255^2 / MSE) of each RGB frame, then the mean"),
    "ssim": Metric(
        "SSIM", 4, True, "mean over R, G and B and over frames, with an 11x11 Gaussian window"
    ),
    "ms_ssim": Metric(
        "MS-SSIM", 4, True, "SSIM at five scales; needs frames of at least 176x176 pixels"
    ),
    "vmaf": Metric("VMAF", 2, True, "0 to 100, model vmaf_v0.6.1 of libvmaf, mean over frames"),
    "flicker": Metric(
        "flicker", 2, False, "mean |e(t) - e(t-1)| in levels of 0..255, e the error of a frame"
    ),
}
Quality = dict[str, float | None]
"""Values by names of `METRICS`; None if the clip is too small or too short for the metric."""


def check_metrics(names: Iterable[str] | None) -> tuple[str, ...]:
    """Return the names in the order of `METRICS`; those that can be measured here if None.

    Raises:
        OptionError: for an unknown name, or no name at all.
        UsageError: for VMAF if ffmpeg lacks libvmaf.
    """
    if names is None:
        return tuple(name for name in METRICS if name != "vmaf" or has_vmaf())
    given = set(names)
    unknown = sorted(given - METRICS.keys())
    if unknown or not given:
        value = unknown[0] if unknown else ""
        raise OptionError("metrics", repr(value), f"some of {', '.join(METRICS)}")
    if "vmaf" in given and not has_vmaf():
        raise UsageError(
            "VMAF cannot be measured: this ffmpeg has no libvmaf; leave vmaf out, or use the "
            "ffmpeg of imageio-ffmpeg"
        )
    return tuple(name for name in METRICS if name in given)


class QualityMeter:
    """Compares two videos frame by frame in constant memory.

    ```python
    with QualityMeter(width=256, height=256) as meter:
        meter.add(frames, reference)
        quality = meter.finish()
    ```

    Args:
        width, height: size of the frames, in pixels.
        metrics: names from `METRICS`; all available ones if None.

    Raises:
        ShapeError: if SSIM is measured and the frames are smaller than its window.
        UsageError: see `check_metrics`.
    """

    def __init__(self, width: int, height: int, metrics: Iterable[str] | None = None) -> None:
        self._names = check_metrics(metrics)
        self._needs_ssim = bool({"ssim", "ms_ssim"} & set(self._names))
        if self._needs_ssim:
            check_side((height, width), WINDOW, "SSIM")
        self._multi_scale = "ms_ssim" in self._names and min(width, height) >= MS_SIDE
        self._sums = dict.fromkeys(self._names, 0.0)
        self._counts = dict.fromkeys(self._names, 0)
        self._last_error: npt.NDArray[np.int16] | None = None
        large_enough = min(width, height) >= VMAF_SIDE
        self._vmaf = Vmaf(width, height) if "vmaf" in self._names and large_enough else None

    def add(self, frames: Frames, reference: Frames) -> None:
        """Compare the next frames.

        Args:
            frames: uint8 [T, H, W, 3].
            reference: the original frames, of the same shape.

        Raises:
            ShapeError: if the types are not uint8 or the shapes differ.
            VtokError: if VMAF cannot be measured.
        """
        check_pair(frames, reference)
        if "psnr" in self._names:
            self._count("psnr", psnr_per_frame(frames, reference))
        if self._needs_ssim:
            single, multiple = similarities_per_frame(
                frames, reference, multi_scale=self._multi_scale
            )
            self._count("ssim", single)
            if self._multi_scale:
                self._count("ms_ssim", multiple)
        if "flicker" in self._names:
            for frame, original in zip(frames, reference, strict=True):
                error = frame.astype(np.int16) - original
                if self._last_error is not None:
                    self._count("flicker", np.abs(error - self._last_error).mean(keepdims=True))
                self._last_error = error
        if self._vmaf is not None:
            self._vmaf.add(frames, reference)
            self._counts["vmaf"] += len(frames)

    def _count(self, name: str, values: Values) -> None:
        if name in self._names:
            self._sums[name] += float(values.sum())
            self._counts[name] += values.size

    def finish(self) -> Quality:
        """Return the mean of each metric over all frames."""
        if self._vmaf is not None and self._counts["vmaf"]:
            self._sums["vmaf"] = self._vmaf.finish() * self._counts["vmaf"]
        return {
            name: self._sums[name] / count if count else None
            for name, count in self._counts.items()
        }

    def __enter__(self) -> QualityMeter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._vmaf is not None:
            self._vmaf.close()


VMAF_SIDE = 32
"""Smallest height and width for VMAF: libvmaf downsamples four times."""
_VMAF_GRAPH = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,"
    "format=yuv444p,split[a][b];"  # only luma is compared; 4:4:4 allows odd sizes
    "[a]crop={width}:{height}:0:0[frames];[b]crop={width}:{height}:0:{height}[reference];"
    "[frames][reference]libvmaf=model=version=vmaf_v0.6.1:n_threads=1"
)


@cache
def ffmpeg_lists(kind: str) -> frozenset[str]:
    """Names of the "encoders" or "filters" that the ffmpeg program has."""
    command = [ffmpeg_path(), "-hide_banner", f"-{kind}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return frozenset(re.findall(r"^ \S+ +(\S+)", done.stdout, re.MULTILINE))


def has_vmaf() -> bool:
    """Check that the ffmpeg program includes libvmaf."""
    return "libvmaf" in ffmpeg_lists("filters")


class Vmaf:
    """VMAF by an ffmpeg process, on the luma of frames converted to BT.709 limited range.

    Frame and reference are sent stacked vertically through one pipe, since two pipes could
    deadlock.

    Args:
        width, height: size of the frames, in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{2 * height}"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close
        self._process = subprocess.Popen(
            [*(ffmpeg_path(), *QUIET, "-threads", "1", *source, "-i", "pipe:0"),
             *("-lavfi", _VMAF_GRAPH.format(width=width, height=height), "-f", "null", "-")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C reaches only the parent, which closes this process
        )  # fmt: skip
        assert self._process.stdin is not None
        self._input = self._process.stdin

    def add(self, frames: Frames, reference: Frames) -> None:
        """Compare the next frames, both uint8 [T, H, W, 3].

        Raises:
            VtokError: if ffmpeg failed.
        """
        try:
            for pair in zip(frames, reference, strict=True):
                self._input.write(np.concatenate(pair).data)
        except BrokenPipeError:
            self.finish()

    def finish(self) -> float:
        """Return the mean over all frames, 0 to 100.

        Raises:
            VtokError: if ffmpeg failed.
        """
        with suppress(BrokenPipeError):  # the log holds the reason
            self._input.close()
        failed = self._process.wait()
        self._log.seek(0)
        log = self._log.read().decode(errors="replace")
        score = re.search(r"VMAF score: ([0-9.]+)", log)
        if failed or score is None:
            last_line = (log.splitlines() or ["ffmpeg printed nothing"])[-1][:200]
            raise VtokError(f"VMAF could not be measured: {last_line}")
        return float(score[1])

    def close(self) -> None:
        """Stop the process; may be called twice, and after `finish`."""
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            self._input.close()
        self._log.close()


def psnr(frames: Frames, reference: Frames) -> float:
    """Mean over frames of `psnr_per_frame`, in dB."""
    return float(psnr_per_frame(frames, reference).mean())


def similarities_per_frame(
    frames: Frames, reference: Frames, *, multi_scale: bool
) -> tuple[Values, Values]:
    """SSIM and MS-SSIM of each frame, the means over R, G and B.

    SSIM is that of Wang et al., IEEE TIP 13, 2004, and MS-SSIM of Wang et al., Asilomar 2003.

    Args:
        frames: uint8 [T, H, W, 3] of at least 11 x 11 pixels, for MS-SSIM 176 x 176.
        reference: the original frames, of the same shape.
        multi_scale: compute MS-SSIM, which is NaN otherwise.

    Returns:
        Two arrays float64 [T], 1 for equal frames.

    Raises:
        ShapeError: if the types are not uint8, the shapes differ or the frames are smaller.
    """
    check_pair(frames, reference)
    side, name = (MS_SIDE, "MS-SSIM") if multi_scale else (WINDOW, "SSIM")
    check_side(frames.shape[1:3], side, name)
    single, multiple = np.empty(len(frames)), np.full(len(frames), np.nan)
    weights = SCALE_WEIGHTS if multi_scale else SCALE_WEIGHTS[:1]
    with torch.inference_mode():
        for number, pair in enumerate(zip(frames, reference, strict=True)):
            # a copy: frames decoded from a pipe are read-only, which torch warns about
            x, y = (torch.from_numpy(frame.copy()).permute(2, 0, 1).float() for frame in pair)
            values = similarities(x.contiguous(), y.contiguous(), 255.0, weights)
            single[number] = values[0].double().mean()
            if multi_scale:
                multiple[number] = values[1].double().mean()
    return single, multiple


def similarities(
    x: Tensor,
    y: Tensor,
    value_range: float,
    weights: Sequence[float] = SCALE_WEIGHTS,
    floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """SSIM and MS-SSIM of planes; differentiable.

    Args:
        x, y: float [..., C, H, W]; the window has to fit at the last scale.
        value_range: difference of the largest and the smallest pixel value.
        weights: exponent of each scale of MS-SSIM, finest scale first.
        floor: lower limit of a similarity before its root is taken: negative values have no root,
            and at 0 the root has no finite gradient.

    Returns:
        Two tensors [..., C].
    """
    for scale, weight in enumerate(weights):
        ssim, structure = _compare(x, y, value_range)
        if not scale:
            single, product = ssim, torch.ones_like(ssim)
        term = ssim if scale == len(weights) - 1 else structure
        product = product * term.clamp(min=floor) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return single, product


def check_side(size: tuple[int, ...], smallest: int, metric: str) -> None:
    """Check that frames of `size` (height, width) are large enough for a metric.

    Raises:
        ShapeError: if a side is shorter than `smallest` pixels.
    """
    if min(size) < smallest:
        raise ShapeError(
            f"frames of {size[1]}x{size[0]}: {metric} needs {smallest} pixels on each side"
        )


def _compare(x: Tensor, y: Tensor, value_range: float) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure term, each the mean over positions, [..., C]."""
    c1, c2 = (K1 * value_range) ** 2, (K2 * value_range) ** 2
    mean_x, mean_y, squares, products = _blur(torch.stack((x, y, x * x + y * y, x * y)))
    means_product = mean_x * mean_y
    means_squares = mean_x * mean_x + mean_y * mean_y
    structure = (2 * (products - means_product) + c2) / (squares - means_squares + c2)
    luminance = (2 * means_product + c1) / (means_squares + c1)
    return (luminance * structure).mean((-2, -1)), structure.mean((-2, -1))


def _blur(x: Tensor) -> Tensor:
    """[..., H, W] -> [..., H - 10, W - 10]: Gaussian means where the window fits.

    Columns, then rows, in blocks that are multiplied by a band matrix, which on a CPU is as fast as
    a depthwise convolution at its best and never much slower.
    """
    for _ in range(2):
        side, means = x.shape[-2] - WINDOW + 1, []
        for start in range(0, side, _BLOCK):
            count = min(_BLOCK, side - start)
            band = torch.from_numpy(_band(count)).to(x)
            means.append(band @ x[..., start : start + count + WINDOW - 1, :])
        x = torch.cat(means, dim=-2).transpose(-2, -1)
    return x


@cache  # arrays: a tensor made in inference mode could not be used in training later
def _band(count: int) -> npt.NDArray[np.float32]:
    """[count, count + 10] with the window's weights in each row, shifted by one from row to row."""
    offsets = np.arange(WINDOW) - (WINDOW - 1) / 2
    window = np.exp(-(offsets**2) / (2 * SIGMA**2))
    band = np.zeros((count, count + WINDOW - 1), np.float32)
    for row in range(count):
        band[row, row : row + WINDOW] = window / window.sum()
    return band
