"""Decoding for training: parts of videos, and photos, at moderate sizes; a cache of frames."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from vtok._files import atomic_output
from vtok.errors import InputError, OutputError, VtokError
from vtok.training.clips import ClipSpec
from vtok.training.sources import Source, source_file
from vtok.video.decoder_process import ChildDied
from vtok.video.frames import Frames, parse_size, resize_frames
from vtok.video.reader import VideoReader, probe

TIMEOUT_SECONDS = 30.0  # without progress of the decoder
PART_FRAMES = 48  # in a part; those of a clip if that is more
WHOLE_FRAMES = 480  # shorter videos are read from the beginning, all parts in one run
VIDEO_SIDE, PHOTO_SIDE = 384, 640  # maximum short sides; scaling down hides compression artifacts
HELD_BYTES = 512 * 2**20  # maximum size of parts held in memory while the cache is full
VERSION = 1  # of cached frames; increase it when the same source would be decoded to other frames
OURS = re.compile(r"vtok-([0-9a-f]{24})(-[0-9]+)*\.(npy|json)")  # other files are never removed
PARTIAL = re.compile(r"\.vtok-[0-9a-f]{16}\.part")
PARTIAL_SECONDS = 600  # age from which a partial file is that of a killed process
HEADER_BYTES = 128  # of a .npy file
NOTE_BYTES = 4096  # at most, of a note

T = TypeVar("T")


def source_key(source: Source) -> str:
    """Identify an existing source by path, size and modification time, as 24 hex digits."""
    try:
        status = source.path.stat()
    except OSError as exc:
        raise InputError(f"{source.name}: cannot be opened ({exc.strerror})") from exc
    where = (VERSION, str(source.path.resolve()), source.member, source.kind)
    text = json.dumps((*where, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class FrameCache:
    """Frames and notes by name, in a folder that several processes share.

    Nothing is evicted: once full, the cache stores no more, and other frames are decoded again.
    Sources are sampled at random, so replacing old frames would not raise the hit rate.

    Args:
        folder: folder of the files; created if missing, or an `OutputError`.
        max_bytes: maximum total size; `full` is true from then on.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes, self.full = folder, max_bytes, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise OutputError(f"{folder}: cannot hold decoded frames ({exc.strerror})") from exc

    def frames(self, name: str) -> Frames | None:
        """Return stored frames, uint8 [T, H, W, 3], memory-mapped read-only, or None."""
        path = self.folder / f"{name}.npy"
        try:
            frames = np.lib.format.open_memmap(path, mode="r")  # refuses pickled data
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, OverflowError):  # truncated or replaced
            frames = None
        if _are_frames(frames):
            return frames
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    def store(self, name: str, frames: Frames) -> None:
        """Store frames, uint8 [T, H, W, 3], if there is space; a full disk is a full cache."""
        path = self.folder / f"{name}.npy"
        if self.full or path.exists():
            return
        try:
            with self._lock():
                self.full = self._used() + frames.nbytes + HEADER_BYTES > self.max_bytes
                if not self.full:
                    with atomic_output(path, overwrite=True) as part, part.open("wb") as file:
                        np.save(file, frames, allow_pickle=False)
        except (OSError, OutputError):
            self.full = True

    def note(self, name: str) -> Any:
        """Return the JSON value noted under a name, or None."""
        try:
            with (self.folder / f"{name}.json").open("rb") as file:
                return json.loads(file.read(NOTE_BYTES))
        except (OSError, ValueError):
            return None

    def store_note(self, name: str, note: Any) -> None:
        """Note a small JSON value under a name; a failure to write is ignored."""
        path = self.folder / f"{name}.json"
        with suppress(OSError, OutputError), atomic_output(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(note))

    def tidy(self, sources: Sequence[Source]) -> None:
        """Remove files of other sources, leftovers of killed processes, and excess files."""
        wanted = set()
        for source in sources:
            with suppress(InputError):
                wanted.add(source_key(source))
        with self._lock():
            for path in self.folder.iterdir():
                ours = OURS.fullmatch(path.name)
                if (ours and ours[1] not in wanted) or _is_leftover(path):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
            excess = self._used() - self.max_bytes
            for path in sorted(self.folder.glob("vtok-*.npy")):
                if excess <= 0:
                    break
                with suppress(OSError):
                    excess -= path.stat().st_size
                    path.unlink(missing_ok=True)

    def _used(self) -> int:
        """Total size of all stored frames in bytes."""
        total = 0
        for path in self.folder.glob("*.npy"):
            with suppress(OSError):
                total += path.stat().st_size
        return total

    def _lock(self) -> FileLock:
        """Keeps other processes out; ends with its process."""
        return FileLock(self.folder / ".lock")


def _are_frames(found: Any) -> bool:
    is_array = isinstance(found, np.ndarray) and found.dtype == np.uint8
    return is_array and found.ndim == 4 and found.shape[3] == 3 and found.size > 0


def _is_leftover(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return PARTIAL.fullmatch(path.name) is not None and age > PARTIAL_SECONDS


@dataclass(frozen=True)
class Outline:
    """Size and length of a video; 0 frames if unknown until it is decoded, fps is the mean."""

    width: int
    height: int
    num_frames: int
    fps: Fraction

    def to_note(self) -> list[int]:
        """Convert to a JSON value."""
        return [self.width, self.height, self.num_frames, *self.fps.as_integer_ratio()]

    @classmethod
    def from_note(cls, note: Any) -> Outline | None:
        """Convert from a JSON value; None if it is not an outline."""
        if not isinstance(note, list) or len(note) != 5:
            return None
        if not all(type(value) is int and 0 <= value < 2**63 for value in note) or 0 in note[3:]:
            return None
        width, height, num_frames, numerator, denominator = note
        return cls(width, height, num_frames, Fraction(numerator, denominator))


class PartStore:
    """Parts of sources, from memory, the cache or a decoder.

    A part has the same pixels wherever it comes from. Every decoder is a child process: a file that
    crashes or hangs it costs that file only. All methods raise `InputError` for a source that
    cannot be read, or is too small or too short for a clip.

    Args:
        spec: options of the clips that are cut from the parts.
        max_parts: maximum number of parts of a video.
        cache: cache of decoded parts; None keeps them in memory only.
        scratch: folder where members of shards are unpacked while they are decoded.
    """

    def __init__(
        self, spec: ClipSpec, max_parts: int, cache: FrameCache | None, scratch: Path
    ) -> None:
        self._crop, self._min_frames = spec.crop, spec.frames
        self._max_parts, self._scratch = max_parts, scratch
        self._part_frames = max(PART_FRAMES, spec.frames)
        self._video_side = max(VIDEO_SIDE, spec.crop)
        self._photo_side = max(PHOTO_SIDE, spec.crop)
        self._cache = cache
        self._keys: dict[str, str] = {}
        self._outlines: dict[str, Outline] = {}
        self._held: OrderedDict[str, Frames] = OrderedDict()

    def count(self, source: Source) -> int:
        """Return the number of parts of a source, from 1; a photo has one."""
        return 1 if source.kind == "photo" else len(self._starts(source))

    def load(self, source: Source, number: int) -> Frames:
        """Return a part of a source, uint8 [T, H, W, 3]; T is 1 for a photo."""
        if source.kind == "photo":
            return self._checked(source, self._photo(source))
        return self._checked(source, self._part(source, self._starts(source)[number]))

    def middle(self, source: Source) -> Frames:
        """Return the middle of a source: the frames of one clip, or a photo, uint8 [T, H, W, 3]."""
        if source.kind == "photo":
            return self._checked(source, self._photo(source))
        outline, length = self._outline(source), self._min_frames
        start = max(0, outline.num_frames - length) // 2

        def read(path: Path) -> Frames:
            for _, frames in self._stretches(path, outline, [start], length):
                return frames
            raise InputError(f"{path}: ends before frame {start}")

        return self._checked(source, self._read(source, read))

    def _photo(self, source: Source) -> Frames:
        """A photo, uint8 [1, H, W, 3]."""
        name = f"{self._key(source)}-{self._photo_side}"
        frames = self._kept(name)
        if frames is None:
            frames = self._read(source, lambda path: _read_photo(path, self._photo_side))
            self._keep(name, frames)
        return frames

    def _part(self, source: Source, start: int) -> Frames:
        """The part of a video that begins at a frame, uint8 [T, H, W, 3]."""
        frames = self._kept(self._part_name(source, start))
        if frames is None:
            frames = self._read(source, lambda path: self._read_part(source, path, start))
        return frames

    def _read_part(self, source: Source, path: Path, start: int) -> Frames:
        """Decode a part; all parts of a short video, if there is space to keep them."""
        outline = self._outline(source)
        whole = not self._is_long(outline) and not self._is_full
        starts = self._starts(source) if whole else [start]
        found: Frames | None = None
        try:
            for begin, frames in self._stretches(path, outline, starts, self._part_frames):
                self._keep(self._part_name(source, begin), frames)
                found = frames if begin == start else found
        except VtokError:
            if found is None:  # otherwise only later parts are unreadable
                raise
        if found is None:
            raise InputError(f"{path}: ends before frame {start}")
        return found

    def _stretches(
        self, path: Path, outline: Outline, starts: list[int], length: int
    ) -> Iterator[tuple[int, Frames]]:
        # seeking may decode slightly differently, so that it must not depend on the request
        seek = self._is_long(outline)
        return _read_stretches(path, outline, starts, length, self._video_side, seek=seek)

    def _is_long(self, outline: Outline) -> bool:
        return outline.num_frames > WHOLE_FRAMES

    @property
    def _is_full(self) -> bool:
        return self._cache is None or self._cache.full

    def _starts(self, source: Source) -> list[int]:
        """First frames of the parts of a video, evenly spread; the last part ends at its end."""
        num_frames = self._outline(source).num_frames
        count = min(self._max_parts, -(-num_frames // self._part_frames))
        if count <= 1:
            return [0]
        return [(num_frames - self._part_frames) * part // (count - 1) for part in range(count)]

    def _outline(self, source: Source) -> Outline:
        """Size and length of a video, probed once, and large enough for a clip."""
        outline = self._outlines.get(source.name)
        if outline is None:
            key = self._key(source)
            outline = Outline.from_note(self._cache.note(key)) if self._cache else None
            if outline is None:
                outline = self._read(source, _read_outline)
                if self._cache:
                    self._cache.store_note(key, outline.to_note())
            self._outlines[source.name] = outline
        self._check_size(source, outline.height, outline.width)
        self._check_length(source, outline.num_frames or self._min_frames)
        return outline

    def _key(self, source: Source) -> str:
        """Prefix of the names of a source in the cache."""
        if source.name not in self._keys:
            self._keys[source.name] = f"vtok-{source_key(source)}"
        return self._keys[source.name]

    def _part_name(self, source: Source, start: int) -> str:
        return f"{self._key(source)}-{self._video_side}-{start}-{self._part_frames}"

    def _kept(self, name: str) -> Frames | None:
        """Frames from memory or from the cache."""
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        return self._cache.frames(name) if self._cache else None

    def _keep(self, name: str, frames: Frames) -> None:
        """Store frames in the cache; if it is full, in memory, dropping the least recently used."""
        if self._cache:
            self._cache.store(name, frames)
        if self._is_full:
            self._held[name] = frames
        while len(self._held) > 1 and sum(f.nbytes for f in self._held.values()) > HELD_BYTES:
            self._held.popitem(last=False)

    def _checked(self, source: Source, frames: Frames) -> Frames:
        self._check_size(source, frames.shape[1], frames.shape[2])
        if source.kind == "video":
            self._check_length(source, len(frames))
        return frames

    def _check_size(self, source: Source, height: int, width: int) -> None:
        if min(height, width) < self._crop:
            size = f"{width}x{height}"
            raise InputError(f"{source.name}: smaller than the crop ({size} < {self._crop})")

    def _check_length(self, source: Source, num_frames: int) -> None:
        if num_frames < self._min_frames:
            length = f"{num_frames} of {self._min_frames} frames"
            raise InputError(f"{source.name}: shorter than a clip ({length})")

    def _read(self, source: Source, read: Callable[[Path], T]) -> T:
        """Read from the file of a source; every failure is one line that names the source."""
        with source_file(source, self._scratch) as path:
            try:
                return _read_with_retry(read, path)
            except VtokError as exc:
                reason = str(exc).removeprefix(f"{path}: ")
                raise InputError(f"{source.name}: {reason}") from exc


def _read_with_retry(read: Callable[[Path], T], path: Path) -> T:
    """Read, once more if the decoder died: the system may have killed it for another reason."""
    try:
        return read(path)
    except VtokError as exc:
        if not isinstance(exc.__cause__, ChildDied):
            raise
    return read(path)


def _read_outline(path: Path) -> Outline:
    info = probe(path, TIMEOUT_SECONDS)
    return Outline(info.width, info.height, info.num_frames or 0, info.fps)


def _read_photo(path: Path, side: int) -> Frames:
    """Decode a photo, uint8 [1, H, W, 3], its short side scaled down to at most `side` pixels."""
    with VideoReader(path, timeout_seconds=TIMEOUT_SECONDS) as reader:
        frame = next(reader)[:1]
    height, width = frame.shape[1:3]
    if min(height, width) <= side:
        return frame
    return resize_frames(frame, *parse_size(str(side), width, height))


def _read_stretches(
    path: Path, outline: Outline, starts: Sequence[int], length: int, side: int, *, seek: bool
) -> Iterator[tuple[int, Frames]]:
    """Decode stretches at ascending starts, uint8 [T, H, W, 3], the short side at most `side`.

    The last one may be shorter than `length`; nothing is yielded for a start after the end.
    """
    wanted, held = list(starts), list[Frames]()
    first = wanted[0] if seek else 0  # number of the first frame in `held`
    # half a frame early, so that rounding cannot lose the first one
    seconds = max(Fraction(0), (first - Fraction(1, 2)) / outline.fps)
    shrunk = min(outline.width, outline.height) > side
    with VideoReader(
        path,
        start_seconds=seconds,
        size=str(side) if shrunk else None,
        timeout_seconds=TIMEOUT_SECONDS,
    ) as reader:
        for batch in reader:
            held.extend(batch)
            while wanted and first + len(held) >= wanted[0] + length:
                start = wanted.pop(0)
                yield start, np.stack(held[start - first : start - first + length])
            if not wanted:
                return
            passed = min(len(held), max(0, wanted[0] - first))
            del held[:passed]
            first += passed
    for start in wanted:
        if start - first < len(held):
            yield start, np.stack(held[start - first :])
