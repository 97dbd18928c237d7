"""Deterministic sampler: the clips of a run, keyed by (seed, step, index)."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from itertools import islice

import numpy as np
from numpy.random import Generator, default_rng

from vtok.errors import InputError
from vtok.training.clips import Clip, ClipSpec, random_clip
from vtok.training.decoding import PartStore
from vtok.training.sources import Source, chances
from vtok.video.frames import Frames

TOTAL_PARTS, MIN_PARTS = 256, 4
"""A video has the more parts the fewer videos there are, so that a bounded cache pays."""
MANY_VIDEOS, STEPS_PER_PART = 256, 4
"""From this number of videos on no cache holds them all, and consecutive steps share a part."""
SHOWN_REASONS = 3
PART_OF = re.compile(r" \((part [0-9]+ of [0-9]+|middle)\)$")
"""Follows the name of a source of which only a part cannot be read."""
PART_STREAM, WINDOW_STREAM = 0, 1
"""Separate the random numbers that choose a part from those that choose a window in it."""


def max_parts(sources: Sequence[Source]) -> int:
    """Return the maximum number of parts of one video."""
    videos = sum(source.kind == "video" for source in sources)
    return max(MIN_PARTS, TOTAL_PARTS // max(1, videos))


def steps_per_part(sources: Sequence[Source]) -> int:
    """Return for how many consecutive steps the clips of one index come from the same part."""
    videos = sum(source.kind == "video" for source in sources)
    return STEPS_PER_PART if videos >= MANY_VIDEOS else 1


def note_skipped(skipped: MutableMapping[str, str], name: str, reason: str) -> None:
    """Note why a source, or a part of it, cannot be read; a whole source replaces its parts."""
    if PART_OF.sub("", name) in skipped:
        return
    skipped[name] = reason
    for other in list(skipped):
        if PART_OF.sub("", other) == name != other:
            skipped.pop(other, None)


def no_clip_error(reasons: Mapping[str, str]) -> InputError:
    """Return the error for sources none of which gives a clip, with the first reasons."""
    counted = "1 source" if len(reasons) == 1 else f"{len(reasons)} sources"
    shown = [f"{name}: {reason}" for name, reason in islice(reasons.items(), SHOWN_REASONS)]
    more = "; ..." if len(reasons) > SHOWN_REASONS else ""
    return InputError(f"no clip could be read from {counted}: {'; '.join(shown)}{more}")


class ClipDataset:
    """Map-style dataset of clips, keyed by (step, index).

    A clip depends on the sources, the spec and its key only. An unreadable source is noted and
    replaced by the next draw of the same generator, so that the same broken files give the same
    clips in any order and in any process.

    Args:
        sources: videos and photos; at least one.
        spec: options of the clips.
        store: source of decoded parts.
        skipped: sources known to be unreadable, name to reason; extended while sampling. If only a
            part of a source is unreadable, the name is "name (part 2 of 5)".
    """

    def __init__(
        self,
        sources: Sequence[Source],
        spec: ClipSpec,
        store: PartStore,
        skipped: MutableMapping[str, str],
    ) -> None:
        self._spec, self._store, self.skipped = spec, store, skipped
        kinds = [[s for s in sources if s.kind == kind] for kind in ("video", "photo")]
        self._videos, self._photos = kinds
        self._ends = [np.cumsum(chances(kind)) if kind else np.zeros(0) for kind in kinds]
        self._photo_share = 1.0 if not self._videos else spec.photo_share if self._photos else 0.0
        self._drawable = [
            *(self._videos if self._photo_share < 1 else []),
            *(self._photos if self._photo_share > 0 else []),
        ]
        self._steps_per_part = steps_per_part(sources)

    def __getitem__(self, key: tuple[int, int]) -> Clip:
        """Return the clip of a step and an index, float32 [3, frames, crop, crop] in -1..1.

        Raises:
            InputError: if no source can be read.
        """
        step, index = key
        turn = step // self._steps_per_part
        source, part = self._draw(default_rng((self._spec.seed, PART_STREAM, turn, index)))
        rng = default_rng((self._spec.seed, WINDOW_STREAM, step, index))
        return random_clip(source.kind, part, self._spec, rng)

    def _draw(self, rng: Generator) -> tuple[Source, Frames]:
        """Draw a source and a part of it until one can be read.

        Every draw takes the same numbers from the generator, whatever is known to be unreadable.
        """
        while self._any_left():
            is_photo, place, turn = rng.random(3)
            kind = int(is_photo < self._photo_share)
            ends = self._ends[kind]
            position = min(int(np.searchsorted(ends, place, side="right")), len(ends) - 1)
            source = (self._videos, self._photos)[kind][position]
            count = self._count(source)
            if count is None:
                continue
            frames = self._load(source, int(turn * count), count)
            if frames is not None:
                return source, frames
        raise no_clip_error({s.name: self.skipped[s.name] for s in self._drawable})

    def _count(self, source: Source) -> int | None:
        """Number of parts of a source; None if it cannot be read."""
        if source.name in self.skipped:
            return None
        try:
            return self._store.count(source)
        except InputError as exc:
            self._skip(source, source.name, exc)
            return None

    def _load(self, source: Source, number: int, count: int) -> Frames | None:
        """A part of a source; None if it cannot be read."""
        name = f"{source.name} (part {number + 1} of {count})"
        if name in self.skipped:
            return None
        try:
            return self._store.load(source, number)
        except InputError as exc:
            self._skip(source, name, exc)
            names = (f"{source.name} (part {part + 1} of {count})" for part in range(count))
            if all(name in self.skipped for name in names):
                self._skip(source, source.name, exc)
            return None

    def _skip(self, source: Source, name: str, error: InputError) -> None:
        note_skipped(self.skipped, name, str(error).removeprefix(f"{source.name}: "))

    def _any_left(self) -> bool:
        return not self.skipped or any(s.name not in self.skipped for s in self._drawable)
