"""Latents to learn tokens from, computed once and kept: a folder of arrays that learners share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
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
from vtok.training.sources import Source
from vtok.training.workers import ClipPool

SHARD = 32  # clips in one file
METRIC_CLIPS, METRIC_PROBES, METRIC_FLOOR = 6, 4, 1e-3


class LatentBank:
    """Latents of random clips, float16 [clips, t, D, h, w], in files of `SHARD` clips each.

    What is in it is a function of the model, the sources and the spec, which its files are named
    after; a file is there whole or not at all, so making a bank goes on where it was stopped.

    Args:
        folder: of the files; made if it is missing.
        model: encodes.
        sources: to draw clips from.
        spec: what clips to draw.
        count: how many, rounded up to whole files.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        model: LoadedTokenizer,
        sources: Sequence[Source],
        spec: ClipSpec,
        count: int,
    ) -> None:
        self._folder, self._model, self._sources, self._spec = folder, model, sources, spec
        names = [source.member or source.path.name for source in sources]
        about = json.dumps([model.info.weights_sha256, names, asdict(spec)])
        self._key = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:16]
        self.num_shards = -(-count // SHARD)
        self._shards: list[npt.NDArray[np.float16]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise OutputError(f"{folder}: cannot be made ({exc.strerror})") from exc

    def fill(self, pool: ClipPool) -> Iterator[tuple[int, int]]:
        """Make what is missing.

        Args:
            pool: of the same sources and spec.

        Yields:
            How many clips are there, and how many there are to be.
        """
        for number in range(self.num_shards):
            path = self._folder / f"latents-{self._key}-{number:04d}.npy"
            if not path.exists():
                self._write(path, pool, number)
            self._shards.append(self._open(path))
            yield (number + 1) * SHARD, self.num_shards * SHARD

    def draw(self, rng: np.random.Generator, count: int) -> Tensor:
        """Latents of random steps of random clips, float32 [count, D, 1, h, w]."""
        picked = []
        for _ in range(count):
            shard = self._shards[rng.integers(len(self._shards))]
            picked.append(shard[rng.integers(len(shard)), rng.integers(shard.shape[1])])
        return torch.from_numpy(np.stack(picked)).float().unsqueeze(2)

    def metric(self, pool: ClipPool) -> Tensor:
        """What an error of the latents costs in pixels, float32 [D, D]; see `measure_metric`."""
        path = self._folder / f"metric-{self._key}.npy"
        if not path.exists():
            clips = pool.fixed(self._sources, METRIC_CLIPS)
            metric = measure_metric(self._model, clips).numpy()
            with atomic_output(path, overwrite=True) as temporary, temporary.open("wb") as file:
                np.save(file, metric, allow_pickle=False)
        return torch.from_numpy(np.load(path, allow_pickle=False))

    def _write(self, path: Path, pool: ClipPool, number: int) -> None:
        kept = []
        for batch in pool.batches(range(number * SHARD, (number + 1) * SHARD), [range(1)]):
            kept.append(encode_clips(self._model, batch)[0].half().cpu().numpy())
        with atomic_output(path, overwrite=True) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(kept).swapaxes(1, 2), allow_pickle=False)

    def _open(self, path: Path) -> npt.NDArray[np.float16]:
        try:
            found = np.lib.format.open_memmap(path, mode="r")  # refuses what is pickled
        except (OSError, ValueError, EOFError) as exc:
            raise InputError(f"{path}: damaged: remove it, and it is made again") from exc
        dim = self._model.tokenizer.quantizer.dim
        if found.dtype != np.float16 or found.ndim != 5 or found.shape[2] != dim:
            raise InputError(f"{path}: no latents: remove it, and they are made again")
        return found


def encode_clips(model: LoadedTokenizer, clips: Tensor) -> Tensor:
    """Clips [B, 3, T, H, W] to latents, float32 [B, D, t, h, w], without gradients."""
    with torch.no_grad():
        return model.tokenizer.encode_latents(clips.to(model.device)).float()


def measure_metric(model: LoadedTokenizer, clips: Tensor) -> Tensor:
    """How much a pixel error grows with an error of the latents: a matrix R, upper triangular.

    |R e|^2 is the mean square error that a small error e of one position's latents makes in
    pixels, up to a factor, as far as positions do not interact: R^T R = E[J^T J], J the decoder's
    Jacobian, found by sending random pixel gradients back through the decoder. A loss in R e
    learns first what is seen most, without running the decoder.

    Args:
        model: whose decoder is meant.
        clips: float [N, 3, T, H, W] in -1..1, at which J is taken.

    Returns:
        float32 [D, D], of mean square 1 on average over directions.
    """
    dim = model.tokenizer.quantizer.dim
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
