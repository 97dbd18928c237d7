"""What to train on: the videos and photos in folders, files, globs and tar shards."""

from __future__ import annotations

import glob
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt

from vtok.errors import InputError
from vtok.video.frames import PHOTO_SUFFIXES, VIDEO_SUFFIXES

Kind = Literal["video", "photo"]

SHARD_SUFFIX = ".tar"
FAMILY_MARK = "__"
"""What ends the name of a family in the name of a file, as in `opencv__fruits.jpg`."""


@dataclass(frozen=True)
class Source:
    """One video or photo.

    Attributes:
        name: unique: its path as it was found, or "shard.tar!member.mp4".
        path: the file, or the shard that it is in.
        member: its name inside the shard; None for a file of its own.
        kind: what its suffix says it is.
    """

    name: str
    path: Path
    member: str | None
    kind: Kind


def find_sources(inputs: Sequence[str | Path]) -> tuple[Source, ...]:
    """Every video and photo behind the arguments, each file once, sorted by name.

    What lies in a folder counts by its suffix; names that begin with a dot do not count. Nothing
    but the index of a shard is read: whether a file is whole shows when it is used.

    Args:
        inputs: folders (searched through), files, glob patterns, and tar shards of them.

    Raises:
        InputError: an argument is missing, or names nothing that is a video or photo by its
            suffix, or is a shard of which nothing can be read.
    """
    if not inputs:
        raise InputError("nothing to train on: give folders, files or tar shards")
    found: dict[tuple[str, str | None], Source] = {}
    for text in map(str, inputs):
        sources = list(_expand(text))
        if not sources:
            raise InputError(f"{text}: no video or photo in it ({_known_suffixes()})")
        for source in sources:
            found.setdefault((os.path.realpath(source.path), source.member), source)
    return tuple(sorted(found.values(), key=lambda source: source.name))


def chances(sources: Sequence[Source]) -> npt.NDArray[np.float64]:
    """How likely each source is to be drawn: a family of n alike ones counts as n ** 0.5.

    A family is what shares a folder (or shard) and the part of its name before two underscores.
    Twenty clips of one studio then do not outweigh everything else, and a single folder of
    unrelated clips is drawn from evenly.

    Args:
        sources: of one kind; at least one.

    Returns:
        float64 [len(sources)], positive, with the sum 1.
    """
    families = [_family(source) for source in sources]
    sizes = Counter(families)
    weights = np.array([sizes[family] ** -0.5 for family in families])
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


@contextmanager
def source_file(source: Source, scratch: Path) -> Iterator[Path]:
    """The file of a source; a member of a shard is unpacked for as long as it is used.

    Args:
        source: which.
        scratch: folder to unpack into.

    Yields:
        A path to read from.

    Raises:
        InputError: the shard cannot be read, or the member is not in it.
    """
    if source.member is None:
        yield source.path
        return
    unpacked = scratch / f"member-{os.getpid()}{PurePosixPath(source.member).suffix}"
    try:
        _unpack(source, source.member, unpacked)
        yield unpacked
    finally:
        unpacked.unlink(missing_ok=True)


def _unpack(source: Source, member: str, target: Path) -> None:
    """Write a member of a shard to a file."""
    try:
        with tarfile.open(source.path, "r:") as shard, target.open("wb") as file:
            found = next((entry for entry in shard if entry.name == member), None)
            if found is None:
                raise InputError(f"{source.name}: no longer in its shard")
            # a sparse file, or one larger than its shard, is a few bytes that fill the disk
            if found.issparse() or found.size > source.path.stat().st_size:
                raise InputError(f"{source.name}: not stored as a whole file")
            content = shard.extractfile(found)
            if content is None:
                raise InputError(f"{source.name}: no longer a file in its shard")
            shutil.copyfileobj(content, file)
    except (tarfile.TarError, OSError, EOFError, ValueError) as exc:
        raise InputError(f"{source.name}: cannot be unpacked ({exc})") from exc


def _expand(text: str) -> Iterator[Source]:
    """The sources behind one argument."""
    path = Path(text)
    if path.is_dir():
        yield from _from_files(p for p in sorted(path.rglob("*")) if not _is_hidden(p, path))
    elif path.exists() or not glob.has_magic(text):
        if not path.exists():
            raise InputError(f"{text}: no such file or folder")
        yield from _from_files([path])
    else:
        # the function, not Path.glob: that one takes no absolute pattern
        for match in sorted(glob.glob(text, recursive=True)):  # noqa: PTH207
            yield from _from_files([Path(match)])


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _from_files(paths: Iterable[Path]) -> Iterator[Source]:
    """The sources in files; of other files there are none."""
    for path in paths:
        if path.suffix.lower() == SHARD_SUFFIX and path.is_file():
            yield from _from_shard(path)
        elif (kind := kind_of(path.name)) is not None and path.is_file():
            yield Source(str(path), path, None, kind)


def _from_shard(path: Path) -> Iterator[Source]:
    """The videos and photos in a tar file; of one that is cut, those before the cut."""
    listed = False
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                listed = True
                hidden = PurePosixPath(member.name).name.startswith(".")
                if member.isreg() and not hidden and (kind := kind_of(member.name)) is not None:
                    yield Source(f"{path}!{member.name}", path, member.name, kind)
    except (tarfile.TarError, OSError, EOFError, ValueError) as exc:
        if not listed:
            raise InputError(f"{path}: not a tar file that can be read ({exc})") from exc


def kind_of(name: str) -> Kind | None:
    """Tell by its suffix whether a file is a video or a photo; None where it is neither."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "photo" if suffix in PHOTO_SUFFIXES else None


def _family(source: Source) -> tuple[str, str]:
    """Folder or shard, and beginning of the name, of a source."""
    inside = PurePosixPath(source.member or source.path.name)
    folder = str(source.path.parent) if source.member is None else f"{source.path}!{inside.parent}"
    prefix, mark, _ = inside.name.partition(FAMILY_MARK)
    return folder, prefix if mark else ""


def _known_suffixes() -> str:
    return f"{' '.join(sorted(VIDEO_SUFFIXES))} and {' '.join(sorted(PHOTO_SUFFIXES))} count"
