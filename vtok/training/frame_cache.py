"""A folder of decoded frames, so that no part of a video is decoded twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vtok._files import atomic_output
from vtok.errors import InputError, OutputError
from vtok.training.sources import Source
from vtok.video.frames import Frames

VERSION = 1
"""Goes up when the same source would be decoded to other frames."""
OURS = re.compile(r"vtok-([0-9a-f]{24})(-[0-9]+)*\.(npy|json)")
"""Names of the files that may be removed; whatever else lies in the folder is left alone."""
HALF = re.compile(r"\.vtok-[0-9a-f]{16}\.part")
HALF_SECONDS = 600
"""A half file older than this is left from a process that was killed."""
HEADER_BYTES = 128
"""Bytes of a .npy file before its frames."""
NOTE_BYTES = 4096
"""More than any note holds."""


def source_key(source: Source) -> str:
    """Name a source by where it is, how large and how old; a file that is replaced is another.

    Returns:
        24 hexadecimal digits.

    Raises:
        InputError: the file is missing.
    """
    try:
        status = source.path.stat()
    except OSError as exc:
        raise InputError(f"{source.name}: cannot be opened ({exc.strerror})") from exc
    where = (VERSION, str(source.path.resolve()), source.member, source.kind)
    text = json.dumps((*where, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Cache:
    """Frames and notes by name, in a folder that several processes share.

    When it is full nothing more is stored and nothing is lost: what is not in it is decoded again.
    Sources are drawn at random, so dropping old frames for new ones would gain nothing.

    Args:
        folder: where the files are; made if it is missing.
        max_bytes: the most that they take.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes, self.full = folder, max_bytes, False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise OutputError(f"{folder}: cannot hold decoded frames ({exc.strerror})") from exc

    def frames(self, name: str) -> Frames | None:
        """Frames stored under a name, uint8 [T, H, W, 3], mapped and read-only; None without."""
        path = self.folder / f"{name}.npy"
        try:
            frames = np.lib.format.open_memmap(path, mode="r")  # refuses what is pickled
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, OverflowError):  # someone cut or replaced it
            frames = None
        if _are_frames(frames):
            return frames
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    def store(self, name: str, frames: Frames) -> None:
        """Keep frames, uint8 [T, H, W, 3], under a name, if there is space."""
        path = self.folder / f"{name}.npy"
        if self.full or path.exists():
            return
        try:
            with self._locked():
                self.full = self._used() + frames.nbytes + HEADER_BYTES > self.max_bytes
                if not self.full:
                    self._write(path, frames)
        except (OSError, OutputError):  # the disk takes no more, or the folder is gone
            self.full = True

    def note(self, name: str) -> Any:
        """What was noted under a name, as JSON holds it; None without."""
        try:
            with (self.folder / f"{name}.json").open("rb") as file:
                return json.loads(file.read(NOTE_BYTES))
        except (OSError, ValueError):
            return None

    def store_note(self, name: str, note: Any) -> None:
        """Keep a small note under a name; where it cannot be written there will be none."""
        path = self.folder / f"{name}.json"
        with suppress(OSError, OutputError), atomic_output(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(note))

    def tidy(self, sources: Sequence[Source]) -> None:
        """Remove what other sources left, half files of killed processes, and what is too much."""
        wanted = set()
        for source in sources:
            with suppress(InputError):
                wanted.add(source_key(source))
        with self._locked():
            for path in self.folder.iterdir():
                ours = OURS.fullmatch(path.name)
                if (ours and ours[1] not in wanted) or _is_left_half(path):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
            excess = self._used() - self.max_bytes
            for path in sorted(self.folder.glob("vtok-*.npy")):
                if excess <= 0:
                    break
                with suppress(OSError):
                    excess -= path.stat().st_size
                    path.unlink(missing_ok=True)

    def _write(self, path: Path, frames: Frames) -> None:
        """Write an array, whole or not at all."""
        with atomic_output(path, overwrite=True) as temporary, temporary.open("wb") as file:
            np.save(file, frames, allow_pickle=False)

    def _used(self) -> int:
        """Bytes of all stored frames."""
        total = 0
        for path in self.folder.glob("*.npy"):
            with suppress(OSError):
                total += path.stat().st_size
        return total

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep out other processes; the system lifts the lock of one that dies."""
        with (self.folder / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _are_frames(found: Any) -> bool:
    """Tell whether what a file held is uint8 [T, H, W, 3]."""
    is_array = isinstance(found, np.ndarray) and found.dtype == np.uint8
    return is_array and found.ndim == 4 and found.shape[3] == 3 and found.size > 0


def _is_left_half(path: Path) -> bool:
    """Tell whether a file is what a killed process left of a store."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return HALF.fullmatch(path.name) is not None and age > HALF_SECONDS
