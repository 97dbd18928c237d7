"""What a command's exit code can be, as its help says at the end."""

from __future__ import annotations

ALL = """
Exit codes: 0 all done, 1 nothing could be done, 2 wrong usage, 3 some inputs failed, 4 damaged
or incompatible code file or checkpoint, 5 missing or unreadable input, 130 interrupted,
143 terminated.
"""
"""Of commands that take several inputs, each of which fails alone, and of vtok as a whole."""

WHOLE = ALL.replace("3 some inputs failed, ", "")
"""Of commands that do one thing, or nothing."""
