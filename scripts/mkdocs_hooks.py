"""Hooks for mkdocs: links to files of the repository that are not on the site become names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]\n]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Replace links to existing files outside docs/ by the names of the files.

    Broken links are kept, so that a strict build reports them.
    """
    folder = Path(page.file.abs_src_path).parent

    def plain(match: re.Match[str]) -> str:
        text, target = match.groups()
        there = (folder / target.partition("#")[0]).exists()
        return f"`{text.strip('`')}`" if there else match.group(0)

    return OUTSIDE.sub(plain, markdown)
