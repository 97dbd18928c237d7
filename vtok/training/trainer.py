"""The run: steps, validations, states, and what happens when something goes wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtok.errors import OutputError, UsageError, VtokError
from vtok.models.checkpoint import save_checkpoint
from vtok.training.config import TrainingConfig
from vtok.training.data import MOST_CLIPS, RunData
from vtok.training.devices import Processes, open_processes
from vtok.training.launch import Interrupts
from vtok.training.learner import Learner, initialize_from
from vtok.training.metrics import Meters, Pace, StepTotals, Watch
from vtok.training.report import Alarm, Observer, StepReport, ValidationReport
from vtok.training.runlog import RunLog
from vtok.training.schedule import draw_stages, rate_share
from vtok.training.state import (
    RunFolder,
    State,
    config_digest,
    from_bytes,
    newest_state,
    save_state,
)
from vtok.training.validate import draw, measure, write_curve
from vtok.training.workers import ClipPool

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


MOST_FAILURES = 3


def train(
    inputs: Sequence[str | Path],
    out: Path,
    config: TrainingConfig,
    *,
    observer: Observer,
    device: str = "auto",
    threads: int | None = None,
    validation: Sequence[str | Path] = (),
) -> None:
    """Train a tokenizer, or go on with a run that was stopped.

    Killed at any moment and started again, it ends with the weights of a run that never was (on a
    CPU in float32, with as many threads).

    Args:
        inputs: what to learn from, see `find_sources`.
        out: folder of the run: config.toml, states, model.safetensors, logs and pictures.
        config: what to do; must fit the run if it was begun.
        observer: is told how it goes.
        device: `auto`, or one of torch's names.
        threads: on the CPU; torch's own number if None.
        validation: what to measure on; without it some videos are set aside.

    Raises:
        InputError: without anything to learn from.
        UsageError: for a device that is not there.
        OutputError: if something cannot be written; what was saved before is whole.
        VtokError: if the loss cannot be kept finite.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    folder = RunFolder(out)
    with open_processes(device) as processes:
        # one machine may have seen another config in its own copy of the folder
        shared = processes.share(json.dumps(config.to_dict()).encode())
        config = TrainingConfig.from_dict(json.loads(shared))
        data = RunData(inputs, validation, config, folder.cache)
        _train_in(folder, data, config, processes, observer)


def _train_in(
    folder: RunFolder,
    data: RunData,
    config: TrainingConfig,
    processes: Processes,
    observer: Observer,
) -> None:
    with (
        folder.opened(config) if processes.is_main else nullcontext(),
        closing(RunLog(folder.path, observer.say)) if processes.is_main else nullcontext() as log,
    ):
        told = observer if processes.is_main else _Nobody()
        _Run(folder, data, config, processes, log, told).go()


class _Run:
    """A run in progress, in one process; only the main one has a log."""

    def __init__(
        self,
        folder: RunFolder,
        data: RunData,
        config: TrainingConfig,
        processes: Processes,
        log: RunLog | None,
        observer: Observer,
    ) -> None:
        self.folder, self.data, self.config = folder, data, config
        self.processes, self.log, self.observer = processes, log, observer
        self.progress = Progress(config, processes, data.digest)
        self.failures = 0  # since the last state
        self.clips: Tensor | None = None  # to measure on

    @property
    def done(self) -> bool:
        """Whether the last step was made."""
        return self.progress.step >= self.config.steps

    def go(self) -> None:
        """Train to the last step."""
        state = self._newest_state()
        # before the first step is saved, another config may take over
        if state is None or (state.step == 0 and not self.progress.fits(state)):
            self.observer.say(self.progress.begin())
            self._rewind_log()
            self._save()
        else:
            self._restore(state)
            if self.done:
                self.observer.say(f"{self.folder.path}: finished at step {state.step}")
                return
            self.observer.say(f"{self.folder.path}: going on from step {state.step}")
        if not self.data.unseen:
            self.observer.say("too few videos to set some aside: measuring on training clips")
        with Interrupts() as interrupts:
            while not self._train(interrupts):
                self._roll_back()
        self.observer.say(f"{self.folder.model}: the weights of step {self.progress.step}")

    def _train(self, interrupts: Interrupts) -> bool:
        """Take steps up to the last one; False as soon as one is not finite."""
        progress, config = self.progress, self.config
        pace = Pace(config.batch * config.accumulate * self.processes.count)
        indices = self._indices()
        with self.data.open_pool(progress.seed, progress.skipped, self.processes.count) as pool:
            self._read_validation(pool)
            batches = pool.batches(range(progress.step, config.steps), indices)
            while not self.done:
                totals = progress.take_step([next(batches) for _ in indices], indices)
                progress.skipped = dict(pool.skipped)
                pace.mark(pool.waited_seconds)
                self._tell(totals, pace)
                if not totals.finite:
                    return False
                self._after_step(interrupts)
        return True

    def _tell(self, totals: StepTotals, pace: Pace) -> None:
        """Tell of a step, and of what is wrong with it."""
        progress, step = self.progress, self.progress.step
        usage, entropy = progress.meters.code_usage(step), progress.meters.bit_entropy()
        norm = totals.gradient_norm
        alarms = [progress.watch.check(step, totals.loss, usage, entropy, norm)]
        if totals.finite:
            alarms.append(progress.watch.check_data(step, pace.waiting))
        for alarm in alarms:
            if alarm is not None:
                self.observer.alarm(alarm)
        if not totals.finite or self.log is None:
            return
        report = StepReport(
            step=step,
            steps=self.config.steps,
            loss=totals.loss,
            parts=totals.parts,
            psnr=dict(sorted(progress.meters.psnr.items())),
            code_usage=usage,
            bit_entropy=entropy,
            gradient_norm=norm,
            learning_rate=progress.rate,
            clips_per_second=pace.clips_per_second,
            waiting=pace.waiting,
            seconds_left=pace.seconds_left(self.config.steps - step),
            skipped=len(progress.skipped),
        )
        self.log.append(report)
        self.observer.step(report)

    def _after_step(self, interrupts: Interrupts) -> None:
        """Validate, save and stop where it is time to."""
        config, step = self.config, self.progress.step
        stop = self._in_any_process(interrupts.number > 0)
        if self.done or step % config.validate_every == 0:
            self._validate()
        if self.done or stop or step % config.save_every == 0:
            self._save()
        if stop and not self.done:
            self.observer.say(f"stopped at step {step}: the same command goes on from there")
            interrupts.end()

    def _read_validation(self, pool: ClipPool) -> None:
        if self.clips is None and self.processes.is_main:
            self.clips = pool.fixed(self.data.validation, MOST_CLIPS)

    def _validate(self) -> None:
        """Measure, draw, and write the weights where `vtok encode --model` finds them."""
        if self.log is not None and self.clips is not None:
            step, model = self.progress.step, self.progress.learner.best
            measured = measure(model, self.clips)
            picture = self.folder.pictures / f"step-{step:08d}.png"
            draw(picture, self.clips, measured, self.config.base_stages)
            report = ValidationReport(step, measured.means(), measured.code_usage, picture)
            self.log.validated(report)
            write_curve(self.folder.path)
            try:
                save_checkpoint(self.folder.model, model, self.folder.name)
            except OSError as exc:
                reason = f"cannot be written ({exc.strerror})"
                raise OutputError(f"{self.folder.model}: {reason}") from exc
            self.observer.validated(report)
        self.processes.wait()

    def _save(self) -> None:
        state = self.progress.state()
        if state is not None:
            if self.processes.is_main:
                save_state(self.folder.states, state, self.config.keep)
            self.failures = 0
        self.processes.wait()

    def _newest_state(self) -> State | None:
        """The newest whole state, which the main process reads for all."""
        data = b""
        if self.processes.is_main:
            data = newest_state(self.folder.states, self.observer.say) or b""
        data = self.processes.share(data)
        return from_bytes(data, str(self.folder.states)) if data else None

    def _restore(self, state: State) -> None:
        if not self.progress.restore(state, self.failures):
            self.observer.say("the data are not those the run began with: it goes on with these")
        self._rewind_log()

    def _rewind_log(self) -> None:
        if self.log is not None:
            self.log.rewind(self.progress.step)

    def _roll_back(self) -> None:
        """After a step that was not finite: the last good state, other clips, lower rates."""
        self.failures += 1
        failed, state = self.progress.step, self._newest_state()
        if self.failures >= MOST_FAILURES or state is None:
            raise VtokError(
                f"{self.folder.path}: no finite loss after step {failed}, in {self.failures} tries "
                "in a row: the last good state is kept; begin again with a lower learning_rate"
            )
        self._restore(state)
        self.observer.say(
            f"back at step {state.step}: rates times {self.progress.factor:g}, other clips"
        )

    def _indices(self) -> list[range]:
        """Which clips of the global batch each pass of this process takes."""
        size, passes = self.config.batch, self.config.accumulate
        first = self.processes.index * passes
        return [range(i * size, (i + 1) * size) for i in range(first, first + passes)]

    def _in_any_process(self, here: bool) -> bool:
        flag = torch.tensor([float(here)], device=self.processes.device)
        return bool(self.processes.sum(flag) > 0)


class _Nobody:
    """The observer of processes that keep silent."""

    def step(self, report: StepReport) -> None:
        pass

    def validated(self, report: ValidationReport) -> None:
        pass

    def alarm(self, alarm: Alarm) -> None:
        pass

    def say(self, text: str) -> None:
        pass
