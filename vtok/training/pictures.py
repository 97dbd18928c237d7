"""Pictures of a run: validation clips with their reconstructions, and the curves so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vtok.atomic import atomic_output
from vtok.errors import OutputError
from vtok.media.frames import Frames
from vtok.media.images import write_png
from vtok.media.sheet import draw_sheet
from vtok.training.runlog import PSNR, STEPS, VALIDATIONS, read_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE = "curve.png"
LEAST_WIDTH = 160  # smaller pictures are enlarged: they have to be seen, and captioned
MOST_POINTS = 1000
Columns = Mapping[str, Sequence[float]]


def write_comparison(
    path: Path,
    originals: Tensor,
    reconstructions: Mapping[int, Tensor],
    psnr: Mapping[int, Sequence[float]],
) -> None:
    """Write originals over their reconstructions, each with its PSNR under it; replaces the file.

    Args:
        path: PNG file to write.
        originals: float [N, 3, H, W] in -1..1, one frame of each clip.
        reconstructions: of the same shape, by number of used stages.
        psnr: of each clip in dB, by number of used stages.

    Raises:
        OutputError: The file cannot be written.
    """
    rows = [_to_pictures(originals)]
    captions = [["original"] * len(originals)]
    for stages, pictures in sorted(reconstructions.items()):
        rows.append(_to_pictures(pictures))
        word = "stage" if stages == 1 else "stages"
        captions.append([f"{stages} {word}: {value:.2f} dB" for value in psnr[stages]])
    write_png(path, draw_sheet(rows, captions=captions), overwrite=True)


def write_curve(folder: Path) -> Path | None:
    """Draw loss and PSNR over the steps of a run, from its log.

    Args:
        folder: of the run.

    Returns:
        The picture, curve.png in the folder; None without matplotlib, or without a step.

    Raises:
        OutputError: The file cannot be written, or the log is no log.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    steps, validations = (read_columns(folder / name) for name in (STEPS, VALIDATIONS))
    if not steps:
        return None
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, steps)
    _draw_psnr(right, steps, validations)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    path = folder / CURVE
    with atomic_output(path, overwrite=True) as temporary:
        try:
            temporary.write_bytes(picture.getvalue())
        except OSError as exc:
            raise OutputError(f"{path}: cannot be written ({exc.strerror})") from exc
    return path


def _to_pictures(pictures: Tensor) -> list[Frames]:
    """float [N, 3, H, W] in -1..1 -> uint8 [H', W', 3] each."""
    scaled = (pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    frames: Frames = scaled.round().byte().permute(0, 2, 3, 1).numpy()
    times = -(-LEAST_WIDTH // frames.shape[2])
    return list(frames.repeat(times, axis=1).repeat(times, axis=2))


def _draw_loss(axes: Axes, steps: Columns) -> None:
    at, loss = _thinned(steps["step"], steps["loss"])
    axes.plot(at, loss, color="tab:blue")
    axes.set(title="loss", xlabel="step")
    if loss.size and np.nanmin(loss) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")


def _draw_psnr(axes: Axes, steps: Columns, validations: Columns) -> None:
    """Lines in training, dots on the validation clips, darker for more stages."""
    from matplotlib import colormaps

    names = [name for name in steps if name.startswith(PSNR)]
    for place, name in enumerate(names):
        colour = colormaps["viridis_r"]((place + 1) / len(names))
        axes.plot(*_thinned(steps["step"], steps[name]), color=colour, alpha=0.6)
        measured = validations.get(name, [])
        at = validations.get("step", [])[: len(measured)]
        stages = name.removeprefix(PSNR)
        axes.plot(at, measured, "o-", color=colour, markersize=4, label=stages)
    axes.set(title="PSNR, training (lines) and validation (dots), dB", xlabel="step")
    axes.grid(alpha=0.3)
    if names:
        axes.legend(title="stages", fontsize="small")


def _thinned(
    steps: Sequence[float], values: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means of so many neighbours that a line has few points, without what is not finite."""
    points = np.array((steps, values))
    points = points[:, np.isfinite(points[1])]
    length = points.shape[1]
    starts = np.arange(0, length, max(1, -(-length // MOST_POINTS)))
    if not length:
        return points[0], points[1]
    at, means = np.add.reduceat(points, starts, axis=1) / np.diff(starts, append=length)
    return at, means
