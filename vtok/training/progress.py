"""How far a run has come: everything that its state holds, and the step that moves it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vtok.errors import UsageError
from vtok.training.alarms import Watch
from vtok.training.config import TrainingConfig
from vtok.training.devices import Processes
from vtok.training.folder import config_digest
from vtok.training.learner import Learner
from vtok.training.meters import Meters, StepTotals
from vtok.training.schedule import draw_stages, rate_share
from vtok.training.state import State
from vtok.training.widen import initialize_from

SLOWER = 0.5  # rates after a step that was not finite
RETRY_STRIDE = 1_000_003  # between the seeds of a run and of its second try


class Progress:
    """A run at some step.

    Args:
        config: of the run.
        processes: this one among all.
        data: digest of what it learns from.

    Attributes:
        step: how many steps were done.
        skipped: why each source was left out that could not be read.
    """

    def __init__(self, config: TrainingConfig, processes: Processes, data: str) -> None:
        self.config, self.data = config, data
        self.learner = Learner(config, processes)
        self.meters = Meters(self.learner.model.quantizer)
        self.watch = Watch()
        self.step = 0
        self.skipped: dict[str, str] = {}
        self._retry, self.factor = 0, 1.0

    @property
    def seed(self) -> int:
        """Of everything drawn: after a step that failed, other clips are drawn."""
        return self.config.seed + RETRY_STRIDE * self._retry

    @property
    def rate(self) -> float:
        """Muon's rate in the step made last."""
        return self.factor * rate_share(self.step - 1, self.config) * self.config.learning_rate

    def begin(self) -> str:
        """Start from the config's checkpoint, if it names one; gives a line to say."""
        learner, init = self.learner, self.config.init
        if not init:
            return "starting from fresh weights"
        widened = initialize_from(learner.model, init)
        if learner.averaged is not None:
            learner.averaged.load_state_dict(learner.model.state_dict())
        return f"starting from {init}" + (f", widened: {', '.join(widened)}" if widened else "")

    def take_step(self, clips: Sequence[Tensor], indices: Sequence[range]) -> StepTotals:
        """Take a step; one that is not finite changes nothing.

        Args:
            clips: float [B, 3, T, H, W] in -1..1 for each pass.
            indices: their numbers within the global batch, for each pass.
        """
        stages = self.config.tokenizer.num_stages
        used = [draw_stages(i, stages, self.step, self.seed, self.config) for i in indices]
        totals = self.learner.step(self.step, clips, used, self.factor)
        if totals.finite:
            self.meters.update(self.step, totals)
            self.step += 1
        return totals

    def state(self) -> State | None:
        """Everything; None where a weight is no number, which is not worth coming back to."""
        tensors = self.learner.tensors() | self.meters.tensors()
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            return None
        facts = {
            "config": config_digest(self.config),
            "data": self.data,
            "retry": self._retry,
            "factor": self.factor,
            "skipped": self.skipped,
            "psnr": self.meters.facts(),
            "watch": self.watch.to_dict(),
        }
        return State(self.step, tensors, facts)

    def fits(self, state: State) -> bool:
        """Whether a state is of this config."""
        return bool(state.facts["config"] == config_digest(self.config))

    def restore(self, state: State, failures: int = 0) -> bool:
        """Go on from a state.

        Args:
            state: of the same config.
            failures: how often it was gone on from without reaching another one; each halves the
                rates and draws other clips.

        Returns:
            Whether it was learning from the same data.

        Raises:
            UsageError: for a state of another config.
        """
        facts: dict[str, Any] = state.facts
        if not self.fits(state):
            raise UsageError("the states belong to another config.toml: give another --out")
        self.learner.load(state.tensors)
        self.meters.load(state.tensors, facts["psnr"])
        self.watch = Watch.from_dict(facts["watch"])
        self.step, self.skipped = state.step, dict(facts["skipped"])
        self._retry = facts["retry"] + failures
        self.factor = facts["factor"] * SLOWER**failures
        return bool(facts["data"] == self.data)
