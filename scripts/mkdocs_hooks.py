"""What the documentation site needs beyond mkdocs: links to files that it does not hold.

Pages are read in the repository as well, where they link to examples and code; the site shows the
names of those files without a link.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]\n]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """The page without links to files that are in the repository but not on the site.

    One that leads to no file stays, so that a strict build fails for it.
    """
    folder = Path(page.file.abs_src_path).parent

    def plain(match: re.Match[str]) -> str:
        text, target = match.groups()
        there = (folder / target.partition("#")[0]).exists()
        return f"`{text.strip('`')}`" if there else match.group(0)

    return OUTSIDE.sub(plain, markdown)
