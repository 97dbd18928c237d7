"""All metrics of a reconstruction, measured while its frames arrive: `QualityMeter`."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np

from vtok.errors import OptionError, UsageError, VtokError
from vtok.evaluation.metrics import (
    MS_SIDE,
    WINDOW,
    Frames,
    check_pair,
    check_side,
    psnr_per_frame,
    similarities_per_frame,
)
from vtok.video.ffmpeg import QUIET, ffmpeg_path


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


def check_metrics(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in the order of `METRICS`.

    Raises:
        OptionError: for an unknown name, or no name at all.
        UsageError: for VMAF if ffmpeg lacks libvmaf.
    """
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


def available_metrics() -> tuple[str, ...]:
    """Names of the metrics that this machine can measure."""
    return tuple(name for name in METRICS if name != "vmaf" or has_vmaf())


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
        self._names = available_metrics() if metrics is None else check_metrics(metrics)
        self._needs_ssim = bool({"ssim", "ms_ssim"} & set(self._names))
        if self._needs_ssim:
            check_side((height, width), WINDOW, "SSIM")
        self._multi_scale = "ms_ssim" in self._names and min(width, height) >= MS_SIDE
        self._sums = dict.fromkeys(METRICS, 0.0)
        self._frames = 0
        self._last_error: np.ndarray[tuple[int, ...], np.dtype[np.int16]] | None = None
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
        sums = self._sums
        if "psnr" in self._names:
            sums["psnr"] += float(psnr_per_frame(frames, reference).sum())
        if self._needs_ssim:
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
        """Return the mean of each metric over all frames."""
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

    def __exit__(self, *_: object) -> None:
        if self._vmaf is not None:
            self._vmaf.close()

    def _flicker(self, frame: Frames, reference: Frames) -> float:
        """Mean absolute change of the error since the previous frame; 0 for the first frame."""
        error = frame.astype(np.int16) - reference
        last, self._last_error = self._last_error, error
        return 0.0 if last is None else float(np.abs(error - last).mean())


VMAF_SIDE = 32
"""Smallest height and width for VMAF: libvmaf downsamples four times."""
_VMAF_GRAPH = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,"
    "format=yuv444p,split[a][b];"  # only luma is compared; 4:4:4 allows odd sizes
    "[a]crop={width}:{height}:0:0[frames];[b]crop={width}:{height}:0:{height}[reference];"
    "[frames][reference]libvmaf=model=version=vmaf_v0.6.1:n_threads=1"
)


@cache
def has_vmaf() -> bool:
    """Check that the ffmpeg program includes libvmaf."""
    command = [ffmpeg_path(), "-hide_banner", "-filters"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return re.search(r"\slibvmaf\s", done.stdout) is not None


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

    def add(self, frames: Frames, reference: Frames) -> None:
        """Compare the next frames, both uint8 [T, H, W, 3].

        Raises:
            VtokError: if ffmpeg failed.
        """
        assert self._process.stdin is not None
        try:
            for pair in zip(frames, reference, strict=True):
                self._process.stdin.write(np.concatenate(pair).data)
        except BrokenPipeError as exc:
            self._process.wait()
            raise self._failure() from exc

    def finish(self) -> float:
        """Return the mean over all frames, 0 to 100.

        Raises:
            VtokError: if ffmpeg failed.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the log holds the reason
            self._process.stdin.close()
        self._process.wait()
        score = re.search(r"VMAF score: ([0-9.]+)", self._read_log())
        if self._process.returncode != 0 or score is None:
            raise self._failure()
        return float(score[1])

    def close(self) -> None:
        """Stop the process; may be called twice, and after `finish`."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._log.close()

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def _failure(self) -> VtokError:
        last_line = (self._read_log().splitlines() or ["ffmpeg printed nothing"])[-1][:200]
        return VtokError(f"VMAF could not be measured: {last_line}")
