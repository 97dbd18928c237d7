"""Weights from the Hugging Face Hub through `huggingface_hub`, with its cache and token."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vtok.errors import InputError, UsageError

PREFIX = "hf:"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_SPEC = re.compile(rf"hf:({_PART}/{_PART})(?:@({_PART}))?(?:/(.+))?")


@dataclass(frozen=True)
class HubFile:
    """Files of a repository.

    Attributes:
        repository: Such as `nvidia/Cosmos-0.1-Tokenizer-DV4x8x8`.
        revision: Branch, tag or commit; None for the newest.
        file: Path in the repository; None for the usual files of the family.
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
        usual: Names of the files of the family that every repository has, in one folder.

    Returns:
        The file; the folder if there are several.

    Raises:
        UsageError: `huggingface_hub` is missing, or the repository must be given with a file.
        InputError: There is no network, no such repository or file, or no access to it.
    """
    names = (wanted.file,) if wanted.file else usual
    if not names:
        repository = wanted.repository
        raise UsageError(f"hf:{repository}: name the file, as in hf:{repository}/FILE")
    paths = [_download(wanted, name) for name in names]
    return paths[0] if len(paths) == 1 else paths[0].parent


def _download(wanted: HubFile, name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as exc:
        raise UsageError(
            "hf: paths need the package huggingface_hub: pip install 'vtok[hf]'"
        ) from exc
    try:
        return Path(hf_hub_download(wanted.repository, name, revision=wanted.revision))
    except Exception as exc:  # its HTTP library raises other errors
        raise InputError(f"hf:{wanted.repository}/{name}: {_reason(exc)}") from exc


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
