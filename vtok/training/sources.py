"""Training data sources: videos and photos in folders, files, globs and tar shards."""

from __future__ import annotations

import glob
import hashlib
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

from vtok._files import is_junk
from vtok.errors import InputError
from vtok.video.suffixes import PHOTO_SUFFIXES, VIDEO_SUFFIXES

Kind = Literal["video", "photo"]

SHARD_SUFFIX = ".tar"
FAMILY_MARK = "__"  # after the name of a family in a file name, as in `opencv__fruits.jpg`
MAX_HELD_OUT = 8  # maximum number of videos held out for validation
MIN_VIDEOS, HOLD_OUT_ONE_IN = 20, 10


@dataclass(frozen=True)
class Source:
    """One video or photo."""

    name: str  # the path as it was found, or "shard.tar!member.mp4"
    path: Path  # the file, or the shard that contains it
    member: str | None  # name inside the shard; None for a separate file
    kind: Kind  # type according to the suffix

    @property
    def inner_name(self) -> str:
        """File name without the folder or shard that holds it."""
        return self.member or self.path.name


def find_sources(inputs: Sequence[str | Path]) -> tuple[Source, ...]:
    """Find every video and photo behind the arguments, each file once, sorted by name.

    Files in a folder are chosen by suffix; names that begin with a dot are ignored. Only the index
    of a shard is read: a damaged file is found when it is used.

    Args:
        inputs: folders (searched recursively), files, glob patterns, and tar shards.

    Raises:
        InputError: if an argument is missing, contains no video or photo, or is a shard that cannot
            be read at all.
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


def hold_out(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """Hold out videos for validation: one in ten, at most 8, where there are 20 or more.

    The choice depends on file names only, so that other runs on the same data make the same one.

    Returns:
        Sources for training, and sources for validation (none where there are too few).
    """
    videos = [source for source in sources if source.kind == "video"]
    if len(videos) < MIN_VIDEOS:
        return list(sources), []
    aside = sorted(videos, key=_shuffled)[: min(MAX_HELD_OUT, len(videos) // HOLD_OUT_ONE_IN)]
    return [source for source in sources if source not in aside], aside


def _shuffled(source: Source) -> bytes:
    return hashlib.sha256(source.inner_name.encode(errors="surrogateescape")).digest()


def chances(sources: Sequence[Source]) -> npt.NDArray[np.float64]:
    """Return the probability of each source: a family of n similar ones has weight n ** 0.5.

    A family shares a folder (or shard) and the part of its names before two underscores. So twenty
    clips of one studio do not outweigh everything else, and a single folder of unrelated clips is
    sampled evenly. The sources are of one kind; the sum is 1.
    """
    families = [_family(source) for source in sources]
    sizes = Counter(families)
    weights = np.array([sizes[family] ** -0.5 for family in families])
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


@contextmanager
def source_file(source: Source, scratch: Path) -> Iterator[Path]:
    """Give the file of a source; a member of a shard is unpacked into `scratch` meanwhile.

    `InputError` if the shard cannot be read, or the member is not in it.
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
    try:
        with tarfile.open(source.path, "r:") as shard, target.open("wb") as file:
            found = next((entry for entry in shard if entry.name == member), None)
            if found is None:
                raise InputError(f"{source.name}: no longer in its shard")
            # a sparse file, or a size beyond the shard's, could fill the disk from a few bytes
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
        # Path.glob refuses absolute patterns
        for match in sorted(glob.glob(text, recursive=True)):  # noqa: PTH207
            yield from _from_files([Path(match)])


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(map(is_junk, path.relative_to(folder).parts))


def _from_files(paths: Iterable[Path]) -> Iterator[Source]:
    for path in paths:
        if path.suffix.lower() == SHARD_SUFFIX and path.is_file():
            yield from _from_shard(path)
        elif (kind := _kind_of(path.name)) is not None and path.is_file():
            yield Source(str(path), path, None, kind)


def _from_shard(path: Path) -> Iterator[Source]:
    """The videos and photos in a tar file; of a truncated one, those before the end."""
    listed = False
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                listed = True
                inside = PurePosixPath(member.name)
                hidden = is_junk(inside.name) or "__MACOSX" in inside.parts
                if member.isreg() and not hidden and (kind := _kind_of(member.name)) is not None:
                    yield Source(f"{path}!{member.name}", path, member.name, kind)
    except (tarfile.TarError, OSError, EOFError, ValueError) as exc:
        if not listed:
            raise InputError(f"{path}: not a readable tar file ({exc})") from exc


def _kind_of(name: str) -> Kind | None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "photo" if suffix in PHOTO_SUFFIXES else None


def _family(source: Source) -> tuple[str, str]:
    inside = PurePosixPath(source.inner_name)
    folder = str(source.path.parent) if source.member is None else f"{source.path}!{inside.parent}"
    prefix, mark, _ = inside.name.partition(FAMILY_MARK)
    return folder, prefix if mark else ""


def _known_suffixes() -> str:
    return (
        f"known suffixes: {' '.join(sorted(VIDEO_SUFFIXES))} and {' '.join(sorted(PHOTO_SUFFIXES))}"
    )
