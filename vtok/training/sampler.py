"""Which clip comes when: a pure function of the seed, the step and the clip's number in it."""

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

PARTS_IN_ALL, LEAST_PARTS = 256, 4
"""Few videos have many parts each, many have few: a cache of bounded size should pay."""
MANY_VIDEOS, STEPS_A_PART = 256, 4
"""From so many videos on no cache holds them, and a part is used in so many steps in a row."""
SHOWN_REASONS = 3
PART_OF = re.compile(r" \((part [0-9]+ of [0-9]+|middle)\)$")
"""What follows the name of a source where only a part of it cannot be read."""
PART_STREAM, WINDOW_STREAM = 0, 1
"""Keep the choice of a part and of a window in it apart, both being drawn from one seed."""


def most_parts(sources: Sequence[Source]) -> int:
    """How many parts one video may have, given all there is to draw from."""
    videos = sum(source.kind == "video" for source in sources)
    return max(LEAST_PARTS, PARTS_IN_ALL // max(1, videos))


def steps_a_part(sources: Sequence[Source]) -> int:
    """In how many steps in a row the clip of one number comes from the same part."""
    videos = sum(source.kind == "video" for source in sources)
    return STEPS_A_PART if videos >= MANY_VIDEOS else 1


def note_skipped(skipped: MutableMapping[str, str], name: str, reason: str) -> None:
    """Note why a source, or a part of it, cannot be read; a source counts once.

    Several threads may note into one mapping.
    """
    if PART_OF.sub("", name) in skipped:
        return
    skipped[name] = reason
    for other in list(skipped):
        if PART_OF.sub("", other) == name != other:
            skipped.pop(other, None)


def why_nothing(reasons: Mapping[str, str]) -> str:
    """Say that none of these sources gives a clip, with the first reasons."""
    counted = "1 source" if len(reasons) == 1 else f"{len(reasons)} sources"
    shown = [f"{name}: {reason}" for name, reason in islice(reasons.items(), SHOWN_REASONS)]
    more = "; ..." if len(reasons) > SHOWN_REASONS else ""
    return f"no clip could be had from {counted}: {'; '.join(shown)}{more}"


class ClipMaker:
    """Makes clips from sources, in this process.

    What cannot be read is noted and replaced by the next draw of the same generator, so the same
    broken files give the same clips, in whatever order and wherever the clips are made.

    Args:
        sources: to draw from; at least one.
        spec: what clips to draw.
        store: gives the parts.
        skipped: what is known to be unreadable, name to reason; it grows. Where only a part of a
            source cannot be read the name is "name (part 2 of 5)".
    """

    def __init__(
        self,
        sources: Sequence[Source],
        spec: ClipSpec,
        store: PartStore,
        skipped: MutableMapping[str, str],
    ) -> None:
        self.sources, self._spec, self.store, self.skipped = sources, spec, store, skipped
        kinds = [[s for s in sources if s.kind == kind] for kind in ("video", "photo")]
        self._videos, self._photos = kinds
        self._ends = [np.cumsum(chances(kind)) if kind else np.zeros(0) for kind in kinds]
        self._photo_share = 1.0 if not self._videos else spec.photo_share if self._photos else 0.0
        self._drawable = [  # what can come at all
            *(self._videos if self._photo_share < 1 else []),
            *(self._photos if self._photo_share > 0 else []),
        ]
        self._steps_a_part = steps_a_part(sources)

    def clip(self, step: int, index: int) -> Clip:
        """Clip `index` of a step, float32 [3, frames, crop, crop] in -1..1.

        Raises:
            InputError: nothing that could be drawn is readable.
        """
        turn = step // self._steps_a_part
        source, part = self._draw(default_rng((self._spec.seed, PART_STREAM, turn, index)))
        rng = default_rng((self._spec.seed, WINDOW_STREAM, step, index))
        return random_clip(source.kind, part, self._spec, rng)

    def prepare(self, position: int) -> None:
        """Decode all parts of one source into the cache, as far as it has space."""
        source = self.sources[position]
        number = 0
        while (count := self._count(source)) is not None and number < count:
            if self.store.is_full:
                return
            self._load(source, number, count)
            number += 1

    def _draw(self, rng: Generator) -> tuple[Source, Frames]:
        """A source and a part of it, drawn until one can be read.

        Every draw takes the same numbers from the generator, whatever is known by then.
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
        raise InputError(self._why_nothing())

    def _count(self, source: Source) -> int | None:
        """How many parts a source has; None where it cannot be read."""
        if source.name in self.skipped:
            return None
        try:
            return self.store.count(source)
        except InputError as exc:
            self._skip(source, source.name, exc)
            return None

    def _load(self, source: Source, number: int, count: int) -> Frames | None:
        """A part of a source; None where it cannot be read."""
        name = f"{source.name} (part {number + 1} of {count})"
        if name in self.skipped:
            return None
        try:
            return self.store.load(source, number)
        except InputError as exc:
            self._skip(source, name, exc)
            names = (f"{source.name} (part {part + 1} of {count})" for part in range(count))
            if all(name in self.skipped for name in names):
                self._skip(source, source.name, exc)
            return None

    def _skip(self, source: Source, name: str, error: InputError) -> None:
        """Note why something cannot be read."""
        note_skipped(self.skipped, name, str(error).removeprefix(f"{source.name}: "))

    def _any_left(self) -> bool:
        """Tell whether something that could be drawn may be readable."""
        return not self.skipped or any(s.name not in self.skipped for s in self._drawable)

    def _why_nothing(self) -> str:
        """Say that nothing is readable, with the first reasons."""
        return why_nothing({s.name: self.skipped[s.name] for s in self._drawable})
