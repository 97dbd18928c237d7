"""Validation: PSNR on clips that are not trained on, pictures of them, and the learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vtok._files import atomic_output
from vtok.errors import OutputError
from vtok.evaluation.pictures import draw_sheet
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.metrics import entries_seen
from vtok.training.runlog import PSNR, STEPS, VALIDATIONS, read_columns
from vtok.video.frames import Frames
from vtok.video.images import write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE = "curve.png"
MIN_WIDTH = 160
"""Smaller pictures are enlarged, to be visible and to have room for a caption."""
MAX_POINTS = 1000
Columns = Mapping[str, Sequence[float]]


def write_comparison(
    path: Path,
    originals: Tensor,
    reconstructions: Mapping[int, Tensor],
    psnr: Mapping[int, Sequence[float]],
) -> None:
    """Write a picture of originals above their captioned reconstructions, replacing the file.

    Args:
        path: PNG file to write.
        originals: float [N, 3, H, W] in -1..1, one frame of each clip.
        reconstructions: tensors of the same shape, by number of stages.
        psnr: PSNR of each clip in dB, by number of stages.

    Raises:
        OutputError: if the file cannot be written.
    """
    rows = [_to_pictures(originals)]
    captions = [["original"] * len(originals)]
    for stages, pictures in sorted(reconstructions.items()):
        rows.append(_to_pictures(pictures))
        word = "stage" if stages == 1 else "stages"
        captions.append([f"{stages} {word}: {value:.2f} dB" for value in psnr[stages]])
    write_png(path, draw_sheet(rows, captions=captions), overwrite=True)


def write_curve(folder: Path) -> Path | None:
    """Plot loss and PSNR over the steps of a run, from its log.

    Args:
        folder: folder of the run.

    Returns:
        Path of curve.png in the folder; None without matplotlib, or without a step.

    Raises:
        OutputError: if the file cannot be written, or the log is not valid.
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
    """Convert float [N, 3, H, W] in -1..1 to uint8 [H', W', 3] each, enlarged if small."""
    scaled = (pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    frames: Frames = scaled.round().byte().permute(0, 2, 3, 1).numpy()
    times = -(-MIN_WIDTH // frames.shape[2])
    return list(frames.repeat(times, axis=1).repeat(times, axis=2))


def _draw_loss(axes: Axes, steps: Columns) -> None:
    at, loss = _thinned(steps["step"], steps["loss"])
    axes.plot(at, loss, color="tab:blue")
    axes.set(title="loss", xlabel="step")
    if loss.size and np.nanmin(loss) > 0:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")


def _draw_psnr(axes: Axes, steps: Columns, validations: Columns) -> None:
    """Plot lines for training clips and dots for validation clips, darker for more stages."""
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
    """Average neighbours so that a line has at most about `MAX_POINTS`; drops non-finite values."""
    points = np.array((steps, values))
    points = points[:, np.isfinite(points[1])]
    length = points.shape[1]
    starts = np.arange(0, length, max(1, -(-length // MAX_POINTS)))
    if not length:
        return points[0], points[1]
    at, means = np.add.reduceat(points, starts, axis=1) / np.diff(starts, append=length)
    return at, means


@dataclass(frozen=True)
class Measured:
    """Result of a validation.

    Attributes:
        psnr: PSNR of each clip in dB, by number of stages.
        frames: one frame of each reconstruction, float [N, 3, H, W], by number of stages.
        code_usage: share of the entries of the first stage that the clips use.
    """

    psnr: dict[int, list[float]]
    frames: dict[int, Tensor]
    code_usage: float

    def means(self) -> dict[int, float]:
        """Return the mean PSNR over the clips in dB, by number of stages."""
        return {stages: sum(values) / len(values) for stages, values in self.psnr.items()}


@torch.no_grad()
def measure(model: VideoTokenizer, clips: Tensor) -> Measured:
    """Encode clips once, and decode them from every number of stages.

    PSNR is defined as in `vtok.evaluation.metrics`: on rounded pixels, averaged over frames.

    Args:
        model: tokenizer on any device.
        clips: float [N, 3, T, H, W] in -1..1.
    """
    was_training = model.training
    model.eval()
    stages = range(1, model.quantizer.num_stages + 1)
    psnr: dict[int, list[float]] = {k: [] for k in stages}
    frames: dict[int, list[Tensor]] = {k: [] for k in stages}
    seen = []
    device = next(model.parameters()).device
    for clip in torch.split(clips.to(device), 1):  # one by one to save memory
        latents = model.encode_latents(clip)
        seen.append(entries_seen(model.quantizer, latents))
        for k in stages:
            used = torch.tensor([k], device=clip.device)
            size = (clip.shape[3], clip.shape[4])
            quantized = model.quantizer(latents, used)
            recon = model.decode(quantized, num_frames=clip.shape[2], size=size)
            psnr[k].append(_psnr(recon, clip))
            frames[k].append(recon[:, :, clip.shape[2] // 2].cpu())
    model.train(was_training)
    usage = float(torch.stack(seen).any(0).float().mean())
    return Measured(psnr, {k: torch.cat(parts) for k, parts in frames.items()}, usage)


def draw(path: Path, clips: Tensor, measured: Measured, base_stages: int) -> None:
    """Write a picture of the clips' middle frames and their reconstructions at three rates.

    Raises:
        OutputError: if it cannot be written.
    """
    shown = sorted({1, min(base_stages, max(measured.psnr)), max(measured.psnr)})
    write_comparison(
        path,
        clips[:, :, clips.shape[2] // 2],
        {k: measured.frames[k] for k in shown},
        {k: measured.psnr[k] for k in shown},
    )


def _psnr(recon: Tensor, clip: Tensor) -> float:
    ours, theirs = (((x.clamp(-1, 1) + 1) * 127.5).round().double() for x in (recon, clip))
    errors = (ours - theirs).square().mean((1, 3, 4))
    decibels = 10 * torch.log10(255**2 / errors.clamp(min=1e-10))
    return float(decibels.clamp(max=100.0).mean())
