#!/usr/bin/env python
"""Put the output of a script into a page, between `<!-- begin NAME -->` and `<!-- end NAME -->`.

scripts/roofline.py | scripts/fill_page.py docs/benchmarks.md roofline
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path


def filled(page: str, name: str, text: str) -> str:
    """Return the page with `text` between the markers of `name`.

    Raises:
        SystemExit: The page has no such markers, or the text is empty.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not marked.search(page):
        raise SystemExit(f"no {begin} ... {end} in the page")
    if not text.strip():
        raise SystemExit("standard input is empty: the page is unchanged")
    return marked.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", page)


def main() -> None:
    """Rewrite a page with the text of standard input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    args.page.write_text(filled(args.page.read_text(), args.name, sys.stdin.read()))


if __name__ == "__main__":
    main()
