"""A tiny run for tests: a small model, clips made from thin air, an observer that takes notes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import FAST
from videos import make_video

from vtok.training.config import TrainingConfig, write_config
from vtok.training.report import Alarm, StepReport, ValidationReport

TINY_MODEL = {**FAST, "stage_plan": (0, 0, 0)}
TINY = {
    "model": TINY_MODEL, "steps": 8, "batch": 2, "frames": 5, "crop": 16, "warm_up": 2,
    "save_every": 2, "validate_every": 4, "precision": "float32", "workers": 1,
}  # fmt: skip


def tiny_config(**fields: Any) -> TrainingConfig:
    """A config of a run of a few steps, with these fields changed."""
    return TrainingConfig(**{**TINY, **fields})


def tiny_config_file(folder: Path, **fields: Any) -> Path:
    """The same, written as TOML."""
    path = folder / "tiny.toml"
    write_config(path, tiny_config(**fields))
    return path


def tiny_data(folder: Path, count: int = 2) -> Path:
    """A folder of a few small videos."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        make_video(folder / f"{number}.mp4", 12 + number, width=48, height=32)
    return folder


def thin_air(step: int, clips: range, seed: int = 0, frames: int = 5, crop: int = 16):
    """Clips that depend on seed, step and number only, [len(clips), 3, frames, crop, crop]."""
    made = []
    for clip in clips:
        rng = np.random.default_rng((seed, step, clip))
        corners = torch.from_numpy(rng.uniform(-1, 1, (1, 3, 2, 2, 2))).float()
        made.append(torch.nn.functional.interpolate(corners, (frames, crop, crop)))
    return torch.cat(made)


class ThinPool:
    """Stands in for a pool of decoders."""

    waited_seconds = 0.0

    def __init__(self, seed: int, skipped: dict[str, str]) -> None:
        self.seed, self.skipped = seed, skipped

    def batches(self, steps: range, indices: Sequence[range]) -> Iterator[torch.Tensor]:
        """Clips for every pass of every step."""
        return (thin_air(step, clips, self.seed) for step in steps for clips in indices)

    def fixed(self, sources: Sequence[Any], count: int) -> torch.Tensor:
        """Clips to measure on."""
        return thin_air(0, range(2), seed=99)


@contextmanager
def open_thin_pool(seed: int, skipped: Any, processes: int) -> Iterator[ThinPool]:
    """In place of `RunData.open_pool`."""
    yield ThinPool(seed, dict(skipped))


class Notes:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.validations: list[ValidationReport] = []
        self.alarms: list[Alarm] = []
        self.lines: list[str] = []

    def step(self, report: StepReport) -> None:
        """A step was done."""
        self.steps.append(report)

    def validated(self, report: ValidationReport) -> None:
        """The validation clips were measured."""
        self.validations.append(report)

    def alarm(self, alarm: Alarm) -> None:
        """Something went wrong."""
        self.alarms.append(alarm)

    def say(self, text: str) -> None:
        """One line worth knowing."""
        self.lines.append(text)
