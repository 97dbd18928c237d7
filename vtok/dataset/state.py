"""Whether a clip that was encoded before would become the same again."""

from __future__ import annotations

from pathlib import Path

from vtok.dataset.entry import Entry
from vtok.dataset.fetch import digest, fetched, signature
from vtok.dataset.work import Record
from vtok.errors import VtokError


def current_signature(entry: Entry, record: Record, recipe: str, scratch: Path) -> str | None:
    """The signature of a clip's source, if its codes are what they would become now; else None.

    The bytes are read only where size or time of change say that they may be others. A source
    that is gone cannot become anything else: its codes stay.

    Args:
        entry: the clip as it is now.
        record: what the journal says of it.
        recipe: digest of how codes are made now.
        scratch: folder for what is fetched or unpacked.
    """
    known = str(record.get("signature"))
    part = (record.get("start"), record.get("end"))
    if record.get("recipe") != recipe or part != (entry.start, entry.end):
        return None
    try:
        found = signature(entry)
        if found == known:
            return found
        with fetched(entry, scratch) as path:
            return found if digest(entry, path) == record.get("digest") else None
    except VtokError:
        return known
