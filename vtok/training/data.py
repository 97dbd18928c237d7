"""What a run learns from and what it is measured on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtok.training.clips import ClipSpec
from vtok.training.config import TrainingConfig
from vtok.training.sources import Source, find_sources
from vtok.training.workers import ClipPool

MOST_CLIPS = 8  # to measure on
LEAST_VIDEOS, ONE_IN = 20, 10
MOST_WORKERS = 16
GIB = 1 << 30


class RunData:
    """Sources to learn from, and others to measure on.

    Args:
        inputs: what to learn from, see `find_sources`.
        validation: what to measure on; without it some videos are set aside.
        config: of the run.
        cache: folder for decoded frames, unless the config names one.

    Attributes:
        unseen: whether the clips to measure on are not learned from.
        digest: of the names of what is learned from.

    Raises:
        InputError: where there is nothing.
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
        self.unseen = bool(self.validation)
        if not self.unseen:
            self.validation = self.sources
        names = "\n".join(_inner_name(source) for source in self.sources)
        self.digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        self._config = config
        self._cache = Path(config.cache) if config.cache else cache

    def open_pool(self, seed: int, skipped: Mapping[str, str], processes: int) -> ClipPool:
        """The processes that read clips.

        Args:
            seed: of the draws.
            skipped: sources known to be broken.
            processes: how many training processes there are on this machine.
        """
        config = self._config
        return ClipPool(
            self.sources,
            ClipSpec(config.frames, config.crop, config.photo_share, seed),
            workers=config.workers or default_workers(processes),
            cache=self._cache if config.cache_gib else None,
            cache_bytes=int(config.cache_gib * GIB),
            skipped=skipped,
        )


def hold_out(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """Set some videos aside: one in ten, up to eight, where there are twenty or more.

    Which ones depends on their names only, so other runs on the same data set the same aside.

    Returns:
        What to learn from, and what to measure on: nothing where there are too few.
    """
    videos = [source for source in sources if source.kind == "video"]
    if len(videos) < LEAST_VIDEOS:
        return list(sources), []
    aside = sorted(videos, key=_shuffled)[: min(MOST_CLIPS, len(videos) // ONE_IN)]
    return [source for source in sources if source not in aside], aside


def default_workers(processes: int) -> int:
    """One process that reads for each core, but one for training."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, (cores or 1) // processes - 1))


def _inner_name(source: Source) -> str:
    return source.member or source.path.name


def _shuffled(source: Source) -> bytes:
    return hashlib.sha256(_inner_name(source).encode(errors="surrogateescape")).digest()
