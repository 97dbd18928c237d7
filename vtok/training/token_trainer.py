"""Training of token learners: options, cached latents, losses, and the loop, which resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vtok._files import atomic_output
from vtok.errors import CheckpointError, InputError, OptionError, OutputError, UsageError
from vtok.models.load import LoadedTokenizer
from vtok.nn.config import TokenConfig
from vtok.nn.token_pipeline import Lift, TokenPipeline, cell_grid
from vtok.tokens.model import STAGES, load_tokens, save_tokens
from vtok.training.clips import ClipSpec
from vtok.training.loader import ClipLoader
from vtok.training.metrics import Throughput
from vtok.training.optimizers import Optimizers, Trained, split_optimizers
from vtok.training.processes import Interrupts, cpu_threads
from vtok.training.sources import Source, find_sources
from vtok.training.state import State, from_bytes, locked_folder, newest_state, save_state

COUNTS = (4, 8, 8, 8, 16, 16, 32, 64)  # of tokens in a batch; 8 is the most common in use
MIN_SIDE = 12  # of the latents of a batch that is cropped
WHOLE_SHARE = 0.5  # of batches that are not cropped
BITS_SHARE = 0.25  # of samples whose tokens are quantized
WEIGHTS, STATES = "tokens.safetensors", "states"
STEP_STREAM = 1  # separates these random numbers from those that choose clips
KEPT_STATES, SAVE_EVERY, REPORT_EVERY = 2, 250, 50
MAX_GRADIENT = 1.0
CACHE_BYTES = 8 << 30
SHARD = 32  # clips whose latents are cached in one file
METRIC_CLIPS, METRIC_PROBES, METRIC_FLOOR = 6, 4, 1e-3

Say = Callable[[str], None]


@dataclass(frozen=True)
class TokenTraining:
    """Options of a training run of a token learner; `OptionError` if one is out of range."""

    pipeline: TokenConfig
    steps: int = 3000  # on latents
    pixel_steps: int = 150  # further steps on pixels, through the frozen decoder
    batch: int = 8  # latent steps in a batch
    pixel_batch: int = 2  # clips in a batch of pixels
    bank: int = 768  # clips whose latents are cached for training
    frames: int = 9  # of a clip
    crop: int = 256  # side of a clip in pixels
    photo_share: float = 0.4  # of clips made from photos, 0..1
    muon_rate: float = 0.01  # full learning rate of inner matrices
    adamw_rate: float = 0.002  # of other parameters
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "batch", "pixel_batch", "bank", "frames", "crop"):
            if getattr(self, name) < 1:
                raise OptionError(name, getattr(self, name), "1 or more")
        if self.pixel_steps < 0:
            raise OptionError("pixel_steps", self.pixel_steps, "0 or more")

    @classmethod
    def from_settings(
        cls, latent_dim: int, learner: str, settings: dict[str, Any]
    ) -> TokenTraining:
        """Build the options from settings of a command line, `pipeline` being a nested table.

        Raises:
            UsageError: for an unknown key, or an invalid value.
        """
        shape = settings.get("pipeline", {})
        rest = {key: value for key, value in settings.items() if key != "pipeline"}
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        for key, value in rest.items():
            kinds = (int, float) if isinstance(known.get(key), float) else (int,)
            if key not in known or type(value) not in kinds:
                raise UsageError(
                    f"{key}={str(value)[:40]}: not an option of token learner training"
                )
        keys = {field.name for field in dataclasses.fields(TokenConfig)} - {"latent_dim", "learner"}
        if not isinstance(shape, dict) or set(shape) - keys:
            raise UsageError(f"pipeline: expected keys among {', '.join(sorted(keys))}")
        return cls(TokenConfig(latent_dim, learner, **shape), **rest)

    @property
    def all_steps(self) -> int:
        """Total number of steps."""
        return self.steps + self.pixel_steps

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain types."""
        return dataclasses.asdict(self)


class LatentCache:
    """Latents of random clips, float16 [clips, t, D, h, w], in files of `SHARD` clips each.

    The content depends on the model, the sources and the spec only, and the names of the files on
    their digest. Files are written atomically, so that an interrupted `fill` continues. `count`
    clips are rounded up to complete files. `OutputError` if the folder cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        model: LoadedTokenizer,
        sources: Sequence[Source],
        spec: ClipSpec,
        count: int,
    ) -> None:
        self._folder, self._model, self._sources = folder, model, sources
        names = [source.inner_name for source in sources]
        about = json.dumps([model.info.weights_sha256, names, dataclasses.asdict(spec)])
        self._key = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:16]
        num_shards = -(-count // SHARD)
        self._paths = [folder / f"latents-{self._key}-{n:04d}.npy" for n in range(num_shards)]
        self._shards: list[npt.NDArray[np.float16]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise OutputError(f"{folder}: cannot be created ({exc.strerror})") from exc

    def fill(self, loader: ClipLoader) -> Iterator[tuple[int, int]]:
        """Create missing files from a loader of the same sources; yields clips done and all."""
        missing = [number for number, path in enumerate(self._paths) if not path.exists()]
        steps = [number * SHARD + clip for number in missing for clip in range(SHARD)]
        with closing(loader.batches(steps, [range(1)])) as batches:
            for number, path in enumerate(self._paths):
                if number in missing:
                    found = [encode_clips(self._model, next(batches))[0] for _ in range(SHARD)]
                    latents = torch.stack(found).half().transpose(1, 2)
                    _save(path, latents.cpu().numpy())
                self._shards.append(self._open(path))
                yield (number + 1) * SHARD, len(self._paths) * SHARD

    def draw(self, rng: np.random.Generator, count: int) -> Tensor:
        """Draw latents of random steps of random clips, float32 [count, D, 1, h, w]."""
        picked = []
        for _ in range(count):
            shard = self._shards[rng.integers(len(self._shards))]
            picked.append(shard[rng.integers(len(shard)), rng.integers(shard.shape[1])])
        return torch.from_numpy(np.stack(picked)).float().unsqueeze(2)

    def metric(self, loader: ClipLoader) -> Tensor:
        """Return the cached result of `measure_metric`, float32 [D, D]."""
        path = self._folder / f"metric-{self._key}.npy"
        if not path.exists():
            clips = loader.middle_clips(self._sources, METRIC_CLIPS)
            _save(path, measure_metric(self._model, clips).numpy())
        return torch.from_numpy(np.load(path, allow_pickle=False))

    def _open(self, path: Path) -> npt.NDArray[np.float16]:
        try:
            found = np.lib.format.open_memmap(path, mode="r")  # refuses pickled data
        except (OSError, ValueError, EOFError) as exc:
            raise InputError(f"{path}: damaged: remove it, and it is created again") from exc
        dim = self._model.geometry.latent_dim
        if found.dtype != np.float16 or found.ndim != 5 or found.shape[2] != dim:
            raise InputError(f"{path}: not latents: remove it, and it is created again")
        return found


def _save(path: Path, array: npt.NDArray[np.generic]) -> None:
    with atomic_output(path, overwrite=True) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def encode_clips(model: LoadedTokenizer, clips: Tensor) -> Tensor:
    """Encode clips [B, 3, T, H, W] to latents, float32 [B, D, t, h, w], without gradients."""
    with torch.no_grad():
        latents = model.tokenizer.encode_latents(clips.to(model.device), num_stages=STAGES)
        return latents.float()


def measure_metric(model: LoadedTokenizer, clips: Tensor) -> Tensor:
    """Measure the effect of latent errors on pixels: an upper triangular matrix R.

    Up to a factor, |R e|^2 is the mean squared pixel error that a small error e of one position's
    latents causes, if positions do not interact: R^T R = E[J^T J], where J is the decoder's
    Jacobian, estimated from random pixel gradients sent back through the decoder. A loss in R e
    weighs errors by their visibility without running the decoder. J is evaluated at the clips,
    float [N, 3, T, H, W] in -1..1. R has mean square 1 on average over directions.
    """
    dim = model.geometry.latent_dim
    total = torch.zeros(dim, dim, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for clip in torch.split(clips, 1):
        latents = encode_clips(model, clip).requires_grad_(True)
        recon = model.tokenizer.decode(latents)
        for _ in range(METRIC_PROBES):
            probe = torch.randn(recon.shape, generator=generator).to(recon)
            (gradient,) = torch.autograd.grad((recon * probe).sum(), latents, retain_graph=True)
            rows = gradient.transpose(0, 1).flatten(1).double().cpu()
            total += rows @ rows.T / rows.shape[1]
    total = total / total.trace() * dim + METRIC_FLOOR * torch.eye(dim)
    return torch.linalg.cholesky(total).T.float()


def make_token_optimizers(pipeline: TokenPipeline, config: TokenTraining) -> Optimizers:
    """Create Muon for inner matrices; AdamW for maps of latents, places and bits, and the rest."""
    fuser, lift = pipeline.fuser, pipeline.lift
    ends: list[nn.Module] = [fuser.out, fuser.query, fuser.basis, pipeline.bits]
    ends += [lift.widen, lift.where, lift.basis] if isinstance(lift, Lift) else [lift]
    return split_optimizers(pipeline, ends, config.muon_rate, config.adamw_rate)


def token_rate_share(step: int, config: TokenTraining) -> float:
    """Return the learning rates of a step as a share of the full rates.

    They rise, stay and decay to zero on latents, and decay from a tenth to zero on pixels.
    """
    if step >= config.steps:
        return 0.1 * (config.all_steps - step) / config.pixel_steps
    left = (config.steps - step) / (0.6 * config.steps)
    return min(1.0, (step + 1) / 20, left)


def latent_loss(
    pipeline: TokenPipeline, latents: Tensor, metric: Tensor, rng: np.random.Generator
) -> Tensor:
    """Compute the mean over samples of the RMS error of latents [B, D, 1, h, w].

    `metric`, see `measure_metric`, weighs errors by their visibility; `rng` crops the latents, and
    draws the number of tokens and the samples to quantize.
    """
    latents = _crop(latents, rng)
    found = _reconstruct(pipeline, latents, rng)
    errors = torch.einsum("ij,bjthw->bithw", metric, found - latents)
    return errors.square().mean((1, 2, 3, 4)).add(1e-8).sqrt().mean()


def pixel_loss(
    pipeline: TokenPipeline, model: LoadedTokenizer, clips: Tensor, rng: np.random.Generator
) -> Tensor:
    """Compute the mean RMS error of the pixels of clips [B, 3, T, H, W], by the frozen decoder."""
    clips = clips.to(model.device)
    found = _reconstruct(pipeline, encode_clips(model, clips), rng)
    size = (clips.shape[3], clips.shape[4])
    recon = model.tokenizer.decode(found, num_frames=clips.shape[2], size=size)
    return (recon - clips).square().mean((1, 2, 3, 4)).add(1e-8).sqrt().mean()


def _reconstruct(pipeline: TokenPipeline, latents: Tensor, rng: np.random.Generator) -> Tensor:
    count = draw_count(pipeline, (latents.shape[3], latents.shape[4]), rng)
    quantized = torch.from_numpy(rng.random(len(latents)) < BITS_SHARE).to(latents.device)
    found: Tensor = pipeline(latents, count, quantized)
    return found


def draw_count(pipeline: TokenPipeline, grid: tuple[int, int], rng: np.random.Generator) -> int:
    """Draw the number of tokens of a batch, at most as many as its grid (h, w) can give."""
    fold = pipeline.config.fold
    height, width = -(-grid[0] // fold), -(-grid[1] // fold)
    most = min(pipeline.config.max_tokens, height * width)
    # cells must fit, for all learners, so that they draw alike
    grids = [(n, *cell_grid(n)) for n in COUNTS if n <= most]
    fitting = [n for n, rows, columns in grids if rows <= height and columns <= width]
    return int(rng.choice(fitting or [1]))


def _crop(latents: Tensor, rng: np.random.Generator) -> Tensor:
    """A random part of the grid, or all of it: frames come in many sizes and shapes."""
    if rng.random() < WHOLE_SHARE:
        return latents
    for side in (3, 4):
        size = latents.shape[side]
        length = int(rng.integers(min(MIN_SIDE, size), size + 1))
        start = int(rng.integers(0, size - length + 1))
        latents = latents.narrow(side, start, length)
    return latents


def initialize_from(pipeline: TokenPipeline, path: Path) -> str:
    """Copy the weights of a token learner's checkpoint, whichever tokenizer it belongs to.

    Returns:
        The SHA-256 of the weights.

    Raises:
        InputError: if there is no such checkpoint.
        CheckpointError: if it is damaged, or its learner has another config.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint of a token learner")
    source, info = load_tokens(path, None)
    wanted, found = pipeline.config.to_dict(), info.config.to_dict()
    differing = [
        f"{key} {found[key]} instead of {wanted[key]}"
        for key in wanted
        if found[key] != wanted[key]
    ]
    if differing:
        raise CheckpointError(f"{path}: another token learner: {', '.join(differing[:3])}")
    pipeline.load_state_dict(source.state_dict())
    return info.weights_sha256


class TokenLearnerRun:
    """A token pipeline in training for a frozen tokenizer, with its optimizers.

    Args:
        config: options of the run.
        model: tokenizer.
        init: checkpoint of a token learner to start from, of this tokenizer or another; random
            weights if None.

    Raises:
        InputError: if there is no such checkpoint.
        CheckpointError: if it is damaged, or its learner has another config.
    """

    def __init__(
        self, config: TokenTraining, model: LoadedTokenizer, init: Path | None = None
    ) -> None:
        self.config, self.model = config, model
        torch.manual_seed(config.seed)
        self.pipeline = TokenPipeline(config.pipeline).to(model.device)
        self._init = "" if init is None else initialize_from(self.pipeline, init)
        optimizers = make_token_optimizers(self.pipeline, config)
        self._all = Trained(optimizers, pipeline=self.pipeline)
        self.step = 0

    @property
    def facts(self) -> dict[str, object]:
        """Values that a state must match to be resumed."""
        facts: dict[str, object] = {
            "config": self.config.to_dict(),
            "tokenizer": self.model.info.weights_sha256,
        }
        return facts | ({"init": self._init} if self._init else {})

    def state(self) -> State:
        """Return the state to save."""
        return State(self.step, self._all.tensors(), self.facts)

    def load(self, state: State, where: Path) -> None:
        """Restore a state; `UsageError` if its run was started otherwise, see `facts`."""
        if state.facts != self.facts:
            raise UsageError(
                f"{where}: was started with another config, tokenizer or `init`: choose another "
                "output folder"
            )
        self._all.load(state.tensors)
        self.step = state.step

    def learn(self, loss: Tensor) -> bool:
        """Take one step; one that is not finite changes no weight. Returns True if it was taken."""
        self._all.zero_gradients()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.pipeline.parameters(), MAX_GRADIENT)
        finite = bool(torch.isfinite(loss) and torch.isfinite(norm))
        if finite:
            self._all.step(token_rate_share(self.step, self.config))
        self.step += 1
        return finite


def train_tokens(
    data: Sequence[str | Path],
    out: Path,
    config: TokenTraining,
    model: LoadedTokenizer,
    *,
    init: Path | None = None,
    cache: Path | None = None,
    threads: int | None = None,
    say: Say = print,
) -> Path:
    """Train a token learner, or resume a run that was stopped or killed; returns the checkpoint.

    Like `train`, a script must call this under `if __name__ == "__main__":`.

    Args:
        data: sources for training, see `find_sources`.
        out: folder of the run: states, and at the end the checkpoint.
        config: options of the run.
        model: tokenizer.
        init: checkpoint of a token learner to start from; random weights if None.
        cache: folder for latents and decoded frames, which runs on the same data may share.
        threads: CPU threads of this process; torch's default if None.
        say: receives the progress line by line.

    Raises:
        InputError: if there is no source, or no checkpoint `init`.
        CheckpointError: if `init` is damaged, or its learner has another config.
        UsageError: if the folder holds a run that was started otherwise.
        OutputError: if a file cannot be written, or another run uses the folder.
    """
    sources = find_sources(data)
    spec = ClipSpec(config.frames, config.crop, config.photo_share, config.seed)
    cache = cache or out / "cache"
    with cpu_threads(threads), locked_folder(out, STATES), Interrupts() as interrupts:
        run = TokenLearnerRun(config, model, init)
        held = newest_state(out / STATES, say)
        if held is not None:
            run.load(from_bytes(held, str(out)), out)
            say(f"{out}: resuming at step {run.step} of {config.all_steps}")
        latents = LatentCache(cache, model, sources, spec, config.bank)
        loader = ClipLoader(
            sources, spec, workers=1, cache=cache / "frames", cache_bytes=CACHE_BYTES
        )
        for done, total in latents.fill(loader):
            say(f"latents of {done} of {total} clips")
            if interrupts.number:
                interrupts.end()
        with closing(_losses(run, latents, loader)) as losses:
            _take_steps(run, losses, out, interrupts, say)
    name = f"{model.info.name}-{config.pipeline.learner}"
    save_tokens(out / WEIGHTS, run.pipeline, name, model.info, torch.float16)
    return out / WEIGHTS


def _take_steps(
    run: TokenLearnerRun, losses: Iterator[Tensor], out: Path, interrupts: Interrupts, say: Say
) -> None:
    throughput, mean = Throughput(run.config.batch), 0.0
    while run.step < run.config.all_steps:
        loss = next(losses)
        taken = run.learn(loss)
        throughput.mark(0.0)
        mean = float(loss.detach()) if not mean else 0.98 * mean + 0.02 * float(loss.detach())
        if not taken:
            say(f"step {run.step}: not finite, skipped")
            mean = 0.0
        last = run.step == run.config.all_steps
        if run.step % REPORT_EVERY == 0 or last:
            left = throughput.seconds_left(run.config.all_steps - run.step) or 0
            say(
                f"step {run.step} of {run.config.all_steps}: loss {mean:.4f}, "
                f"{throughput.seconds_per_step:.2f} s per step, {left / 60:.0f} min left"
            )
        if run.step % SAVE_EVERY == 0 or last or interrupts.number:
            save_state(out / STATES, run.state(), KEPT_STATES)
        if interrupts.number:
            interrupts.end()
        if run.step == run.config.steps:
            mean = 0.0  # the loss on pixels has another scale


def _losses(
    run: TokenLearnerRun, latents: LatentCache, loader: ClipLoader
) -> Generator[Tensor, None, None]:
    """Losses from the run's step on; the samples of a step depend on its number only."""
    config, device = run.config, run.model.device
    metric = latents.metric(loader).to(device)
    while run.step < config.steps:
        rng = _rng(run)
        yield latent_loss(run.pipeline, latents.draw(rng, config.batch).to(device), metric, rng)
    # numbers of clips that the cache does not contain
    steps = range(config.bank + run.step, config.bank + config.all_steps)
    with closing(loader.batches(steps, [range(config.pixel_batch)])) as batches:
        for clips in batches:
            yield pixel_loss(run.pipeline, run.model, clips, _rng(run))


def _rng(run: TokenLearnerRun) -> np.random.Generator:
    return np.random.default_rng((run.config.seed, STEP_STREAM, run.step))
