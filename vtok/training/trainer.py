"""The training loop: steps, validations, states, and recovery from steps that fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtok.errors import OutputError, UsageError, VtokError
from vtok.models.checkpoint import save_checkpoint
from vtok.training.clips import ClipSpec
from vtok.training.config import TrainingConfig
from vtok.training.learner import Learner, initialize_from
from vtok.training.loader import ClipLoader, default_workers
from vtok.training.losses import draw_stages, rate_share
from vtok.training.metrics import (
    RunningMetrics,
    StepTotals,
    Throughput,
    Watch,
    measure,
    write_comparison,
)
from vtok.training.processes import Interrupts, Processes, cpu_threads, open_processes
from vtok.training.runlog import Alarm, Observer, RunLog, StepReport, ValidationReport
from vtok.training.sources import MAX_HELD_OUT, Source, find_sources, hold_out
from vtok.training.state import (
    RunFolder,
    State,
    config_digest,
    from_bytes,
    newest_state,
    save_state,
)

SLOWER = 0.5  # factor of the learning rates after a step that was not finite
RETRY_STRIDE = 1_000_003  # difference between the seeds of a run and of its second attempt
MAX_FAILURES = 3
GIB = 1 << 30


class RunData:
    """Sources for training and for validation, see `train`.

    Attributes:
        held_out: the validation sources are not trained on.
        digest: digest of the names of the training sources.
    """

    def __init__(
        self,
        inputs: Sequence[str | Path],
        validation: Sequence[str | Path],
        config: TrainingConfig,
        cache: Path,
    ) -> None:
        self.sources: Sequence[Source] = find_sources(inputs)
        self.validation: Sequence[Source] = find_sources(validation) if validation else ()
        if not validation:
            self.sources, self.validation = hold_out(self.sources)
        self.held_out = bool(self.validation)
        if not self.held_out:
            self.validation = self.sources
        names = "\n".join(source.inner_name for source in self.sources)
        self.digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        self._config = config
        self._cache = Path(config.cache) if config.cache else cache

    def open_loader(self, seed: int, skipped: Mapping[str, str], processes: int) -> ClipLoader:
        """Create the loader of training clips; `processes` is their number on this machine."""
        config = self._config
        return ClipLoader(
            self.sources,
            ClipSpec(config.frames, config.crop, config.photo_share, seed),
            workers=config.workers or default_workers(processes),
            cache=self._cache if config.cache_gib else None,
            cache_bytes=int(config.cache_gib * GIB),
            skipped=skipped,
        )


class Progress:
    """The state of a run in memory: `step` steps are done; `data` is a digest of its sources."""

    def __init__(self, config: TrainingConfig, processes: Processes, data: str) -> None:
        self.config, self.data = config, data
        self.learner = Learner(config, processes)
        self.metrics = RunningMetrics(self.learner.model.quantizer)
        self.watch = Watch()
        self.step = 0
        self.skipped: dict[str, str] = {}
        self._retry, self.factor = 0, 1.0

    @property
    def seed(self) -> int:
        """Seed of the sampling; after a failed step other clips are sampled."""
        return self.config.seed + RETRY_STRIDE * self._retry

    @property
    def rate(self) -> float:
        """Learning rate of Muon in the last step."""
        return self.factor * rate_share(self.step - 1, self.config) * self.config.learning_rate

    def begin(self) -> str:
        """Initialize from the config's checkpoint, if it names one; returns a line to print."""
        learner, init = self.learner, self.config.init
        if not init:
            return "starting from random weights"
        remarks = initialize_from(learner.model, init)
        if learner.averaged is not None:
            learner.averaged.load_state_dict(learner.model.state_dict())
        return ", ".join((f"starting from {init}", *remarks))

    def take_step(self, clips: Sequence[Tensor], indices: Sequence[range]) -> StepTotals:
        """Take a step on micro-batches [B, 3, T, H, W]; one that is not finite changes nothing.

        `indices` are those of their clips in the global batch.
        """
        stages = self.config.tokenizer.num_stages
        used = [draw_stages(i, stages, self.step, self.seed, self.config) for i in indices]
        totals = self.learner.step(self.step, clips, used, self.factor)
        if totals.finite:
            self.metrics.update(self.step, totals)
            self.step += 1
        return totals

    def state(self) -> State | None:
        """Return the state to save; None if a weight is not finite."""
        tensors = self.learner.tensors() | self.metrics.tensors()
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            return None
        facts = {
            "config": config_digest(self.config),
            "data": self.data,
            "retry": self._retry,
            "factor": self.factor,
            "skipped": self.skipped,
            "psnr": self.metrics.facts(),
            "watch": self.watch.to_dict(),
        }
        return State(self.step, tensors, facts)

    def fits(self, state: State) -> bool:
        """Tell whether a state belongs to this config."""
        return bool(state.facts["config"] == config_digest(self.config))

    def restore(self, state: State, failures: int = 0) -> bool:
        """Resume from a state; returns True if it was trained on the same data.

        Each of the failed attempts to get from this state to the next halves the learning rates
        and changes the sampling. `UsageError` for a state of another config.
        """
        facts: dict[str, Any] = state.facts
        if not self.fits(state):
            raise UsageError(
                "the saved states belong to another config.toml: choose another output folder"
            )
        self.learner.load(state.tensors)
        self.metrics.load(state.tensors, facts["psnr"])
        self.watch = Watch.from_dict(facts["watch"])
        self.step, self.skipped = state.step, dict(facts["skipped"])
        self._retry = facts["retry"] + failures
        self.factor = facts["factor"] * SLOWER**failures
        return bool(facts["data"] == self.data)


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
    """Train a tokenizer, or resume a run that was stopped or killed.

    A resumed run ends with the weights of an uninterrupted one (bit for bit on a CPU in float32
    with the same number of threads). Clips are decoded in worker processes that import the main
    module, so a script must call this under `if __name__ == "__main__":`.

    Args:
        inputs: sources for training, see `find_sources`.
        out: folder of the run: config.toml, states, model.safetensors, logs and pictures.
        config: options; must match those of an existing run.
        observer: receives the progress.
        device: `auto`, or a torch device name.
        threads: CPU threads; torch's default if None.
        validation: sources for validation; if empty, some videos are held out.

    Raises:
        InputError: if there is no source.
        UsageError: if the device is not available.
        OutputError: if a file cannot be written; what was saved before is intact.
        VtokError: if the loss does not stay finite, or decoding processes die repeatedly.
    """
    folder = RunFolder(out)
    with cpu_threads(threads), open_processes(device) as processes:
        # the folder on another machine may hold another config
        shared = processes.share(json.dumps(config.to_dict()).encode())
        config = TrainingConfig.from_dict(json.loads(shared))
        data = RunData(inputs, validation, config, folder.cache)
        if not processes.is_main:
            _Run(folder, data, config, processes, None, _Silent()).train()
            return
        with folder.opened(config), closing(RunLog(folder.path, observer.say)) as log:
            _Run(folder, data, config, processes, log, observer).train()


class _Run:
    """A run in one process; only the main process has a log."""

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
        self.clips: Tensor | None = None  # for validation

    @property
    def done(self) -> bool:
        """Tell whether the last step is done."""
        return self.progress.step >= self.config.steps

    def train(self) -> None:
        """Train to the last step."""
        state = self._newest_state()
        # a run without a step may start over with another config
        if state is None or (state.step == 0 and not self.progress.fits(state)):
            self.observer.say(self.progress.begin())
            if self.log is not None:
                self.log.rewind(0)
            self._save()
        else:
            self._restore(state)
            if self.done:
                self.observer.say(f"{self.folder.path}: finished at step {state.step}")
                return
            self.observer.say(f"{self.folder.path}: resuming at step {state.step}")
        if not self.data.held_out:
            self.observer.say("too few videos to hold some out: validating on training clips")
        with Interrupts() as interrupts:
            while not self._take_steps(interrupts):
                self._roll_back()
        self.observer.say(f"{self.folder.model}: the weights of step {self.progress.step}")

    def _take_steps(self, interrupts: Interrupts) -> bool:
        """Take steps up to the last one; returns False as soon as one is not finite."""
        progress, config = self.progress, self.config
        throughput = Throughput(config.batch * config.accumulate * self.processes.count)
        indices = self._indices()
        loader = self.data.open_loader(progress.seed, progress.skipped, self.processes.count)
        if self.clips is None and self.processes.is_main:
            self.clips = loader.middle_clips(self.data.validation, MAX_HELD_OUT)
        with closing(loader.batches(range(progress.step, config.steps), indices)) as batches:
            while not self.done:
                totals = progress.take_step([next(batches) for _ in indices], indices)
                progress.skipped = dict(loader.skipped)
                throughput.mark(loader.waited_seconds)
                self._report(totals, throughput)
                if not totals.finite:
                    return False
                self._after_step(interrupts)
        return True

    def _report(self, totals: StepTotals, throughput: Throughput) -> None:
        """Report a step and its alarms."""
        progress, step = self.progress, self.progress.step
        usage, entropy = progress.metrics.code_usage(step), progress.metrics.bit_entropy()
        norm = totals.gradient_norm
        alarms = [progress.watch.check(step, totals.loss, usage, entropy, norm)]
        if totals.finite:
            alarms.append(progress.watch.check_data(step, throughput.waiting))
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
            psnr=dict(sorted(progress.metrics.psnr.items())),
            code_usage=usage,
            bit_entropy=entropy,
            gradient_norm=norm,
            learning_rate=progress.rate,
            clips_per_second=throughput.clips_per_second,
            waiting=throughput.waiting,
            seconds_left=throughput.seconds_left(self.config.steps - step),
            skipped=len(progress.skipped),
        )
        self.log.append(report)
        self.observer.step(report)

    def _after_step(self, interrupts: Interrupts) -> None:
        """Validate, save and stop if it is time to."""
        config, step = self.config, self.progress.step
        here = torch.tensor([float(interrupts.number > 0)], device=self.processes.device)
        stop = bool(self.processes.sum(here) > 0)  # in any process
        if self.done or step % config.validate_every == 0:
            self._validate()
        if self.done or stop or step % config.save_every == 0:
            self._save()
        if stop and not self.done:
            self.observer.say(f"stopped at step {step}: the same command resumes there")
            interrupts.end()

    def _validate(self) -> None:
        """Measure quality, write a picture, and write the checkpoint."""
        if self.log is not None and self.clips is not None:
            step, model = self.progress.step, self.progress.learner.best
            measured = measure(model, self.clips)
            picture = self.folder.pictures / f"step-{step:08d}.png"
            write_comparison(picture, self.clips, measured, self.config.base_stages)
            report = ValidationReport(step, measured.means(), measured.code_usage, picture)
            self.log.validated(report)
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
        """The newest valid state, which the main process reads for all."""
        data = b""
        if self.processes.is_main:
            data = newest_state(self.folder.states, self.observer.say) or b""
        data = self.processes.share(data)
        return from_bytes(data, str(self.folder.states)) if data else None

    def _restore(self, state: State) -> None:
        if not self.progress.restore(state, self.failures):
            self.observer.say("the data differ from those that the run was started with")
        if self.log is not None:
            self.log.rewind(state.step)

    def _roll_back(self) -> None:
        """Return to the last good state, with lower learning rates and other clips."""
        self.failures += 1
        failed, state = self.progress.step, self._newest_state()
        if self.failures >= MAX_FAILURES or state is None:
            raise VtokError(
                f"{self.folder.path}: no finite loss after step {failed} in {self.failures} "
                "attempts in a row: the last good state is kept; start again with a lower "
                "learning_rate"
            )
        self._restore(state)
        self.observer.say(
            f"back at step {state.step}: learning rates times {self.progress.factor:g}, other clips"
        )

    def _indices(self) -> list[range]:
        """Indices in the global batch of each micro-batch of this process."""
        size, count = self.config.batch, self.config.accumulate
        first = self.processes.index * count
        return [range(i * size, (i + 1) * size) for i in range(first, first + count)]


class _Silent:
    """Observer of the processes other than the main one, which ignores everything."""

    def step(self, report: StepReport) -> None: ...

    def validated(self, report: ValidationReport) -> None: ...

    def alarm(self, alarm: Alarm) -> None: ...

    def say(self, text: str) -> None: ...
