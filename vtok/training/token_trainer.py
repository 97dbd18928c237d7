"""The loop that trains a token pipeline: one folder a run, which goes on where it was stopped."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vtok.errors import OutputError, UsageError
from vtok.model import Model
from vtok.nn.token_pipeline import TokenPipeline
from vtok.token_checkpoint import save_tokens
from vtok.training.clips import ClipSpec
from vtok.training.interrupt import Interrupts
from vtok.training.optimizers import (
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_names,
    set_rates,
)
from vtok.training.pace import Pace
from vtok.training.pool import ClipPool
from vtok.training.sources import find_sources
from vtok.training.state import State, from_bytes, newest_state, save_state
from vtok.training.token_bank import LatentBank
from vtok.training.token_learning import (
    TokenTraining,
    latent_loss,
    make_token_optimizers,
    pixel_loss,
    rate_share_of,
)

WEIGHTS = "tokens.safetensors"
STEP_STREAM = 1  # keeps the draws of steps apart from those of clips, by the same seed
KEPT_STATES, STEPS_A_STATE, STEPS_A_LINE = 2, 250, 50
MOST_GRADIENT = 1.0
CACHE_BYTES = 8 << 30

Say = Callable[[str], None]


class TokenLearnerRun:
    """A token pipeline that learns, and all that a step changes.

    Args:
        config: of the run.
        model: the tokenizer, frozen.
    """

    def __init__(self, config: TokenTraining, model: Model) -> None:
        self.config, self.model = config, model
        torch.manual_seed(config.seed)
        self.pipeline = TokenPipeline(config.pipeline).to(model.device)
        self.optimizers = make_token_optimizers(self.pipeline, config)
        self._names = parameter_names(pipeline=self.pipeline)
        self.step = 0

    @property
    def facts(self) -> dict[str, object]:
        """What must be alike for a state to be gone on from."""
        return {"config": self.config.to_dict(), "tokenizer": self.model.info.weights_sha256}

    def state(self) -> State:
        """All that a run needs to go on."""
        weights = {f"pipeline.{k}": t for k, t in self.pipeline.state_dict().items()}
        tensors = weights | optimizer_tensors(self.optimizers, self._names)
        return State(self.step, tensors, self.facts)

    def load(self, state: State, where: Path) -> None:
        """Go on from a state.

        Raises:
            UsageError: if it is one of another config or tokenizer.
        """
        if state.facts != self.facts:
            raise UsageError(f"{where}: was begun in another way: give another --out")
        start = "pipeline."
        weights = {k.removeprefix(start): t for k, t in state.tensors.items() if start == k[:9]}
        self.pipeline.load_state_dict(weights)
        load_optimizer_tensors(self.optimizers, self._names, state.tensors)
        self.step = state.step

    def learn(self, loss: Tensor) -> bool:
        """Take one step down a loss; none, where it is not finite. Returns whether it was taken."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.pipeline.parameters(), MOST_GRADIENT)
        finite = bool(torch.isfinite(loss) and torch.isfinite(norm))
        if finite:
            set_rates(self.optimizers, rate_share_of(self.step, self.config))
            for optimizer in self.optimizers:
                optimizer.step()
        self.step += 1
        return finite


def train_tokens(
    data: Sequence[str | Path],
    out: Path,
    config: TokenTraining,
    model: Model,
    *,
    cache: Path | None = None,
    threads: int | None = None,
    say: Say = print,
) -> Path:
    """Train a token pipeline; the same call goes on with a run that was stopped or killed.

    Args:
        data: videos and photos, see `find_sources`.
        out: folder of the run: states, and at the end the checkpoint.
        config: of the run.
        model: the tokenizer.
        cache: folder for latents and decoded frames, which runs on the same data share.
        threads: of this process on a CPU; torch's own choice if None.
        say: told of progress, a line at a time.

    Returns:
        The checkpoint.

    Raises:
        InputError: there is nothing to learn from.
        UsageError: the folder holds a run of another config.
        OutputError: something cannot be written, or another run works in the folder.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    sources = find_sources(data)
    spec = ClipSpec(config.frames, config.crop, config.photo_share, config.seed)
    cache = cache or out / "cache"
    with _locked(out), Interrupts() as interrupts:
        run = TokenLearnerRun(config, model)
        held = newest_state(out / "states", say)
        if held is not None:
            run.load(from_bytes(held, str(out)), out)
            say(f"{out}: goes on at step {run.step} of {config.all_steps}")
        bank = LatentBank(cache, model, sources, spec, config.bank)
        with ClipPool(
            sources, spec, workers=1, cache=cache / "frames", cache_bytes=CACHE_BYTES
        ) as pool:
            for done, total in bank.fill(pool):
                say(f"latents of {done} of {total} clips")
                if interrupts.number:
                    interrupts.end()
            losses = _losses(run, bank, pool)
            _learn(run, losses, out, interrupts, say)
    save_tokens(out / WEIGHTS, run.pipeline, _name(run), model.info, torch.float16)
    return out / WEIGHTS


def _learn(
    run: TokenLearnerRun, losses: Iterator[Tensor], out: Path, interrupts: Interrupts, say: Say
) -> None:
    pace, mean = Pace(run.config.batch), 0.0
    while run.step < run.config.all_steps:
        loss = next(losses)
        taken = run.learn(loss)
        pace.mark(0.0)
        mean = float(loss.detach()) if not mean else 0.98 * mean + 0.02 * float(loss.detach())
        if not taken:
            say(f"step {run.step}: not finite, left out")
            mean = 0.0
        last = run.step == run.config.all_steps
        if run.step % STEPS_A_LINE == 0 or last:
            left = pace.seconds_left(run.config.all_steps - run.step) or 0
            say(
                f"step {run.step} of {run.config.all_steps}: loss {mean:.4f}, "
                f"{pace.seconds_per_step:.2f} s a step, {left / 60:.0f} min left"
            )
        if run.step % STEPS_A_STATE == 0 or last or interrupts.number:
            save_state(out / "states", run.state(), KEPT_STATES)
        if interrupts.number:
            interrupts.end()
        if run.step == run.config.steps:
            mean = 0.0  # pixels are measured otherwise


def _losses(run: TokenLearnerRun, bank: LatentBank, pool: ClipPool) -> Iterator[Tensor]:
    """The loss of each step from the run's own on; what is drawn depends on its number alone."""
    config, device = run.config, run.model.device
    metric = bank.metric(pool).to(device)
    while run.step < config.steps:
        rng = _rng(run)
        yield latent_loss(run.pipeline, bank.draw(rng, config.batch).to(device), metric, rng)
    # numbers of clips that the bank has not seen
    steps = range(config.bank + run.step, config.bank + config.all_steps)
    for clips in pool.batches(steps, [range(config.pixel_batch)]):
        yield pixel_loss(run.pipeline, run.model, clips, _rng(run))


def _rng(run: TokenLearnerRun) -> np.random.Generator:
    return np.random.default_rng((run.config.seed, STEP_STREAM, run.step))


def _name(run: TokenLearnerRun) -> str:
    return f"{run.model.info.name}-{run.config.pipeline.learner}"


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder, and remove half files of a killed one."""
    try:
        (out / "states").mkdir(parents=True, exist_ok=True)
        with (out / "lock").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise OutputError(f"{out}: another run works on it: give another --out") from exc
            for folder in (out, out / "states"):
                for half in folder.glob(".vtok-*.part"):
                    half.unlink(missing_ok=True)
            yield
    except OSError as exc:
        raise OutputError(f"{out}: cannot be written ({exc.strerror})") from exc
