"""Shell completion of file names, models and lists of names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

Complete = Callable[[str], list[str]]
_PLAIN = re.compile(r"[\w./+,@%-]*")


def files(suffixes: Iterable[str]) -> Complete:
    """Complete folders, and files with one of `suffixes`."""
    ends = tuple(suffixes)

    def complete(incomplete: str) -> list[str]:
        folder, begin = os.path.split(incomplete)
        found = _matching(folder, begin, ends)
        if not all(_PLAIN.fullmatch(name) for name in found):
            return []  # the shell's own completion quotes names
        # a second candidate keeps the shell from ending the word after a folder's name
        alone = len(found) == 1 and found[0].endswith(os.sep)
        return [*found, *complete(found[0])] if alone else found

    return complete


def one_of(*names: str) -> Complete:
    """Complete one of these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def some_of(*names: str) -> Complete:
    """Complete a comma-separated list of these names, each at most once."""

    def complete(incomplete: str) -> list[str]:
        before, comma, begin = incomplete.rpartition(",")
        left = [name for name in names if name not in before.split(",")]
        return [f"{before}{comma}{name}" for name in left if name.startswith(begin)]

    return complete


def models(incomplete: str) -> list[str]:
    """Complete the names of shipped models."""
    from vtok.models.checkpoint import list_models

    return one_of(*list_models())(incomplete)


def learners(incomplete: str) -> list[str]:
    """Complete token learners by name, and checkpoint files."""
    from vtok.nn.config import LEARNERS

    return [*one_of(*LEARNERS)(incomplete), *files([".safetensors"])(incomplete)]


def videos(incomplete: str) -> list[str]:
    """Complete video files."""
    from vtok.video.suffixes import VIDEO_SUFFIXES

    return files(VIDEO_SUFFIXES)(incomplete)


def training_data(incomplete: str) -> list[str]:
    """Complete videos, photos and tar shards."""
    from vtok.video.suffixes import PHOTO_SUFFIXES, VIDEO_SUFFIXES

    return files(VIDEO_SUFFIXES | PHOTO_SUFFIXES | {".tar"})(incomplete)


codes = files([".vtok", ".tokens.safetensors"])
dumps = files([".jsonl", ".txt", ".bin"])
devices = one_of("auto", "cpu", "cuda", "mps")
codecs = some_of("x264", "x265", "av1")
dtypes = one_of("auto", "float32", "bfloat16", "float16")


def _matching(folder: str, begin: str, ends: tuple[str, ...]) -> list[str]:
    """Sorted paths in a folder; sub-folders end in a separator, hidden files are left out."""
    found = []
    try:
        with os.scandir(folder or os.curdir) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".") and not begin.startswith(".")
                if hidden or not entry.name.startswith(begin):
                    continue
                path = os.path.join(folder, entry.name)  # noqa: PTH118 - as it was typed
                if entry.is_dir():
                    found.append(path + os.sep)
                elif entry.name.lower().endswith(ends):
                    found.append(path)
    except OSError:
        return []
    return sorted(found)
