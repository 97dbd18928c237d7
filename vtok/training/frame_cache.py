"""On-disk cache of decoded frames, shared by processes, so that no video is decoded twice."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from vtok._files import atomic_output
from vtok.errors import InputError, OutputError
from vtok.training.sources import Source
from vtok.video.frames import Frames

VERSION = 1
"""Increase it when the same source would be decoded to other frames."""
OURS = re.compile(r"vtok-([0-9a-f]{24})(-[0-9]+)*\.(npy|json)")
"""Names of cached files; other files in the folder are never removed."""
PARTIAL = re.compile(r"\.vtok-[0-9a-f]{16}\.part")
PARTIAL_SECONDS = 600
"""Age from which a partial file is taken for a leftover of a killed process."""
HEADER_BYTES = 128
"""Size of the header of a .npy file."""
NOTE_BYTES = 4096
"""Upper bound on the size of a note."""


def source_key(source: Source) -> str:
    """Identify a source by path, size and modification time, as 24 hexadecimal digits.

    Raises:
        InputError: if the file is missing.
    """
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
        folder: folder of the files; created if missing.
        max_bytes: maximum total size.

    Attributes:
        full: no more frames can be stored.

    Raises:
        OutputError: if the folder cannot be created.
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
            with self._locked():
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
        with self._locked():
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

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out; the lock ends with its process."""
        with FileLock(self.folder / ".lock"):
            yield


def _are_frames(found: Any) -> bool:
    is_array = isinstance(found, np.ndarray) and found.dtype == np.uint8
    return is_array and found.ndim == 4 and found.shape[3] == 3 and found.size > 0


def _is_leftover(path: Path) -> bool:
    """Decide whether a file is a partial one of a killed process."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return PARTIAL.fullmatch(path.name) is not None and age > PARTIAL_SECONDS
