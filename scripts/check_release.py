#!/usr/bin/env python
"""Check that a release tag, `vtok.__version__` and the newest version in CHANGELOG.md agree.

usage: scripts/check_release.py TAG     for example v0.2.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADING = re.compile(r"^## (\d+\.\d+\.\d+\S*)(.*)$", re.MULTILINE)


def released_versions(changelog: str) -> list[str]:
    """Return the versions that have a section, except those marked as unreleased, newest first."""
    return [version for version, rest in HEADING.findall(changelog) if "unreleased" not in rest]


def package_version() -> str:
    """Return `vtok.__version__` without importing the package or its dependencies."""
    text = (ROOT / "vtok" / "__init__.py").read_text()
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if match is None:
        raise SystemExit("error: vtok/__init__.py: no __version__")
    return match[1]


def check(tag: str, version: str, changelog: str) -> str | None:
    """Return an error message, or None if all three agree."""
    if tag != f"v{version}":
        return f"the tag is {tag}, but vtok.__version__ is {version}: expected the tag v{version}"
    newest = next(iter(released_versions(changelog)), "missing")
    if newest != version:
        return f"the newest version in CHANGELOG.md is {newest}: expected {version}"
    return None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    error = check(sys.argv[1], package_version(), (ROOT / "CHANGELOG.md").read_text())
    if error:
        raise SystemExit(f"error: {error}")
