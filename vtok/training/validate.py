"""How good the model is on clips that it does not learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.meters import entries_seen
from vtok.training.pictures import write_comparison


@dataclass(frozen=True)
class Measured:
    """What came out of a validation.

    Attributes:
        psnr: of each clip in dB, by number of used stages.
        frames: one frame of each reconstruction, float [N, 3, H, W], by number of used stages.
        code_usage: share of the entries of the first stage that the clips use.
    """

    psnr: dict[int, list[float]]
    frames: dict[int, Tensor]
    code_usage: float

    def means(self) -> dict[int, float]:
        """Mean PSNR over the clips in dB, by number of used stages."""
        return {stages: sum(values) / len(values) for stages, values in self.psnr.items()}


@torch.no_grad()
def measure(model: VideoTokenizer, clips: Tensor) -> Measured:
    """Encode clips once, and decode them from every number of stages.

    PSNR is that of `vtok.evaluation.metrics`: on rounded pixels, by frame, the mean over frames.

    Args:
        model: the tokenizer, on any device.
        clips: float [N, 3, T, H, W] in -1..1.
    """
    was_training = model.training
    model.eval()
    stages = range(1, model.quantizer.num_stages + 1)
    psnr: dict[int, list[float]] = {k: [] for k in stages}
    frames: dict[int, list[Tensor]] = {k: [] for k in stages}
    seen = []
    device = next(model.parameters()).device
    for clip in torch.split(clips.to(device), 1):  # all at once might not fit into memory
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
    """Write a picture of the middle frames over their reconstructions, at three rates.

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
