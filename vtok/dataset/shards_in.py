"""Clips inside tar shards as webdataset keeps them: files of one key belong together."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from vtok.dataset.entry import Entry, Fault, Member, valid_text
from vtok.dataset.urls import is_url, open_url
from vtok.errors import InputError
from vtok.media.kinds import VIDEO_SUFFIXES

SHARD_SUFFIX = ".tar"
TEXT_SUFFIXES = (".txt", ".cls", ".text", ".caption")
MAX_COMPANION = 1 << 16  # bytes of a file whose content is carried along


def read_shard(name: str) -> Iterator[Entry | Fault]:
    """The videos in a shard, with the JSON and the text of the same key as columns.

    An id is the name of the shard and the key. Of a shard that is cut, those before the cut.

    Args:
        name: path or URL of the shard.

    Raises:
        InputError: it is no tar file.
    """
    stem = PurePosixPath(name).stem
    count = 0
    try:
        with (
            open_url(name) if is_url(name) else Path(name).open("rb") as file,
            tarfile.open(fileobj=file, mode="r:") as shard,
        ):
            for group in _groups(shard):
                count += 1
                yield from _to_entries(shard, group, name, stem)
    except (tarfile.TarError, OSError, EOFError, ValueError) as exc:
        reason = " ".join(str(exc).split())[:100]
        if not count:
            raise InputError(f"{name}: not a tar file that can be read ({reason})") from exc
        yield Fault(stem, name, f"{name}: damaged after {count} samples ({reason})", name)


def copy_member(file: BinaryIO, member: Member, out: BinaryIO) -> None:
    """Copy the bytes of a member.

    Args:
        file: the shard.
        member: where in it.
        out: where to.

    Raises:
        InputError: the shard ends before.
    """
    file.seek(member.offset)
    left = member.size
    while left:
        data = file.read(min(left, 1 << 20))
        if not data:
            raise InputError(f"{member.name}: its shard is cut")
        out.write(data)
        left -= len(data)


def _groups(shard: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """Files that lie side by side and have the same name up to the first dot."""
    group: list[tarfile.TarInfo] = []
    while (info := shard.next()) is not None:
        shard.members = []  # type: ignore[attr-defined]  # which tarfile would keep for ever
        if not info.isfile() or PurePosixPath(info.name).name.startswith("."):
            continue
        if group and _key(info.name) != _key(group[0].name):
            yield group
            group = []
        group.append(info)
    if group:
        yield group


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _to_entries(
    shard: tarfile.TarFile, group: list[tarfile.TarInfo], name: str, stem: str
) -> Iterator[Entry | Fault]:
    videos = [info for info in group if PurePosixPath(info.name).suffix.lower() in VIDEO_SUFFIXES]
    columns: dict[str, Any] = {}
    for info in group if videos else ():
        columns |= _companion(shard, info)
    for info in videos:
        suffix = PurePosixPath(info.name).suffix if len(videos) > 1 else ""
        id_ = valid_text(f"{stem}/{_key(info.name)}{suffix}")
        if info.issparse():  # a few bytes that would fill the disk
            yield Fault(
                id_, f"{name}!{info.name}", f"{name}!{info.name}: not stored as it is", name
            )
            continue
        yield Entry(id_, name, Member(info.name, info.offset_data, info.size), columns=columns)


def _companion(shard: tarfile.TarFile, info: tarfile.TarInfo) -> dict[str, Any]:
    """What a small file beside a video says of it."""
    suffix = PurePosixPath(info.name).suffix.lower()
    if suffix not in (".json", *TEXT_SUFFIXES) or info.size > MAX_COMPANION or info.issparse():
        return {}
    content = shard.extractfile(info)
    text = valid_text(content.read().decode(errors="surrogateescape")) if content else ""
    if suffix != ".json":
        return {suffix[1:]: text}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {"json": found}
