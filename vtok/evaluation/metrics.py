"""PSNR, defined once: on uint8 frames, cast before subtracting, averaged over frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vtok.errors import ShapeError

Frames = npt.NDArray[np.uint8]
IDENTICAL_DB = 100.0  # what a frame without any error counts as, in place of infinity


def psnr_per_frame(frames: Frames, reference: Frames) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio of each frame, 10 log10(255^2 / MSE), in dB.

    Args:
        frames: uint8 [T, H, W, 3].
        reference: of the same shape.

    Returns:
        float64 [T].

    Raises:
        ShapeError: for other types or two shapes.
    """
    check_pair(frames, reference)
    # cast first: a difference of uint8 wraps around; by frame: float64 is eight times as large
    pairs = zip(frames, reference, strict=True)
    errors = np.array([np.square(a.astype(np.float64) - b).mean() for a, b in pairs])
    with np.errstate(divide="ignore"):
        ratios: npt.NDArray[np.float64] = 10 * np.log10(255.0**2 / errors)
    return ratios.clip(max=IDENTICAL_DB)


def psnr(frames: Frames, reference: Frames) -> float:
    """Mean over frames of `psnr_per_frame`, in dB."""
    return float(psnr_per_frame(frames, reference).mean())


def check_pair(frames: Frames, reference: Frames) -> None:
    """Refuse what cannot be compared.

    Raises:
        ShapeError: unless both are uint8 of one shape [T, H, W, 3].
    """
    if frames.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ShapeError(f"frames of {frames.dtype} and {reference.dtype}: expected uint8")
    if frames.shape != reference.shape or frames.ndim != 4:
        raise ShapeError(
            f"frames of shape {list(frames.shape)} and {list(reference.shape)}: "
            "expected two of one shape [T, H, W, 3]"
        )
