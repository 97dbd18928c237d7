"""On-disk cache of latents to train token learners on, shared by runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vtok._files import atomic_output
from vtok.errors import InputError, OutputError
from vtok.models.load import LoadedTokenizer
from vtok.training.clips import ClipSpec
from vtok.training.loader import ClipLoader
from vtok.training.sources import Source

SHARD = 32
"""Clips in one file."""
METRIC_CLIPS, METRIC_PROBES, METRIC_FLOOR = 6, 4, 1e-3


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
        about = json.dumps([model.info.weights_sha256, names, asdict(spec)])
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
        return model.tokenizer.encode_latents(clips.to(model.device)).float()


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
