"""Metrics of a run: running means, throughput and their alarms, and validation."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from vtok.evaluation.pictures import draw_sheet
from vtok.nn.quantize import LFQ
from vtok.nn.tokenizer import VideoTokenizer
from vtok.training.runlog import Alarm
from vtok.video.frames import Frames
from vtok.video.images import write_png

MEMORY = 0.97  # decay of running means, per step; of PSNR, per clip
RECENT_STEPS = 100  # for which a codebook entry counts as in use
MAX_ENTRIES = 1 << 16  # in a larger codebook, entries with the same last 16 bits count as one
THROUGHPUT_STEPS = 50
PATIENCE = 100  # steps that a problem must last before an alarm
MIN_BIT_ENTROPY = 0.3  # in bits; a healthy run has 0.9 or more
MIN_USAGE = 0.2  # relative to the best so far: a few positions cannot fill a large codebook
MAX_WAITING = 0.5
FINE, REPORTED = -1, -2  # in place of the first step of a problem
MIN_WIDTH = 160  # smaller pictures are enlarged, to have room for a caption


@dataclass(frozen=True)
class StepTotals:
    """Result of a step, summed over all micro-batches and processes."""

    loss: float  # weighted sum of the parts
    parts: dict[str, float]  # each loss before its weight
    psnr: dict[int, tuple[float, int]]  # mean in dB and number of clips, by number of stages
    seen: Tensor  # entries of the first stage that were used, see `entries_seen`
    bits: Tensor  # frequency of each bit of each stage, [stages, bits] in 0..1
    gradient_norm: float  # norm before clipping

    @property
    def finite(self) -> bool:
        """Tell whether the step was applied; otherwise the weights did not change."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class RunningMetrics:
    """Running means of PSNR and of code usage."""

    def __init__(self, quantizer: LFQ) -> None:
        self.psnr: dict[int, float] = {}
        shape = _seen_shape(quantizer)
        self.last_seen = torch.full(shape, -RECENT_STEPS - 1, dtype=torch.int64)
        self.bits = torch.full((quantizer.num_stages, quantizer.bits_per_stage), 0.5)

    def update(self, step: int, totals: StepTotals) -> None:
        """Add an applied step, numbered from 0."""
        for stages, (mean, count) in totals.psnr.items():
            keep = MEMORY**count
            self.psnr[stages] = keep * self.psnr.get(stages, mean) + (1 - keep) * mean
        self.last_seen[totals.seen] = step
        self.bits.lerp_(totals.bits, 1 - MEMORY)

    def code_usage(self, step: int) -> float:
        """Return the share of the entries of the first stage seen in recent steps."""
        return float((self.last_seen > step - RECENT_STEPS).float().mean())

    def bit_entropy(self) -> float:
        """Return the mean entropy of all bits, in bits."""
        p = self.bits
        entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)
        return float(entropy.mean())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state."""
        return {"meters.last_seen": self.last_seen, "meters.bits": self.bits}

    def facts(self) -> dict[str, float]:
        """Return the rest of the state as JSON types."""
        return {str(stages): value for stages, value in self.psnr.items()}

    def load(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Restore the results of `tensors` and `facts`."""
        self.last_seen.copy_(tensors["meters.last_seen"])
        self.bits.copy_(tensors["meters.bits"])
        self.psnr = {int(stages): float(value) for stages, value in facts.items()}


def _seen_shape(quantizer: LFQ) -> tuple[int, int]:
    return quantizer.num_codebooks, min(quantizer.codebook_size, MAX_ENTRIES)


def entries_seen(quantizer: LFQ, latents: Tensor) -> Tensor:
    """Find the entries that the first stage uses, bool [codebooks, up to `MAX_ENTRIES`]."""
    codes = quantizer.latents_to_codes(latents, 1)
    codebooks, entries = _seen_shape(quantizer)
    rows = codes.reshape(codes.shape[0], codebooks, -1).transpose(0, 1).flatten(1) % entries
    seen = torch.zeros(codebooks, entries, dtype=torch.bool, device=latents.device)
    return seen.scatter_(1, rows, torch.ones_like(rows, dtype=torch.bool))


class Throughput:
    """Rates over the last steps, each of a number of clips over all processes."""

    def __init__(self, clips: int) -> None:
        self.clips = clips
        self._marks = deque([(monotonic(), 0.0)], maxlen=THROUGHPUT_STEPS)

    def mark(self, waited: float) -> None:
        """Record the end of a step, and the total seconds spent waiting for data so far."""
        self._marks.append((monotonic(), waited))

    @property
    def seconds_per_step(self) -> float:
        """Mean over the last steps."""
        return self._elapsed / max(1, len(self._marks) - 1)

    @property
    def clips_per_second(self) -> float:
        """Mean over the last steps."""
        return self.clips / self.seconds_per_step

    @property
    def waiting(self) -> float:
        """Share of the time spent waiting for data, 0..1."""
        waited = self._marks[-1][1] - self._marks[0][1]
        return min(1.0, max(0.0, waited / self._elapsed))

    def seconds_left(self, steps: int) -> float | None:
        """Estimate the time for this many more steps; None while unknown."""
        return None if len(self._marks) < 3 else steps * self.seconds_per_step

    @property
    def _elapsed(self) -> float:
        return max(1e-9, self._marks[-1][0] - self._marks[0][0])


@dataclass
class Watch:
    """Checks every step, and reports each problem once until it is over; saved with the run."""

    best_usage: float = 0.0  # highest code usage so far, 0..1
    collapsing: int = FINE  # first step of the present collapse, or `FINE`, or `REPORTED`
    waiting: int = FINE  # first step of the present wait for data, or `FINE`, or `REPORTED`

    def check(
        self, step: int, loss: float, code_usage: float, bit_entropy: float, gradient_norm: float
    ) -> Alarm | None:
        """Check the model after a step, given the fields of its `StepReport`.

        Returns:
            An alarm if there is a new problem. A step with an alarm of kind `not_finite` must not
            be kept; it does not change the watch.
        """
        for name, value in (("loss", loss), ("gradient", gradient_norm)):
            if not math.isfinite(value):
                return Alarm(
                    step,
                    "not_finite",
                    f"the {name} is not a finite number ({value}): the step is undone, and the run "
                    "returns to the last good state with lower learning rates unless that has "
                    "failed already; if this happens again, lower learning_rate, or set precision "
                    "to float32",
                )
        self.best_usage = max(self.best_usage, code_usage)
        low = bit_entropy < MIN_BIT_ENTROPY or code_usage < MIN_USAGE * self.best_usage
        report, self.collapsing = _lasts(low, self.collapsing, step)
        text = (
            f"the codes have been collapsing for {PATIENCE} steps ({code_usage:.1%} of the "
            f"codebook in use, {bit_entropy:.2f} bits of entropy in each bit): training continues, "
            "but the decoder learns from less and less; raise entropy or entropy_start, or lower "
            "learning_rate"
        )
        return Alarm(step, "collapse", text) if report else None

    def check_data(self, step: int, waiting: float) -> Alarm | None:
        """Check the share of the time spent waiting for data; returns an alarm if it is new."""
        report, self.waiting = _lasts(waiting > MAX_WAITING, self.waiting, step)
        text = (
            f"{waiting:.0%} of the time is spent waiting for clips: training continues slowly; use "
            "more workers, a cache on a faster disk, or smaller videos"
        )
        return Alarm(step, "stalled_data", text) if report else None

    def to_dict(self) -> dict[str, float]:
        """Return the state as plain numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Watch:
        """Restore the result of `to_dict`; missing numbers have their defaults."""
        return cls(**state)


def _lasts(bad: bool, since: int, step: int) -> tuple[bool, int]:
    """Decide whether to report a problem, and update its first step."""
    if not bad or since == REPORTED:
        return False, since if bad else FINE
    since = step if since == FINE else since
    report = step - since >= PATIENCE
    return report, REPORTED if report else since


@dataclass(frozen=True)
class Measured:
    """Result of a validation."""

    psnr: dict[int, list[float]]  # PSNR of each clip in dB, by number of stages
    frames: dict[int, Tensor]  # middle frames of reconstructions [N, 3, H, W], by stages
    code_usage: float  # share of the entries of the first stage that the clips use

    def means(self) -> dict[int, float]:
        """Return the mean PSNR over the clips in dB, by number of stages."""
        return {stages: sum(values) / len(values) for stages, values in self.psnr.items()}


@torch.no_grad()
def measure(model: VideoTokenizer, clips: Tensor) -> Measured:
    """Encode clips, float [N, 3, T, H, W] in -1..1, and decode them from every number of stages.

    PSNR is defined as in `vtok.evaluation.metrics`: on rounded pixels, averaged over frames.
    """
    was_training = model.training
    model.eval()
    stages = range(1, model.quantizer.num_stages + 1)
    psnr: dict[int, list[float]] = {k: [] for k in stages}
    frames: dict[int, list[Tensor]] = {k: [] for k in stages}
    seen = []
    for clip in torch.split(clips.to(next(model.parameters()).device), 1):  # saves memory
        latents = model.encode_latents(clip)
        seen.append(entries_seen(model.quantizer, latents))
        for k in stages:
            quantized = model.quantizer(latents, torch.tensor([k], device=clip.device))
            size = (clip.shape[3], clip.shape[4])
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
    """Write a PNG of middle frames above their reconstructions, replacing the file.

    Shown are 1, `base_stages` and all stages. The clips are float [N, 3, T, H, W] in -1..1.

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
