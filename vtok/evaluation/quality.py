"""Every metric of two videos, frame by frame as they come: what is measured, and what it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from vtok.errors import UsageError
from vtok.evaluation.metrics import (
    MS_SIDE,
    WINDOW,
    Frames,
    check_pair,
    check_side,
    psnr_per_frame,
    similarities_per_frame,
)
from vtok.evaluation.vmaf import LEAST_SIDE, Vmaf, has_vmaf


@dataclass(frozen=True)
class Metric:
    """One way to say how good a reconstruction is.

    Attributes:
        label: over its column.
        digits: worth showing after the point.
        rises: whether more is better.
        meaning: in one line, as the documentation has it.
    """

    label: str
    digits: int
    rises: bool
    meaning: str


METRICS: Mapping[str, Metric] = {
    "psnr": Metric("PSNR dB", 2, True, "10 log10(255^2 / MSE) of each RGB frame, then the mean"),
    "ssim": Metric("SSIM", 4, True, "of R, G and B by an 11x11 Gaussian window, mean over frames"),
    "ms_ssim": Metric("MS-SSIM", 4, True, "the same at five scales; from 176 pixels a side up"),
    "vmaf": Metric("VMAF", 2, True, "0 to 100, model vmaf_v0.6.1 of libvmaf, mean over frames"),
    "flicker": Metric(
        "flicker", 2, False, "mean |e(t) - e(t-1)| in levels of 0..255, e the error of a frame"
    ),
}
Quality = dict[str, float | None]
"""By the names of `METRICS`; None where a clip is too small or too short for one."""


def check_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """The names, in the order of `METRICS`.

    Raises:
        UsageError: for one that is not known, none at all, or VMAF where ffmpeg lacks it.
    """
    asked = set(names)
    unknown = sorted(asked - METRICS.keys())
    if unknown or not asked:
        word = f"{unknown[0]!r}" if unknown else "none"
        raise UsageError(f"--metrics {word}: expected some of {', '.join(METRICS)}")
    if "vmaf" in asked and not has_vmaf():
        raise UsageError(
            "--metrics vmaf: this ffmpeg has no libvmaf: leave it out, or use imageio-ffmpeg's own"
        )
    return tuple(name for name in METRICS if name in asked)


def usual_metrics() -> tuple[str, ...]:
    """All metrics that can be had on this machine."""
    return tuple(name for name in METRICS if name != "vmaf" or has_vmaf())


class QualityMeter:
    """Compares two videos as their frames come, with memory for one frame.

    ```python
    with QualityMeter(width=256, height=256) as meter:
        meter.add(frames, reference)
        quality = meter.finish()
    ```
    """

    def __init__(self, width: int, height: int, metrics: Iterable[str] | None = None) -> None:
        """Begin.

        Args:
            width, height: of the frames.
            metrics: names from `METRICS`; all that can be had if None.

        Raises:
            ShapeError: for frames smaller than the window of SSIM, where that is asked for.
            UsageError: as `check_metrics`.
        """
        self._names = usual_metrics() if metrics is None else check_metrics(metrics)
        self._similar = bool({"ssim", "ms_ssim"} & set(self._names))
        if self._similar:
            check_side((height, width), WINDOW, "SSIM")
        self._multi_scale = "ms_ssim" in self._names and min(width, height) >= MS_SIDE
        self._sums = dict.fromkeys(METRICS, 0.0)
        self._frames = 0
        self._last_error: np.ndarray[tuple[int, ...], np.dtype[np.int16]] | None = None
        large = min(width, height) >= LEAST_SIDE
        self._vmaf = Vmaf(width, height) if "vmaf" in self._names and large else None

    def add(self, frames: Frames, reference: Frames) -> None:
        """Compare more frames.

        Args:
            frames: uint8 [T, H, W, 3].
            reference: what they should be, of the same shape.

        Raises:
            ShapeError: for other types or two shapes.
            VtokError: VMAF could not be measured.
        """
        check_pair(frames, reference)
        sums = self._sums
        if "psnr" in self._names:
            sums["psnr"] += float(psnr_per_frame(frames, reference).sum())
        if self._similar:
            values = similarities_per_frame(frames, reference, multi_scale=self._multi_scale)
            sums["ssim"] += float(values[0].sum())
            sums["ms_ssim"] += float(values[1].sum())
        if "flicker" in self._names:
            for pair in zip(frames, reference, strict=True):
                sums["flicker"] += self._flicker(*pair)
        if self._vmaf is not None:
            self._vmaf.add(frames, reference)
        self._frames += len(frames)

    def finish(self) -> Quality:
        """The mean of each metric over all frames."""
        counts = dict.fromkeys(METRICS, self._frames)
        counts["flicker"] = self._frames - 1
        counts["ms_ssim"] = self._frames if self._multi_scale else 0
        counts["vmaf"] = 0
        quality: Quality = {
            name: self._sums[name] / counts[name] if counts[name] > 0 else None
            for name in self._names
        }
        if self._vmaf is not None and self._frames:
            quality["vmaf"] = self._vmaf.finish()
        return quality

    def __enter__(self) -> QualityMeter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._vmaf is not None:
            self._vmaf.close()

    def _flicker(self, frame: Frames, reference: Frames) -> float:
        """How much the error changes from the last frame to this one; 0 for the first."""
        error = frame.astype(np.int16) - reference
        last, self._last_error = self._last_error, error
        return 0.0 if last is None else float(np.abs(error - last).mean())
