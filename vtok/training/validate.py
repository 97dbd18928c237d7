"""Validation: PSNR on clips that are not trained on, and a picture of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vtok.evaluation.pictures import draw_sheet
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.metrics import entries_seen
from vtok.video.frames import Frames
from vtok.video.images import write_png

MIN_WIDTH = 160
"""Smaller pictures are enlarged, to be visible and to have room for a caption."""


@dataclass(frozen=True)
class Measured:
    """Result of a validation.

    Attributes:
        psnr: PSNR of each clip in dB, by number of stages.
        frames: middle frame of each reconstruction, float [N, 3, H, W], by number of stages.
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


def _psnr(recon: Tensor, clip: Tensor) -> float:
    ours, theirs = (((x.clamp(-1, 1) + 1) * 127.5).round().double() for x in (recon, clip))
    errors = (ours - theirs).square().mean((1, 3, 4))
    decibels = 10 * torch.log10(255**2 / errors.clamp(min=1e-10))
    return float(decibels.clamp(max=100.0).mean())


def write_comparison(path: Path, clips: Tensor, measured: Measured, base_stages: int) -> None:
    """Write a picture of middle frames above their reconstructions, replacing the file.

    Args:
        path: PNG file to write.
        clips: originals, float [N, 3, T, H, W] in -1..1.
        measured: result of `measure` for them.
        base_stages: number of stages to show besides 1 and all.

    Raises:
        OutputError: if the file cannot be written.
    """
    shown = sorted({1, min(base_stages, max(measured.psnr)), max(measured.psnr)})
    rows = [_to_pictures(clips[:, :, clips.shape[2] // 2])]
    captions = [["original"] * len(clips)]
    for stages in shown:
        rows.append(_to_pictures(measured.frames[stages]))
        word = "stage" if stages == 1 else "stages"
        captions.append([f"{stages} {word}: {value:.2f} dB" for value in measured.psnr[stages]])
    write_png(path, draw_sheet(rows, captions=captions), overwrite=True)


def _to_pictures(pictures: Tensor) -> list[Frames]:
    """Convert float [N, 3, H, W] in -1..1 to uint8 [H', W', 3] each, enlarged if small."""
    scaled = (pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    frames: Frames = scaled.round().byte().permute(0, 2, 3, 1).numpy()
    times = -(-MIN_WIDTH // frames.shape[2])
    return list(frames.repeat(times, axis=1).repeat(times, axis=2))
