#!/usr/bin/env python
"""Put what a script prints into a page, between `<!-- begin NAME -->` and `<!-- end NAME -->`.

scripts/roofline.py | scripts/fill_page.py docs/benchmarks.md roofline
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path


def filled(page: str, name: str, text: str) -> str:
    """The page with `text` between the marks of `name`.

    Raises:
        SystemExit: if the marks are not there, or there is nothing to put in.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not marked.search(page):
        raise SystemExit(f"no {begin} ... {end} in the page")
    if not text.strip():
        raise SystemExit("nothing came in: the page stays as it was")
    return marked.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", page)


def main() -> None:
    """Read standard input, rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    args.page.write_text(filled(args.page.read_text(), args.name, sys.stdin.read()))


if __name__ == "__main__":
    main()
