"""Names of videos and pictures: suffixes by which folders are searched, patterns and globs."""

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
_NUMBER = re.compile(r"%(0?)(\d?)d")


def is_pattern(path: Path) -> bool:
    """Return True for a name such as `frame_%04d.png`, or a glob, that is no existing file."""
    has_number = len(_NUMBER.findall(path.name)) == 1
    return (has_number or glob.has_magic(str(path))) and not os.path.exists(path)  # noqa: PTH110 - exists() raises for long names


def list_pictures(path: Path) -> list[Path]:
    """List the pictures of a folder, a pattern or a glob; numbers in names count as numbers.

    Raises:
        InputError: There is none, or a number of a pattern is missing.
    """
    if path.is_dir():
        files = [one for one in path.iterdir() if one.suffix.lower() in PHOTO_SUFFIXES]
    elif match := _NUMBER.search(path.name):
        return _numbered(path, match)
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


def _numbered(path: Path, match: re.Match[str]) -> list[Path]:
    """List the files of a pattern with a number, which must follow each other."""
    start, end = (
        re.escape(text) for text in (path.name[: match.start()], path.name[match.end() :])
    )
    digits = rf"\d{{{match[2]},}}" if match[1] and match[2] else r"\d+"
    name = re.compile(f"{start}({digits}){end}")
    names = (one.name for one in path.parent.iterdir()) if path.parent.is_dir() else iter(())
    found = {int(hit[1]): hit[0] for text in names if (hit := name.fullmatch(text))}
    if not found:
        raise InputError(f"{path}: no file matches this pattern")
    numbers = sorted(found)
    gap = next((one for one in range(numbers[0], numbers[-1]) if one not in found), None)
    if gap is not None:
        missing = path.name.replace(match[0], match[0] % gap)
        raise InputError(f"{path}: {missing} is missing between {numbers[0]} and {numbers[-1]}")
    return [path.parent / found[number] for number in numbers]
