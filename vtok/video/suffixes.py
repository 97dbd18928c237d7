"""Names of videos and pictures: suffixes, formats of outputs, patterns and globs."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from vtok._files import is_junk
from vtok.errors import InputError

_VIDEO = """
mp4 m4v mov qt mkv mk3d webm avi divx ts mts m2ts m2t mpg mpeg mpe m1v m2v mpv vob wmv asf flv f4v
ogv ogm 3gp 3g2 mxf rm rmvb dv nut ivf y4m obu h264 264 avc h265 265 hevc mjpeg mjpg gif apng
"""
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO.split())
PHOTO_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"])
OUTPUT_FORMATS = ("mp4", "mkv", "mov", "webm", "gif", "y4m", "npy", "png")
PICTURE_NAMES = "%06d.png"
"""Pattern of the names of pictures in a folder."""
_NUMBER = re.compile(r"%(0?)(\d?)d")


def has_number(path: Path) -> bool:
    """Return True for a name of numbered files, such as `frame_%04d.png`."""
    return len(_NUMBER.findall(path.name)) == 1


def with_number(pattern: Path, number: int) -> Path:
    """Return the file of a pattern with a number."""
    return pattern.with_name(_NUMBER.sub(lambda match: match[0] % number, pattern.name))


def find_numbered(pattern: Path) -> dict[int, Path]:
    """Find the files of a pattern by their numbers, sorted."""
    match = _NUMBER.search(pattern.name)
    assert match is not None
    start, end = re.escape(pattern.name[: match.start()]), re.escape(pattern.name[match.end() :])
    digits = rf"\d{{{match[2]},}}" if match[1] and match[2] else r"\d+"
    name = re.compile(f"{start}({digits}){end}")
    names = (one.name for one in pattern.parent.iterdir()) if pattern.parent.is_dir() else ()
    found = {
        int(hit[1]): pattern.with_name(text) for text in names if (hit := name.fullmatch(text))
    }
    return dict(sorted(found.items()))


def is_pattern(path: Path) -> bool:
    """Return True for a pattern with a number or a glob, unless a file has that name."""
    return (has_number(path) or glob.has_magic(str(path))) and not os.path.exists(path)  # noqa: PTH110 - exists() raises for long names


def list_pictures(path: Path) -> list[Path]:
    """List the pictures of a folder, a pattern or a glob; numbers in names count as numbers.

    Raises:
        InputError: There is none, or a number of a pattern is missing.
    """
    if path.is_dir():
        files = [one for one in path.iterdir() if one.suffix.lower() in PHOTO_SUFFIXES]
    elif has_number(path):
        return _without_gap(path)
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207
    files = [one for one in files if not is_junk(one.name) and one.is_file()]
    if not files and path.is_dir():
        raise InputError(f"{path}: is a folder, not a video file, and no picture is in it")
    if not files:
        raise InputError(f"{path}: no file matches")
    return sorted(files, key=_natural_key)


def _natural_key(path: Path) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _without_gap(pattern: Path) -> list[Path]:
    """List the files of a pattern, whose numbers must follow each other."""
    found = find_numbered(pattern)
    if not found:
        raise InputError(f"{pattern}: no file matches this pattern")
    first, last = min(found), max(found)
    gap = next((number for number in range(first, last) if number not in found), None)
    if gap is not None:
        missing = with_number(pattern, gap).name
        raise InputError(f"{pattern}: {missing} is missing between {first} and {last}")
    return list(found.values())
