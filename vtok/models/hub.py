"""Weights from the Hugging Face Hub through `huggingface_hub`, with its cache and token."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vtok.errors import CheckpointError, InputError, UsageError

PREFIX = "hf:"
MAX_INDEX_BYTES, MAX_SHARDS = 1 << 24, 200
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_SHARD = re.compile(rf"{_PART}\.safetensors")
_SPEC = re.compile(rf"hf:({_PART}/{_PART})(?:@({_PART}))?(?:/(.+))?")


@dataclass(frozen=True)
class HubFile:
    """File or files of a repository.

    Attributes:
        repository: Such as `nvidia/Cosmos-0.1-Tokenizer-DV4x8x8`.
        revision: Branch, tag or commit; None for the newest.
        file: Path in the repository, of a file or a folder; None for the usual files of the family.
    """

    repository: str
    revision: str | None
    file: str | None


def parse(text: str) -> HubFile:
    """Parse `hf:ORG/REPO[@REVISION][/FILE]`.

    Raises:
        UsageError: The text is of another form.
    """
    match = _SPEC.fullmatch(text)
    if match is None or ".." in (match[3] or "").split("/"):
        raise UsageError(f"{text[:200]}: expected hf:ORG/REPO[@REVISION][/FILE]")
    return HubFile(match[1], match[2], match[3])


def download(wanted: HubFile, usual: tuple[str, ...]) -> Path:
    """Download files to the cache of `huggingface_hub`, unless they are there already.

    Args:
        wanted: The repository, and the file if it names one.
        usual: Names of the files of the family that every repository has, in one folder. They are
            looked for in the folder that `wanted` names, and also at the top of the repository.

    Returns:
        The file; the folder if there are several, such as the shards of a safetensors file.

    Raises:
        UsageError: `huggingface_hub` is missing, or the repository must be given with a file.
        InputError: There is no network, no such repository or file, or no access to it.
    """
    if not (usual or wanted.file):
        repository = wanted.repository
        raise UsageError(f"hf:{repository}: name the file, as in hf:{repository}/FILE")
    plain = tuple(PurePosixPath(name).name for name in usual)
    choices: list[tuple[str, ...]] = [(wanted.file or "",)]
    if wanted.file is None or wanted.file in usual:
        choices = [usual, plain]
    elif usual and not PurePosixPath(wanted.file).suffix:
        choices = [tuple(f"{wanted.file}/{name}" for name in plain)]
    paths = _in_turn(_download_all, [(wanted, names) for names in dict.fromkeys(choices)])
    return paths[0] if len(paths) == 1 else paths[0].parent


def _in_turn(function: Callable[..., list[Path]], choices: Sequence[Any]) -> list[Path]:
    """Call a function with the first arguments that work; raises the error of the first."""
    try:
        return function(*choices[0])
    except InputError:
        for arguments in choices[1:]:
            with suppress(InputError):
                return function(*arguments)
        raise


def _download_all(wanted: HubFile, names: Sequence[str]) -> list[Path]:
    """Download files; a safetensors file that is missing may be stored as shards with an index."""
    paths: list[Path] = []
    for name in names:
        choices = [(wanted, name)]
        if name.endswith(".safetensors"):
            choices.append((wanted, f"{name}.index.json"))
        paths += _in_turn(_download_whole, choices)
    return paths


def _download_whole(wanted: HubFile, name: str) -> list[Path]:
    """Download a file, and the shards that it lists if it is an index."""
    path = _download(wanted, name)
    shards = _shards_of(path) if name.endswith(".index.json") else []
    return [path, *(_download(wanted, str(PurePosixPath(name).with_name(n))) for n in shards)]


def _shards_of(index: Path) -> list[str]:
    """Read the names of the shards in the index of a safetensors file."""
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if len(names) > MAX_SHARDS or not all(map(_SHARD.fullmatch, names)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise CheckpointError(f"{index}: not an index of the shards of a safetensors file") from exc
    return names


def _download(wanted: HubFile, name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as exc:
        raise UsageError(
            "hf: paths need the package huggingface_hub: pip install 'vtok[hf]'"
        ) from exc
    log = logging.getLogger("huggingface_hub.utils._http")
    log.addFilter(_no_record)  # it reports each of its attempts
    try:
        return Path(hf_hub_download(wanted.repository, name, revision=wanted.revision))
    except Exception as exc:  # its HTTP library raises other errors
        raise InputError(f"hf:{wanted.repository}/{name}: {_reason(exc)}") from exc
    finally:
        log.removeFilter(_no_record)


def _no_record(record: logging.LogRecord) -> bool:
    return False


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            "access must be granted first: accept the terms on the repository's page, then run "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "no such repository, or a private one: check the spelling, or run `hf auth login` or "
            "set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision: leave @REVISION out for the newest"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return (
            "not in the local cache, and there is no network (or HF_HUB_OFFLINE is set): connect, "
            "or download the file elsewhere and pass its path"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return "no such file in the repository: look at its list of files"
    text = " ".join(f"{type(error).__name__}: {error}".split())[:150]
    return f"cannot be downloaded ({text}): try again, or download the file and pass its path"
