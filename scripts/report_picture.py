#!/usr/bin/env python
"""Make docs/report.jpg: the head of a page of `vtok report`, as Chromium shows it.

vtok report examples/bee.mp4 --size 256 --frames 61 -o bee.html
scripts/report_picture.py bee.html
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import open_browser  # noqa: E402 - the tests' own

WIDTH, HEIGHT, QUALITY = 1240, 1330, 82


def main() -> None:
    """Open the page, choose what to show, and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="made by vtok report")
    parser.add_argument("--view", default="view=pair&bits=18&frame=20", help="what to show")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "report.jpg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_browser(Path(folder)) as browser:
        browser.resize(WIDTH, HEIGHT)
        browser.open(arguments.page.resolve(), arguments.view)
        Image.fromarray(browser.screenshot()).save(arguments.output, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
