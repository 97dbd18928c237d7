"""The loop that trains a token pipeline: one folder a run, which goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtok.errors import OutputError, UsageError
from vtok.models.load import Model
from vtok.nn.config import TokenConfig
from vtok.nn.token_pipeline import Lift, TokenPipeline, cell_grid
from vtok.tokens.checkpoint import save_tokens
from vtok.training.clips import ClipSpec
from vtok.training.latent_cache import LatentBank, encode_clips
from vtok.training.launch import Interrupts
from vtok.training.metrics import Pace
from vtok.training.optimizers import (
    ADAMW_BETAS,
    BASE_RATE,
    Muon,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_names,
    set_rates,
)
from vtok.training.sources import find_sources
from vtok.training.state import State, from_bytes, newest_state, save_state
from vtok.training.workers import ClipPool

COUNTS = (4, 8, 8, 8, 16, 16, 32, 64)
"""Numbers of tokens that batches draw from: 8 is what most will use."""
LEAST_SIDE = 12  # latents along a side of a batch, cut out of those of a clip
WHOLE_SHARE, BITS_SHARE = 0.5, 0.25
"""Shares of batches that are not cut, and of samples whose tokens go through the bits."""


@dataclass(frozen=True)
class TokenTraining:
    """A run.

    Attributes:
        pipeline: what is trained.
        steps: of learning to give back latents, a batch each.
        pixel_steps: after those, of learning to give back pixels through the frozen decoder.
        batch: latent steps in a batch.
        pixel_batch: clips in a batch of pixels.
        bank: clips whose latents are kept to learn from.
        frames, crop: of a clip, crop in pixels.
        photo_share: of clips that are made from photos.
        muon_rate, adamw_rate: full learning rates of inner matrices, and of all else.
        seed: of everything random.
    """

    pipeline: TokenConfig
    steps: int = 3000
    pixel_steps: int = 150
    batch: int = 8
    pixel_batch: int = 2
    bank: int = 768
    frames: int = 9
    crop: int = 256
    photo_share: float = 0.4
    muon_rate: float = 0.01
    adamw_rate: float = 0.002
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: naming the field.
        """
        for name in ("steps", "batch", "pixel_batch", "bank", "frames", "crop"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.pixel_steps < 0:
            raise UsageError(f"pixel_steps {self.pixel_steps}: must be at least 0")

    @classmethod
    def from_settings(
        cls, latent_dim: int, learner: str, settings: dict[str, Any]
    ) -> TokenTraining:
        """A run from settings as a command line gives them, `pipeline` a table of its own.

        Raises:
            UsageError: for an unknown key, or a value that cannot be.
        """
        shape = settings.get("pipeline", {})
        rest = {key: value for key, value in settings.items() if key != "pipeline"}
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        for key, value in rest.items():
            kinds = (int, float) if isinstance(known.get(key), float) else (int,)
            if key not in known or type(value) not in kinds:
                raise UsageError(f"{key}={str(value)[:40]}: no setting of a token learner's run")
        keys = {field.name for field in dataclasses.fields(TokenConfig)} - {"latent_dim", "learner"}
        if not isinstance(shape, dict) or set(shape) - keys:
            raise UsageError(f"pipeline: expected keys among {', '.join(sorted(keys))}")
        return cls(TokenConfig(latent_dim, learner, **shape), **rest)

    @property
    def all_steps(self) -> int:
        """Steps of both kinds."""
        return self.steps + self.pixel_steps

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)


def make_token_optimizers(
    pipeline: TokenPipeline, config: TokenTraining
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside; AdamW for what maps latents, places and bits, and the rest."""
    matrices = list(_inner_matrices(pipeline))
    taken = set(map(id, matrices))
    rest = [p for p in pipeline.parameters() if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=config.adamw_rate, betas=ADAMW_BETAS, weight_decay=0.0)
    ]
    if matrices:
        optimizers.insert(0, Muon(matrices, lr=config.muon_rate))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group[BASE_RATE] = group["lr"]
    return optimizers


def rate_share_of(step: int, config: TokenTraining) -> float:
    """Learning rates of a step as a share of the full ones: up, level, and down to zero twice."""
    if step >= config.steps:  # a tenth of the rates for what is nearly learned
        return 0.1 * (config.all_steps - step) / config.pixel_steps
    left = (config.steps - step) / (0.6 * config.steps)
    return min(1.0, (step + 1) / 20, left)


def latent_loss(
    pipeline: TokenPipeline, latents: Tensor, metric: Tensor, rng: np.random.Generator
) -> Tensor:
    """Root of the mean square error of each sample's latents, in what it costs in pixels.

    Args:
        pipeline: learns.
        latents: float [B, D, 1, h, w].
        metric: float [D, D], see `measure_metric`.
        rng: cuts the latents, and draws how many tokens are used and which go through the bits.
    """
    latents = _cut(latents, rng)
    count = draw_count(pipeline, (latents.shape[3], latents.shape[4]), rng)
    quantized = torch.from_numpy(rng.random(len(latents)) < BITS_SHARE).to(latents.device)
    found = pipeline(latents, count, quantized)
    errors = torch.einsum("ij,bjthw->bithw", metric, found - latents)
    return errors.square().mean((1, 2, 3, 4)).add(1e-8).sqrt().mean()


def pixel_loss(
    pipeline: TokenPipeline, model: Model, clips: Tensor, rng: np.random.Generator
) -> Tensor:
    """Root of the mean square error of each clip's pixels, as the frozen decoder shows them.

    Args:
        pipeline: learns.
        model: the tokenizer.
        clips: float [B, 3, T, H, W] in -1..1.
        rng: draws how many tokens are used and which samples go through the bits.
    """
    clips = clips.to(model.device)
    latents = encode_clips(model, clips)
    count = draw_count(pipeline, (latents.shape[3], latents.shape[4]), rng)
    quantized = torch.from_numpy(rng.random(len(latents)) < BITS_SHARE).to(latents.device)
    found = pipeline(latents, count, quantized)
    size = (clips.shape[3], clips.shape[4])
    recon = model.tokenizer.decode(found, num_frames=clips.shape[2], size=size)
    return (recon - clips).square().mean((1, 2, 3, 4)).add(1e-8).sqrt().mean()


def draw_count(pipeline: TokenPipeline, grid: tuple[int, int], rng: np.random.Generator) -> int:
    """How many tokens a batch uses, no more than its grid (h, w) of latents can give."""
    fold = pipeline.config.fold
    height, width = -(-grid[0] // fold), -(-grid[1] // fold)
    most = min(pipeline.config.max_tokens, height * width)
    fitting = [n for n in COUNTS if n <= most and _has_cells(n, height, width)] or [1]
    return int(rng.choice(fitting))


def _has_cells(count: int, height: int, width: int) -> bool:
    rows, columns = cell_grid(count)  # for learned tokens too: all learners draw alike
    return rows <= height and columns <= width


def _cut(latents: Tensor, rng: np.random.Generator) -> Tensor:
    """A random part of the grid, or all of it: frames come in many sizes and shapes."""
    if rng.random() < WHOLE_SHARE:
        return latents
    for side in (3, 4):
        size = latents.shape[side]
        length = int(rng.integers(min(LEAST_SIDE, size), size + 1))
        start = int(rng.integers(0, size - length + 1))
        latents = latents.narrow(side, start, length)
    return latents


def _inner_matrices(pipeline: TokenPipeline) -> Iterator[Tensor]:
    """Weights of layers from features to features; not depthwise ones, and none of the ends."""
    fuser, lift = pipeline.fuser, pipeline.lift
    ends: list[nn.Module] = [fuser.out, fuser.query, fuser.basis, pipeline.bits]
    ends += [lift.widen, lift.where, lift.basis] if isinstance(lift, Lift) else [lift]
    outside = {inner for module in ends for inner in module.modules()}
    for module in pipeline.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module not in outside:
            weight = module.weight
            if weight.shape[0] > 1 and weight.shape[1] > 1 and getattr(module, "groups", 1) == 1:
                yield weight


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
