"""A tiny training run: a small model, synthetic clips, and an observer that records."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import FAST
from videos import make_video

from vtok.training.config import TrainingConfig, write_config
from vtok.training.runlog import Alarm, StepReport, ValidationReport

TINY_MODEL = {**FAST, "stage_plan": (0, 0, 0), "linear_path": False}
TINY = {
    "model": TINY_MODEL, "steps": 8, "batch": 2, "frames": 5, "crop": 16, "warm_up": 2,
    "save_every": 2, "validate_every": 4, "precision": "float32", "workers": 1,
}  # fmt: skip


def tiny_config(**fields: Any) -> TrainingConfig:
    """Return the config of a run of a few steps, with some fields changed."""
    return TrainingConfig(**{**TINY, **fields})


def tiny_config_file(folder: Path, **fields: Any) -> Path:
    """Write the same config as TOML."""
    path = folder / "tiny.toml"
    write_config(path, tiny_config(**fields))
    return path


def tiny_data(folder: Path, count: int = 2) -> Path:
    """Create a folder of small videos."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        make_video(folder / f"{number}.mp4", 12 + number, width=48, height=32)
    return folder


def synthetic_clips(step: int, clips: range, seed: int = 0, frames: int = 5, crop: int = 16):
    """Return clips that depend on their key only, [len(clips), 3, frames, crop, crop]."""
    made = []
    for clip in clips:
        rng = np.random.default_rng((seed, step, clip))
        corners = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 2, 2, 2))).float()
        made.append(torch.nn.functional.interpolate(corners, (frames, crop, crop)))
    return torch.cat(made)


class SyntheticLoader:
    """Replaces ClipLoader without decoding."""

    waited_seconds = 0.0

    def __init__(self, seed: int = 0, skipped: dict[str, str] | None = None, crop: int = 16):
        self.seed, self.skipped, self.crop = seed, dict(skipped or {}), crop

    def batches(self, steps: Sequence[int], indices: Sequence[range]) -> Iterator[torch.Tensor]:
        for step in steps:
            for clips in indices:
                yield synthetic_clips(step, clips, self.seed, crop=self.crop)

    def middle_clips(self, sources: Sequence[Any], count: int) -> torch.Tensor:
        return synthetic_clips(0, range(2), seed=99, crop=self.crop)


class Recorder:
    """An observer that records everything."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.validations: list[ValidationReport] = []
        self.alarms: list[Alarm] = []
        self.lines: list[str] = []

    def step(self, report: StepReport) -> None:
        self.steps.append(report)

    def validated(self, report: ValidationReport) -> None:
        self.validations.append(report)

    def alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)

    def say(self, text: str) -> None:
        self.lines.append(text)
